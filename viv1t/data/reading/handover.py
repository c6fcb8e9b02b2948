"""From host memory to a device: copies beside the computation, one batch ahead of their use."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import cuda

from viv1t.data.reading.reader import Batches
from viv1t.types import Batch

Host = TypeVar("Host")


@dataclass
class _Copy:
    """A batch on its way; `host` keeps the memory that is copied from."""

    host: Any
    batch: Batch
    ended: cuda.Event


class Handover:
    """Moves batches to a device; on a GPU in a stream of its own, while the batch before is computed with.

    What a batch is copied from is let go once the copy has ended, not before, so that pinned memory can be used again.

    Args:
        device: where to.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, hosts: Iterable[Host], move: Callable[[Host], Batch]) -> Batches:
        """The batches that `move` makes of `hosts`, in their order, ready for the stream that is current.

        An error in `hosts` surfaces up to one batch early on a GPU.

        Args:
            hosts: batches in host memory, in any form.
            move: makes a batch on the device; it may go on working there.
        """
        if self._stream is None:
            yield from map(move, hosts)
            return
        ahead: _Copy | None = None
        try:
            for host in hosts:
                copy, ahead = ahead, self._start(host, move)
                if copy is not None:
                    yield self._ready(copy)
                    copy.ended.synchronize()
            if ahead is not None:
                yield self._ready(ahead)
        finally:
            self._stream.synchronize()  # however this ends, nothing is copied from memory that is let go

    def _start(self, host: Host, move: Callable[[Host], Batch]) -> _Copy:
        assert self._stream is not None
        with cuda.stream(self._stream):
            batch = move(host)
            ended = cuda.Event()
            ended.record(self._stream)
        return _Copy(host, batch, ended)

    def _ready(self, copy: _Copy) -> Batch:
        current = cuda.current_stream(self._device)
        current.wait_event(copy.ended)
        for tensor in (copy.batch.video, copy.batch.response, copy.batch.behavior, copy.batch.pupil_center):
            tensor.record_stream(current)  # made in another stream, whose later work must not take its memory
        return copy.batch
