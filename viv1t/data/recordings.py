"""The mice of a run, ready to be read: batches in a given order, read and transformed ahead by threads."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import torch

from viv1t.config.data import DataConfig
from viv1t.data.formats.sensorium.recorded import STATES, RecordedMouse
from viv1t.data.inspect.finding import LONG, TWICE, Finding, grey_levels
from viv1t.data.mice import find_sessions
from viv1t.data.order import Cursor, crop_start, order_digest, share, training_order
from viv1t.data.reading.prefetch import Prefetcher
from viv1t.data.reading.reader import Batches, BatchPlan, PlainReader, Reader, Sample
from viv1t.data.reading.resident import CpuCache, DeviceCache
from viv1t.data.session import Session, missing_tier
from viv1t.data.statistics import (
    MouseStatistics,
    computed_statistics,
    movie_levels,
    provided_statistics,
    state_median,
)
from viv1t.data.transform import Transform, response_affine
from viv1t.errors import ConfigError, DataError
from viv1t.types import MAX_FRAMES, OLD_MICE, TEST_TIERS, Mouse, sample_frames

logger = logging.getLogger("viv1t")

LIMIT_SEED = 1234  # of the draw of `--limit_data`, as published


class Recordings:
    """The mice of a run, ready to be read.

    Attributes:
        mice: by id, in the run's order.
        frame_size: (H, W) of every movie in pixels.
        train_sizes: training trials of each mouse, after merging and limiting: the loss scale counts these.
        batches_per_epoch: batches of an epoch over all mice, for all ranks together.
        served: the mice this rank trains.
        videos: by mouse, where it is known, the number (trials,) of the video that each trial shows; else they are
            compared.
    """

    def __init__(
        self,
        config: DataConfig,
        seed: int,
        sessions: dict[str, Session],
        statistics: dict[str, MouseStatistics | None],
        transforms: dict[str, Transform],
        frame_size: tuple[int, int],
        rank: int = 0,
        ranks: int = 1,
        device: torch.device | None = None,
        train: dict[str, list[int]] | None = None,
    ) -> None:
        self._config = config
        self._seed = seed
        self._sessions = sessions
        self._statistics = statistics
        self._transforms = transforms
        self._train = train or {mouse: training_trials(session, config) for mouse, session in sessions.items()}
        self._ranks = ranks
        self.videos: dict[str, np.ndarray] = {}
        self.mice: dict[str, Mouse] = {mouse: session.mouse for mouse, session in sessions.items()}
        self.served = self.served_by(rank)
        self._reader = open_reader(config, transforms, sessions)
        self._training_reader = self._open_training_reader(device or torch.device("cpu"))
        self.frame_size = frame_size
        self.train_sizes = {mouse: len(trials) for mouse, trials in self._train.items()}
        self.batches_per_epoch = len(sessions) * max(-(-n // config.batch_size) for n in self.train_sizes.values())

    @classmethod
    def open(
        cls, config: DataConfig, seed: int, rank: int = 0, ranks: int = 1, device: torch.device | None = None
    ) -> Recordings:
        """Finds the mice of a run, and computes or loads their statistics.

        Args:
            config: which mice and trials, and how they are transformed.
            seed: of the order of training.
            rank: number of this process among those that train together.
            ranks: how many these are; see `order.share` for how they share the mice.
            device: where training batches are handed out, copied there ahead; default the CPU.

        Raises:
            ConfigError: an option does not fit the data, or --cache_data the memory.
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
            mouse: Transform(
                mouse, config.transform, known, config.center_crop, frame_size, config.response_scale, config.missing
            )
            for mouse, known in statistics.items()
        }
        return cls(config, seed, sessions, statistics, transforms, frame_size, rank, ranks, device)

    def served_by(self, rank: int) -> tuple[str, ...]:
        """The mice that a rank trains."""
        return share({mouse: known.neurons for mouse, known in self.mice.items()}, rank, self._ranks)

    def order(self, epoch: int) -> list[tuple[str, tuple[int, ...]]]:
        """Mouse and trials of every batch of an epoch, for all ranks together: a round of all mice after the other."""
        return training_order(self._seed, epoch, self._train, self._config.batch_size)

    def cursor(self, epoch: int, batch: int) -> Cursor:
        """The position after `batch` batches of an epoch (over all mice and ranks), to be saved."""
        return Cursor(epoch, batch, self._order_digest())

    def resume(self, cursor: Cursor) -> Batches:
        """The rest of the epoch in which `cursor` was saved.

        Raises:
            CheckpointError: the cursor belongs to other trials, mice or options.
            DataError: as for `train_batches`.
        """
        cursor.check(self._order_digest(), self.batches_per_epoch)
        return self.train_batches(cursor.epoch, cursor.batch)

    def train_batches(self, epoch: int, first: int = 0) -> Batches:
        """The batches of an epoch, in an order and with crops that only the seed, the epoch and the trials decide.

        They lie on the device that the recordings were opened for.

        With several ranks, those of this rank's mice.

        Args:
            epoch: any integer of its own.
            first: start at this batch of `order(epoch)`, as when resuming.

        Raises:
            DataError: a trial is missing or damaged, or a mouse has no training trial.
        """
        if empty := [mouse for mouse, size in self.train_sizes.items() if size == 0]:
            raise missing_tier(self._sessions[empty[0]], "train").error
        return self._training_reader.read(self._training_plans(epoch, first))

    def trials(
        self, mouse_id: str, tier: str, order: Sequence[int] | None = None, *, responses: bool = True
    ) -> Batches:
        """The whole trials of a tier, one a batch, ascending or in the `order` given, in host memory.

        Without `responses`, these are not read, and zero: predictions do not need them.

        Raises:
            DataError: a trial is missing or damaged.
        """
        return self._reader.read(
            BatchPlan(mouse_id, (Sample(trial, 0, self.frames(mouse_id, trial)),), None, responses)
            for trial in (sorted(self.trial_ids(mouse_id, tier)) if order is None else order)
        )

    def trial_ids(self, mouse_id: str, tier: str) -> list[int]:
        """The trials of a tier: ascending; `train` as merged and limited for the run, in the order they were drawn."""
        return list(self._train[mouse_id]) if tier == "train" else self._sessions[mouse_id].trials(tier)

    def frames(self, mouse_id: str, trial: int) -> int:
        """How many frames of a trial are used."""
        return self._transforms[mouse_id].frames(self._sessions[mouse_id].duration(trial))

    def hidden(self, mouse_id: str, tier: str) -> bool:
        """Whether the tier's responses are withheld (all zero, NaN or absent), so that it cannot be scored."""
        return self._sessions[mouse_id].hidden(tier)

    def repeats(self, mouse_id: str, tier: str) -> list[list[int]]:
        """Groups of the tier's trials that show the same movie."""
        if (videos := self.videos.get(mouse_id)) is None:
            return self._sessions[mouse_id].repeats(tier)
        groups: dict[int, list[int]] = {}
        for trial in self._sessions[mouse_id].trials(tier):
            groups.setdefault(int(videos[trial]), []).append(trial)
        return list(groups.values())

    def long_trials(self, mouse_id: str, trials: Sequence[int]) -> Finding | None:
        """What there is to say of trials longer than what is used of them; None for nothing.

        Raises:
            DataError: a trial is missing or damaged.
        """
        most = max((self._sessions[mouse_id].duration(trial) for trial in trials), default=0)
        return LONG.found(mouse_id, frames=most) if most > MAX_FRAMES else None

    def notices(self, mouse_id: str) -> list[Finding]:
        """What is to be known of a mouse that can be trained on, as `viv1t-data check` says it.

        Raises:
            DataError: a trial is missing or damaged.
        """
        session, statistics = self._sessions[mouse_id], self._statistics[mouse_id]
        found = []
        ids = session.mouse.unit_ids
        if twice := len(ids) - len(np.unique(ids)):
            found.append(TWICE.found(mouse_id, count=twice))
        if statistics is None:  # nothing is transformed, and every frame is used
            return found
        trials = session.trials("validation")
        if not statistics.counts.size:  # which know the longest training trial
            trials = [*self._train[mouse_id], *trials]
        longest = np.count_nonzero(statistics.counts)
        long = LONG.found(mouse_id, frames=longest) if longest > MAX_FRAMES else self.long_trials(mouse_id, trials)
        levels = grey_levels(mouse_id, *movie_levels(statistics))
        return [*found, *(finding for finding in (long, levels) if finding is not None)]

    def session(self, mouse_id: str) -> Session:
        """A mouse's recording as it lies on disk."""
        return self._sessions[mouse_id]

    def transform(self, mouse_id: str) -> Transform:
        """What is done to a mouse's trials."""
        return self._transforms[mouse_id]

    def state_median(self, mouse_id: str, variable: str) -> np.ndarray:
        """(2,) float32, the median of `behavior` or `pupil_center` as recorded, over the tier `train`.

        Raises:
            DataError: a trial is missing or damaged, or there is none.
        """
        return state_median(self._sessions[mouse_id], variable)

    def recorded(self, mouse_id: str) -> RecordedMouse:
        """What a run keeps of a mouse, to be used where the recordings are not.

        Raises:
            DataError: a trial is missing or damaged, or there is none.
        """
        medians = {name: self.state_median(mouse_id, name) for name in STATES}
        return RecordedMouse(self.mice[mouse_id], self._statistics[mouse_id], medians, self.movie_levels(mouse_id))

    def response_precision(self, mouse_id: str, frames: int) -> np.ndarray:
        """(N, 1 or frames) float32, what responses of the first `frames` frames are multiplied by; 1 untransformed."""
        affine = self._transforms[mouse_id].affine
        return affine["response"].part(0, frames)[1] if affine else np.ones((1, 1), np.float32)

    def recorded_units(self, mouse_id: str, response: np.ndarray, frames: int) -> np.ndarray:
        """Responses (N, t) of the last t of a trial's first `frames` frames, as a recording would hold them."""
        return self._transforms[mouse_id].recorded_units(response, frames)

    def frame_precision(self, mouse_id: str, frames: int) -> np.ndarray | None:
        """The same of `--response_scale frame`, whatever the recordings' own; None where there are no statistics."""
        statistics = self._statistics[mouse_id]
        return None if statistics is None else response_affine(mouse_id, statistics, "frame").part(0, frames)[1]

    def movie(self, mouse_id: str, trial: int) -> np.ndarray:
        """(T, H, W), the used frames of a trial's movie as recorded, grey levels.

        Raises:
            DataError: the file is missing or damaged.
        """
        video = self._sessions[mouse_id].read("video", trial)
        return np.moveaxis(video, -1, 0)[: self.frames(mouse_id, trial)]

    def movie_levels(self, mouse_id: str) -> tuple[float, float] | None:
        """The smallest and the largest value of the training movies; without statistics, of the first of them.

        None where there is no training trial.

        Raises:
            DataError: a trial is missing or damaged.
        """
        if (statistics := self._statistics[mouse_id]) is not None:
            return movie_levels(statistics)
        if not self._train[mouse_id]:
            return None
        movie = self.movie(mouse_id, self._train[mouse_id][0])
        return float(movie.min()), float(movie.max())

    def mean_response(self, mouse_id: str, most: int | None = None) -> np.ndarray:
        """(N,) float32, the mean transformed response over all used frames of the training set.

        Args:
            mouse_id: whose.
            most: of this many trials at most, those with the lowest numbers.

        Raises:
            DataError: a trial is missing or damaged, or there is none.
        """
        session, transform = self._sessions[mouse_id], self._transforms[mouse_id]
        trials = sorted(self._train[mouse_id])[:most]
        if not trials:
            raise DataError(f"mouse {mouse_id}: no trial of the tier train to average; leave it out with --mouse_ids")
        total = np.zeros(session.mouse.neurons)
        frames = 0
        left = set(trials)
        statistics = self._statistics[mouse_id]
        known = statistics is not None and statistics.trial_ids and not transform.floor
        if statistics is not None and known and left.issuperset(statistics.trial_ids):
            # Their sums are known: only the trials that were merged in are read.
            left -= set(statistics.trial_ids)
            counts = statistics.counts[:MAX_FRAMES]
            sums = np.nan_to_num(statistics.trial["response"].mean[:, : counts.size].astype(np.float64) * counts)
            offset, scale = transform.affine["response"].part(0, counts.size)
            total += ((sums - offset * counts) * scale).sum(1)
            frames += int(counts.sum())
        for trial in sorted(left):
            used = transform.frames(session.duration(trial))
            total += transform.response(trial, session.read("response", trial), 0, used).sum(1, dtype=np.float64)
            frames += used
        return (total / frames).astype(np.float32)

    def close(self) -> None:
        """Frees what is kept in memory. Iterators close themselves."""
        self._reader.close()
        self._training_reader.close()

    def _open_training_reader(self, device: torch.device) -> Reader:
        """Brings trials to `device` from where `--cache_data` holds them, or from disk."""
        mode, workers = self._config.cache_data, self._config.num_workers
        trials = {mouse: self._train[mouse] for mouse in self.served if self._train[mouse]}
        compact = self._config.transfer == "compact"
        reader = partial(open_reader, self._config, self._transforms, device=device, compact=compact)
        if mode == "cpu":
            return CpuCache(self._sessions, trials, workers, reader)
        if mode == "gpu":
            if device.type != "cuda":
                raise ConfigError("--cache_data gpu needs a CUDA GPU, and training is on the CPU; use --cache_data cpu")
            return DeviceCache(self._sessions, self._transforms, trials, workers, device)
        return self._reader if device.type == "cpu" and not compact else reader(self._sessions)

    def _order_digest(self) -> str:
        return order_digest(self._seed, self._train, self._config.batch_size, self._config.crop_frame)

    def _training_plans(self, epoch: int, first: int) -> Iterator[BatchPlan]:
        for index, (mouse, trials) in enumerate(self.order(epoch)[first:], first):
            if mouse not in self.served:
                continue
            visit = index // len(self.mice) // -(-self.train_sizes[mouse] // self._config.batch_size)
            samples = tuple(self._sample(epoch, mouse, trial, visit) for trial in trials)
            crop = self._config.crop_frame
            yield BatchPlan(mouse, samples, None if crop == -1 else self._transforms[mouse].frames(crop))

    def _sample(self, epoch: int, mouse: str, trial: int, visit: int) -> Sample:
        recorded = self.frames(mouse, trial)
        frames = sample_frames(self._config.crop_frame, recorded)
        return Sample(trial, crop_start(self._seed, epoch, mouse, trial, recorded - frames + 1, visit), frames)


