"""One mouse on disk, as recorded in the Sensorium 2023 format or packed, and the mice of a run.

As recorded:

    <session>/data/videos/<trial>.npy        (H, W, T); or a video such as <trial>.mp4, a frame for a frame
    <session>/data/responses/<trial>.npy     (N, T)
    <session>/data/behavior/<trial>.npy      (2, T)
    <session>/data/pupil_center/<trial>.npy  (2, T)
    <session>/meta/neurons/{cell_motor_coordinates,unit_ids}.npy
    <session>/meta/trials/tiers.npy          the index is the trial's number

Arrays have any float or integer type and are padded with NaN after the trial's end; T may differ between trials.
"""

from __future__ import annotations

import hashlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypeVar

import numpy as np

from viv1t.data.formats.sensorium.trial_video import array_header, map_array, read_array
from viv1t.data.inspect.finding import NO_TRIAL, Finding
from viv1t.data.npy import read_stacked
from viv1t.data.values import first_fault, kind_of, reason_of, turned
from viv1t.errors import DataError
from viv1t.system.files import check_kind
from viv1t.types import TIERS, Mouse

if TYPE_CHECKING:
    from viv1t.data.statistics import MouseStatistics

logger = logging.getLogger("viv1t")

FOLDERS = {"video": "videos", "response": "responses", "behavior": "behavior", "pupil_center": "pupil_center"}
VARIABLES = tuple(FOLDERS)
COORDINATES_FILE = "meta/neurons/cell_motor_coordinates.npy"
UNIT_IDS_FILE = "meta/neurons/unit_ids.npy"

T = TypeVar("T")


@dataclass(frozen=True)
class Place:
    """Where one variable of one trial lies.

    Attributes:
        path: the file.
        frames: T, the frames it has of the trial, padding included.
        index: -1 where the file holds this trial alone, (rows..., T); else which one it is of the trials stacked in the
            file, (trials, T, rows...).
    """

    path: Path
    frames: int
    index: int = -1

    @property
    def frames_first(self) -> bool:
        """Whether time comes before neurons or pixels in the file."""
        return self.index >= 0

    def read(self, rows: tuple[int, ...] | None = None) -> np.ndarray:
        """The array in memory, (rows..., T), of the file's own type; raises as `read_npy`, as does a video of others.

        Args:
            rows: the axes other than time that a video must have; None for any.
        """
        if self.frames_first:
            return np.moveaxis(read_stacked(self.path, self.index), 0, -1)
        return read_array(self.path, None if rows is None else (*rows, self.frames))

    def map(self) -> np.ndarray:
        """The same array mapped from the file, for reading a small part of it; raises as `read_npy`."""
        whole = map_array(self.path)
        return np.moveaxis(whole[self.index], 0, -1) if self.frames_first else whole


