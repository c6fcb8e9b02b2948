"""Batches read and transformed ahead in C++ threads, straight into the memory they are handed out in."""

from __future__ import annotations

import logging
import os
import weakref
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from math import prod

import numpy as np
import torch

from viv1t import _prefetcher
from viv1t._prefetcher import Element
from viv1t.data.reading.device import MovieTransform
from viv1t.data.reading.handover import Handover
from viv1t.data.reading.reader import Batches, BatchPlan, PlainReader
from viv1t.data.session import VARIABLES, Session
from viv1t.data.transform import Affine, Transform
from viv1t.types import Batch

logger = logging.getLogger("viv1t")

_TYPES = {Element.f32: torch.float32, Element.bf16: torch.bfloat16, Element.u8: torch.uint8}
_LINE = 64  # bytes of a cache line, where each variable begins


class Prefetcher:
    """Reads as `PlainReader` does, with the same batches bit for bit, several times faster.

    What the C++ side cannot read is read, or refused with a reason, the plain way; where movies are video files or
    trials computed, and where responses are not wanted, by threads, ahead as well. Values are checked to be finite in
    the frames that are read, not in the whole trial. Responses keep the order in which a recording holds them: those of
    a packed one, time outside of neurons, are handed out as a transposed view. A batch's memory is used again once none
    of its tensors is left, and, for a GPU, pinned.

    Args:
        sessions: where trials lie.
        transforms: what is done to them.
        workers: threads, at least 1.
        device: where batches are handed out.
        compact: bring responses to the device rounded to bf16 (nearest, ties to even), and grey levels as uint8 where
            they are whole numbers, transformed on the device: movies are the same, responses have 8 bits.
    """

    def __init__(
        self,
        sessions: dict[str, Session],
        transforms: dict[str, Transform],
        workers: int,
        device: torch.device | None = None,
        compact: bool = False,
    ) -> None:
        self._sessions = sessions
        self._transforms = transforms
        self._workers = workers
        self._device = device or torch.device("cpu")
        self._compact = compact
        self._slots = 2 * workers + 3
        # Movies are cropped around their centre on the device.
        self._plain = PlainReader(sessions, {mouse: t.without_center_crop() for mouse, t in transforms.items()})
        self._warned = False
        self._tables: dict[str, dict[str, _Table]] = {}
        self._movies = {mouse: MovieTransform(t, self._device) for mouse, t in transforms.items()}
        self._memory = _Memory(self._slots, pinned=self._device.type == "cuda")
        self._handover = Handover(self._device)

    def read(self, plans: Iterable[BatchPlan]) -> Batches:
        """Batches on the device, in the order of their plans; an error in a trial surfaces at its batch.

        Raises:
            DataError: a trial is missing or damaged.
        """
        with closing(self._read(plans)) as hosts:
            yield from self._handover(hosts, self._finish)

    def close(self) -> None:
        """Gives back the memory that is kept to be used again."""
        self._memory.clear()

    def _read(self, plans: Iterable[BatchPlan]) -> Generator[tuple[BatchPlan, Batch], None, None]:
        """Batches in host memory, with what `_finish` does left to be done."""
        engine = _prefetcher.Prefetcher(self._workers, self._slots)
        decoders = ThreadPoolExecutor(self._workers, thread_name_prefix="viv1t-reader")
        ahead: deque[tuple[BatchPlan, Batch | Future[Batch] | None]] = deque()
        waiting = 0
        try:
            for plan in plans:
                if self._sessions[plan.mouse_id].computed or not plan.responses:
                    ahead.append((plan, decoders.submit(self._read_plainly, plan)))
                else:
                    ahead.append((plan, self._submit(engine, plan)))
                waiting += len(plan.samples)
                # Enough to keep every thread busy while one batch is used, and no more.
                while len(ahead) > 2 and waiting - len(ahead[0][0].samples) >= 2 * self._workers:
                    waiting -= len(ahead[0][0].samples)
                    yield self._take(engine, *ahead.popleft())
            while ahead:
                yield self._take(engine, *ahead.popleft())
        finally:
            decoders.shutdown(cancel_futures=True)
            engine.close()

    def _finish(self, read: tuple[BatchPlan, Batch]) -> Batch:
        """Brings a batch to the device, and its movies and responses to float32 as the model takes them."""
        plan, host = read
        batch, transform = host.to(self._device), self._movies[plan.mouse_id]
        video = batch.video
        if video.dtype == torch.uint8:
            video = torch.zeros(video.shape, device=self._device)
            for out, raw, sample in zip(video[:, 0], batch.video[:, 0], plan.samples, strict=True):
                transform.write(out[: sample.frames], raw[: sample.frames], sample.first_frame)
        elif transform.center is not None:
            video = transform.center(video.flatten(0, 2)).view(video.shape)
        response = batch.response.float()
        if self._transforms[plan.mouse_id].floor:
            response = response.clamp_min(0)
        return replace(batch, video=video, response=response)

    def _submit(self, engine: _prefetcher.Prefetcher, plan: BatchPlan) -> Batch | None:
        """The batch that the engine now fills; None if it cannot."""
        session = self._sessions[plan.mouse_id]
        tables = self._tables.get(plan.mouse_id) or self._make_tables(plan)
        known = min((table.known for table in tables.values() if table.known is not None), default=None)
        if known is not None and any(sample.first_frame + sample.frames > known for sample in plan.samples):
            return None
        frames = plan.frames or max(sample.frames for sample in plan.samples)
        batch = self._allocate(plan, tables, frames)
        reads = []
        for variable, table in tables.items():
            for sample, row in zip(plan.samples, getattr(batch, variable), strict=True):
                place = session.place(variable, sample.trial_id)
                reads.append(
                    _prefetcher.Read(
                        path=os.fsencode(place.path),
                        rows=table.rows,
                        frames_first=place.frames_first,
                        trial=place.index,
                        file_frames=place.frames,
                        first_frame=sample.first_frame,
                        frames=sample.frames,
                        transform=table.transform,
                        out=row.data_ptr(),
                        element=table.element,
                        out_frames_first=table.frames_first,
                        out_frames=frames,
                    )
                )
        try:
            engine.submit(reads)
        except ValueError:  # more frames wanted than the trial has
            return None
        return batch

    def _take(
        self, engine: _prefetcher.Prefetcher, plan: BatchPlan, batch: Batch | Future[Batch] | None
    ) -> tuple[BatchPlan, Batch]:
        if isinstance(batch, Future):
            return plan, batch.result()
        failure = None if batch is None else engine.take()
        if batch is not None and failure is None:
            return plan, self._selected(plan, batch)
        batch = self._read_plainly(plan)
        if failure is not None:
            self._adapt(plan, *failure)
        return plan, batch

    def _selected(self, plan: BatchPlan, batch: Batch) -> Batch:
        """The batch with the neurons that are used alone, where the engine has read them all, as recorded."""
        kept = self._sessions[plan.mouse_id].kept
        if kept is None:
            return batch
        response = batch.response[:, torch.from_numpy(kept)]
        affine = self._transforms[plan.mouse_id].affine.get("response")
        if affine is not None:
            for row, sample in zip(response, plan.samples, strict=True):
                offset, scale = map(torch.from_numpy, affine.part(sample.first_frame, sample.frames))
                row[:, : sample.frames].sub_(offset).mul_(scale)
        return replace(batch, response=response)

    def _read_plainly(self, plan: BatchPlan) -> Batch:
        batch = next(self._plain.read((plan,)))
        return replace(batch, response=batch.response.bfloat16()) if self._compact else batch

    def _adapt(self, plan: BatchPlan, part: int, message: str) -> None:
        """Learns from a file that only the plain reader can read."""
        variable, sample = VARIABLES[part // len(plan.samples)], plan.samples[part % len(plan.samples)]
        tables = self._tables[plan.mouse_id]
        if tables[variable].element == Element.u8:  # most likely grey levels that are no whole numbers
            tables[variable] = self._make_table(plan, variable, Element.f32)
        elif not self._warned:
            self._warned = True
            path = self._sessions[plan.mouse_id].file(variable, sample.trial_id)
            logger.warning("mouse %s: %s: %s; such files are read the plain way, slower", plan.mouse_id, path, message)

    def _make_tables(self, plan: BatchPlan) -> dict[str, _Table]:
        elements = {"video": Element.u8, "response": Element.bf16} if self._compact else {}
        tables = {v: self._make_table(plan, v, elements.get(v, Element.f32)) for v in VARIABLES}
        self._tables[plan.mouse_id] = tables
        return tables

    def _make_table(self, plan: BatchPlan, variable: str, element: Element) -> _Table:
        session = self._sessions[plan.mouse_id]
        place = session.place(variable, plan.samples[0].trial_id)
        frames_first = variable == "video" or (variable == "response" and place.frames_first)
        affine = self._transforms[plan.mouse_id].affine.get(variable)
        if variable == "response" and session.kept is not None:  # they are selected afterwards
            return _Table.make(session.whole.rows(variable), None, frames_first, Element.f32)
        return _Table.make(session.rows(variable), affine, frames_first, element)

    def _allocate(self, plan: BatchPlan, tables: dict[str, _Table], frames: int) -> Batch:
        count = len(plan.samples)
        shapes = {
            v: (count, frames, *t.rows) if t.frames_first else (count, *t.rows, frames) for v, t in tables.items()
        }
        types = {v: _TYPES[t.element] for v, t in tables.items()}
        sizes = {v: prod(shape) * types[v].itemsize for v, shape in shapes.items()}
        room = [-(-size // _LINE) * _LINE for size in sizes.values()]
        parts = zip(sizes.items(), self._memory.take(sum(room)).split(room), strict=True)
        arrays = {v: part[:size].view(types[v]).view(shapes[v]) for (v, size), part in parts}
        arrays["video"] = arrays["video"][:, None]
        if tables["response"].frames_first:
            arrays["response"] = arrays["response"].transpose(1, 2)
        return Batch(
            mouse_id=plan.mouse_id,
            trial_ids=tuple(sample.trial_id for sample in plan.samples),
            frames=torch.tensor([sample.frames for sample in plan.samples], dtype=torch.int64),
            first_frames=tuple(sample.first_frame for sample in plan.samples),
            **arrays,
        )


@dataclass(frozen=True)
class _Table:
    """A variable's rows and transform as the C++ side takes them.

    Attributes:
        rows: (H, W), (N,) or (2,).
        frames_first: whether a batch has time before them.
        element: what a batch consists of.
        known: how many frames the transform knows; None for any.
        transform: nothing for uint8, which is transformed on the device.
        arrays: what the transform points to.
    """

    rows: tuple[int, ...]
    frames_first: bool
    element: Element
    known: int | None
    transform: _prefetcher.Transform
    arrays: tuple[np.ndarray, ...]

    @classmethod
    def make(cls, rows: tuple[int, ...], affine: Affine | None, frames_first: bool, element: Element) -> _Table:
        known = None if affine is None else affine.frames
        if affine is None or element == Element.u8:
            return cls(rows, frames_first, element, known, _prefetcher.Transform(), ())
        offset, scale = (
            np.ascontiguousarray(np.moveaxis(a, -1, 0) if frames_first else a, np.float32)
            for a in (affine.offset, affine.scale)
        )
        transform = _prefetcher.Transform(
            subtract=offset.ctypes.data if offset.any() else 0, scale=scale.ctypes.data, frames=known or 0
        )
        return cls(rows, frames_first, element, known, transform, (offset, scale))


class _Memory:
    """Blocks of memory that come back when the last tensor on them is gone.

    Args:
        most: how many blocks are kept for later.
        pinned: whether a GPU copies from them by itself.
    """

    def __init__(self, most: int, pinned: bool) -> None:
        self._most = most
        self._pinned = pinned
        self._size = 0
        self._free: list[torch.Tensor] = []

    def take(self, size: int) -> torch.Tensor:
        """(size,) bytes of anything."""
        self._size = max(self._size, size)
        block = self._reuse()
        if block is None:
            block = self._make()
        start = -block.data_ptr() % _LINE
        view = block.numpy()[start : start + size]  # an object of its own, which the tensor and its views keep alive
        weakref.finalize(view, self._give_back, block).atexit = False
        return torch.from_numpy(view)

    def clear(self) -> None:
        self._free.clear()

    def _reuse(self) -> torch.Tensor | None:
        while self._free:
            block = self._free.pop()
            if len(block) >= self._size + _LINE:
                return block
        return None

    def _make(self) -> torch.Tensor:
        size = self._size + _LINE
        if self._pinned:
            return torch.empty(size, dtype=torch.uint8, pin_memory=True)
        return torch.from_numpy(np.empty(size, np.uint8))  # NumPy asks for huge pages, which are written faster

    def _give_back(self, block: torch.Tensor) -> None:
        if len(self._free) < self._most:
            self._free.append(block)
