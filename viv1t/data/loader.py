"""The mice of a run, ready to be read: batches in a given order, read and transformed ahead by threads."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from viv1t.config import DataConfig
from viv1t.data.order import crop_start, training_order
from viv1t.data.session import VARIABLES, Session, find_sessions
from viv1t.data.statistics import MouseStatistics, computed_statistics, provided_statistics
from viv1t.data.transform import Transform
from viv1t.errors import DataError
from viv1t.types import MAX_FRAMES, OLD_MICE, TEST_TIERS, Batch, Mouse, Trial

logger = logging.getLogger("viv1t")

LIMIT_SEED = 1234  # of the draw of `--limit_data`, as published


@dataclass(frozen=True)
class Sample:
    """Which frames of which trial: where from, and how many (at most; the trial may be shorter)."""

    trial_id: int
    first_frame: int
    frames: int


@dataclass(frozen=True)
class BatchPlan:
    """What a batch is made of. `frames` is its length in time; None: that of its longest trial."""

    mouse_id: str
    samples: tuple[Sample, ...]
    frames: int | None


class Reader(Protocol):
    """Turns plans into batches, in their order."""

    def read(self, plans: Iterable[BatchPlan]) -> Iterator[Batch]: ...
    def close(self) -> None: ...


class ThreadReader:
    """Reads and transforms trials ahead in threads.

    Args:
        sessions: where trials lie.
        transforms: what is done to them.
        workers: threads; 0 reads when a batch is asked for.
        keep: keep every transformed trial in memory.
    """

    def __init__(
        self, sessions: dict[str, Session], transforms: dict[str, Transform], workers: int, keep: bool
    ) -> None:
        self._sessions = sessions
        self._transforms = transforms
        self._workers = workers
        self._kept: dict[tuple[str, int], Trial] | None = {} if keep else None

    def read(self, plans: Iterable[BatchPlan]) -> Iterator[Batch]:
        """Batches in the order of their plans; an error in a trial surfaces at its batch.

        Raises:
            DataError: a trial is missing or damaged.
        """
        if self._workers == 0:
            for plan in plans:
                yield stack(plan, [self._trial(plan.mouse_id, sample) for sample in plan.samples])
            return
        with ThreadPoolExecutor(self._workers, thread_name_prefix="viv1t-reader") as pool:
            ahead: deque[tuple[BatchPlan, list[Future[Trial]]]] = deque()
            waiting = 0
            try:
                for plan in plans:
                    ahead.append((plan, [pool.submit(self._trial, plan.mouse_id, sample) for sample in plan.samples]))
                    waiting += len(plan.samples)
                    # Enough to keep every thread busy while one batch is used, and no more.
                    while len(ahead) > 1 and waiting - len(ahead[0][1]) >= 2 * self._workers:
                        waiting -= len(ahead[0][1])
                        yield _gather(*ahead.popleft())
                while ahead:
                    yield _gather(*ahead.popleft())
            finally:
                pool.shutdown(cancel_futures=True)

    def close(self) -> None:
        """Forgets the kept trials."""
        if self._kept is not None:
            self._kept.clear()

    def _trial(self, mouse_id: str, sample: Sample) -> Trial:
        try:
            if self._kept is None:
                return self._load(mouse_id, sample)
            key = mouse_id, sample.trial_id
            if key not in self._kept:
                whole = self._transforms[mouse_id].frames(self._sessions[mouse_id].duration(sample.trial_id))
                self._kept[key] = self._load(mouse_id, Sample(sample.trial_id, 0, whole))
            return _part(self._kept[key], sample)
        except Exception as error:
            error.add_note(f"while reading trial {sample.trial_id} of mouse {mouse_id}")
            raise

    def _load(self, mouse_id: str, sample: Sample) -> Trial:
        session = self._sessions[mouse_id]
        raw = {variable: session.read(variable, sample.trial_id) for variable in VARIABLES}
        return self._transforms[mouse_id].apply(sample.trial_id, raw, sample.first_frame, sample.frames)


def _part(trial: Trial, sample: Sample) -> Trial:
    frames = slice(sample.first_frame, sample.first_frame + sample.frames)
    return Trial(
        mouse_id=trial.mouse_id,
        trial_id=trial.trial_id,
        first_frame=sample.first_frame,
        video=trial.video[:, frames],
        response=trial.response[:, frames],
        behavior=trial.behavior[:, frames],
        pupil_center=trial.pupil_center[:, frames],
    )


def _gather(plan: BatchPlan, trials: list[Future[Trial]]) -> Batch:
    return stack(plan, [trial.result() for trial in trials])


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
    )


class Recordings:
    """The mice of a run, ready to be read.

    Attributes:
        mice: by id, in the run's order.
        frame_size: (H, W) of every movie in pixels.
        train_sizes: training trials of each mouse, after merging and limiting: the loss scale counts these.
        batches_per_epoch: batches of an epoch over all mice.
    """

    def __init__(
        self,
        config: DataConfig,
        seed: int,
        sessions: dict[str, Session],
        statistics: dict[str, MouseStatistics | None],
        transforms: dict[str, Transform],
        frame_size: tuple[int, int],
    ) -> None:
        self._config = config
        self._seed = seed
        self._sessions = sessions
        self._statistics = statistics
        self._transforms = transforms
        self._train = {mouse: training_trials(session, config) for mouse, session in sessions.items()}
        self._reader: Reader = ThreadReader(sessions, transforms, config.num_workers, config.cache_data)
        self.mice: dict[str, Mouse] = {mouse: session.mouse for mouse, session in sessions.items()}
        self.frame_size = frame_size
        self.train_sizes = {mouse: len(trials) for mouse, trials in self._train.items()}
        self.batches_per_epoch = len(sessions) * max(-(-n // config.batch_size) for n in self.train_sizes.values())

    @classmethod
    def open(cls, config: DataConfig, seed: int) -> Recordings:
        """Finds the mice of a run, and computes or loads their statistics.

        Args:
            config: which mice and trials, and how they are transformed.
            seed: of the order of training.

        Raises:
            ConfigError: an option does not fit the data.
            DataError: a recording is missing, damaged, or does not fit the others.
        """
        sessions = find_sessions(config)
        sizes = {mouse: session.frame_size for mouse, session in sessions.items()}
        frame_size = next(iter(sizes.values()))
        if odd := [f"{mouse} {h} x {w}" for mouse, (h, w) in sizes.items() if (h, w) != frame_size]:
            raise DataError(
                f"--data {config.path}: movies of all mice must have the same size, but {next(iter(sizes))} has "
                f"{frame_size[0]} x {frame_size[1]} pixels and {', '.join(odd)}; choose with --mouse_ids"
            )
        statistics: dict[str, MouseStatistics | None] = dict.fromkeys(sessions)
        if config.transform != "none":
            source = provided_statistics if config.statistics == "provided" else computed_statistics
            statistics = {mouse: source(session) for mouse, session in sessions.items()}
        transforms = {
            mouse: Transform(mouse, config.transform, known, config.center_crop, frame_size)
            for mouse, known in statistics.items()
        }
        return cls(config, seed, sessions, statistics, transforms, frame_size)

    def train_batches(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, in an order and with crops that only the seed, the epoch and the trials decide.

        Args:
            epoch: any integer of its own.
            first: start at this batch of the epoch, as when resuming.

        Raises:
            DataError: a trial is missing or damaged, or a mouse has no training trial.
        """
        if empty := [mouse for mouse, size in self.train_sizes.items() if size == 0]:
            raise DataError(f"mouse {', '.join(empty)}: no trial of the tier train; leave it out with --mouse_ids")
        return self._reader.read(self._training_plans(epoch, first))

    def trials(self, mouse_id: str, tier: str) -> Iterator[Batch]:
        """The whole trials of a tier, one a batch, ascending.

        Raises:
            DataError: a trial is missing or damaged.
        """
        return self._reader.read(
            BatchPlan(mouse_id, (Sample(trial, 0, self._frames(mouse_id, trial)),), None)
            for trial in sorted(self.trial_ids(mouse_id, tier))
        )

    def trial_ids(self, mouse_id: str, tier: str) -> list[int]:
        """The trials of a tier: ascending; `train` as merged and limited for the run, in the order they were drawn."""
        return list(self._train[mouse_id]) if tier == "train" else self._sessions[mouse_id].trials(tier)

    def hidden(self, mouse_id: str, tier: str) -> bool:
        """Whether the tier's responses are withheld (all zero), so that it cannot be scored."""
        return self._sessions[mouse_id].hidden(tier)

    def repeats(self, mouse_id: str, tier: str) -> list[list[int]]:
        """Groups of the tier's trials that show the same movie."""
        return self._sessions[mouse_id].repeats(tier)

    def mean_response(self, mouse_id: str) -> np.ndarray:
        """(N,) float32, the mean transformed response over all used frames of the training set.

        Raises:
            DataError: a trial is missing or damaged, or there is none.
        """
        session, transform, trials = self._sessions[mouse_id], self._transforms[mouse_id], self._train[mouse_id]
        if not trials:
            raise DataError(f"mouse {mouse_id}: no trial of the tier train to average; leave it out with --mouse_ids")
        total = np.zeros(session.mouse.neurons)
        frames = 0
        left = set(trials)
        statistics = self._statistics[mouse_id]
        if statistics is not None and statistics.trial_ids and left.issuperset(statistics.trial_ids):
            # Their sums are known: only the trials that were merged in are read.
            left -= set(statistics.trial_ids)
            counts = statistics.counts[:MAX_FRAMES]
            sums = np.nan_to_num(statistics.trial["response"].mean[:, : counts.size].astype(np.float64) * counts)
            total += (sums * transform.affine["response"].part(0, counts.size)[1]).sum(1)
            frames += int(counts.sum())
        for trial in sorted(left):
            used = transform.frames(session.duration(trial))
            total += transform.response(trial, session.read("response", trial), 0, used).sum(1, dtype=np.float64)
            frames += used
        return (total / frames).astype(np.float32)

    def close(self) -> None:
        """Frees what is kept in memory. Iterators close themselves."""
        self._reader.close()

    def _frames(self, mouse_id: str, trial: int) -> int:
        return self._transforms[mouse_id].frames(self._sessions[mouse_id].duration(trial))

    def _training_plans(self, epoch: int, first: int) -> Iterator[BatchPlan]:
        order = training_order(self._seed, epoch, self._train, self._config.batch_size)
        for index, (mouse, trials) in enumerate(order[first:], first):
            visit = index // len(self.mice) // -(-self.train_sizes[mouse] // self._config.batch_size)
            samples = tuple(self._sample(epoch, mouse, trial, visit) for trial in trials)
            crop = self._config.crop_frame
            yield BatchPlan(mouse, samples, None if crop == -1 else self._transforms[mouse].frames(crop))

    def _sample(self, epoch: int, mouse: str, trial: int, visit: int) -> Sample:
        recorded, crop = self._frames(mouse, trial), self._config.crop_frame
        if crop == -1 or recorded <= crop:
            return Sample(trial, 0, recorded)
        return Sample(trial, crop_start(self._seed, epoch, mouse, trial, recorded - crop + 1, visit), crop)


def training_trials(session: Session, config: DataConfig) -> list[int]:
    """The trials a mouse is trained on: ascending, or in the order `limit_data` draws them."""
    trials = session.trials("train")
    mouse = session.mouse.id
    if config.mice == "all_with_test" and mouse in OLD_MICE:
        for tier in TEST_TIERS:
            if session.hidden(tier):
                logger.warning(
                    "mouse %s: --ds_mode 3 trains on the tier %s, but this copy withholds its responses (all zero); "
                    "use --ds_mode 2, or the recording with its responses", mouse, tier,
                )  # fmt: skip
        trials = sorted(trials + [trial for tier in TEST_TIERS for trial in session.trials(tier)])
    if config.limit_data is not None:
        if config.limit_data > len(trials):
            logger.warning("mouse %s: all %d trials are used: --limit_data %d", mouse, len(trials), config.limit_data)
        elif trials:
            trials = np.random.default_rng(LIMIT_SEED).choice(trials, config.limit_data, replace=False).tolist()
    return trials
