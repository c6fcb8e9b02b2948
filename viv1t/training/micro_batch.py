"""The largest part of a batch that memory holds: found by trying, before training, or when a batch did not fit."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from viv1t.model.twin import ViV1T
from viv1t.optim.optimization import Optimization
from viv1t.system.memory import available_bytes, peak_added_bytes
from viv1t.training.objective import Objective, backward
from viv1t.types import MAX_FRAMES, Batch

if TYPE_CHECKING:
    from viv1t.training.step import Step

log = logging.getLogger("viv1t.train")

MEMORY_SHARE = 0.8  # of what is free on a CPU, that a micro batch may take


def out_of_memory(error: BaseException) -> bool:
    """Whether memory did not suffice: on a CPU PyTorch raises a plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "allocate memory" in str(error)


def largest_batch(model: ViV1T, batch_size: int, crop_frame: int) -> Batch:
    """A batch of zeros, on the CPU, as large as any of a run will be: of the mouse with the most neurons.

    Args:
        model: of the run.
        batch_size: trials of a batch.
        crop_frame: frames of a sample; -1 for whole trials.
    """
    mouse_id = max(model.neurons, key=lambda m: model.neurons[m])
    frames = crop_frame if crop_frame > 0 else MAX_FRAMES
    return Batch(
        mouse_id=mouse_id,
        trial_ids=tuple(range(batch_size)),
        video=torch.zeros(batch_size, 1, frames, *model.frame_size),
        response=torch.zeros(batch_size, model.neurons[mouse_id], frames),
        behavior=torch.zeros(batch_size, 2, frames),
        pupil_center=torch.zeros(batch_size, 2, frames),
        frames=torch.full((batch_size,), frames),
    )


class MicroBatchSearch:
    """Tries how many trials fit in memory, from one forward and backward; the weights stay as they are.

    Args:
        model: in training mode.
        objective: what is differentiated.
        optimization: whose gradients are dropped.
    """

    def __init__(self, model: ViV1T, objective: Objective, optimization: Optimization) -> None:
        self._model, self._objective, self._optimization = model, objective, optimization

    def largest(self, batch: Batch) -> int:
        """The largest micro batch of `batch`, whose values do not matter, that fits in memory: found by halving."""
        size = len(batch)
        with self._trying():
            while size > 1 and not self.fits(batch.slice(0, size)):
                size = (size + 1) // 2
                if batch.video.is_cuda:
                    torch.cuda.empty_cache()
        return size

    def largest_within(self, batch: Batch, memory: float) -> int:
        """The same on a CPU, where whoever takes too much is killed: from what one trial takes of `memory` bytes."""
        with self._trying():
            one = peak_added_bytes(lambda: self.fits(batch.slice(0, 1)))
        return max(1, min(len(batch), int(memory / max(one, 1))))

    def fits(self, batch: Batch) -> bool:
        """Whether memory holds a forward and backward of the batch; leaves no gradients."""
        try:
            backward(self._objective.losses(batch, len(batch))[0])
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            return False
        finally:
            self._optimization.clear()
        return True

    @contextmanager
    def _trying(self) -> Iterator[None]:
        buffers = {name: value.clone() for name, value in self._model.named_buffers()}
        yield
        for name, value in self._model.named_buffers():
            value.copy_(buffers[name])


def choose_micro_batch(step: Step, batch: Batch, device: torch.device) -> int:
    """The largest micro batch that fits in every process's memory; says so where it is less than `batch`.

    Args:
        step: whose batches these are.
        batch: the largest there will be, on the CPU.
        device: where it is trained on.
    """
    step.model.train()
    if device.type == "cuda":
        size = step.search.largest(batch.to(device))
    elif device.type == "cpu" and not step.objective.compiled:
        size = step.search.largest_within(batch, MEMORY_SHARE * available_bytes() / step.ranks.size)
    else:
        size = len(batch)
    size = step.ranks.least(size)
    if size < len(batch):
        log.warning(
            "batches of %d are taken %d trials at a time, to fit in memory, so correlations in the criterion are "
            "of as many%s", len(batch), size,
            "; --grad_checkpointing 1 takes less" if step.can_recompute else "",
        )  # fmt: skip
    return size
