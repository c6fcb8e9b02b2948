"""Protocols: which patterns are shown, in which order, and where their responses lie in a trial."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from viv1t.errors import ConfigError
from viv1t.stimuli.geometry import FRAME_SIZE, SENSORIUM, Monitor
from viv1t.stimuli.parametric import CONTEXTS, blocks, grating, in_context, masked

PUBLISHED_REPEATS = 12
PUBLISHED_SIZES = tuple(range(0, 100, 10))
PUBLISHED_CONTEXT_SIZES = tuple(range(10, 60, 10))
PUBLISHED_CONTRASTS = (0.05, 1.0)
PUBLISHED_DIRECTIONS = (90, 270)


@dataclass(frozen=True)
class Layout:
    """Where patterns lie in a trial: grey, then each pattern framed by grey.

    Attributes:
        lead: grey frames before everything.
        before: grey frames before each pattern.
        pattern: frames of each pattern.
        after: grey frames after each pattern.
        count: patterns in a trial.
    """

    lead: int
    before: int
    pattern: int
    after: int
    count: int

    def __post_init__(self) -> None:
        if min(self.lead, self.before, self.after) < 0 or min(self.pattern, self.count) < 1:
            raise ConfigError(f"a layout needs at least one pattern of at least one frame, not {self}")

    @property
    def block(self) -> int:
        """Frames of a pattern with the grey around it."""
        return self.before + self.pattern + self.after

    @property
    def frames(self) -> int:
        """Frames of a trial."""
        return self.lead + self.count * self.block

    def within(self, frames: int) -> Layout:
        """The same with as many patterns as `frames` hold; for one alone with less grey before everything.

        Raises:
            ConfigError: they do not hold one.
        """
        if frames >= self.frames:
            return self
        if frames < self.block:
            raise ConfigError(
                f"a pattern of {self.pattern} frames and the grey around it take {self.block}, but the model knows "
                f"windows of {frames} frames: train with a larger --crop_frame"
            )
        count = (frames - self.lead) // self.block
        return replace(self, count=count) if count > 0 else replace(self, lead=frames - self.block, count=1)

    def onsets(self) -> np.ndarray:
        """First frame of each pattern, (count,)."""
        return self.lead + self.before + self.block * np.arange(self.count)

    def film(self, patterns: Sequence[np.ndarray]) -> np.ndarray:
        """The trial of these patterns, (frames, H, W) uint8; missing ones at the end are grey.

        Raises:
            ConfigError: more patterns than places, or of another length.
        """
        if not 1 <= len(patterns) <= self.count or any(len(p) != self.pattern for p in patterns):
            lengths = sorted({len(p) for p in patterns})
            raise ConfigError(
                f"a trial of this layout takes 1 to {self.count} patterns of {self.pattern} frames, not "
                f"{len(patterns)} of {lengths}"
            )
        shown = blocks(patterns, lead=self.lead, before=self.before, after=self.after)
        if len(shown) == self.frames:
            return shown
        return np.concatenate([shown, np.full((self.frames - len(shown), *shown.shape[1:]), 127, np.uint8)])

    def responses(self, predicted: np.ndarray) -> np.ndarray:
        """The responses during each pattern.

        Args:
            predicted: (..., t), responses of the last t frames of the trial.

        Returns:
            (..., count, pattern).

        Raises:
            ConfigError: the first pattern lies before the first predicted frame.
        """
        missing = self.frames - predicted.shape[-1]
        onsets = self.onsets() - missing
        if missing < 0 or onsets[0] < 0:
            raise ConfigError(
                f"responses of {predicted.shape[-1]} frames do not hold the patterns of a trial of {self.frames} "
                f"frames, whose first starts at frame {self.onsets()[0]}"
            )
        places = onsets[:, None] + np.arange(self.pattern)
        return np.asarray(predicted[..., places])


BLOCKS = Layout(lead=60, before=15, pattern=30, after=15, count=4)
ONSET = Layout(lead=75, before=15, pattern=15, after=15, count=5)
SINGLE = Layout(lead=0, before=135, pattern=30, after=135, count=1)
DOTS = Layout(lead=60, before=0, pattern=12, after=0, count=20)  # 6 frames of a dot, 6 of grey
SHORT = Layout(lead=0, before=50, pattern=30, after=15, count=1)


def published_size_order(seed: int = 1234) -> tuple[np.ndarray, np.ndarray]:
    """The published order of masked gratings, as `viv1t-lab size --published` shows them.

    Returns:
        parameters: (120, 4, 3): size in degrees, direction in degrees, 0 classical or 1 inverse.
        phases: (120, 4) degrees.
    """
    parameters, phases, _ = _published_order(
        list(itertools.product(PUBLISHED_SIZES, PUBLISHED_DIRECTIONS, (0, 1))), seed, cross=None
    )
    return parameters, phases


def published_context_order(seed: int = 1234) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The published order of gratings in context, as `viv1t-lab context --published` shows them.

    Returns:
        parameters: (240, 4, 4): contrast, size in degrees, direction in degrees, index in `CONTEXTS`.
        phases: (240, 4) degrees.
        surrounds: (240, 4, 2): direction and phase of a cross surround in degrees; NaN for the others.
    """
    kinds = range(len(CONTEXTS))
    choices = list(itertools.product(PUBLISHED_CONTRASTS, PUBLISHED_CONTEXT_SIZES, PUBLISHED_DIRECTIONS, kinds))
    return _published_order(choices, seed, cross=CONTEXTS.index("cross"))


