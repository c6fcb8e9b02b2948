"""Training trials held in memory: on the CPU as they are in a store, or on the GPU in half the size.

Both are readers that load all trials at the first batch; what they need is said, and checked, before.
"""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

import numpy as np
import torch
from torch import Tensor

from viv1t.data.reading.device import MovieTransform
from viv1t.data.reading.reader import Batches, BatchPlan, Reader
from viv1t.data.session import VARIABLES, Place, Session
from viv1t.data.statistics import MouseStatistics
from viv1t.data.store.stack import Layout, NotWholeError, StackWriter, holds_whole_numbers, stacked
from viv1t.data.transform import Transform
from viv1t.errors import ConfigError
from viv1t.system.memory import available_bytes
from viv1t.types import Batch

logger = logging.getLogger("viv1t")

_REPORT_SECONDS = 10.0


class ResidentSession(Session):
    """A session some of whose trials lie in memory, in files without a name; for the rest see its source.

    Args:
        source: where the trials come from.
        trials: which to hold.
        layout: of the arrays they are held in.
    """

    def __init__(self, source: Session, trials: Sequence[int], layout: Layout) -> None:
        super().__init__(source.path, source.mouse, source.tiers)
        self._source, self._layout = source, layout
        self._index = {trial: index for index, trial in enumerate(trials)}
        self._files = {v: os.memfd_create(f"viv1t-{source.mouse.id}-{v}", os.MFD_CLOEXEC) for v in VARIABLES}
        for file in self._files.values():
            weakref.finalize(self, os.close, file)
        self._writer = StackWriter(layout, self._files)
        self._writer.create()

    def load(self, trial: int) -> None:
        """Fetches one of the trials; from several threads at a time, if wanted.

        Raises:
            DataError: the trial is damaged.
            NotWholeError: its movie does not fit the layout's uint8.
        """
        for variable in VARIABLES:
            array = self._source.read(variable, trial)
            block = stacked(self._layout, self._source, variable, trial, array)
            self._writer.write(variable, self._index[trial], block)

    @property
    def frame_size(self) -> tuple[int, int]:
        """(H, W) of the movies in pixels."""
        return self._source.frame_size

    def duration(self, trial: int) -> int:
        """Recorded frames of a trial."""
        return self._source.duration(trial)

    def file(self, variable: str, trial: int) -> Path:
        """The source's file."""
        return self._source.file(variable, trial)

    def place(self, variable: str, trial: int) -> Place:
        """In memory, for a trial that is held."""
        if trial not in self._index:
            return self._source.place(variable, trial)
        return Place(Path(f"/proc/self/fd/{self._files[variable]}"), self._layout.frames, self._index[trial])

    def stored_statistics(self, source: str) -> MouseStatistics | None:
        """Those of the source."""
        return self._source.stored_statistics(source)


