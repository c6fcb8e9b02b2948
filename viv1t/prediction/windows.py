"""Windows over what is longer than a model can see at once, and how their predictions are joined without a seam."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from viv1t.errors import DataError
from viv1t.types import UNSCORED_FRAMES


@dataclass(frozen=True)
class Windows:
    """How a movie is divided into windows that overlap.

    The first `skipped` frames of every window but the first serve as context alone. Over the last `faded` frames of a
    window its weight falls in equal steps. That of the next rises there, so that one passes into the other; with more
    than one pass, windows lie so densely that a frame is seen in several places of a window, and each window's weight
    rises as soon as its context ends.

    Attributes:
        total: T, frames of the movie.
        length: frames of a window.
        skipped: first frames of a window that are not used.
        faded: over how many frames a window's weight rises and falls.
        step: frames from a window's start to the next one's.
        passes: how many times as many windows as the fewest.
    """

    total: int
    length: int
    skipped: int
    faded: int
    step: int
    passes: int

    @classmethod
    def of(cls, total: int, longest: int, unpredicted: int, passes: int = 1) -> Windows:
        """Windows for a movie.

        Args:
            total: T.
            longest: frames that the model and its statistics know.
            unpredicted: first frames of a window for which the core predicts nothing.
            passes: how many times as many windows as the fewest, which overlap by their context and one fading; as
                many times the cost.

        Raises:
            DataError: the movie or the windows are too short.
        """
        length = min(total, longest)
        if length <= unpredicted:
            raise DataError(
                f"{length} frames are too short: the core predicts nothing for the first {unpredicted} frames"
            )
        skipped, faded = cls._edges(longest, unpredicted)
        step = length - skipped - faded
        if total > longest and step < 1:
            raise DataError(f"windows of {longest} frames are too short to be joined: the core skips {unpredicted}")
        if passes > 1:
            step, faded = round(step / passes), (length - skipped) // 2  # no window counts much where others begin
        return cls(total, length, skipped, faded, max(1, step), passes)

    @classmethod
    def fit(cls, length: int, unpredicted: int) -> bool:
        """Whether windows of a length can be joined at a cost that is reasonable: at least a third of each is new."""
        return length - sum(cls._edges(length, unpredicted)) >= length / 3

    @staticmethod
    def _edges(longest: int, unpredicted: int) -> tuple[int, int]:
        """Frames that are skipped and faded."""
        quarter = min(UNSCORED_FRAMES, longest // 4)
        return max(quarter, unpredicted), quarter

    @property
    def starts(self) -> list[int]:
        """First frame of every window; the last one ends with the movie."""
        last = self.total - self.length
        return [*range(0, last, self.step), last] if last else [0]

    def weights(self, window: int) -> np.ndarray:
        """(length,) float32, what the predictions of one of the windows count where several overlap."""
        starts = self.starts
        edge = np.arange(1, self.faded + 1, dtype=np.float32) / np.float32(self.faded + 1)
        weights = np.ones(self.length, np.float32)
        if window > 0:
            fading = starts[window - 1] + self.length - self.faded - starts[window]  # of the window before
            rising = self.skipped if self.passes > 1 else fading
            weights[:rising] = 0
            weights[rising : rising + self.faded] = edge
        if window + 1 < len(starts):
            weights[self.length - self.faded :] *= edge[::-1]
        return weights


class Joint:
    """Joins the windows of one mouse, given one after the other; holds as many frames as a window has.

    Args:
        windows: how they overlap.
    """

    def __init__(self, windows: Windows) -> None:
        self._windows = windows
        self._starts = windows.starts
        self._sum = np.zeros((0, windows.length), np.float32)
        self._weight = np.zeros(windows.length, np.float32)
        self._first = 0  # frame of the first column
        self._window = 0

    def add(self, response: np.ndarray) -> np.ndarray:
        """The frames that are finished with the next window, (N, n), following those given before; together T.

        NaN where no window predicts: before the core's reach.

        Args:
            response: (N, t) of the window's last t frames.
        """
        windows, start = self._windows, self._starts[self._window]
        if self._window == 0:
            self._sum = np.zeros((len(response), windows.length), np.float32)
        # Columns begin where the window before left unfinished frames; the first frames of this one may be finished.
        first = max(self._first - start, windows.length - response.shape[1])
        into = slice(first - (self._first - start), windows.length - (self._first - start))
        weights = windows.weights(self._window)[first:]
        self._sum[:, into] += response[:, response.shape[1] - len(weights) :] * weights
        self._weight[into] += weights
        self._window += 1
        last = self._window == len(self._starts)
        stop = windows.total if last else self._starts[self._window] + windows.skipped
        count = max(0, stop - self._first)
        weight = self._weight[:count]
        finished: np.ndarray = self._sum[:, :count] / np.where(weight > 0, weight, np.nan)
        self._first += count
        self._sum = np.concatenate([self._sum[:, count:], np.zeros_like(self._sum[:, :count])], axis=1)
        self._weight = np.concatenate([self._weight[count:], np.zeros_like(weight)])
        return finished


def rhythm(series: np.ndarray, step: int) -> float:
    """The share of a series' variance that repeats from window to window, as a model's idea of time within them does.

    Variance explained by the frame's place within a step, less what steps of other lengths explain by chance or because
    the series is slow.

    Args:
        series: (T,), such as the mean response over neurons.
        step: frames from a window's start to the next one's.

    Returns:
        0 to 1; NaN where there are fewer than four steps, or nothing varies.
    """
    series = series[np.isfinite(series)].astype(np.float64)
    if len(series) < 4 * step or step < 4 or not series.var() > 0:
        return float("nan")

    def explained(period: int) -> float:
        folded = series[: len(series) // period * period].reshape(-1, period)
        return float(folded.mean(axis=0).var() / folded.var())

    near = max(1, step // 5)
    others = [period for period in range(step - near, step + near + 1) if abs(period - step) * 30 > step]
    return max(0.0, explained(step) - float(np.mean([explained(period) for period in others])))
