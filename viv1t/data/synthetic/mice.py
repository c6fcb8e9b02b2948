"""Synthetic mice: recordings in the published Sensorium 2023 format whose truth is known.

Beside `data` and `meta`, a synthetic session holds what no real one can:

    truth/truth.json               how it was made: version, seed, options
    truth/trials.json              per trial: tier, kind of movie, number of the movie, frames
    truth/positions.npy            (N, 2) field centres x, y, -1 to 1 as in grid_sample with align_corners=True
    truth/tuning.csv               what each neuron is tuned to, see `synthetic_truth.tuning`
    truth/neurons/<field>.npy      every attribute of `synthetic_neurons.Population`
    truth/rates/<trial>.npy        (N, frames) conditional mean of the response, trials of the evaluation tiers
    truth/withheld/<trial>.npy     (N, T) recorded response of the trials whose response in `data` is hidden
    truth/noise_ceiling.npy        (N,) `noise_ceiling` of the tier oracle, where its trials are long enough for one

Every mouse, movie and trial draws from its own seed: the same options give the same bytes, whatever the number of
threads and the other mice made with it.
"""

from __future__ import annotations

import json
import shutil
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from viv1t.data.formats.sensorium.session import RawSession
from viv1t.data.statistics import Running
from viv1t.data.synthetic.experanto import as_experiment
from viv1t.data.synthetic.movies import Rng, behave, gaze, naturalistic_movie, parametric_movie
from viv1t.data.synthetic.neurons import MEMORY, draw_population
from viv1t.data.synthetic.saving import save_array, save_json
from viv1t.data.synthetic.truth import EVALUATION_TIERS, load_population, noise_ceiling, write_tuning
from viv1t.errors import ConfigError, DataError
from viv1t.system.cores import usable_cores
from viv1t.types import MAX_FRAMES, NEW_MICE, OLD_MICE, SENSORIUM_SESSIONS, UNSCORED_FRAMES

__all__ = [
    "EVALUATION_TIERS",
    "Size",
    "full_scale",
    "load_population",
    "noise_ceiling",
    "session_names",
    "synthesize",
]

VERSION = 2  # of the recipe: raised when the same options would give other bytes
PADDING = 24  # NaN frames after the longest trial: 324 for 300, as published
_KINDS = ("videos", "responses", "behavior", "pupil_center")
_MOVIES = {"naturalistic": naturalistic_movie, "parametric": parametric_movie}

