"""A signal sampled at a constant rate: its values at any time, held or interpolated."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from viv1t.errors import DataError


@dataclass(frozen=True)
class Samples:
    """Samples in a file, read as they are asked for: no file stays open, however many recordings there are.

    Attributes:
        path: the file.
        shape: (samples, signals), row after row.
        dtype: of the elements.
        offset: of the first element in the file, in bytes.
    """

    path: Path
    shape: tuple[int, int]
    dtype: np.dtype
    offset: int = 0

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> np.ndarray:
        """Consecutive samples, (k, signals); raises a DataError where the file ends before them."""
        start, stop, step = rows.indices(len(self))
        assert step == 1
        count = max(stop - start, 0)
        width = self.shape[1] * self.dtype.itemsize
        try:
            flat = np.fromfile(self.path, self.dtype, count * self.shape[1], offset=self.offset + start * width)
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read: {error.strerror or error}") from error
        if flat.size < math.prod((count, self.shape[1])):
            raise DataError(f"{self.path}: ends before sample {stop} of {len(self)}: it is truncated; copy it anew")
        return flat.reshape(count, self.shape[1])


@dataclass(frozen=True)
class Sequence:
    """Samples of one device; sample i lies at start + i / rate.

    Attributes:
        data: (samples, signals), as stored.
        rate: samples a second.
        start: seconds of the first sample.
        shifts: (signals,) seconds by which each signal is sampled late.
        end: seconds until which the recording says it lasts; None where it does not say.
    """

    data: Samples | np.ndarray
    rate: float
    start: float
    shifts: np.ndarray
    end: float | None

    @property
    def signals(self) -> int:
        """Number of signals."""
        return int(self.data.shape[1])

    def interval(self, *, linear: bool) -> tuple[float, float]:
        """Seconds from which on, and until which, every signal has a value.

        Held values last until one period after the last sample (before it, that is), interpolated ones until the last
        sample, and neither beyond the recording's own end.
        """
        last = self.start + (len(self.data) - 1) / self.rate
        end = last if linear else last + 1 / self.rate
        if self.end is not None:
            end = min(end, self.end)
        return self.start + float(self.shifts.max()), end + float(self.shifts.min())

    def at(self, times: np.ndarray, *, linear: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Values at some times.

        Args:
            times: (K,) float64 seconds.
            linear: interpolate between the samples before and after; else hold the last one.

        Returns:
            values: (k, signals) of the data's type where held, float64 where interpolated; NaN stays NaN.
            valid: (k,) which of `times` they belong to: those at which every signal has a value.
        """
        first, last = self.interval(linear=linear)
        valid = np.flatnonzero((times >= first) & (times <= last))
        places = self._places(times[valid])
        samples = len(self.data)
        below = np.floor(places).astype(np.int64)
        # A held value lasts a period, the end of which is not in it.
        inside = (below < samples).all(1)
        valid, places, below = valid[inside], places[inside], below[inside]
        if not len(valid):
            return np.empty((0, self.signals), self.data.dtype), valid
        low, high = int(below.min()), int(below.max())
        block = self.data[low : high + 2]
        value = _taken(block, below - low)
        if not linear:
            return value, valid
        after = _taken(block, np.minimum(below + 1, samples - 1) - low)
        part = places - below
        with np.errstate(invalid="ignore"):
            exact = part == 0  # a sample itself, whatever comes after it
            blended = value.astype(np.float64) * (1 - part) + after.astype(np.float64) * part
        return np.where(exact, value, blended), valid

    def _places(self, times: np.ndarray) -> np.ndarray:
        """Fractional sample numbers, (k, signals), or (k, 1) where all signals are sampled at once.

        The order of these operations decides at samples' borders.
        """
        shifted = times[:, None] - self.shifts if self.shifts.any() else times[:, None]
        places: np.ndarray = (shifted - self.start) / (1 / self.rate)
        return places


def _taken(block: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Samples (k, signals) at `rows`, (k, signals) or (k, 1)."""
    taken: np.ndarray = block[rows[:, 0]] if rows.shape[1] == 1 else block[rows, np.arange(block.shape[1])]
    return taken
