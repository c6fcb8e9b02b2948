"""Shows patterns to an observer: batched, resumable trial by trial, and not shown again where they were."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from viv1t.errors import ConfigError
from viv1t.lab.observers import Observer, check_answer, digest_of
from viv1t.lab.protocols import Layout
from viv1t.stimuli.parametric import grey
from viv1t.system.files import replacing
from viv1t.system.memory import available_bytes, peak_added_bytes
from viv1t.system.progress import Progress, duration

VERSION = 1  # of the layout of what is kept: raised when the same patterns would give other numbers
_BATCH = {"cpu": 4, "cuda": 32}


class Films(Sequence[np.ndarray]):
    """Patterns that are made when they are shown.

    Args:
        make: gives the film (T, H, W) uint8 of a row of `rows`.
        rows: (P, K) parameters.
        about: what else decides the films, which are not looked at to tell whether they were shown before.
    """

    def __init__(self, make: Callable[[np.ndarray], np.ndarray], rows: np.ndarray, about: str) -> None:
        self._make, self.rows, self._about = make, rows, about

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            raise TypeError("films are made one at a time")
        return self._make(self.rows[index])

    def digest(self) -> str:
        """Of the parameters."""
        return digest_of([self._about.encode(), repr(self.rows.shape).encode(), self.rows.astype(np.float64).tobytes()])


@dataclass(frozen=True)
class Shown:
    """What an experiment shows, and what it takes of each response.

    Attributes:
        layout: where patterns lie in a trial.
        patterns: P films, (layout.pattern, H, W) uint8 each.
        parameters: what the patterns are: (P,) of each name.
        weights: (layout.pattern, R), or (P, layout.pattern, R): each of the R numbers taken of a pattern is the sum of
            the response times a column; None takes every frame.
        seed: of the order in which patterns are shown; a pattern's place in a trial is left to chance, so that what a
            place adds averages out. None shows them as they come.
        about: what made the patterns, for whoever reads the responses.
    """

    layout: Layout
    patterns: Sequence[np.ndarray]
    parameters: dict[str, np.ndarray] = field(default_factory=dict)
    weights: np.ndarray | None = None
    seed: int | None = 1234
    about: Any = None

    def __post_init__(self) -> None:
        if not len(self.patterns):
            raise ConfigError("there is no pattern to show")

    @property
    def trials(self) -> int:
        """How many trials hold all patterns."""
        return -(-len(self.patterns) // self.layout.count)

    def order(self) -> np.ndarray:
        """The pattern at each place of each trial, (trials, count); -1 is grey."""
        order = np.full(self.trials * self.layout.count, -1)
        places = np.arange(len(self.patterns))
        order[: len(places)] = places if self.seed is None else np.random.default_rng(self.seed).permutation(places)
        return order.reshape(self.trials, self.layout.count)

    @cached_property
    def _films(self) -> str:
        if isinstance(self.patterns, Films):
            return self.patterns.digest()
        films = [np.ascontiguousarray(pattern, np.uint8) for pattern in self.patterns]
        return digest_of([repr(films[0].shape).encode(), *(film.tobytes() for film in films)])

    def digest(self) -> str:
        """Of the films and all else that decides the numbers."""
        weights = b"" if self.weights is None else np.ascontiguousarray(self.weights, np.float64).tobytes()
        return digest_of([repr((VERSION, self.layout, self.seed)).encode(), self._films.encode(), weights])


class OverBudget(ConfigError):
    """An experiment would take longer than there is time."""


class Theatre:
    """Shows patterns to one observer.

    Args:
        observer: who answers.
        folder: keeps numbers of trials that were shown, `<folder>/<digest>/<trial>.npy`; None keeps nothing.
        batch_size: trials in a batch; None chooses by memory.
        deadline: `time.monotonic` by which everything is to be done; None is never.
        say: is told what is about to be done and what it will take.
        progress: whether a line shows how far it is.
    """

    def __init__(
        self,
        observer: Observer,
        folder: Path | None = None,
        *,
        batch_size: int | None = None,
        deadline: float | None = None,
        say: Callable[[str], None] = lambda _: None,
        progress: bool = False,
    ) -> None:
        if batch_size is not None and batch_size < 1:
            raise ConfigError(f"--batch_size must be at least 1, not {batch_size}")
        self.observer, self.folder, self.batch_size = observer, folder, batch_size
        self.deadline, self.say, self.progress = deadline, say, progress
        self._passes: dict[int, float] = {}  # seconds, by frames
        self._memory: dict[str, np.ndarray] = {}  # in the folder's place

    def fit(self, shown: Shown) -> Shown:
        """The same patterns, in trials that are not longer than the observer knows."""
        layout = shown.layout.within(self.observer.longest)
        return shown if layout == shown.layout else replace(shown, layout=layout)

    def cost(self, frames: int) -> float:
        """Seconds of a timed pass of one grey trial of so many frames; the second of two where they are quick."""
        if frames not in self._passes:
            trial = grey(frames, self.observer.frame_size)[None]
            for _ in range(2):
                start = time.monotonic()
                self.observer.answer(trial)
                took = time.monotonic() - start
                if took > 2:
                    break
            self._passes[frames] = took
        return self._passes[frames]

    def place(self, shown: Shown) -> Path | None:
        """Where the numbers of these patterns are kept."""
        if self.folder is None:
            return None
        return self.folder / digest_of([self.observer.identity.encode(), shown.digest().encode()])

    def left(self, shown: Shown) -> list[int]:
        """The trials that are not kept."""
        if self.folder is None and shown.digest() in self._memory:
            return []
        place = self.place(shown)
        shape = self._shape(shown)
        return [i for i in range(shown.trials) if place is None or self._kept(place, i, shape) is None]

    def seconds(self, shown: Shown) -> float:
        """What showing the rest will take."""
        left = len(self.left(shown))
        return left * self.cost(shown.layout.frames) if left else 0.0

    def choose(self, plans: Sequence[Callable[[], Shown]]) -> Shown:
        """The first of the plans, from rich to lean, for which there is time; one that was begun goes on.

        Raises:
            OverBudget: there is time for none.
        """
        if self.deadline is None:
            return self.fit(plans[0]())
        ready = [self.fit(plan()) for plan in plans]
        begun = [shown for shown in ready if len(self.left(shown)) < shown.trials]
        for shown in [*begun, *ready]:
            if self.seconds(shown) <= self.deadline - time.monotonic():
                return shown
        least, rest = duration(self.seconds(ready[-1])), duration(self.deadline - time.monotonic())
        raise OverBudget(
            f"mouse {self.observer.mouse.id}: the least of it takes {least}, and {rest} of --budget is "
            "left: give more, or fewer --mouse_ids"
        )

    def present(self, shown: Shown, label: str = "presenting") -> np.ndarray:
        """Shows what was not shown before.

        Returns:
            (N, P, R) float32: the R numbers taken of each response, in recorded units.

        Raises:
            ConfigError: films do not fit the layout or the model, or the numbers do not fit in memory.
            DataError: no response is finite.
        """
        self._check(shown)
        if self.folder is None and (key := shown.digest()) in self._memory:
            return self._memory[key]
        place, order, (_, taken) = self.place(shown), shown.order(), self._shape(shown)
        left = self.left(shown)
        neurons, patterns = self.observer.mouse.neurons, len(shown.patterns)
        if (need := 4 * neurons * patterns * taken) > available_bytes():
            raise ConfigError(
                f"mouse {self.observer.mouse.id}: {taken} numbers of {patterns} patterns of {neurons} neurons take "
                f"{need / 1e9:.1f} GB, and {available_bytes() / 1e9:.1f} are free: show fewer patterns at a time"
            )
        out = np.full((neurons, patterns, taken), np.nan, np.float32)
        for i in set(range(shown.trials)) - set(left):
            assert place is not None
            kept = self._kept(place, i, self._shape(shown))
            assert kept is not None
            _fill(out, order[i], kept)
        if not left:
            return out
        one = self.cost(shown.layout.frames)
        name = f"{label}, mouse {self.observer.mouse.id}"
        self.say(
            f"{name}: {len(left)} of {shown.trials} trials of {shown.layout.frames} frames, about "
            f"{duration(one * len(left))}"
        )
        progress = Progress(name, shown.trials, "trials", done=shown.trials - len(left), show=self.progress)
        size = self.batch_size or self._batch(shown.layout.frames, len(left))
        for first in range(0, len(left), size):
            batch = left[first : first + size]
            films = np.stack([shown.layout.film([shown.patterns[p] for p in order[i] if p >= 0]) for i in batch])
            answers = self.observer.answer(films)
            check_answer(answers, self.observer)
            for i, answer in zip(batch, answers, strict=True):
                numbers = _numbers(shown, order[i], shown.layout.responses(answer))
                if place is not None:
                    with replacing(place / f"{i:05d}.npy") as temporary:
                        np.save(temporary, numbers)
                _fill(out, order[i], numbers)
            progress.step(count=len(batch))
        progress.close()
        if self.folder is None:
            self._memory[shown.digest()] = out
        return out

    def _check(self, shown: Shown) -> None:
        expected = (shown.layout.pattern, *self.observer.frame_size)
        if isinstance(shown.patterns, Films):
            return
        for index, pattern in enumerate(shown.patterns):
            if pattern.shape != expected:
                raise ConfigError(f"pattern {index} must be (T, H, W) = {expected}, not {pattern.shape}")

    def _shape(self, shown: Shown) -> tuple[int, int]:
        return self.observer.mouse.neurons, shown.layout.pattern if shown.weights is None else shown.weights.shape[-1]

    def _kept(self, place: Path, trial: int, shape: tuple[int, int]) -> np.ndarray | None:
        """The numbers of a trial, (N, count, R); None where they are not there, or damaged."""
        try:
            numbers: np.ndarray = np.load(place / f"{trial:05d}.npy", mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        fits = numbers.ndim == 3 and (numbers.shape[0], numbers.shape[2]) == shape and numbers.dtype == np.float32
        return numbers if fits else None

    @property
    def _device(self) -> torch.device:
        return getattr(self.observer, "device", torch.device("cpu"))

    def added(self, work: Callable[[], object]) -> int:
        """Bytes that `work` adds at its highest, where the observer computes."""
        if self._device.type != "cuda":
            return peak_added_bytes(work)
        torch.cuda.reset_peak_memory_stats(self._device)
        before = torch.cuda.memory_allocated(self._device)
        work()
        return torch.cuda.max_memory_allocated(self._device) - before

    def _batch(self, frames: int, trials: int) -> int:
        """Trials of which half of the free memory holds the passes."""
        most = min(trials, _BATCH.get(self._device.type, 4))
        if most == 1:
            return 1
        trial = grey(frames, self.observer.frame_size)[None]
        one = self.added(lambda: self.observer.answer(trial))
        free = torch.cuda.mem_get_info(self._device)[0] if self._device.type == "cuda" else available_bytes()
        return int(np.clip(free // (2 * max(one, 1)), 1, most))


def _numbers(shown: Shown, order: np.ndarray, responses: np.ndarray) -> np.ndarray:
    """(N, count, pattern) to the (N, count, R) that are taken."""
    if shown.weights is None:
        return np.ascontiguousarray(responses, np.float32)
    weights = shown.weights if shown.weights.ndim == 2 else shown.weights[np.maximum(order, 0)]
    pairs = "nct,tr->ncr" if weights.ndim == 2 else "nct,ctr->ncr"
    return np.einsum(pairs, responses.astype(np.float64), weights).astype(np.float32)


def _fill(out: np.ndarray, order: np.ndarray, numbers: np.ndarray) -> None:
    there = order >= 0
    out[:, order[there]] = numbers[:, there]
