"""What a screen showed at any time."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from viv1t.data.formats.sensorium.trial_video import read_array
from viv1t.data.npy import read_header, read_npy
from viv1t.errors import DataError

GRACE = 1e-4  # seconds by which times are advanced, so that a frame is shown at its own time stamp
ENCODED = (".mp4", ".png", ".jpg", ".jpeg")


@dataclass(frozen=True)
class Shown:
    """One trial of the screen.

    Attributes:
        key: its number as written, with leading zeros.
        modality: image, video, blank or invalid.
        first: its first frame among the screen's.
        frames: how many it has.
        tier: as recorded; None where none is.
        condition: the same for the same stimulus; None where none is given.
        size: (H, W) of its frames; None where it does not say.
        level: grey level of a blank.
        valid: whether the recording says that it can be used.
    """

    key: str
    modality: str
    first: int
    frames: int
    tier: str | None
    condition: str | None
    size: tuple[int, int] | None
    level: float
    valid: bool


@dataclass(frozen=True)
class Screen:
    """All trials in order.

    Attributes:
        folder: of the screen.
        times: (F,) float64 seconds at which each frame appears, ascending.
        trials: one after the other; their frames are the screen's.
    """

    folder: Path
    times: np.ndarray
    trials: tuple[Shown, ...]

    @property
    def start(self) -> float:
        """Seconds of the first frame."""
        return float(self.times[0])

    @property
    def end(self) -> float:
        """Seconds of the last frame, whose duration is not known."""
        return float(self.times[-1])

    def span(self, number: int) -> tuple[float, float]:
        """Seconds from a trial's first frame to that of the next trial, or to the last time stamp."""
        trial = self.trials[number]
        following = trial.first + trial.frames
        return float(self.times[trial.first]), float(self.times[min(following, len(self.times) - 1)])

    def frame_at(self, times: np.ndarray) -> np.ndarray:
        """Number of the frame shown at each of `times` (K,); -1 before the first and after the last time stamp."""
        number = np.searchsorted(self.times, np.asarray(times, np.float64) + GRACE, side="left") - 1
        outside = (times < self.start) | (times > self.end)
        return np.where(outside, -1, number)

    def frames(self, numbers: np.ndarray, size: tuple[int, int] | None = None) -> np.ndarray:
        """Frames by their numbers.

        Args:
            numbers: (K,) numbers of frames.
            size: (H, W) to bring them to by exact area averages; None leaves them as they are.

        Returns:
            (K, H, W) uint8 where they are stored so and not resized, else float32.

        Raises:
            DataError: a trial's file is missing, damaged or of another shape, its frames differ in size from the
                others', or would have to be enlarged.
        """
        owner = np.searchsorted(self._starts, numbers, side="right") - 1
        pieces: list[np.ndarray | None] = [None] * len(numbers)
        blank: list[int] = []
        for trial_number in np.unique(owner).tolist():
            trial = self.trials[trial_number]
            where = np.flatnonzero(owner == trial_number)
            if trial.modality in ("blank", "invalid"):
                blank += where.tolist()
                continue
            film = self._film(trial, size)
            for i in where.tolist():
                pieces[i] = film[int(numbers[i]) - trial.first]
        shapes = {piece.shape for piece in pieces if piece is not None}
        if len(shapes) > 1:
            raise DataError(f"{self.folder}: frames of different sizes ({sorted(shapes)}): give the size wanted")
        shape = size or (shapes.pop() if shapes else self.trials[owner[0]].size)
        if shape is None:
            raise DataError(f"{self.folder}: trial {self.trials[owner[0]].key} has no image_size")
        for i in blank:
            level = self.trials[owner[i]].level
            pieces[i] = np.full(shape, level, np.uint8 if level == int(level) else np.float32)
        return np.stack([piece for piece in pieces if piece is not None])

    def file(self, key: str) -> Path:
        """Where a trial's frames lie: `.npy`, or the encoded file in its place."""
        stem = self.folder / "data" / key
        path = stem.with_name(key + ".npy")
        if path.is_file():
            return path
        return next((f for suffix in ENCODED if (f := stem.with_name(key + suffix)).is_file()), path)

    def stored_type(self, trial: Shown) -> str:
        """The type in which a trial's frames are stored, or what keeps it from being read."""
        path = self.file(trial.key)
        try:
            return str(read_header(path).dtype) if path.suffix == ".npy" else f"encoded, {path.suffix}"
        except (OSError, ValueError) as error:
            return str(error)

    @cached_property
    def _starts(self) -> np.ndarray:
        """First frame of each trial."""
        return np.array([trial.first for trial in self.trials])

    def _film(self, trial: Shown, size: tuple[int, int] | None) -> np.ndarray:
        film = _load(self.file(trial.key), trial)
        if size is None or film.shape[1:] == size:
            return film
        return area_resized(film, size, f"{self.folder}, trial {trial.key}")


