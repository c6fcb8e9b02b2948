"""Full-field gratings over a grid of directions and frequencies, and what neurons answer to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from viv1t.errors import ConfigError
from viv1t.lab.present import Shown
from viv1t.lab.protocols import BLOCKS
from viv1t.stimuli.parametric import grating, grey
from viv1t.types import FRAME_RATE

FREQUENCIES = (0.03, 0.05, 0.07, 0.1, 0.135)  # cycles a pixel
HERTZ = (1.0, 2.0, 4.0)
SILENT = 1.1  # times the spontaneous response that the largest must reach


def harmonics(hertz: float, frames: int = BLOCKS.pattern) -> np.ndarray:
    """What is taken of a response: its mean, and over the last whole cycles its mean and 2 r e^(-2 pi i g n).

    The cycles are those of the pattern's last half or, where one is longer, the last.

    Returns:
        (frames, 4) weights: mean, mean over the cycles, real and imaginary part.
    """
    cycle = FRAME_RATE / hertz
    used = min(frames, round(max(1, frames // 2 // cycle) * cycle))
    weights = np.zeros((frames, 4))
    weights[:, 0] = 1 / frames
    n = np.arange(frames - used, frames)
    turn = 2 * np.pi * n / cycle
    weights[n, 1:] = np.stack([np.ones(used), 2 * np.cos(turn), -2 * np.sin(turn)], axis=1) / used
    return weights


@dataclass(frozen=True)
class Grid:
    """Which gratings are shown.

    Attributes:
        directions: how many, in equal steps over 360 degrees; a multiple of 4.
        frequencies: cycles a pixel, ascending.
        hertz: temporal frequencies, ascending.
        phases: how many, in equal steps, of each grating.
    """

    directions: int = 8
    frequencies: tuple[float, ...] = FREQUENCIES
    hertz: tuple[float, ...] = HERTZ
    phases: int = 4

    def __post_init__(self) -> None:
        if self.directions < 4 or self.directions % 4:
            raise ConfigError(f"--directions must be a multiple of 4, not {self.directions}")
        if self.phases < 1:
            raise ConfigError(f"--phases must be at least 1, not {self.phases}")
        for name, values, top in (("frequencies", self.frequencies, 0.5), ("hertz", self.hertz, FRAME_RATE / 2)):
            if not values or any(not 0 < v <= top for v in values) or list(values) != sorted(set(values)):
                raise ConfigError(
                    f"--{name} must be different and ascending, above 0 and at most {top:g}, not {values}"
                )

    @property
    def angles(self) -> np.ndarray:
        """Directions, degrees."""
        return np.arange(self.directions) * 360 / self.directions

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return self.directions, len(self.frequencies), len(self.hertz), self.phases

    def shown(self, frame_size: tuple[int, int], seed: int = 1234) -> Shown:
        """All of them, in this order, and as many blanks as phases, 4 at least, at the end."""
        places = np.stack(np.meshgrid(*map(np.arange, self.shape), indexing="ij"), axis=-1).reshape(-1, 4)
        films, weights = [], []
        for d, f, g, p in places:
            films.append(wave(self.angles[d], self.frequencies[f], self.hertz[g], 360 * p / self.phases, frame_size))
            weights.append(harmonics(self.hertz[g]))
        blanks = max(4, self.phases)
        films += [grey(BLOCKS.pattern, frame_size)] * blanks
        weights += [harmonics(self.hertz[0])] * blanks
        return Shown(BLOCKS, films, {"place": places}, np.stack(weights), seed, about=self)

    def read(self, responses: np.ndarray) -> Responses:
        """What `shown` gave, (N, P, 4), by direction, frequency, temporal frequency and phase."""
        count = int(np.prod(self.shape))
        by = responses[:, :count].reshape(len(responses), *self.shape, 4).astype(np.float64)
        spontaneous = responses[:, count:, 0].mean(1, dtype=np.float64)
        return Responses(self, by[..., 0], by[..., 1], by[..., 2] + 1j * by[..., 3], spontaneous)


@dataclass(frozen=True)
class Responses:
    """Responses to a grid of gratings, axes neurons, directions, frequencies, temporal frequencies, phases.

    Attributes:
        grid: what was shown.
        mean: over the pattern.
        level: over the last whole cycles.
        modulation: twice the amplitude at the temporal frequency, complex.
        spontaneous: (N,) the response to grey.
    """

    grid: Grid
    mean: np.ndarray
    level: np.ndarray
    modulation: np.ndarray
    spontaneous: np.ndarray

    @property
    def over_phases(self) -> np.ndarray:
        """(N, directions, frequencies, temporal frequencies)."""
        return np.asarray(self.mean.mean(-1))

    def best(self) -> np.ndarray:
        """(N, 3): direction, frequency and temporal frequency of the largest response, as indices."""
        flat = self.over_phases.reshape(len(self.mean), -1)
        places = np.unravel_index(np.where(np.isnan(flat), -np.inf, flat).argmax(1), self.grid.shape[:3])
        return np.stack(places, axis=1)

    def reasons(self) -> list[str]:
        """Why a neuron's tuning says nothing; empty where it does."""
        flat = self.over_phases.reshape(len(self.mean), -1)
        words = []
        for row, rest in zip(flat, self.spontaneous, strict=True):
            if not np.isfinite(row).all() or not np.isfinite(rest):
                words.append("response is not finite")
            elif not row.max() > 0 or np.ptp(row) <= 1e-9 * np.abs(row).max():
                words.append("does not respond to gratings")
            else:
                words.append("" if row.max() >= SILENT * rest else "not driven above its spontaneous response")
        return words


