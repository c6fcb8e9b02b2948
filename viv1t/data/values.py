"""What the numbers of recordings must be: where a trial ends, what float32 and int64 hold, and words for the rest."""

from __future__ import annotations

import numpy as np


def to_float32(array: np.ndarray) -> np.ndarray:
    """The numbers as float32, infinite where they are beyond its range."""
    with np.errstate(over="ignore"):
        return array.astype(np.float32)


def inexact(ids: np.ndarray) -> int | None:
    """The first of (N,) numbers that int64 does not hold exactly, or that a float may have rounded already."""
    if ids.dtype.kind == "f":
        exact = 2.0 ** (np.finfo(ids.dtype).nmant + 1)  # above, whole numbers share one float
        wrong = ~(np.isfinite(ids) & (ids == np.round(ids)) & (np.abs(ids) <= min(exact, 2.0**62)))
    else:
        wrong = ids > np.iinfo(np.int64).max if ids.dtype.kind == "u" else np.zeros(len(ids), bool)
    return int(np.argmax(wrong)) if wrong.any() else None


def recorded_end(array: np.ndarray, known: int) -> int:
    """The frame from which an array (rows..., T) is NaN throughout; at most `known`, which is where others end.

    Where it is all NaN, `known`: that is damage, or withheld.
    """
    if array.dtype.kind != "f":
        return known
    first = ~np.isnan(array[(0,) * (array.ndim - 1)])
    start = len(first) - int(np.argmax(first[::-1])) if first.any() else 0
    if start >= known:
        return known
    some = ~np.isnan(array[..., start:]).all(axis=tuple(range(array.ndim - 1)))
    end = start + (len(some) - int(np.argmax(some[::-1])) if some.any() else 0)
    return min(end, known) or known


def turned(shape: tuple[int, ...], frames: int) -> bool:
    """Whether a movie of a trial whose other arrays have `frames` frames has axes (T, H, W)."""
    return shape[0] == frames != shape[-1]


def first_fault(array: np.ndarray, duration: int) -> tuple[int, int, float] | None:
    """Row, frame and value of the first that float32 does not hold, in the frames before `duration`; None for none."""
    if array.dtype.kind != "f":
        return None
    values = array[..., :duration]
    valid = np.isfinite(values if values.dtype.itemsize <= 4 else to_float32(values))
    if valid.all():
        return None
    rows, values = valid.reshape(-1, duration), values.reshape(-1, duration)
    frame = int(np.argmin(rows.all(axis=0)))
    row = int(np.argmin(rows[:, frame]))
    return row, frame, float(values[row, frame])


def kind_of(array: np.ndarray) -> str:
    """Shape and type, as errors say what was found."""
    return f"{array.shape} {array.dtype}"


def reason_of(error: Exception) -> str:
    """Why a file could not be read, as errors say it."""
    return "the file is missing" if isinstance(error, FileNotFoundError) else str(error)


def gaps_of(array: np.ndarray, duration: int) -> np.ndarray:
    """Which of the first `duration` frames of an array (rows, T) are NaN, (rows, duration)."""
    if array.dtype.kind != "f":
        return np.zeros((len(array), duration), bool)
    gaps: np.ndarray = np.isnan(array[:, :duration])
    return gaps


def first_row_end(array: np.ndarray) -> int | None:
    """The frame from which the first row of an array (rows..., T) is NaN; None where that says nothing."""
    if array.dtype.kind != "f":
        return None
    known = ~np.isnan(array[(0,) * (array.ndim - 1)])
    return len(known) - int(np.argmax(known[::-1])) if known.any() else None