class CpuCache:
    """Batches of trials held in memory, equal to those read from disk: movies as uint8 where they fit, else float32.

    Args:
        sessions: where trials come from.
        trials: per mouse, which to hold.
        workers: threads that fetch them.
        reader: makes the reader of the sessions in memory.

    Raises:
        ConfigError: they do not fit into the memory there is.
    """

    def __init__(
        self,
        sessions: Mapping[str, Session],
        trials: Mapping[str, Sequence[int]],
        workers: int,
        reader: Callable[[dict[str, Session]], Reader],
    ) -> None:
        if not hasattr(os, "memfd_create"):
            raise ConfigError("--cache_data cpu needs Linux; leave it out: the system keeps read files in memory too")
        self._sessions, self._trials, self._workers, self._make = sessions, trials, workers, reader
        self._layouts = {m: _layout(sessions[m], held, _movie_type(sessions[m], held)) for m, held in trials.items()}
        self._check(0)
        self._reader: Reader | None = None

    def read(self, plans: Iterable[BatchPlan]) -> Batches:
        """Batches in the order of their plans.

        Raises:
            DataError: a trial is missing or damaged.
        """
        if self._reader is None:
            self._reader = self._make(self._load())
        return self._reader.read(plans)

    def close(self) -> None:
        """Gives the memory back."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def _check(self, held: int) -> None:
        needed = sum(layout.total_bytes for layout in self._layouts.values())
        _refuse_unless_fitting("cpu", needed - held, available_bytes(), "free memory")

    def _load(self) -> dict[str, Session]:
        logger.info("--cache_data cpu: holds %s", _summary(self._layouts.values()))
        held: dict[str, Session] = {}
        for mouse, trials in self._trials.items():
            held[mouse] = self._hold(mouse, trials, done=sum(self._layouts[m].total_bytes for m in held))
        return held

    def _hold(self, mouse: str, trials: Sequence[int], done: int) -> ResidentSession:
        session = ResidentSession(self._sessions[mouse], trials, self._layouts[mouse])
        try:
            _for_each_trial(mouse, trials, self._workers, session.load)
        except NotWholeError:
            del session
            self._layouts[mouse] = _layout(self._sessions[mouse], trials, "float32")
            self._check(done)
            return self._hold(mouse, trials, done)
        return session


class DeviceCache:
    """Batches cut on a GPU from trials that lie there: movies as uint8 where they fit, else float32; responses bf16.

    Movies and the animal's state equal those read from disk; responses to 8 bits.

    Args:
        sessions: where trials come from.
        transforms: what is done to them.
        trials: per mouse, which to hold.
        workers: threads that fetch them.
        device: where to.

    Raises:
        ConfigError: they do not fit into the memory there is.
    """

    def __init__(
        self,
        sessions: Mapping[str, Session],
        transforms: Mapping[str, Transform],
        trials: Mapping[str, Sequence[int]],
        workers: int,
        device: torch.device,
    ) -> None:
        self._sessions, self._transforms, self._trials = sessions, transforms, trials
        self._workers, self._device = workers, device
        self._layouts = {m: self._layout(m, _movie_type(sessions[m], held)) for m, held in trials.items()}
        self._check(0)
        self._held: dict[str, _OnDevice] = {}

    def read(self, plans: Iterable[BatchPlan]) -> Batches:
        """Batches on the device, in the order of their plans.

        Raises:
            DataError: a trial is missing or damaged.
        """
        if not self._held:
            logger.info("--cache_data gpu: holds %s", _summary(self._layouts.values()))
            for mouse in self._trials:
                self._held[mouse] = self._hold(mouse)
        for plan in plans:
            yield self._held[plan.mouse_id].cut(plan)

    def close(self) -> None:
        """Gives the memory back."""
        self._held.clear()

    def _layout(self, mouse: str, movie: str) -> Layout:
        return _layout(self._sessions[mouse], self._trials[mouse], movie, "float16", self._transforms[mouse].frames)

    def _check(self, held: int) -> None:
        needed = sum(layout.total_bytes for layout in self._layouts.values())
        if self._device.type == "cuda":
            free, where = torch.cuda.mem_get_info(self._device)[0], "free memory on the GPU"
        else:
            free, where = available_bytes(), "free memory"
        _refuse_unless_fitting("gpu", needed - held, free, where)

    def _hold(self, mouse: str) -> _OnDevice:
        session, trials = self._sessions[mouse], self._trials[mouse]
        held = _OnDevice.empty(session, self._transforms[mouse], trials, self._layouts[mouse], self._device)
        try:
            _for_each_trial(mouse, trials, self._workers, lambda trial: held.load(session, trial))
        except NotWholeError:
            del held
            done = sum(self._layouts[m].total_bytes for m in self._held)
            self._layouts[mouse] = self._layout(mouse, "float32")
            self._check(done)
            return self._hold(mouse)
        return held


@dataclass(frozen=True)
class _OnDevice:
    """One mouse's trials on a device: video (trials, T, H, W) raw; response (trials, N, T) bf16, behavior and
    pupil_center (trials, 2, T) float32, transformed."""

    transform: Transform
    layout: Layout
    index: Mapping[int, int]
    movies: MovieTransform
    arrays: Mapping[str, Tensor]

    @classmethod
    def empty(
        cls, session: Session, transform: Transform, trials: Sequence[int], layout: Layout, device: torch.device
    ) -> _OnDevice:
        kinds = {"video": torch.uint8 if layout.dtypes["video"] == np.uint8 else torch.float32,
                 "response": torch.bfloat16}  # fmt: skip
        arrays = {}
        for variable in VARIABLES:
            trials_held, frames, *rows = layout.shape(variable)
            shape = (trials_held, frames, *rows) if variable == "video" else (trials_held, *rows, frames)
            arrays[variable] = torch.empty(shape, dtype=kinds.get(variable, torch.float32), device=device)
        return cls(
            transform=transform,
            layout=layout,
            index={trial: index for index, trial in enumerate(trials)},
            movies=MovieTransform(transform, device),
            arrays=arrays,
        )

    def load(self, session: Session, trial: int) -> None:
        index, frames = self.index[trial], self.transform.frames(session.duration(trial))
        raw = {variable: session.read(variable, trial) for variable in VARIABLES}
        transformed = self.transform.apply(trial, raw, 0, frames)
        movie = stacked(self.layout, session, "video", trial, raw["video"][..., :frames])
        self.arrays["video"][index].copy_(torch.from_numpy(movie))
        for variable in ("response", "behavior", "pupil_center"):
            self.arrays[variable][index, :, :frames].copy_(torch.from_numpy(getattr(transformed, variable)))

    def cut(self, plan: BatchPlan) -> Batch:
        length = plan.frames or max(sample.frames for sample in plan.samples)
        count, device = len(plan.samples), self.arrays["video"].device
        out = {
            variable: torch.zeros(
                (count, 1, length, *array.shape[2:]) if variable == "video" else (count, array.shape[1], length),
                device=device,
            )
            for variable, array in self.arrays.items()
        }
        for row, sample in enumerate(plan.samples):
            index, frames = self.index[sample.trial_id], slice(sample.first_frame, sample.first_frame + sample.frames)
            self.movies.write(
                out["video"][row, 0, : sample.frames], self.arrays["video"][index, frames], sample.first_frame
            )
            for variable in ("response", "behavior", "pupil_center"):
                out[variable][row, :, : sample.frames].copy_(self.arrays[variable][index, :, frames])
        return Batch(
            mouse_id=plan.mouse_id,
            trial_ids=tuple(sample.trial_id for sample in plan.samples),
            frames=torch.tensor([sample.frames for sample in plan.samples], dtype=torch.int64),
            first_frames=tuple(sample.first_frame for sample in plan.samples),
            **out,
        )


def _movie_type(session: Session, trials: Sequence[int]) -> str:
    """The type that all movies have if they are like the first."""
    return "uint8" if holds_whole_numbers(session, trials[0]) else "float32"


def _layout(
    session: Session,
    trials: Sequence[int],
    movie: str,
    response: str = "float32",
    used: Callable[[int], int] = lambda duration: duration,
) -> Layout:
    frames = max(used(session.duration(trial)) for trial in trials)
    return Layout.of(session, len(trials), frames, movie, response)


def _summary(layouts: Iterable[Layout]) -> str:
    layouts = list(layouts)
    trials, size = sum(layout.trials for layout in layouts), sum(layout.total_bytes for layout in layouts)
    return f"{trials} training trials of {len(layouts)} mice in memory: {size / 2**30:.2f} GiB"


def _refuse_unless_fitting(mode: str, needed: int, free: int, where: str) -> None:
    if needed > free:
        raise ConfigError(
            f"--cache_data {mode}: the training trials need {needed / 2**30:.1f} GiB, more than the {free / 2**30:.1f} "
            f"GiB of {where}; leave the option out, or take fewer with --mouse_ids or --limit_data"
        )


def _for_each_trial(mouse: str, trials: Sequence[int], workers: int, work: Callable[[int], None]) -> None:
    """Calls `work` for every trial, in threads, and says how far it is."""
    report_at = monotonic() + _REPORT_SECONDS
    with ThreadPoolExecutor(max(1, workers), thread_name_prefix="viv1t-reader") as pool:
        try:
            for done, _ in enumerate(pool.map(work, trials), start=1):
                if monotonic() > report_at:
                    logger.info("mouse %s: %d of %d trials are in memory", mouse, done, len(trials))
                    report_at = monotonic() + _REPORT_SECONDS
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