def wave(
    direction: float, frequency: float, hertz: float, phase: float, frame_size: tuple[int, int], contrast: float = 1.0
) -> np.ndarray:
    """A grating of 30 frames; `frequency` in cycles a pixel."""
    return grating(
        direction, cpd=frequency, cpf=hertz / FRAME_RATE, phase=phase, contrast=contrast, frames=BLOCKS.pattern,
        frame_size=frame_size, degrees_per_pixel=1.0,
    )  # fmt: skip


def plans(frame_size: tuple[int, int], grid: Grid, seed: int = 1234, *, lean: bool = True) -> list[Callable[[], Shown]]:
    """The grid; with fewer phases; with fewer frequencies."""
    return [lambda g=g: g.shown(frame_size, seed) for g in leaner(grid, lean)]  # type: ignore[misc]


def leaner(grid: Grid, lean: bool = True) -> list[Grid]:
    """The grid, and smaller ones down to a single temporal frequency with two phases."""
    grids = [grid]
    if lean and grid.phases > 2:
        grids.append(Grid(grid.directions, grid.frequencies, grid.hertz, 2))
    if lean and len(grid.hertz) > 1:
        middle = (grid.hertz[len(grid.hertz) // 2],)
        grids += [
            Grid(grid.directions, frequencies, middle, 2) for frequencies in (grid.frequencies, grid.frequencies[::2])
        ]
    return grids


def cover(responses: np.ndarray, share: float = 0.9) -> np.ndarray:
    """Few gratings of which each neuron has one that drives it to a share of its best.

    Args:
        responses: (N, G) to G gratings; neurons whose largest is not above 0, or that are not finite, ask for nothing.
        share: 0 to 1.

    Returns:
        Indices of the chosen gratings, ascending; at least one.
    """
    asking = np.isfinite(responses).all(1) & (responses.max(1, initial=0) > 0)
    served = responses[asking] >= share * responses[asking].max(1, keepdims=True)
    chosen: list[int] = []
    while served.size and len(served):
        best = int(served.sum(0).argmax())
        chosen.append(best)
        served = served[~served[:, best]]
    return np.array(sorted(chosen) or [0])


def nearest(wanted: np.ndarray, there: Sequence[float]) -> np.ndarray:
    """Index of the nearest of `there` for each of `wanted`."""
    return np.abs(np.asarray(wanted)[:, None] - np.asarray(there)).argmin(1)
