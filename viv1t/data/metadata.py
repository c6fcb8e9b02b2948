"""What is known of mice without their trials: the authors' published metadata, and a file that recordings give.

Two published layouts are read:

    <folder>/statistics/mouse<ID>/<video|response|behavior|pupil_center>/<min|max|median|mean|std>.npy
    <folder>/neuron_coordinates/mouse<ID>.npy                        (N, 3); over trials, frames and pixels

    <folder>/[<session>/]meta/statistics/<videos|responses|behavior|pupil_center>/all/<min|max|mean|std>.npy
    <folder>/[<session>/]meta/neurons/{cell_motor_coordinates,unit_ids}.npy       of each frame, over trials
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from viv1t.data.formats.sensorium.recorded import STATES, RecordedMouse, write_recorded
from viv1t.data.mice import open_recording
from viv1t.data.npy import read_npy
from viv1t.data.rules import Rules
from viv1t.data.session import COORDINATES_FILE, FOLDERS, UNIT_IDS_FILE, VARIABLES
from viv1t.data.statistics import NAMES, Moments, MouseStatistics, computed_statistics, movie_levels, state_median
from viv1t.errors import DataError
from viv1t.types import MAX_FRAMES, SENSORIUM_SESSIONS, Mouse


def read_metadata(folder: Path, mouse_id: str, neurons: int, frame_size: tuple[int, int]) -> RecordedMouse | None:
    """What a published folder says of a mouse; None where it is not in it.

    Statistics of the first layout are not of each frame, those of the second not over frames, and have no medians.
    Neuron numbers that are not known are left out: `unit_ids` is empty then.

    Args:
        folder: in one of the layouts.
        mouse_id: whose.
        neurons: how many the model has.
        frame_size: (H, W) of the model in pixels.

    Raises:
        DataError: a file is missing, damaged or of another shape.
    """
    session = SENSORIUM_SESSIONS.get(mouse_id, mouse_id)
    rows = {"video": frame_size, "response": (neurons,), "behavior": (2,), "pupil_center": (2,)}
    own = folder / "statistics" / f"mouse{mouse_id}"
    if own.is_dir():
        time = {}
        for variable in VARIABLES:
            arrays = (_read(own / variable / f"{name}.npy", (rows[variable], ())) for name in NAMES)
            time[variable] = Moments(*(np.broadcast_to(a, rows[variable]).astype(np.float32) for a in arrays))
        unknown = {v: _unknown((*rows[v], MAX_FRAMES)) for v in VARIABLES if v != "response"}
        every = (np.broadcast_to(getattr(time["response"], name)[:, None], (neurons, MAX_FRAMES)) for name in NAMES)
        unknown["response"] = Moments(*every)
        coordinates = folder / "neuron_coordinates" / f"mouse{mouse_id}.npy"
        medians = {name: _read(own / name / "median.npy", ((2,),)).astype(np.float32) for name in STATES}
        mouse = _mouse(mouse_id, session, neurons, coordinates, None)
        return RecordedMouse(mouse, MouseStatistics(unknown, time), medians)
    for place in (folder / session, folder):
        meta = place / "meta" if (place / "meta").is_dir() else place
        if not (meta / "statistics" / FOLDERS["video"]).is_dir() or (place == folder and _other(folder, session)):
            continue
        trial = {}
        for variable in VARIABLES:
            names = [meta / "statistics" / FOLDERS[variable] / "all" / f"{name}.npy" for name in NAMES]
            frames = ((*rows[variable], -1), *(((neurons,),) if variable == "response" else ()))
            trial[variable] = Moments(*(_read(path, frames).astype(np.float32) for path in names))
        files = [meta.parent / name if meta != place else meta / Path(name).relative_to("meta")
                 for name in (COORDINATES_FILE, UNIT_IDS_FILE)]  # fmt: skip
        return RecordedMouse(_mouse(mouse_id, session, neurons, *files), MouseStatistics(trial, None), {})
    return None


def _other(folder: Path, session: str) -> bool:
    """Whether a folder is a published mouse's, but not this one's."""
    return folder.resolve().name in {*SENSORIUM_SESSIONS.values()} - {session}


def _mouse(mouse_id: str, session: str, neurons: int, coordinates: Path, unit_ids: Path | None) -> Mouse:
    places = _read(coordinates, ((neurons, 3),)) if coordinates.is_file() else np.full((neurons, 3), np.nan)
    ids = np.empty(0, np.int64)
    if unit_ids is not None and unit_ids.is_file():
        ids = _read(unit_ids, ((neurons,),)).astype(np.int64)
    return Mouse(mouse_id, session, places.astype(np.float32), ids)


def _read(path: Path, shapes: tuple[tuple[int, ...], ...]) -> np.ndarray:
    """An array of one of the shapes; -1 stands for any number of frames.

    Raises:
        DataError: it is missing, damaged or of another shape.
    """
    try:
        array = read_npy(path)
    except FileNotFoundError as error:
        raise DataError(f"{path}: the file is missing; give the whole folder as it was published") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: {error}; get the file anew") from error
    for shape in shapes:
        fits = array.ndim == len(shape) and all(n in (-1, m) for n, m in zip(shape, array.shape, strict=True))
        if fits and array.dtype.kind in "fiu":
            return array
    words = " or ".join(str(shape).replace("-1", "T") for shape in shapes)
    raise DataError(f"{path}: expected {words} numbers, as the model has, found {array.shape} {array.dtype}")


def _unknown(shape: tuple[int, ...]) -> Moments:
    nothing = np.broadcast_to(np.float32(np.nan), shape)
    return Moments(nothing, nothing, nothing, nothing)


def write_statistics(path: Path, sessions: Mapping[str, Path], rules: Rules | None = None) -> list[str]:
    """Writes what predictions need to know of recordings, for any transform; returns the mice.

    Args:
        path: of the file.
        sessions: folders of the recordings by mouse.
        rules: how they become trials, where they leave a choice.

    Raises:
        CheckpointError: the file cannot be written.
        DataError: a recording is missing, damaged, of another frame size than the others, or without training trials.
    """
    mice: dict[str, RecordedMouse] = {}
    sizes: dict[str, tuple[int, int]] = {}
    for id, folder in sessions.items():
        session = open_recording(folder, id, rules)
        sizes[id] = session.frame_size
        if len(set(sizes.values())) > 1:
            words = ", ".join(f"{mouse} {h} x {w}" for mouse, (h, w) in sizes.items())
            raise DataError(f"movies of all mice must have the same size, but have {words}; choose with --mouse_ids")
        medians = {name: state_median(session, name) for name in STATES}
        statistics = computed_statistics(session)
        mice[id] = RecordedMouse(session.mouse, statistics, medians, movie_levels(statistics))
    write_recorded(path, mice, next(iter(sizes.values())), None)
    return list(mice)


def has_statistics(statistics: MouseStatistics, family: str | None) -> bool:
    """Whether the statistics of movies of a family, `trial` or `time`, are known."""
    known: Mapping[str, Moments] | None = statistics.trial if family == "trial" else statistics.time
    return family is None or (known is not None and bool(np.isfinite(known["video"].mean).any()))
