"""Statistics of a mouse over its trials of the tier `train`: what the transforms divide and subtract.

Two families: `trial`, over trials, one value per frame; `time`, over trials and frames. Both use every recorded frame.
Trials of several lengths count where they have frames; padding counts nowhere.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from viv1t.data.npy import read_npy
from viv1t.data.session import FOLDERS, VARIABLES, Session, missing_tier, unknown_tiers
from viv1t.data.values import reason_of
from viv1t.errors import DataError
from viv1t.system.files import replacing
from viv1t.types import MAX_FRAMES

logger = logging.getLogger("viv1t")

VERSION = 1  # of the algorithm: a cache of another version is computed anew
NAMES = ("min", "max", "mean", "std")
MEDIAN_BYTES = 256 << 20  # of one block while medians are computed
_REPORT_SECONDS = 10.0


@dataclass(frozen=True)
class Moments:
    """Statistics of one variable, float32: (H, W, T), (N, T) or (2, T), without T in the family `time`.

    NaN at frames that no trial has. `std` is the population's.
    """

    min: np.ndarray
    max: np.ndarray
    mean: np.ndarray
    std: np.ndarray


@dataclass(frozen=True)
class MouseStatistics:
    """Statistics of one mouse.

    Attributes:
        trial: per variable (video, response, behavior, pupil_center) over trials.
        time: per variable over trials and frames; None where only provided statistics are known.
        trial_ids: what they were computed from; empty for provided statistics.
        counts: (T,) int64, trials that have each frame; empty for provided statistics.
    """

    trial: Mapping[str, Moments]
    time: Mapping[str, Moments] | None
    trial_ids: tuple[int, ...] = ()
    counts: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))

    def limited(self, kept: np.ndarray) -> MouseStatistics:
        """The same for some of the neurons alone, by their indices."""
        time = None if self.time is None else _limited(self.time, kept)
        return replace(self, trial=_limited(self.trial, kept), time=time)


def _limited(of: Mapping[str, Moments], kept: np.ndarray) -> dict[str, Moments]:
    r = of["response"]
    return {**of, "response": Moments(r.min[kept], r.max[kept], r.mean[kept], r.std[kept])}


def movie_levels(statistics: MouseStatistics) -> tuple[float, float]:
    """The smallest and the largest value of the movies of the tier `train`."""
    video = (statistics.time or statistics.trial)["video"]
    return float(np.nanmin(video.min)), float(np.nanmax(video.max))


def response_precision(std: np.ndarray) -> np.ndarray:
    """What responses are multiplied by: 1 / std, bounded where a neuron is nearly silent.

    With h = 0.01 times the mean of `std` over neurons and frames: 1 / std where std > h, else 1 / h.

    Args:
        std: (N, T) or (N,), over trials; the first 300 frames are used.

    Returns:
        (N, min(T, 300)) or (N, 1) float32.

    Raises:
        ValueError: every response is constant, or all but that.
    """
    std = np.asarray(std, np.float32)
    std = std[:, None] if std.ndim == 1 else std[:, :MAX_FRAMES]
    threshold = np.float32(0.01 * np.nanmean(std, dtype=np.float64)) if np.isfinite(std).any() else np.float32(0)
    if not threshold > np.finfo(np.float32).tiny:  # whose reciprocal float32 does not hold
        raise ValueError("the responses are the same in every trial")
    return 1 / np.where(std > threshold, std, threshold)


def provided_statistics(session: Session) -> MouseStatistics:
    """The statistics stored with a recording, in `meta/statistics/<variable>/all/{min,max,mean,std}.npy`.

    Raises:
        DataError: a file is missing, damaged or of another shape.
    """
    if (stored := session.stored_statistics("provided")) is not None:
        return stored
    moments = {}
    for variable in VARIABLES:
        arrays = {}
        for name in NAMES:
            path = session.path / "meta" / "statistics" / FOLDERS[variable] / "all" / f"{name}.npy"
            shape = session.rows(variable)
            try:
                array = read_npy(path)
                fits = array.shape[: len(shape)] == shape and array.ndim <= len(shape) + 1
                if not fits or (variable != "response" and array.ndim == len(shape)):
                    raise ValueError(f"expected {(*shape, 'T')}, found {array.shape}")
                arrays[name] = array.astype(np.float32)
            except (OSError, ValueError) as error:
                fault = f"mouse {session.mouse.id}: {path}: {reason_of(error)}"
                raise DataError(f"{fault}; --stat_mode 1 computes them") from error
        moments[variable] = Moments(**arrays)
    return MouseStatistics(moments, None)


def computed_statistics(session: Session) -> MouseStatistics:
    """The statistics of a session's tier `train`, from a cache where nothing has changed since it was written.

    The cache is `meta/viv1t_statistics.safetensors` in the session, or under $XDG_CACHE_HOME/viv1t (~/.cache/viv1t)
    where that cannot be written or nothing of ours belongs there; without either, they are computed each time.

    Raises:
        DataError: a trial is missing or damaged, or there is none.
    """
    if (stored := session.stored_statistics("computed")) is not None:
        return stored
    trials = session.trials("train")
    key = _key(session, trials)
    for path in _cache_paths(session):
        cached = _load(path, key)
        if cached is not None:
            return cached
    statistics = compute_statistics(session, trials)
    reasons = []
    for path in _cache_paths(session):
        try:
            _save(path, key, statistics)
        except OSError as error:
            reasons.append(f"{path} cannot be written ({error.strerror or error})")
        else:
            break
    else:
        logger.warning(
            "mouse %s: its statistics are not kept, and computed each time: %s", session.mouse.id, "; ".join(reasons)
        )
    return statistics


def compute_statistics(session: Session, trials: Sequence[int]) -> MouseStatistics:
    """Both families of statistics of some trials, reading every trial once, accumulating in float64.

    Raises:
        DataError: a trial is missing or damaged, or there is none.
    """
    if not trials:
        missing = missing_tier(session, "train")
        if unknown_tiers(session.tiers):  # of which some are most likely meant
            raise missing.error
        raise DataError(
            f"mouse {session.mouse.id}: {session.path}: {missing.what} to compute statistics from; {missing.fix}, or "
            "use --stat_mode 0 where meta/statistics holds them"
        )
    running = {variable: Running() for variable in VARIABLES}
    next_report = time.monotonic() + _REPORT_SECONDS
    for done, trial in enumerate(trials):
        if time.monotonic() > next_report:
            logger.info("mouse %s: statistics, %d of %d trials", session.mouse.id, done, len(trials))
            next_report = time.monotonic() + _REPORT_SECONDS
        duration = session.duration(trial)
        for variable in VARIABLES:
            array = session.read(variable, trial)
            running[variable].add(np.ascontiguousarray(array), duration)
    return MouseStatistics(
        trial={variable: r.over_trials() for variable, r in running.items()},
        time={variable: r.over_time() for variable, r in running.items()},
        trial_ids=tuple(trials),
        counts=running["video"].counts,
    )


class Running:
    """Statistics of one variable so far, (rows, T).

    Sums are taken relative to each frame's first value: exact for what is constant, and without cancellation.
    """

    def __init__(self) -> None:
        self.counts = np.empty(0, np.int64)
        self._fields: dict[str, np.ndarray] = {}

    def add(self, array: np.ndarray, duration: int) -> None:
        if self.counts.size < array.shape[-1]:
            self._grow(array.shape)
        new = self.counts[:duration] == 0
        values = array[..., :duration]
        f = {name: field[..., :duration] for name, field in self._fields.items()}
        if new.any():
            f["origin"][..., new] = values[..., new]
        difference = values - f["origin"]  # float64
        f["sum"] += difference
        np.multiply(difference, difference, out=difference)
        f["squares"] += difference
        np.fmin(f["min"], values, out=f["min"])
        np.fmax(f["max"], values, out=f["max"])
        self.counts[:duration] += 1

    def _grow(self, shape: tuple[int, ...]) -> None:
        known, self.counts = self.counts, np.zeros(shape[-1], np.int64)
        self.counts[: known.size] = known
        for name, empty in (("origin", 0), ("sum", 0), ("squares", 0), ("min", np.nan), ("max", np.nan)):
            grown = np.full(shape, empty, np.float64)
            if known.size:
                grown[..., : known.size] = self._fields[name]
            self._fields[name] = grown

    def _mean_and_squares(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean, and sum of squared deviations from it, per frame; NaN where there is none."""
        counts = np.where(self.counts > 0, self.counts, np.nan)
        shift = self._fields["sum"] / counts
        squares = np.maximum(self._fields["squares"] - counts * shift**2, 0)
        return self._fields["origin"] + shift, squares

    def over_trials(self) -> Moments:
        mean, squares = self._mean_and_squares()
        std = np.sqrt(squares / np.where(self.counts > 0, self.counts, np.nan))
        return Moments(*(a.astype(np.float32) for a in (self._fields["min"], self._fields["max"], mean, std)))

    def over_time(self) -> Moments:
        mean, squares = (a[..., self.counts > 0] for a in self._mean_and_squares())
        counts = self.counts[self.counts > 0]
        total = counts.sum()
        # Relative to the first frame's mean, exact again for what is constant.
        origin = mean[..., :1]
        shift = ((mean - origin) * counts).sum(-1, keepdims=True) / total
        deviation = squares.sum(-1) + ((mean - origin - shift) ** 2 * counts).sum(-1)
        overall = (origin + shift)[..., 0]
        low, high = np.nanmin(self._fields["min"], -1), np.nanmax(self._fields["max"], -1)
        return Moments(*(a.astype(np.float32) for a in (low, high, overall, np.sqrt(deviation / total))))