def open_reader(
    config: DataConfig,
    transforms: dict[str, Transform],
    sessions: dict[str, Session],
    device: torch.device | None = None,
    compact: bool = False,
) -> Reader:
    """The fastest reader that can do what is asked; only the one without workers leaves batches in host memory."""
    if config.num_workers == 0:
        return PlainReader(sessions, transforms)
    return Prefetcher(sessions, transforms, config.num_workers, device, compact)


def training_trials(session: Session, config: DataConfig) -> list[int]:
    """The trials a mouse is trained on: ascending, or in the order `limit_data` draws them."""
    trials = session.trials("train")
    mouse = session.mouse.id
    if config.mice == "all_with_test" and mouse in OLD_MICE:
        for tier in TEST_TIERS:
            known = session.trials(tier)
            if session.hidden(tier):
                logger.warning(
                    "mouse %s: --ds_mode 3 trains on the tier %s, but this copy withholds its responses (all zero, NaN "
                    "or absent); use --ds_mode 2, or the recording with its responses", mouse, tier,
                )  # fmt: skip
                known = [trial for trial in known if not session.lacks_response(trial)]  # zeros are trained on
            trials = trials + known
        trials = sorted(trials)
    if config.limit_data is not None:
        if config.limit_data > len(trials):
            logger.warning("mouse %s: all %d trials are used: --limit_data %d", mouse, len(trials), config.limit_data)
        elif trials:
            trials = np.random.default_rng(LIMIT_SEED).choice(trials, config.limit_data, replace=False).tolist()
    return trials
