"""From plans to batches: what is read, and the plain way to read it, which the faster one is held to."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from viv1t.data.session import VARIABLES, Session
from viv1t.data.transform import Transform
from viv1t.types import Batch, Trial


@dataclass(frozen=True)
class Sample:
    """Which frames of which trial: where from, and how many (at most; the trial may be shorter)."""

    trial_id: int
    first_frame: int
    frames: int


@dataclass(frozen=True)
class BatchPlan:
    """What a batch is made of.

    Attributes:
        mouse_id: whose trials.
        samples: which trials, and which of their frames.
        frames: its length in time; None: that of its longest trial.
        responses: whether responses are read; they are zero where not, as predictions do with.
    """

    mouse_id: str
    samples: tuple[Sample, ...]
    frames: int | None
    responses: bool = True


Batches = Generator[Batch, None, None]  # closing it stops the reading ahead


class Reader(Protocol):
    """Turns plans into batches, in their order, in host memory or on a device."""

    def read(self, plans: Iterable[BatchPlan]) -> Batches: ...
    def close(self) -> None: ...


class PlainReader:
    """Reads and transforms a trial when it is asked for.

    Args:
        sessions: where trials lie.
        transforms: what is done to them.
    """

    def __init__(self, sessions: Mapping[str, Session], transforms: Mapping[str, Transform]) -> None:
        self._sessions = sessions
        self._transforms = transforms

    def read(self, plans: Iterable[BatchPlan]) -> Batches:
        """Batches in the order of their plans; an error in a trial surfaces at its batch.

        Raises:
            DataError: a trial is missing or damaged.
        """
        for plan in plans:
            yield stack(plan, [self._trial(plan, sample) for sample in plan.samples])

    def close(self) -> None:
        """Nothing is kept between reads."""

    def _trial(self, plan: BatchPlan, sample: Sample) -> Trial:
        mouse_id = plan.mouse_id
        session = self._sessions[mouse_id]
        try:
            wanted = [variable for variable in VARIABLES if plan.responses or variable != "response"]
            raw = {variable: session.read(variable, sample.trial_id) for variable in wanted}
            nothing = np.zeros((session.mouse.neurons, sample.first_frame + sample.frames), np.float32)
            raw.setdefault("response", nothing)
            return self._transforms[mouse_id].apply(sample.trial_id, raw, sample.first_frame, sample.frames)
        except Exception as error:
            error.add_note(f"while reading trial {sample.trial_id} of mouse {mouse_id}")
            raise


def stack(plan: BatchPlan, trials: Sequence[Trial]) -> Batch:
    """A batch of trials of one mouse, shorter ones padded with zeros at the end."""
    length = plan.frames or max(trial.frames for trial in trials)

    def stacked(name: str, axis: int) -> torch.Tensor:
        arrays = [getattr(trial, name) for trial in trials]
        shape = list(arrays[0].shape)
        shape[axis] = length
        out = np.zeros((len(arrays), *shape), np.float32)
        for row, array in zip(out, arrays, strict=True):
            row[(slice(None),) * axis + (slice(array.shape[axis]),)] = array
        return torch.from_numpy(out)

    return Batch(
        mouse_id=plan.mouse_id,
        trial_ids=tuple(trial.trial_id for trial in trials),
        video=stacked("video", 1),
        response=stacked("response", 1),
        behavior=stacked("behavior", 1),
        pupil_center=stacked("pupil_center", 1),
        frames=torch.tensor([trial.frames for trial in trials], dtype=torch.int64),
        first_frames=tuple(trial.first_frame for trial in trials),
    )