def medians(session: Session, variable: str, family: str) -> np.ndarray:
    """The median of one variable over the tier `train`, read in blocks of rows; no transform needs it.

    Args:
        variable: video, response, behavior or pupil_center.
        family: `trial` or `time`.

    Returns:
        float32, of the shape of the other statistics.
    """
    trials = session.trials("train")
    shape = session.read(variable, trials[0]).shape
    durations = np.array([session.duration(trial) for trial in trials])
    frames = max(session.place(variable, trial).frames for trial in trials)
    counts = (durations[:, None] > np.arange(frames)).sum(0)
    row_bytes = 4 * frames * int(np.prod(shape[1:-1])) * len(trials)
    step = max(1, MEDIAN_BYTES // row_bytes)
    parts = []
    for start in range(0, shape[0], step):
        block = np.full((len(trials), min(step, shape[0] - start), *shape[1:-1], frames), np.nan, np.float32)
        for values, trial, duration in zip(block, trials, durations, strict=True):
            values[..., :duration] = session.place(variable, trial).map()[start : start + step, ..., :duration]
        if family == "trial":
            parts.append(_median(np.moveaxis(block, 0, -1), counts))
        else:
            flat = np.moveaxis(block, 0, -2).reshape(*block.shape[1:-1], -1)
            parts.append(_median(flat, durations.sum()))
    return np.concatenate(parts)


def state_median(session: Session, variable: str) -> np.ndarray:
    """(2,) float32, the median of `behavior` or `pupil_center` over the trials and frames of the tier `train`.

    Raises:
        DataError: a trial is missing or damaged, or there is none.
    """
    trials = session.trials("train")
    if not trials:
        raise DataError(f"mouse {session.mouse.id}: no trial of the tier train to take the median {variable} from")
    parts = [session.read(variable, trial)[:, : session.duration(trial)] for trial in trials]
    values = np.concatenate(parts, axis=1).astype(np.float32)
    return _median(values, np.array(values.shape[1]))


def _median(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Median over the last axis of what is not NaN; `counts` says how many that are."""
    ordered = np.sort(values, axis=-1)  # NaN comes last
    counts = np.broadcast_to(counts, ordered.shape[:-1])[..., None]
    low = np.take_along_axis(ordered, np.maximum(counts - 1, 0) // 2, -1)
    high = np.take_along_axis(ordered, np.minimum(counts // 2, values.shape[-1] - 1), -1)
    middle: np.ndarray = (low + (high - low) / 2)[..., 0]
    return middle


def _key(session: Session, trials: Sequence[int]) -> str:
    """A digest of everything the statistics depend on."""
    files = []
    for file in session.files(trials):
        try:
            status = file.stat()
            files.append((status.st_size, status.st_mtime_ns))
        except OSError:
            files.append((-1, -1))  # reading it will say what is wrong
    name = session.path.resolve().name  # of the files themselves, whatever links to them are called
    text = json.dumps([VERSION, name, session.mouse.neurons, list(trials), files, *filter(None, [session.reading])])
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _cache_paths(session: Session) -> Iterator[Path]:
    if session.statistics_file is not None:
        yield session.statistics_file
    root = _cache_folder()
    if root is not None:
        place = hashlib.blake2b(os.fsencode(session.path.resolve()), digest_size=8).hexdigest()
        yield root / "viv1t" / f"{session.path.resolve().name}-{place}.safetensors"


def _cache_folder() -> Path | None:
    """The user's, None where there is none: a container or a service may have a user without a home."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(given):  # others are to be ignored (XDG Base Directory Specification)
        return Path(given)
    try:
        home = Path.home()
    except RuntimeError:
        return None
    return home / ".cache" if home.is_absolute() and home != Path(home.anchor) else None


def statistics_tensors(statistics: MouseStatistics) -> dict[str, np.ndarray]:
    """The statistics as named arrays, `<family>/<variable>/<min|max|mean|std>`, for a safetensors file."""
    tensors = {"counts": statistics.counts, "trial_ids": np.array(statistics.trial_ids, np.int64)}
    for family, moments in (("trial", statistics.trial), ("time", statistics.time or {})):
        for variable, of_variable in moments.items():
            for name in NAMES:
                tensors[f"{family}/{variable}/{name}"] = np.ascontiguousarray(getattr(of_variable, name))
    return tensors


def statistics_from_tensors(tensors: Mapping[str, np.ndarray]) -> MouseStatistics:
    """What `statistics_tensors` was given.

    Raises:
        KeyError: an array is missing.
    """

    def family(of: str) -> dict[str, Moments]:
        return {v: Moments(*(tensors[f"{of}/{v}/{name}"] for name in NAMES)) for v in VARIABLES}

    time = family("time") if any(name.startswith("time/") for name in tensors) else None
    return MouseStatistics(family("trial"), time, tuple(tensors["trial_ids"].tolist()), tensors["counts"])


def _save(path: Path, key: str, statistics: MouseStatistics) -> None:
    with replacing(path) as temporary:
        # By Python, whose errors say what is wrong: those of the library's own writer are no OSError.
        temporary.write_bytes(safetensors.numpy.save(statistics_tensors(statistics), {"key": key}))


def _load(path: Path, key: str) -> MouseStatistics | None:
    """Cached statistics, None where there are none that fit."""
    try:
        if not path.is_file():
            return None
        with safetensors.safe_open(path, framework="np") as file:
            if (file.metadata() or {}).get("key") != key:
                return None
            return statistics_from_tensors({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    except (OSError, ValueError, KeyError, safetensors.SafetensorError) as error:
        logger.warning("%s: damaged cache of statistics (%s), computed anew", path, error)
        return None
