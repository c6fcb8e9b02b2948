"""One mouse as recorded in the Sensorium 2023 format: four files a trial."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from viv1t.data.formats.archive import TIERS_FILE
from viv1t.data.formats.sensorium.trial_video import array_header, map_array
from viv1t.data.inspect.finding import STATE_ROWS, UNKNOWN_TIERS
from viv1t.data.npy import read_header, read_npy
from viv1t.data.session import (
    COORDINATES_FILE,
    FOLDERS,
    UNIT_IDS_FILE,
    Place,
    Session,
    unknown_tiers,
)
from viv1t.data.survey import session_name
from viv1t.data.values import first_row_end, gaps_of, inexact, kind_of, reason_of, recorded_end, to_float32
from viv1t.errors import DataError
from viv1t.stimuli.decode import is_video
from viv1t.types import TIERS, Mouse

logger = logging.getLogger("viv1t")


STATE = ("behavior", "pupil_center")
LOST = 0.75  # share of a trial: where the animal's state ends before, it was lost, and the trial is not over


class RawSession(Session):
    """A session as recorded: four files a trial. Arguments as for `Session`.

    What was not recorded of the animal's state is 0 where its files or one of its rows are missing, and filled from the
    frames beside it where it is NaN, unless `missing` is `refuse`.

    Args:
        missing: `fill` or `refuse`.

    Attributes:
        missing: as given.
        lacking: variables of the animal's state without any file.
        one_row: which of the two rows of `behavior` was recorded; None for both.
    """

    def __init__(self, path: Path, mouse: Mouse, tiers: dict[int, str], missing: str = "fill") -> None:
        super().__init__(path, mouse, tiers)
        self.missing = missing
        self.lacking: tuple[str, ...] = ()
        self.one_row: int | None = None
        self._lengths: dict[int, tuple[int, int]] = {}
        self._filled: set[str] = set()  # variables of which it was said

    @classmethod
    def open_folder(cls, path: Path, mouse_id: str, missing: str = "fill") -> RawSession:
        """Opens a folder in the Sensorium 2023 format; raises as `open`."""

        name = session_name(path)

        def meta(file: str, advice: str) -> np.ndarray:
            try:
                return read_npy(path / file)
            except (OSError, ValueError) as error:
                raise DataError(f"mouse {mouse_id}: {path / file}: {reason_of(error)}; {advice}") from error

        tiers = meta(TIERS_FILE, "expected the tier's name of every trial, saved as text")
        coordinates = meta(COORDINATES_FILE, "expected the neurons' positions, (N, 3) numbers")
        unit_ids = meta(UNIT_IDS_FILE, "expected the neurons' numbers, (N,) integers")
        if tiers.ndim != 1 or tiers.dtype.kind not in "US":
            raise DataError(f"mouse {mouse_id}: {path / TIERS_FILE}: expected (trials,) text, found {kind_of(tiers)}")
        numeric = coordinates.dtype.kind in "fiu" and np.isfinite(to_float32(coordinates)).all()
        if coordinates.ndim != 2 or coordinates.shape[1] != 3 or not len(coordinates) or not numeric:
            raise DataError(
                f"mouse {mouse_id}: {path / COORDINATES_FILE}: expected finite (N, 3), found {kind_of(coordinates)}"
            )
        if unit_ids.shape != coordinates.shape[:1] or unit_ids.dtype.kind not in "iuf":
            raise DataError(
                f"mouse {mouse_id}: {path / UNIT_IDS_FILE}: expected {len(coordinates)} numbers, one for each row of "
                f"cell_motor_coordinates.npy, found {kind_of(unit_ids)}"
            )
        if (odd := inexact(unit_ids)) is not None:
            raise DataError(
                f"mouse {mouse_id}: {path / UNIT_IDS_FILE}: expected whole numbers that a signed 64-bit integer holds, "
                f"found {unit_ids[odd]} for neuron {odd} in {unit_ids.dtype}; save the neurons' numbers as int64"
            )
        texts = [t.decode("utf-8", "backslashreplace") for t in tiers] if tiers.dtype.kind == "S" else tiers.tolist()
        names = {trial: "validation" if t == "oracle" else str(t) for trial, t in enumerate(texts)}
        if unknown := unknown_tiers(names):
            logger.warning("%s", UNKNOWN_TIERS.found(mouse_id, tiers=", ".join(unknown)).line)
        mouse = Mouse(mouse_id, name, to_float32(coordinates), unit_ids.astype(np.int64))
        session = cls(path, mouse, names, missing)
        _ = session._videos  # two movies of one trial are refused at once
        session._look_for_state()
        return session

    def _look_for_state(self) -> None:
        """Finds what of the animal's state was not recorded.

        Raises:
            DataError: something was not, and that is to be refused.
        """
        folders = {variable: self.path / "data" / FOLDERS[variable] for variable in STATE}
        used = next((trial for trial, tier in self.tiers.items() if tier in TIERS), None)
        if used is None or not (self.path / "data" / FOLDERS["video"]).is_dir():
            return  # of which all is said elsewhere
        self.lacking = tuple(v for v, folder in folders.items() if next(folder.glob("*.npy"), None) is None)
        notices = [f"no data/{FOLDERS[variable]}: it is given as 0" for variable in self.lacking]
        if "behavior" not in self.lacking:
            try:
                shape = read_header(self.file("behavior", used)).shape
            except (OSError, ValueError):
                shape = ()  # reading it will say what is wrong
            if len(shape) == 1 or (len(shape) == 2 and shape[0] == 1):
                self.one_row = 1 if "pupil_center" in self.lacking else 0  # without an eye tracker, it is the speed
                names = STATE_ROWS["behavior"]
                notices.append(
                    f"data/behavior has one row, taken for the {names[self.one_row]}: the {names[1 - self.one_row]} is "
                    "given as 0"
                )
        if notices and self.missing == "refuse":
            raise DataError(
                f"mouse {self.mouse.id}: {self.path}: {'; '.join(notices)} with --missing fill, and refused without"
            )
        if notices:
            logger.warning("mouse %s: %s", self.mouse.id, "; ".join(notices))
        self.notices = tuple(notices)

    def _recorded(self, variable: str, trial: int) -> np.ndarray:
        if variable not in STATE or self.missing == "refuse":
            return super()._recorded(variable, trial)
        if variable in self.lacking:
            return np.zeros((2, self._length(trial)[1]))
        return self._without_gaps(variable, trial, self._state(variable, trial))

    def _state(self, variable: str, trial: int) -> np.ndarray:
        """Behavior or pupil_center as recorded, (2, T)."""
        if variable != "behavior" or self.one_row is None:
            return super()._recorded(variable, trial)
        place = self.place(variable, trial)
        array = self._checked(lambda _: place.read(), variable, trial)
        if array.shape not in ((1, place.frames), (place.frames,)) or array.dtype.kind not in "fiub":
            raise self._error(variable, trial, f"expected (1, {place.frames}) numbers", f"found {kind_of(array)}")
        both = np.zeros((2, place.frames), array.dtype if array.dtype.kind == "f" else np.float64)
        both[self.one_row] = array.reshape(-1)
        if array.dtype.kind == "f":
            both[1 - self.one_row, np.isnan(both[self.one_row])] = np.nan  # where the trial is over
        return both

    def _without_gaps(self, variable: str, trial: int, array: np.ndarray) -> np.ndarray:
        """The array with what is NaN before the trial's end filled, row by row, from the frames beside it."""
        duration = self.duration(trial)
        gaps = gaps_of(array, duration)
        if not gaps.any():
            return array
        if variable not in self._filled:
            self._filled.add(variable)
            logger.warning(
                "mouse %s: data/%s: NaN in trial %d and perhaps others, as in blinks, is filled from the frames beside "
                "it; `viv1t-data check` counts them", self.mouse.id, FOLDERS[variable], trial,
            )  # fmt: skip
        array = array.copy()
        frames = np.arange(duration)
        for number, (row, gap) in enumerate(zip(array, gaps, strict=True)):
            if gap.all():
                row[:duration] = self._typical[variable][number]
            elif gap.any():
                row[:duration][gap] = np.interp(frames[gap], frames[~gap], row[:duration][~gap])
        return array

    @cached_property
    def _typical(self) -> dict[str, np.ndarray]:
        """The mean of each row of the animal's state over the tier `train`; 0 where there is none."""
        means = {}
        for variable in (v for v in STATE if v not in self.lacking):
            total, count = np.zeros(2), np.zeros(2)
            for trial in self.trials("train"):
                values = self._state(variable, trial)[:, : self.duration(trial)].astype(np.float64)
                known = np.isfinite(values)
                total += np.where(known, values, 0).sum(1)
                count += known.sum(1)
            means[variable] = total / np.maximum(count, 1)
        return means

    def file(self, variable: str, trial: int) -> Path:
        """Where a trial's `variable` (video, response, behavior, pupil_center) lies."""
        if variable == "video" and trial in self._videos:
            return self._videos[trial]
        return self.path / "data" / FOLDERS[variable] / f"{trial}.npy"

    @cached_property
    def _videos(self) -> dict[int, Path]:
        """The movies that are video files; an array of the same trial goes first."""
        folder = self.path / "data" / FOLDERS["video"]
        found: dict[int, Path] = {}
        for file in sorted(f for f in folder.glob("*.*") if is_video(f) and f.stem.isdecimal()):
            trial = int(file.stem)
            if (folder / f"{trial}.npy").exists():
                continue
            if trial in found and self.tiers.get(trial) in TIERS:
                raise DataError(
                    f"mouse {self.mouse.id}: data/videos holds {found[trial].name} and {file.name}, both of trial "
                    f"{trial}; keep the one that was shown"
                )
            found[trial] = file
        return found

    @property
    def computed(self) -> bool:
        """Whether movies are video files, or a part of the animal's state was not recorded."""
        return bool(self._videos or self.lacking) or self.one_row is not None

    def place(self, variable: str, trial: int) -> Place:
        """Alone in its file, with time last."""
        return Place(self.file(variable, trial), self._length(trial)[1])

    @cached_property
    def frame_size(self) -> tuple[int, int]:
        """(H, W) of the movies in pixels."""
        if not self.tiers:
            raise DataError(f"mouse {self.mouse.id}: {self.path / TIERS_FILE}: names no trial")
        used = next((trial for trial, tier in self.tiers.items() if tier in TIERS), min(self.tiers))
        shape = self._checked(array_header, "video", used).shape
        if len(shape) != 3 or not min(shape):
            raise self._error("video", used, "expected (H, W, T)", f"found {shape}")
        return shape[0], shape[1]

    def absent(self, variable: str, trial: int) -> bool:
        """Whether there is no file of a trial's variable."""
        return not self.file(variable, trial).exists()

    def duration(self, trial: int) -> int:
        """Recorded frames of a trial: up to the earliest tail of NaN of its four arrays.

        Where the animal's state alone ends long before, it was lost, and is filled.
        """
        return self._length(trial)[0]

    def _length(self, trial: int) -> tuple[int, int]:
        """A trial's recorded frames and its frames with the padding."""
        if trial not in self._lengths:
            frames = self._movie_frames(trial)
            # The small arrays first: where they are padded alike, little of the others need be looked at.
            small, large = (self._mapped(trial, frames, names) for names in (STATE, ("video", "response")))
            end = frames
            for array in small.values():
                end = recorded_end(np.atleast_2d(array), end)
            if self.missing == "fill":
                others = [n for array in large.values() if (n := first_row_end(array)) is not None]
                if end < LOST * min(others, default=frames):
                    end = frames
            for variable, array in large.items():
                end = recorded_end(array, end)
                if variable == "video" and np.isnan(array[0, 0, 0]) and np.isnan(array).all():
                    raise self._error("video", trial, "expected at least one frame", "the movie's first frame is NaN")
            self._lengths[trial] = end, frames
        return self._lengths[trial]

    def _mapped(self, trial: int, frames: int, variables: Sequence[str]) -> dict[str, np.ndarray]:
        """A trial's arrays that can be read and have as many frames as the movie."""
        found = {}
        for variable in variables:
            if variable == "video" and trial in self._videos:
                continue
            try:
                array = map_array(self.file(variable, trial))
            except (OSError, ValueError):
                continue  # reading it will say what is wrong
            if array.shape[-1:] == (frames,) and array.size and (array.ndim > 1 or variable in STATE):
                found[variable] = array
        return found

    def _movie_frames(self, trial: int) -> int:
        if trial in self._videos:
            return self._checked(array_header, "video", trial).shape[-1]
        video = self._checked(map_array, "video", trial)
        if video.ndim != 3 or not video.size or video.dtype.kind not in "fiub":
            raise self._error("video", trial, "expected (H, W, T) numbers", f"found {kind_of(video)}")
        return int(video.shape[2])
