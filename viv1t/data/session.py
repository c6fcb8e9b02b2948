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
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from viv1t.config import DataConfig
from viv1t.data.archive import TIERS_FILE, extract_session
from viv1t.data.finding import NO_TRIAL, UNKNOWN_TIERS, Finding
from viv1t.data.npy import read_npy, read_stacked
from viv1t.data.survey import LETTERS, STORE_FILE, no_session, session_name, survey
from viv1t.data.trial_video import array_header, map_array, read_array
from viv1t.data.values import first_fault, inexact, recorded_end, to_float32, turned
from viv1t.data.video import is_video
from viv1t.errors import ConfigError, DataError, missing_folder
from viv1t.files import check_kind
from viv1t.types import NEW_MICE, OLD_MICE, SENSORIUM_SESSIONS, TIERS, Mouse

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
    """

    ADVICE = "copy the file anew, or set the trial's tier to 'none'"  # what to do about a damaged trial

    def __init__(self, path: Path, mouse: Mouse, tiers: dict[int, str]) -> None:
        self.path = path
        self.mouse = mouse
        self.tiers = tiers
        self._hidden: dict[str, bool] = {}
        self._repeats: dict[str, list[list[int]]] = {}

    @staticmethod
    def open(path: Path, mouse_id: str | None = None) -> Session:
        """Opens a session's folder, as recorded or packed; where there is only `<path>.zip`, unpacks it first.

        Args:
            path: folder, or its archive.
            mouse_id: name of the mouse; default the letter of a published session, else the folder's name.

        Raises:
            DataError: what describes the session is missing, damaged or inconsistent.
        """
        from viv1t.data.store import PackedSession  # it is made of what is defined here

        path = Path(path)
        archive = path if path.suffix == ".zip" and path.is_file() else path.parent / f"{path.name}.zip"
        if not path.is_dir() and archive.is_file():
            path = extract_session(archive)
        if not path.is_dir():
            raise DataError(f"{path}: no such recording: expected this folder, or {archive.name} beside it")
        name = session_name(path)
        kind: type[RawSession | PackedSession] = PackedSession if (path / STORE_FILE).is_file() else RawSession
        return kind.open_folder(path, mouse_id or LETTERS.get(name, name))

    def trials(self, tier: str) -> list[int]:
        """The trial numbers of a tier, ascending."""
        return [trial for trial, name in self.tiers.items() if name == tier]

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
    def has_videos(self) -> bool:
        """Whether movies are video files, which the C++ side does not read."""
        return False

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
        place, rows = self.place(variable, trial), self.rows(variable)
        array = self._checked(lambda _: place.read(), variable, trial)
        if array.shape != (*rows, place.frames) or array.dtype.kind not in "fiub":
            if variable != "video" and array.ndim == 2 and self._turned(trial, array.shape[-1]):
                raise self._error("video", trial, "expected (H, W, T)", "found (T, H, W): move time to the last axis")
            expected = f"expected {(*rows, place.frames)} numbers"
            if variable == "response" and array.ndim == 2 and array.shape[0] != rows[0]:
                expected += f" ({rows[0]} neurons, as in cell_motor_coordinates.npy)"
            raise self._error(variable, trial, expected, f"found {_kind(array)}")
        return array

    def _turned(self, trial: int, frames: int) -> bool:
        """Whether a movie has its time, `frames`, on the first axis."""
        shape = self._checked(array_header, "video", trial).shape
        return len(shape) == 3 and not self.place("video", trial).frames_first and turned(shape, frames)

    def lacks_response(self, trial: int) -> bool:
        """Whether a trial's responses are withheld by leaving them out: the file is absent, or holds only NaN."""
        if self.absent("response", trial):
            return True
        array = self._array("response", trial)
        return array.dtype.kind == "f" and bool(np.isnan(array).all())

    def absent(self, variable: str, trial: int) -> bool:
        """Whether there is no file of a trial's variable."""
        return False

    def hidden(self, tier: str) -> bool:
        """Whether the tier's responses are withheld: there are trials, and all their responses are zero, NaN or absent.

        Raises:
            DataError: a trial is damaged.
        """
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
            raise self._error(variable, trial, "expected a numeric .npy file", _reason(error)) from error

    def _error(self, variable: str, trial: int, expected: str, found: str) -> DataError:
        return DataError(
            f"mouse {self.mouse.id}, trial {trial}: {self.file(variable, trial)}: {expected}, but {found}; "
            f"{self.ADVICE}"
        )


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
                raise DataError(f"mouse {mouse_id}: {path / file}: {_reason(error)}; {advice}") from error

        tiers = meta(TIERS_FILE, "expected the tier's name of every trial, saved as text")
        coordinates = meta(COORDINATES_FILE, "expected the neurons' positions, (N, 3) numbers")
        unit_ids = meta(UNIT_IDS_FILE, "expected the neurons' numbers, (N,) integers")
        if tiers.ndim != 1 or tiers.dtype.kind not in "US":
            raise DataError(f"mouse {mouse_id}: {path / TIERS_FILE}: expected (trials,) text, found {_kind(tiers)}")
        numeric = coordinates.dtype.kind in "fiu" and np.isfinite(to_float32(coordinates)).all()
        if coordinates.ndim != 2 or coordinates.shape[1] != 3 or not len(coordinates) or not numeric:
            raise DataError(
                f"mouse {mouse_id}: {path / COORDINATES_FILE}: expected finite (N, 3), found {_kind(coordinates)}"
            )
        if unit_ids.shape != coordinates.shape[:1] or unit_ids.dtype.kind not in "iuf":
            raise DataError(
                f"mouse {mouse_id}: {path / UNIT_IDS_FILE}: expected {len(coordinates)} numbers, one for each row of "
                f"cell_motor_coordinates.npy, found {_kind(unit_ids)}"
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
    def has_videos(self) -> bool:
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
            raise self._error("video", trial, "expected (H, W, T) numbers", f"found {_kind(video)}")
        return int(video.shape[2])


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
    return NO_TRIAL.found(session.mouse.id, tier="oracle" if tier == "validation" else tier, others=others)


def _kind(array: np.ndarray) -> str:
    return f"{array.shape} {array.dtype}"


def _reason(error: Exception) -> str:
    return "the file is missing" if isinstance(error, FileNotFoundError) else str(error)


def find_sessions(config: DataConfig) -> dict[str, Session]:
    """The mice of a run: published ones in the order of their letters, then others by name.

    Raises:
        ConfigError: `--mouse_ids` names a mouse that is not there or not in `--ds_mode`.
        DataError: the folder or a session that is needed is missing or damaged.
    """
    folder = Path(config.path)
    if not folder.is_dir():
        raise missing_folder(folder, "give the folder that holds the recording sessions", option="--data ")
    surveyed = survey(folder)
    found = surveyed.sessions
    allowed: tuple[str, ...] = {"old": OLD_MICE, "new": NEW_MICE}.get(config.mice, tuple(found))
    chosen = allowed
    if config.mouse_ids is not None:
        wanted = {LETTERS.get(name, name) for name in config.mouse_ids}
        if unknown := sorted(wanted - set(allowed)):
            for finding in surveyed.left_out:
                if finding.mouse_id.partition(".")[0] in unknown or finding.mouse_id in unknown:
                    raise DataError(f"--mouse_ids {finding.mouse_id}: {finding.what}; {finding.fix}")
            raise ConfigError(
                f"--mouse_ids {', '.join(unknown)}: not among the mice of this --ds_mode in {folder}, which are "
                f"{', '.join(allowed) or 'none'}"
            )
        chosen = tuple(mouse for mouse in allowed if mouse in wanted)
    if missing := [mouse for mouse in chosen if mouse not in found]:
        names = ", ".join(f"{mouse} ({SENSORIUM_SESSIONS[mouse]})" for mouse in missing)
        there = [mouse for mouse in chosen if mouse in found]
        advice = f"--mouse_ids {' '.join(there)}" if there else "--ds_mode 2"
        raise DataError(f"--data {folder}: missing mice {names}; {advice} uses what is there")
    if not chosen:
        raise no_session(folder, surveyed.left_out, option="--data ")
    if config.mouse_ids is None:
        for finding in surveyed.left_out:
            logger.warning("%s", finding.line)
    absent = [mouse for mouse in SENSORIUM_SESSIONS if mouse not in found]
    everything = config.mice in ("all", "all_with_test") and config.mouse_ids is None
    if everything and 0 < len(absent) < len(SENSORIUM_SESSIONS):
        logger.warning("--data %s: of the ten published mice, %s are not there", folder, ", ".join(absent))
    return {mouse: Session.open(found[mouse], mouse) for mouse in chosen}


def discover(folder: Path) -> dict[str, Path]:
    """Every session in the folder, as a folder or as an archive, in the order of a run; names what is left out.

    Raises:
        DataError: two entries are the same mouse.
    """
    found = survey(folder)
    for finding in found.left_out:
        logger.warning("%s", finding.line)
    return found.sessions