def _published_order(
    choices: Sequence[tuple[float, ...]], seed: int, cross: int | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The published draws: the order of all repeats, a phase for each, then the order of the trials of four."""
    rng = np.random.default_rng(seed)
    everything = rng.permutation(np.array([*choices] * PUBLISHED_REPEATS, dtype=np.float32))
    phases = np.empty(len(everything))
    surrounds = np.full((len(everything), 2), np.nan)
    for i, chosen in enumerate(everything):
        phases[i] = rng.choice(360, size=1)[0]
        if cross is not None and chosen[-1] == cross:
            surrounds[i] = chosen[-2] + rng.choice([-90, 90], size=1)[0], rng.choice(360, size=1)[0]
    trials = len(everything) // BLOCKS.count
    order = rng.permutation(trials)
    shape = (trials, BLOCKS.count, -1)
    parameters, drawn, around = (part.reshape(shape)[order] for part in (everything, phases, surrounds))
    return parameters, drawn[..., 0], around


def size_pattern(
    size: float,
    direction: float,
    inverse: bool,
    phase: float,
    *,
    center: tuple[float, float] | None,
    cpd: float = 0.04,
    cpf: float = 1 / 15,
    monitor: Monitor = SENSORIUM,
    frame_size: tuple[int, int] = FRAME_SIZE,
) -> np.ndarray:
    """A grating in, or `inverse` around, a circle of `size` degrees: (30, H, W) uint8."""
    film = grating(direction, cpd=cpd, cpf=cpf, phase=phase, frames=BLOCKS.pattern, frame_size=frame_size)
    return masked(film, size, center, inverse=inverse, monitor=monitor)


def context_pattern(
    contrast: float,
    size: float,
    direction: float,
    context: str,
    phase: float,
    surround: tuple[float, float] | None = None,
    *,
    center: tuple[float, float] | None,
    cpd: float = 0.04,
    cpf: float = 1 / 15,
    monitor: Monitor = SENSORIUM,
    frame_size: tuple[int, int] = FRAME_SIZE,
) -> np.ndarray:
    """A grating in a circle of `size` degrees in one of `CONTEXTS`: (30, H, W) uint8.

    Args:
        surround: direction and phase of a cross surround, degrees.
    """

    def film(direction: float, phase: float) -> np.ndarray:
        return grating(
            direction, cpd=cpd, cpf=cpf, phase=phase, contrast=contrast, frames=BLOCKS.pattern, frame_size=frame_size
        )

    around = film(*surround) if context == "cross" and surround is not None else None
    return in_context(film(direction, phase), size, center, context=context, cross=around, monitor=monitor)
