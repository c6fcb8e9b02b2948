"""A frozen core's maps, computed once: what makes fitting a new mouse quick."""

from __future__ import annotations

import logging
import tempfile
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from viv1t.data.recordings import Recordings
from viv1t.errors import TrainingError
from viv1t.model.twin import ViV1T
from viv1t.system.files import advice, allocate
from viv1t.system.memory import available_bytes
from viv1t.system.progress import Progress
from viv1t.training.validate import check_length
from viv1t.types import MAX_FRAMES, Batch

log = logging.getLogger("viv1t.train")

_SHARE = 0.7  # of the memory that is free


class CoreOutputs:
    """The maps of whole trials of the tiers train and validation.

    A frozen core sees whole trials, as in evaluation, and the frames of a training crop are cut from its maps.
    Attention over frames makes a frame's map depend on the others the core sees: given the crop alone the core would
    say something slightly different, and it would have to be run for every crop anew.

    Maps are held as float32, or bf16 with `--precision bf16`: in memory where they fit, else in a nameless file in
    `folder`, which vanishes with the process.

    Args:
        model: with a frozen core.
        recordings: whose trials.
        folder: for the file.
        show: progress.

    Raises:
        DataError: a trial is damaged, or too short for the core.
        TrainingError: neither memory nor disk take the maps.
    """

    def __init__(self, model: ViV1T, recordings: Recordings, folder: Path, *, show: bool = False) -> None:
        self.model = model
        self._place: dict[tuple[str, int], Tensor] = {}  # (t, D, h, w) of each trial
        depth, *grid = model.core.output_shape
        trials = {
            m: sorted({*recordings.trial_ids(m, "train"), *recordings.trial_ids(m, "validation")})
            for m in recordings.mice
        }
        shapes = [(m, t, self._frames(recordings, m, t)) for m, ids in trials.items() for t in ids]
        # --precision bf16 promises half the space, also where the processor multiplies in float32.
        half = model.autocast == "always"
        dtype = torch.bfloat16 if half else model.core_dtype(next(model.parameters()).device)
        numbers = sum(frames for _, _, frames in shapes) * prod((depth, *grid))
        held = _allocate(numbers, dtype, folder)
        log.info("the frozen core's maps of %d trials take %.1f GiB", len(shapes), numbers * dtype.itemsize / 2**30)
        used = 0
        for mouse_id, trial, frames in shapes:
            size = frames * prod((depth, *grid))
            self._place[mouse_id, trial] = held[used : used + size].view(frames, depth, *grid)
            used += size
        progress = Progress("core outputs", len(shapes), "trials", show=show)
        for mouse_id, ids in trials.items():
            for batch in recordings.trials(mouse_id, "train", ids):
                check_length([model], batch)
                self._place[mouse_id, batch.trial_ids[0]].copy_(self._run(batch)[0].transpose(0, 1))
                progress.step()
        progress.close()

    def _frames(self, recordings: Recordings, mouse_id: str, trial: int) -> int:
        return max(0, self.model.core.output_frames(min(recordings.frames(mouse_id, trial), MAX_FRAMES)))

    @torch.no_grad()
    def _run(self, batch: Batch) -> Tensor:
        batch = batch.to(next(self.model.parameters()).device)
        frames = min(batch.video.shape[2], MAX_FRAMES)
        behavior, pupil_center = batch.behavior[..., :frames], batch.pupil_center[..., :frames]
        return self.model.core_output(batch.video[:, :, :frames], batch.mouse_id, behavior, pupil_center)

    def maps(self, batch: Batch) -> Tensor:
        """The maps (B, D, t, h, w) of a batch's frames, float32, on the model's device; trials of one length."""
        if not batch.first_frames:  # no recorded trials: a trial of memory
            return self._run(batch)
        count = self.model.core.output_frames(min(batch.video.shape[2], MAX_FRAMES))
        cuts = [
            self._place[batch.mouse_id, trial][first : first + count]
            for trial, first in zip(batch.trial_ids, batch.first_frames, strict=True)
        ]
        device = next(self.model.parameters()).device
        return torch.stack(cuts).to(device, self.model.features_dtype).transpose(1, 2)


def _allocate(numbers: int, dtype: torch.dtype, folder: Path) -> Tensor:
    if numbers * dtype.itemsize <= _SHARE * available_bytes():
        return torch.empty(numbers, dtype=dtype)
    size = numbers * dtype.itemsize
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".core_outputs.") as file:
        try:
            allocate(file.fileno(), size)
        except OSError as error:
            raise TrainingError(
                f"{folder}: the frozen core's maps take {size / 2**30:.1f} GiB, more than fits in memory or in a file "
                f"there ({error.strerror}){advice(error, Path(file.name))}; --limit_data takes fewer trials, "
                "--precision bf16 half of it"
            ) from error
        # Mapped, the file needs no name: nothing is left behind however the process ends.
        return torch.from_file(file.name, shared=True, size=numbers, dtype=dtype)