@lru_cache(maxsize=4)
def _load(path: Path, trial: Shown) -> np.ndarray:
    """A trial's grey frames, (T, H, W), as stored."""
    if path.suffix != ".npy":
        return _grey(_decoded(path, trial), trial, path)
    try:
        return _grey(read_npy(path), trial, path)
    except FileNotFoundError as error:
        raise DataError(f"{path}: missing, and no {', '.join(ENCODED)} in its place") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: {error}") from error


def _grey(film: np.ndarray, trial: Shown, path: Path) -> np.ndarray:
    if film.dtype.kind not in "uif":
        raise DataError(f"{path}: grey levels were expected, not {film.dtype}")
    if film.ndim == 2:
        film = film[None]
    if film.ndim >= 3 and film.shape[-1] == 3 and (trial.size is None or film.shape[-2] == trial.size[1]):
        if not (np.array_equal(film[..., 0], film[..., 1]) and np.array_equal(film[..., 0], film[..., 2])):
            raise DataError(f"{path}: frames in colour; movies here are grey")
        film = film[..., 0]
        film = film[None] if film.ndim == 2 else film
    if film.ndim != 3 or len(film) != trial.frames or (trial.size is not None and film.shape[1:] != trial.size):
        wanted = f"{trial.frames} frames" + (f" of {trial.size[0]} x {trial.size[1]}" if trial.size else "")
        raise DataError(f"{path}: {wanted} were expected, found an array of shape {film.shape}")
    if film.dtype.kind == "f":
        if not np.isfinite(film).all() or film.min() < 0 or film.max() > 255:
            raise DataError(f"{path}: grey levels from 0 to 255 were expected")
        if film.max() <= 1 < film.size and film.max() > 0:
            raise DataError(f"{path}: grey levels from 0 to 1; from 0 to 255 were expected")
        return film.astype(np.float32, copy=False)
    if film.dtype != np.uint8 and (film.min() < 0 or film.max() > 255):
        raise DataError(f"{path}: grey levels from 0 to 255 were expected")
    return film.astype(np.uint8, copy=False)


def _decoded(path: Path, trial: Shown) -> np.ndarray:
    """A video's luma in full range, (T, H, W), or an image's pixels."""
    if path.suffix == ".mp4":
        expected = None if trial.size is None else (*trial.size, trial.frames)
        return np.moveaxis(read_array(path, expected), -1, 0)
    try:
        with Image.open(path) as image:
            if trial.size is not None and image.size != trial.size[::-1]:
                raise DataError(f"{path}: {image.height} x {image.width} pixels, where {trial.size} were expected")
            return np.asarray(image if image.mode in ("L", "RGB", "I;16") else image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: not readable as an image: {' '.join(str(error).split())[:200]}") from error


def area_resized(film: np.ndarray, size: tuple[int, int], what: str) -> np.ndarray:
    """Frames shrunk by exact area averages, (T, H, W) float32.

    Raises:
        DataError: they would have to be enlarged, or their proportions differ by more than a hundredth.
    """
    rows, columns = film.shape[1:]
    if rows < size[0] or columns < size[1]:
        raise DataError(f"{what}: frames of {rows} x {columns} would have to be enlarged to {size[0]} x {size[1]}")
    if abs(rows * size[1] / (columns * size[0]) - 1) > 0.01:
        raise DataError(f"{what}: frames of {rows} x {columns} have other proportions than {size[0]} x {size[1]}")
    from viv1t.stimuli.frames import area_shares  # recordings are also read where there is no PyTorch

    down, across = (
        area_shares(old, 0, old, new, new).astype(np.float32) for old, new in ((rows, size[0]), (columns, size[1]))
    )
    return np.einsum("ha,taw,bw->thb", down, film.astype(np.float32), across, optimize=True).astype(np.float32)
