"""Batches on their way to a device: handed out complete, and copied from memory that stays as it is until then."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from viv1t.data.reading import handover
from viv1t.data.reading.handover import Handover
from viv1t.types import Batch

CUDA = torch.device("cuda")


class Stream:
    """A stream whose work waits until somebody needs it done, as on the slowest of GPUs."""

    def __init__(self, *_: object) -> None:
        self.work: list[Callable[[], None]] = []

    def wait_event(self, event: Event) -> None:
        self.work.append(event.synchronize)

    def synchronize(self) -> None:
        while self.work:
            self.work.pop(0)()


class Event:
    def record(self, stream: Stream) -> None:
        self.stream, self.passed = stream, False
        stream.work.append(self._pass)

    def _pass(self) -> None:
        self.passed = True

    def synchronize(self) -> None:
        while not self.passed:
            self.stream.work.pop(0)()


class Cuda:
    """What `Handover` uses of `torch.cuda`."""

    Event, Stream = Event, Stream

    def __init__(self) -> None:
        self.default = Stream()
        self.current = [self.default]

    def current_stream(self, _: object) -> Stream:
        return self.current[-1]

    @contextlib.contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        self.current.append(stream)
        yield
        self.current.pop()


class Slot:
    """Host memory that is written over as soon as nobody holds it."""

    def __init__(self, value: float) -> None:
        self.memory = [value]
        weakref.finalize(self, self.memory.__setitem__, 0, float("nan"))


class Tensor(torch.Tensor):
    """A tensor on the device; notes the streams that its memory waits for."""

    def record_stream(self, stream: Any) -> None:
        self.streams = [*getattr(self, "streams", []), stream]


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    fake = Cuda()
    monkeypatch.setattr(handover, "cuda", fake)
    return fake


def slots(count: int, made: list[int] | None = None) -> Iterator[Slot]:
    for i in range(count):
        if made is not None:
            made.append(i)
        yield Slot(float(i))


def mover(cuda: Cuda) -> Callable[[Slot], Batch]:
    def move(slot: Slot) -> Batch:
        tensors = [torch.full((1,), -1.0).as_subclass(Tensor) for _ in range(4)]
        memory = slot.memory  # the copy knows an address, and keeps nothing alive
        cuda.current[-1].work.append(lambda: [tensor.fill_(memory[0]) for tensor in tensors] and None)
        return Batch("A", (0,), *tensors, frames=torch.ones(1, dtype=torch.int64))

    return move


def test_batches_are_complete_for_the_stream_that_uses_them(cuda: Cuda) -> None:
    seen: list[float] = []
    for batch in Handover(CUDA)(slots(7), mover(cuda)):
        cuda.default.work.append(lambda batch=batch: seen.append(batch.video.item()))  # type: ignore[misc]
    cuda.default.synchronize()
    assert seen == [float(i) for i in range(7)]


def test_memory_waits_for_the_stream_that_uses_it(cuda: Cuda) -> None:
    for batch in Handover(CUDA)(slots(3), mover(cuda)):
        for tensor in (batch.video, batch.response, batch.behavior, batch.pupil_center):
            assert tensor.streams == [cuda.default]  # type: ignore[attr-defined]


def test_copies_run_beside_the_computation_one_batch_ahead(cuda: Cuda) -> None:
    made: list[int] = []
    for i, batch in enumerate(Handover(CUDA)(slots(5, made), mover(cuda))):
        assert made == list(range(min(i + 2, 5)))
        assert batch.video.item() == -1  # nobody has waited for the copy
        assert len(cuda.default.work) == 1  # the next is not in the way of what the batch is used for
        cuda.default.synchronize()
        assert batch.video.item() == i


@pytest.mark.parametrize("taken", [0, 1, 3])
def test_stopping_waits_for_the_copies_under_way(cuda: Cuda, taken: int) -> None:
    batches = Handover(CUDA)(slots(5), mover(cuda))
    kept = [next(batches) for _ in range(taken)]
    batches.close()
    assert [batch.video.item() for batch in kept] == [float(i) for i in range(taken)]


def test_an_error_waits_for_the_copies_under_way(cuda: Cuda) -> None:
    made: list[Batch] = []

    def failing() -> Iterator[Slot]:
        yield from slots(2)
        raise OSError("damaged")

    def move(slot: Slot) -> Batch:
        made.append(mover(cuda)(slot))
        return made[-1]

    with pytest.raises(OSError, match="damaged"):
        list(Handover(CUDA)(failing(), move))
    assert [batch.video.item() for batch in made] == [0.0, 1.0]


def test_without_a_gpu_batches_pass_through() -> None:
    made: list[int] = []
    for i, batch in enumerate(Handover(torch.device("cpu"))(slots(3, made), lambda slot: slot)):  # type: ignore
        assert batch.memory == [i]  # type: ignore[attr-defined]
        assert made == list(range(i + 1))