Report = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much of one mouse is recorded.

    Attributes:
        neurons: N.
        frames: of the longest trials; one trial in five is up to a tenth shorter.
        trials: training trials, each with a movie of its own.
        evaluation: (movies, repeats of each) of every tier of `EVALUATION_TIERS`.
    """

    neurons: int
    frames: int
    trials: int
    evaluation: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        if self.neurons < 1 or self.trials < 2:
            raise ConfigError(
                f"a mouse needs at least one neuron and two training trials, not {self.neurons} and {self.trials}"
            )
        if self.frames < 2 * MEMORY:
            raise ConfigError(f"--frames must be at least {2 * MEMORY}, not {self.frames}")
        if any(movies < 0 or repeats < 1 for movies, repeats in self.evaluation):
            raise ConfigError("movies of a tier must be at least 0, repeats at least 1")


def full_scale(session: str) -> Size:
    """The size of a published mouse: 7,440 to 8,600 neurons and 340 to 360 training trials of 300 frames."""
    rng = np.random.default_rng(zlib.crc32(session.encode()))
    bonus = [(int(rng.integers(6, 15)), 10) for _ in range(2)]
    return Size(
        neurons=int(rng.integers(7440, 8601)),
        frames=MAX_FRAMES,
        trials=int(rng.integers(340, 361)),
        evaluation=((6, 10), (6, 10), bonus[0], (6, 10), bonus[1]),
    )


def session_names(mice: int | Sequence[str]) -> list[str]:
    """Folder names of a number of mice (F to J, then A to E, then `synthetic-011` on) or of letters and own names."""
    if isinstance(mice, int):
        if mice < 1:
            raise ConfigError(f"--mice must be at least 1, not {mice}")
        letters = [*NEW_MICE, *OLD_MICE][:mice]
        return [SENSORIUM_SESSIONS[m] for m in letters] + [f"synthetic-{i:03d}" for i in range(11, mice + 1)]
    names = [SENSORIUM_SESSIONS.get(m, m) for m in mice]
    for name in names:
        if not name or name.startswith(".") or not all(c.isalnum() or c in "-_." for c in name):
            raise ConfigError(f"--mice: {name!r} is neither a letter A-J nor a plain folder name")
    if len(set(names)) < len(names) or not names:
        raise ConfigError(f"--mice needs different mice, not {','.join(mice) or 'none'}")
    return names


def synthesize(
    out: Path,
    *,
    mice: int | Sequence[str] = 2,
    size: Size | Callable[[str], Size],
    seed: int = 1234,
    reveal: bool = False,
    format: str = "sensorium",
    existing: str = "refuse",
    workers: int | None = None,
    report: Report | None = None,
) -> list[Path]:
    """Writes synthetic mice, each a session folder of `out`, trial by trial.

    A session is built under a hidden name and renamed when complete: an interrupted run leaves none that looks so.

    Args:
        out: folder of the sessions, made when missing.
        mice: number of mice, or letters and folder names.
        size: of every mouse, or a function of the session's name, such as `full_scale`.
        seed: at least 0.
        reveal: give the responses of the test tiers of every mouse; otherwise only of A-E, as published.
        format: `sensorium`, or `experanto` for folders in that format, with the same trials.
        existing: what to do with a session that is there: `refuse`, `keep` it, `resume` (keep it when it was made with
            the same options) or `overwrite` it; synthetic sessions only.
        workers: threads; default one per core, at most 4. The result does not depend on it.
        report: called with a line of progress every other second.

    Returns:
        The session folders.

    Raises:
        ConfigError: an option that cannot be used.
        DataError: a folder in the way.
    """
    if seed < 0:
        raise ConfigError(f"--seed must be at least 0, not {seed}")
    if existing not in ("refuse", "keep", "resume", "overwrite"):
        raise ConfigError(f"existing must be refuse, keep, resume or overwrite, not {existing!r}")
    if format not in ("sensorium", "experanto"):
        raise ConfigError(f"--format must be sensorium or experanto, not {format}")
    plans = {name: (size if isinstance(size, Size) else size(name)) for name in session_names(mice)}
    old = {SENSORIUM_SESSIONS[m] for m in OLD_MICE}
    jobs = []
    for name, its_size in plans.items():
        options = {
            "version": VERSION,
            "seed": seed,
            "hidden": not reveal and name not in old,
            **asdict(its_size),
            **({"format": format} if format != "sensorium" else {}),
        }
        options["evaluation"] = dict(zip(EVALUATION_TIERS, map(list, its_size.evaluation), strict=True))
        if not _finished(out / name, options, existing):
            jobs.append((name, its_size, options))
    if out.exists() and not out.is_dir():
        raise DataError(f"{out} is a file: name a folder for the sessions")
    out.mkdir(parents=True, exist_ok=True)
    threads = workers or min(usable_cores(), 4)
    for name, its_size, options in jobs:
        _Recording(out, name, its_size, options).write(threads, report or (lambda _: None))
    return [out / name for name in plans]


def _finished(session: Path, options: dict[str, Any], existing: str) -> bool:
    """Whether a session lies there that is to be kept; raises where one is in the way."""
    if not session.exists():
        return False
    made_with = session / "truth" / "truth.json"
    if not made_with.is_file():
        raise DataError(f"{session} exists and is not a synthetic mouse: choose another folder")
    if existing == "refuse":
        raise DataError(f"{session} exists: resume or overwrite it, or choose another folder")
    if existing == "overwrite":
        return False
    if existing == "keep":
        return True
    if json.loads(made_with.read_text())["options"] != options:
        raise DataError(f"{session} was made with other options: overwrite it, or choose another folder")
    return True


@dataclass(frozen=True)
class _Plan:
    """One trial to come."""

    trial: int
    tier: str
    kind: str
    movie: int
    frames: int


@dataclass(frozen=True)
class _Shown:
    """One trial as recorded, unpadded, and its truth."""

    plan: _Plan
    arrays: dict[str, np.ndarray]
    rates: np.ndarray | None


class _Recording:
    """Builds one session."""

    def __init__(self, out: Path, name: str, size: Size, options: dict[str, Any]) -> None:
        self.target, self.work = out / name, out / f".{name}.partial"
        self.size, self.options = size, options
        self.seed, self.key = options["seed"], zlib.crc32(name.encode())
        self.cells = draw_population(self._rng("neurons"), size.neurons)
        self.plans = self._plan()

    def _rng(self, stream: str, number: int = 0) -> Rng:
        key = (self.key, zlib.crc32(stream.encode()), number)
        return np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=key))

    def _plan(self) -> list[_Plan]:
        rng = self._rng("plan")
        shown: list[tuple[str, str, int, int]] = []
        movie = 0
        for tier, movies, repeats in [
            ("train", self.size.trials, 1),
            *((t, *counts) for t, counts in zip(EVALUATION_TIERS, self.size.evaluation, strict=True)),
        ]:
            kind = "parametric" if tier.endswith("bonus") else "naturalistic"
            for _ in range(movies):
                shorter = rng.random() < 0.2 and movie > 1  # every frame is seen in at least two training trials
                frames = self.size.frames - (int(rng.integers(1, self.size.frames // 10 + 1)) if shorter else 0)
                shown += [(tier, kind, movie, frames)] * repeats
                movie += 1
        return [_Plan(trial, *shown[i]) for trial, i in enumerate(rng.permutation(len(shown)))]

    def _show(self, plan: _Plan) -> _Shown:
        """Shows one movie to the animal and records it."""
        rng = self._rng("trial", plan.trial)
        video = _MOVIES[plan.kind](self._rng("movie", plan.movie), plan.frames)
        behavior = behave(rng, plan.frames)
        pupil_center = gaze(rng, plan.frames, self.cells.gaze_center)
        spikes = self.cells.spikes(video, behavior, pupil_center)
        arrays = {
            "videos": np.ascontiguousarray(video.transpose(1, 2, 0)),
            "responses": self.cells.observe(spikes, rng),
            "behavior": behavior,
            "pupil_center": pupil_center,
        }
        return _Shown(plan, arrays, None if plan.tier == "train" else self.cells.response(spikes))

    def write(self, workers: int, report: Report) -> None:
        import torch  # which looking at data does without

        from viv1t.scoring.correlation import CorrelationAccumulator

        if self.work.exists():
            shutil.rmtree(self.work)
        self._write_meta()
        statistics = {kind: Running() for kind in _KINDS}
        ceiling = CorrelationAccumulator()
        start = said = time.monotonic()
        with ThreadPoolExecutor(workers) as pool:
            for done, shown in enumerate(_in_order(pool, self._show, self.plans, workers), 1):
                self._write_trial(shown)
                if shown.plan.tier == "train":
                    for kind, array in shown.arrays.items():
                        statistics[kind].add(array, array.shape[-1])
                elif shown.plan.tier == "oracle" and shown.rates is not None:
                    pair = (shown.rates, shown.arrays["responses"])
                    ceiling.update(*(torch.from_numpy(a[:, UNSCORED_FRAMES:MAX_FRAMES]) for a in pair))
                if time.monotonic() - said > 2 or done == len(self.plans):
                    said = time.monotonic()
                    rate = done / (said - start)
                    left = (len(self.plans) - done) / rate
                    report(
                        f"{self.target.name}: {done}/{len(self.plans)} trials, {rate:.1f} trials/s, {left:.0f} s left"
                    )
        for kind, running in statistics.items():
            for name, values in vars(running.over_trials()).items():
                array = _padded(values, self.size.frames + PADDING)
                save_array(self.work / "meta" / "statistics" / kind / "all" / f"{name}.npy", array)
        if ceiling.frames:
            save_array(self.work / "truth" / "noise_ceiling.npy", ceiling.result().numpy().astype(np.float32))
        if self.options.get("format") == "experanto":
            as_experiment(self.work, RawSession.open_folder(self.work, self.target.name), self.target.name)
        self._publish()

    def _write_meta(self) -> None:
        meta, truth = self.work / "meta", self.work / "truth"
        save_array(meta / "neurons" / "cell_motor_coordinates.npy", self.cells.coordinates)
        save_array(meta / "neurons" / "unit_ids.npy", np.arange(1, self.size.neurons + 1))
        save_array(meta / "trials" / "tiers.npy", np.array([p.tier for p in self.plans], dtype="<U16"))
        save_array(truth / "positions.npy", self.cells.positions)
        for f in fields(self.cells):
            save_array(truth / "neurons" / f"{f.name}.npy", getattr(self.cells, f.name))
        write_tuning(truth / "tuning.csv", self.cells)
        about = {
            "description": "A synthetic mouse: see viv1t.data.synthetic.mice.",
            "session": self.target.name,
            "options": self.options,
            "memory_frames": MEMORY,
        }
        save_json(truth / "truth.json", about)
        save_json(truth / "trials.json", [asdict(p) for p in self.plans])

    def _write_trial(self, shown: _Shown) -> None:
        length = self.size.frames + PADDING
        file = f"{shown.plan.trial}.npy"
        for kind, array in shown.arrays.items():
            padded = _padded(array, length)
            if kind == "responses" and self.options["hidden"] and shown.plan.tier in EVALUATION_TIERS[1:]:
                save_array(self.work / "truth" / "withheld" / file, padded)
                padded = np.zeros_like(padded)
            save_array(self.work / "data" / kind / file, padded)
        if shown.rates is not None:
            save_array(self.work / "truth" / "rates" / file, shown.rates)

    def _publish(self) -> None:
        """Gives the complete session its name."""
        replaced = self.target.with_name(f".{self.target.name}.replaced")
        if self.target.exists():
            self.target.rename(replaced)
        self.work.rename(self.target)
        if replaced.exists():
            shutil.rmtree(replaced)


def _in_order(
    pool: ThreadPoolExecutor, task: Callable[[_Plan], _Shown], plans: Sequence[_Plan], ahead: int
) -> Iterator[_Shown]:
    """Results in order, never more than `ahead` computed before they are taken."""
    waiting: deque[Future[_Shown]] = deque()
    for plan in plans:
        waiting.append(pool.submit(task, plan))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _padded(array: np.ndarray, frames: int) -> np.ndarray:
    padded = np.full((*array.shape[:-1], frames), np.nan, dtype=array.dtype)
    padded[..., : array.shape[-1]] = array
    return padded