class Session(ABC):
    """One mouse's recording, read trial by trial.

    Attributes:
        path: the session's folder.
        mouse: its identity and neurons.
        tiers: tier of every trial number; the tier `oracle` on disk is `validation` here.
        kept: indices of the neurons that are used, ascending; None for all.
        notices: what a user should know of it: one line each.
    """

    ADVICE = "copy the file anew, or set the trial's tier to 'none'"  # what to do about a damaged trial
    NAMING = "name its trials in meta/trials/tiers.npy"  # and about a tier without trials

    def __init__(self, path: Path, mouse: Mouse, tiers: dict[int, str]) -> None:
        self.path = path
        self.mouse = mouse
        self.tiers = tiers
        self.kept: np.ndarray | None = None
        self._whole: Session | None = None
        self.notices: tuple[str, ...] = ()
        self._hidden: dict[str, bool] = {}
        self._repeats: dict[str, list[list[int]]] = {}

    @property
    def whole(self) -> Session:
        """The same recording with all of its neurons."""
        return self if self._whole is None else self._whole  # not kept: what holds itself is freed late

    def trials(self, tier: str) -> list[int]:
        """The trial numbers of a tier, ascending."""
        return [trial for trial, name in self.tiers.items() if name == tier]

    def limited(self, kept: np.ndarray) -> Self:
        """The same recording with some of its neurons alone: `mouse` and responses hold no others.

        Args:
            kept: indices of the neurons among all, ascending.
        """
        other, mouse = copy(self), self.whole.mouse
        other.kept, other._whole = kept, self.whole
        other.mouse = replace(mouse, coordinates=mouse.coordinates[kept], unit_ids=mouse.unit_ids[kept])
        return other

    def rows(self, variable: str) -> tuple[int, ...]:
        """The axes other than time: (H, W) pixels, (N,) neurons or (2,)."""
        return {"video": self.frame_size, "response": (self.mouse.neurons,)}.get(variable, (2,))

    @property
    @abstractmethod
    def frame_size(self) -> tuple[int, int]:
        """(H, W) of the movies in pixels."""

    @property
    def neurons_file(self) -> Path:
        """The file that numbers the neurons."""
        return self.path / UNIT_IDS_FILE

    @property
    def statistics_file(self) -> Path | None:
        """Where its computed statistics are kept with it; None where nothing is written into its folder."""
        return self.path / "meta" / "viv1t_statistics.safetensors"

    @abstractmethod
    def duration(self, trial: int) -> int:
        """Recorded frames of a trial."""

    @abstractmethod
    def file(self, variable: str, trial: int) -> Path:
        """The file that holds a trial's `variable` (video, response, behavior, pupil_center)."""

    @abstractmethod
    def place(self, variable: str, trial: int) -> Place:
        """Where exactly it lies."""

    @property
    def computed(self) -> bool:
        """Whether arrays are decoded or computed as they are read, and lie nowhere for the C++ side to read."""
        return False

    @property
    def reading(self) -> str:
        """What the trials depend on beside the files; empty for nothing."""
        return ""

    def files(self, trials: Iterable[int]) -> list[Path]:
        """Every file that the trials are made from, those of neurons and tiers left out."""
        trials = list(trials)
        return [self.file(variable, trial) for variable in VARIABLES for trial in trials]

    def stored_statistics(self, source: str) -> MouseStatistics | None:
        """The statistics `computed` or `provided` where they are kept with the trials; None where they are not."""
        return None

    def read(self, variable: str, trial: int) -> np.ndarray:
        """One variable of a trial as it lies on disk, checked.

        Returns:
            (H, W, T), (N, T) or (2, T), of the file's own type and order; padding from frame `duration(trial)` on.

        Raises:
            DataError: the file is missing, damaged, of another shape, or holds what float32 cannot before the trial's
                end: NaN, infinity, or numbers beyond its range.
        """
        array = self._array(variable, trial)
        duration = self.duration(trial)
        if (fault := first_fault(array, duration)) is not None:
            row, frame, value = fault
            found = "NaN or infinity" if not np.isfinite(value) else f"{value:.3g}, beyond the range of float32,"
            found += f" at frame {frame}" + (f" of neuron {row}" if variable == "response" else "")
            raise self._error(variable, trial, f"expected finite values in all {duration} frames", found)
        return array

    def _array(self, variable: str, trial: int) -> np.ndarray:
        """The same, with its values unchecked."""
        if variable == "response" and self.kept is not None:
            return self.whole._array(variable, trial)[self.kept]
        return self._recorded(variable, trial)

    def _recorded(self, variable: str, trial: int) -> np.ndarray:
        """The same of all neurons."""
        place, rows = self.place(variable, trial), self.rows(variable)
        array = self._checked(lambda _: place.read(rows), variable, trial)
        if array.shape != (*rows, place.frames) or array.dtype.kind not in "fiub":
            if variable != "video" and array.ndim == 2 and self._turned(trial, array.shape[-1]):
                raise self._error("video", trial, "expected (H, W, T)", "found (T, H, W): move time to the last axis")
            expected = f"expected {(*rows, place.frames)} numbers"
            if variable == "response" and array.ndim == 2 and array.shape[0] != rows[0]:
                expected += f" ({rows[0]} neurons, as in cell_motor_coordinates.npy)"
            raise self._error(variable, trial, expected, f"found {kind_of(array)}")
        return array

    def _turned(self, trial: int, frames: int) -> bool:
        """Whether a movie has its time, `frames`, on the first axis."""
        shape = self._checked(array_header, "video", trial).shape
        return len(shape) == 3 and not self.place("video", trial).frames_first and turned(shape, frames)

    def lacks_response(self, trial: int) -> bool:
        """Whether a trial's responses are withheld by leaving them out: the file is absent, or holds only NaN."""
        if self.absent("response", trial):
            return True
        array = self.whole._array("response", trial)
        return array.dtype.kind == "f" and bool(np.isnan(array).all())

    def absent(self, variable: str, trial: int) -> bool:
        """Whether there is no file of a trial's variable."""
        return False

    def hidden(self, tier: str) -> bool:
        """Whether the tier's responses are withheld: there are trials, and all their responses are zero, NaN or absent.

        Raises:
            DataError: a trial is damaged.
        """
        if self.whole is not self:  # a few of its neurons may be silent
            return self.whole.hidden(tier)
        if tier not in self._hidden:
            trials = self.trials(tier)
            silent = (
                self.lacks_response(t) or not self.read("response", t)[:, : self.duration(t)].any() for t in trials
            )
            self._hidden[tier] = bool(trials) and all(silent)
        return self._hidden[tier]

    def repeats(self, tier: str) -> list[list[int]]:
        """Groups of a tier's trials that show the same movie, each ascending, in order of their first trial."""
        if tier not in self._repeats:
            groups: dict[bytes, list[int]] = {}
            for trial in self.trials(tier):
                video = self.read("video", trial)[..., : self.duration(trial)]
                movie = hashlib.blake2b(str(video.shape).encode(), digest_size=16)
                movie.update(np.ascontiguousarray(video, np.float32).data)
                groups.setdefault(movie.digest(), []).append(trial)
            self._repeats[tier] = list(groups.values())
        return [list(group) for group in self._repeats[tier]]

    def _checked(self, reader: Callable[[Path], T], variable: str, trial: int) -> T:
        path = self.file(variable, trial)
        try:
            check_kind(path)
            return reader(path)
        except DataError as error:  # of a video, which says what is wrong itself
            raise DataError(f"mouse {self.mouse.id}, trial {trial}: {error}") from error
        except (OSError, ValueError) as error:
            raise self._error(variable, trial, "expected a numeric .npy file", reason_of(error)) from error

    def _error(self, variable: str, trial: int, expected: str, found: str) -> DataError:
        return DataError(
            f"mouse {self.mouse.id}, trial {trial}: {self.file(variable, trial)}: {expected}, but {found}; "
            f"{self.ADVICE}"
        )


def unknown_tiers(tiers: Mapping[int, str]) -> list[str]:
    """Names of tiers that are none, as they are to be shown, with the one that is meant where that is plain."""
    words = []
    for name in sorted(set(tiers.values()) - {*TIERS, "none"}):
        plain = name.strip().lower()
        meant = plain if plain in (*TIERS, "oracle", "none") else None
        words.append(f"{name!r} (write {meant})" if meant else name if name.isidentifier() else repr(name))
    return words


def missing_tier(session: Session, tier: str) -> Finding:
    """What is wrong with a recording without a trial of a tier that is needed."""
    unknown = unknown_tiers(session.tiers)
    others = f", but of {', '.join(unknown[:3])}" if unknown else ""
    shown = "oracle" if tier == "validation" else tier
    return NO_TRIAL.found(session.mouse.id, tier=shown, others=others, name=session.NAMING)
