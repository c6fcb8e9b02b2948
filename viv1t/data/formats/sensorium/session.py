"""One mouse as recorded in the Sensorium 2023 format: four files a trial."""

from __future__ import annotations

import logging
from functools import cached_property
from pathlib import Path

import numpy as np

from viv1t.data.formats.archive import TIERS_FILE
from viv1t.data.formats.sensorium.trial_video import array_header, map_array
from viv1t.data.inspect.finding import UNKNOWN_TIERS
from viv1t.data.npy import read_npy
from viv1t.data.session import (
    COORDINATES_FILE,
    FOLDERS,
    UNIT_IDS_FILE,
    Place,
    Session,
    unknown_tiers,
)
from viv1t.data.survey import session_name
from viv1t.data.values import inexact, kind_of, reason_of, recorded_end, to_float32
from viv1t.errors import DataError
from viv1t.stimuli.decode import is_video
from viv1t.types import TIERS, Mouse

logger = logging.getLogger("viv1t")


class RawSession(Session):
    """A session as recorded: four files a trial. Arguments as for `Session`."""

    def __init__(self, path: Path, mouse: Mouse, tiers: dict[int, str]) -> None:
        super().__init__(path, mouse, tiers)
        self._lengths: dict[int, tuple[int, int]] = {}

    @classmethod
    def open_folder(cls, path: Path, mouse_id: str) -> RawSession:
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
        session = cls(path, Mouse(mouse_id, name, to_float32(coordinates), unit_ids.astype(np.int64)), names)
        _ = session._videos  # two movies of one trial are refused at once
        return session

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
        """Whether movies are video files."""
        return bool(self._videos)

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
        """Recorded frames of a trial: up to the earliest tail of NaN of its four arrays."""
        return self._length(trial)[0]

    def _length(self, trial: int) -> tuple[int, int]:
        """A trial's recorded frames and its frames with the padding."""
        if trial not in self._lengths:
            frames = self._movie_frames(trial)
            end = frames
            # The small arrays first: where they are padded alike, little of the others need be looked at.
            for variable in ("behavior", "pupil_center", "video", "response"):
                if variable == "video" and trial in self._videos:
                    continue
                try:
                    array = map_array(self.file(variable, trial))
                except (OSError, ValueError):
                    continue  # reading it will say what is wrong
                if array.ndim < 2 or array.shape[-1] != frames or not array.size:
                    continue
                end = recorded_end(array, end)
                if variable == "video" and np.isnan(array[0, 0, 0]) and np.isnan(array).all():
                    raise self._error("video", trial, "expected at least one frame", "the movie's first frame is NaN")
            self._lengths[trial] = end, frames
        return self._lengths[trial]

    def _movie_frames(self, trial: int) -> int:
        if trial in self._videos:
            return self._checked(array_header, "video", trial).shape[-1]
        video = self._checked(map_array, "video", trial)
        if video.ndim != 3 or not video.size or video.dtype.kind not in "fiub":
            raise self._error("video", trial, "expected (H, W, T) numbers", f"found {kind_of(video)}")
        return int(video.shape[2])
