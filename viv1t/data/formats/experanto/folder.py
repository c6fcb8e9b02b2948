"""One experiment in the experanto folder format: what its files say, read with suspicion and never written to.

    <experiment>/screen/{meta.yml,timestamps.npy}                  and one file a trial in screen/data
    <experiment>/screen/combined_meta.json or screen/meta/<key>.yml   what each trial shows
    <experiment>/<device>/{meta.yml,data.mem|data.npy}             a sampled signal: responses, eye_tracker, ...
    <experiment>/meta.json                                         optional: the recording's numbers

Times are seconds in float64, of one clock for all devices.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from viv1t.data.formats.experanto.screen import Screen, Shown
from viv1t.data.formats.experanto.sequence import Samples, Sequence
from viv1t.data.npy import read_header, read_npy
from viv1t.data.values import inexact
from viv1t.errors import DataError
from viv1t.system.safe_yaml import read_yaml

RESPONSES, EYE, TREADMILL = "responses", "eye_tracker", "treadmill"
GIVEN = {EYE: "dilation and gaze are given as 0", TREADMILL: "speed is given as 0"}  # in place of what is missing
MODALITIES = ("image", "video", "blank", "invalid")
_MAX_JSON = 256 << 20  # bytes; a session of 25,000 trials has 10 MB
_NAME = re.compile(r"^dynamic(.+?)-Video-")
_WORDS = {"true": True, "false": False, "": False, None: False}


@dataclass(frozen=True)
class Experiment:
    """A recording: a screen, and devices sampled beside it.

    Attributes:
        path: the folder.
        key: the mouse's name: `data_key`, else animal-session-scan, else from the folder's name.
        screen: what was shown.
        devices: every sampled device by its folder's name; `responses` is among them.
        coordinates: (N, 3) float32 micrometres, or None.
        unit_ids: (N,) int64; 0 to N - 1 where the recording has none.
        notices: what a user should know: one line each.
    """

    path: Path
    key: str
    screen: Screen
    devices: Mapping[str, Sequence]
    coordinates: np.ndarray | None
    unit_ids: np.ndarray
    notices: tuple[str, ...]

    @property
    def responses(self) -> Sequence:
        """The neurons' responses."""
        return self.devices[RESPONSES]

    @property
    def interval(self) -> tuple[float, float]:
        """Seconds from which on, and until which, the screen and every device can be read."""
        spans = [(self.screen.start, self.screen.end)]
        spans += [device.interval(linear=False) for device in self.devices.values()]
        return max(start for start, _ in spans), min(end for _, end in spans)


def is_experiment(path: Path) -> bool:
    """Whether a folder is laid out as an experiment."""
    return (path / "screen" / "meta.yml").is_file() or (path / RESPONSES / "meta.yml").is_file()


def read_experiment(path: Path) -> Experiment:
    """Reads what describes an experiment; samples and frames stay on disk.

    Raises:
        DataError: something is missing, damaged, or not understood; names the file.
    """
    notices: list[str] = []
    found = {p.parent.name: _mapping(p) for p in sorted(path.glob("*/meta.yml"))}
    if "screen" not in found:
        raise DataError(f"{path}: no screen/meta.yml: an experiment needs what was shown")
    if RESPONSES not in found:
        raise DataError(f"{path}: no responses/meta.yml: an experiment needs responses")
    devices = {}
    for name, meta in found.items():
        modality = str(meta.get("modality", "")).lower()
        if name == "screen":
            if modality != "screen":
                raise DataError(f"{path / name / 'meta.yml'}: modality screen was expected, not {modality or 'none'}")
        elif modality == "sequence":
            devices[name] = _sequence(path / name, meta, notices)
        else:
            raise DataError(
                f"{path / name / 'meta.yml'}: modality {modality or 'none'} is not read here (only sequence is); take "
                "the folder away if the device is not needed"
            )
    notices += [f"{path}: no {name}: {given}" for name, given in GIVEN.items() if name not in devices]
    others = sorted(set(devices) - {RESPONSES, EYE, TREADMILL})
    if others:
        notices.append(f"{path}: devices that nothing here uses: {', '.join(others)}")
    screen = _screen(path / "screen", notices)
    neurons = devices[RESPONSES].signals
    properties = found[RESPONSES].get("neuron_properties") or {}
    if not isinstance(properties, dict):
        raise DataError(f"{path / RESPONSES / 'meta.yml'}: neuron_properties must name files, not {properties!r}")
    coordinates = _coordinates(path / RESPONSES, properties, neurons, notices)
    return Experiment(
        path=path,
        key=experiment_key(path),
        screen=screen,
        devices=devices,
        coordinates=coordinates,
        unit_ids=_unit_ids(path / RESPONSES, properties, neurons, notices),
        notices=tuple(notices),
    )


def _mapping(path: Path) -> dict[str, Any]:
    try:
        content = read_yaml(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: names and values were expected, not {type(content).__name__}")
    return content


def _json(path: Path) -> Any:
    try:
        if path.stat().st_size > _MAX_JSON:
            raise ValueError(f"more than {_MAX_JSON >> 20} MiB")
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: not readable as JSON: {str(error)[:200]}") from error


def _number(meta: Mapping[str, Any], name: str, path: Path, *, whole: bool = False) -> float:
    value = meta.get(name)
    good = isinstance(value, int | float) and not isinstance(value, bool) and np.isfinite(value)
    if not good or (whole and value != int(value)):  # type: ignore[arg-type]
        raise DataError(f"{path}: {name} must be a {'whole ' if whole else ''}number, not {value!r}")
    return float(value)  # type: ignore[arg-type]


def _flag(meta: Mapping[str, Any], name: str, path: Path, notices: list[str]) -> bool:
    value = meta.get(name)
    if isinstance(value, bool):
        return value
    word = value.strip().lower() if isinstance(value, str) else value
    if word not in _WORDS:
        raise DataError(f"{path}: {name} must be true or false, not {value!r}")
    if isinstance(value, str):
        notices.append(f"{path}: {name} is the text {value!r}, taken as {str(_WORDS[word]).lower()}")
    return _WORDS[word]


def _sequence(folder: Path, meta: Mapping[str, Any], notices: list[str]) -> Sequence:
    """A device's samples, left in their file."""
    path = folder / "meta.yml"
    rate, start = _number(meta, "sampling_rate", path), _number(meta, "start_time", path)
    signals = int(_number(meta, "n_signals", path, whole=True))
    if not rate > 0 or signals < 1:
        raise DataError(f"{path}: sampling_rate and n_signals must be above 0, not {rate} and {signals}")
    _flag(meta, "is_mem_mapped", path, notices)  # which file lies there says it better
    memory, array = folder / "data.mem", folder / "data.npy"
    if memory.is_file():
        data: Samples | np.ndarray = _without_header(memory, meta, path, signals)
    elif array.is_file():
        try:
            header = read_header(array)
            data = Samples(array, header.shape, header.dtype, header.offset)  # type: ignore[arg-type]
            if header.fortran and len(header.shape) == 2:
                data = read_npy(array)
        except (OSError, ValueError) as error:
            raise DataError(f"{array}: {error}") from error
        if len(data.shape) != 2 or data.shape[1] != signals or data.dtype.kind not in "fiub":
            raise DataError(f"{array}: expected (samples, {signals}) numbers, found {data.dtype} {data.shape}")
        samples = meta.get("n_timestamps")
        if samples is not None and samples != len(data):
            raise DataError(f"{array}: {len(data)} samples, where {path} says {samples}")
    else:
        raise DataError(f"{folder}: neither data.mem nor data.npy")
    if not len(data):
        raise DataError(f"{folder}: no samples")
    shifts = np.zeros(signals)
    if _flag(meta, "phase_shift_per_signal", path, notices):
        file = folder / "meta" / "phase_shifts.npy"
        shifts = _array(file, (signals,)).astype(np.float64)
        if not np.isfinite(shifts).all():
            raise DataError(f"{file}: phase shifts must be finite seconds")
    end = _number(meta, "end_time", path) if "end_time" in meta else None
    return Sequence(data=data, rate=rate, start=start, shifts=shifts, end=end)


def _without_header(file: Path, meta: Mapping[str, Any], path: Path, signals: int) -> Samples:
    samples = int(_number(meta, "n_timestamps", path, whole=True))
    try:
        dtype = np.dtype(str(meta.get("dtype", "")))
    except TypeError as error:
        raise DataError(f"{path}: dtype {meta.get('dtype')!r} is no number type of NumPy") from error
    if dtype.kind not in "fiub" or samples < 0:
        raise DataError(f"{path}: dtype {dtype} and {samples} samples describe no signal")
    expected, found = samples * signals * dtype.itemsize, file.stat().st_size
    if expected != found:
        raise DataError(
            f"{file}: {found} bytes, where {path} promises {expected} ({samples} samples of {signals} {dtype}): it is "
            f"{'truncated' if found < expected else 'not what it describes'}; copy it anew"
        )
    return Samples(file, (samples, signals), dtype)


def _array(file: Path, *shapes: tuple[int, ...]) -> np.ndarray:
    try:
        array = read_npy(file)
    except FileNotFoundError as error:
        raise DataError(f"{file}: missing") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: {error}") from error
    if array.shape not in shapes or array.dtype.kind not in "fiub":
        raise DataError(f"{file}: expected {shapes[0]} numbers, found {array.dtype} {array.shape}")
    return array


def _trials(folder: Path) -> tuple[dict[str, Any], Path]:
    """Every trial's description in order of their numbers, and where it stands."""
    combined, files = folder / "combined_meta.json", sorted((folder / "meta").glob("*.yml"))
    numbered = [file for file in files if file.stem.isdigit()]
    if combined.is_file():
        content = _json(combined)
        if not isinstance(content, dict) or not all(k.isdigit() for k in content):
            raise DataError(f"{combined}: a mapping from numbers to trials was expected")
        if numbered and len(numbered) != len(content):
            raise DataError(
                f"{combined}: {len(content)} trials, but {folder / 'meta'} describes {len(numbered)}: the file is "
                "older than the trials; take it away"
            )
        return {key: content[key] for key in sorted(content, key=int)}, combined
    if not numbered:
        raise DataError(f"{folder}: neither combined_meta.json nor meta/<number>.yml describes a trial")
    return {file.stem: _mapping(file) for file in sorted(numbered, key=lambda f: int(f.stem))}, folder / "meta"


def _screen(folder: Path, notices: list[str]) -> Screen:
    times_file = folder / "timestamps.npy"
    try:
        times = read_npy(times_file)
    except (OSError, ValueError) as error:
        raise DataError(f"{times_file}: {error}") from error
    if times.ndim != 1 or times.dtype.kind != "f" or times.dtype.itemsize < 8 or not np.isfinite(times).all():
        raise DataError(
            f"{times_file}: (frames,) finite float64 seconds were expected, not {times.dtype} {times.shape}"
        )
    described, where = _trials(folder)
    trials: list[Shown] = []
    total = 0
    for key, meta in described.items():
        what = f"{where}, trial {key}"
        if not isinstance(meta, dict):
            raise DataError(f"{what}: names and values were expected, not {type(meta).__name__}")
        modality = str(meta.get("modality", "")).lower()
        if modality not in MODALITIES:
            raise DataError(f"{what}: modality {modality or 'none'} is none of {', '.join(MODALITIES)}")
        frames = 1
        if modality == "video":
            frames = int(_number(meta, "num_frames", Path(what), whole=True))
        if frames < 1:
            raise DataError(f"{what}: num_frames must be at least 1, not {frames}")
        first = int(_number(meta, "first_frame_idx", Path(what), whole=True))
        if first != total:
            raise DataError(f"{what}: first_frame_idx {first}, but the trials before it have {total} frames")
        total += frames
        if total > len(times):
            raise DataError(f"{what}: its frames end at {total}, but {times_file} has {len(times)} times")
        if (np.diff(times[first : total + (total < len(times))]) < 0).any():
            raise DataError(f"{times_file}: times descend in trial {key}")
        trials.append(_shown(key, meta, modality, first, frames, what))
    if total < len(times):
        notices.append(f"{times_file}: {len(times) - total} times after the last trial belong to none")
    return Screen(folder=folder, times=times[:total], trials=tuple(trials))


def _shown(key: str, meta: Mapping[str, Any], modality: str, first: int, frames: int, what: str) -> Shown:
    size = meta.get("image_size")
    if size is not None and not (
        isinstance(size, list) and len(size) in (2, 3) and all(isinstance(n, int) and n > 0 for n in size)
    ):
        raise DataError(f"{what}: image_size must be [height, width], not {size!r}")
    level = meta.get("interleave_value", 128)
    if not isinstance(level, int | float) or not 0 <= level <= 255:
        raise DataError(f"{what}: interleave_value must be a grey level, not {level!r}")
    valid = meta.get("valid_trial", True)
    tier, condition = meta.get("tier"), meta.get("condition_hash")
    return Shown(
        key=key,
        modality=modality,
        first=first,
        frames=frames,
        tier=None if tier is None else str(tier),
        condition=None if condition is None else str(condition),
        size=None if size is None else (size[0], size[1]),
        level=float(level),
        valid=valid is True or (isinstance(valid, str) and valid.strip().lower() == "true"),
    )


def _coordinates(folder: Path, properties: Mapping[str, Any], neurons: int, notices: list[str]) -> np.ndarray | None:
    file = folder / str(properties.get("cell_motor_coordinates") or "meta/cell_motor_coordinates.npy")
    if not file.is_file():
        notices.append(f"{file}: missing: neurons have no coordinates")
        return None
    array = _array(file, (neurons, 3), (neurons, 2))
    if array.shape[1] == 2:
        notices.append(f"{file}: no depth, taken as 0")
        array = np.concatenate([array, np.zeros((neurons, 1), array.dtype)], axis=1)
    return np.asarray(array, np.float32)


def _unit_ids(folder: Path, properties: Mapping[str, Any], neurons: int, notices: list[str]) -> np.ndarray:
    file = folder / str(properties.get("unit_ids") or "meta/unit_ids.npy")
    if not file.is_file():
        notices.append(f"{file}: missing: neurons are numbered from 0")
        return np.arange(neurons, dtype=np.int64)
    ids = _array(file, (neurons,))
    if (odd := inexact(ids)) is not None:
        raise DataError(f"{file}: neurons' numbers must be whole, and what int64 holds, not {ids[odd]} (neuron {odd})")
    return ids.astype(np.int64)


def experiment_key(path: Path) -> str:
    """The mouse's name: `data_key` of meta.json, else its animal-session-scan, else that of the folder's name.

    Raises:
        DataError: meta.json is damaged, or the name is none for a folder.
    """
    file = path / "meta.json"
    return key_of(_json(file) if file.is_file() else None, path.name, file)


def key_of(meta: Any, name: str, file: Path) -> str:
    """The same from the content of `file`, meta.json, and the folder's name."""
    key = None
    if isinstance(meta, dict):
        scan = meta.get("scan_key")
        if isinstance(meta.get("data_key"), str) and meta["data_key"]:
            key = str(meta["data_key"])
        elif isinstance(scan, dict) and all(k in scan for k in ("animal_id", "session", "scan_idx")):
            key = f"{scan['animal_id']}-{scan['session']}-{scan['scan_idx']}"
    if key is None:
        named = _NAME.match(name)
        return named.group(1) if named else name
    if not re.fullmatch(r"[\w-][\w.-]{0,199}", key):
        raise DataError(f"{file}: the recording's name must be letters, numbers, '-', '_' and '.', not {key[:80]!r}")
    return key


def numbers_of(name: str) -> str:
    """Animal, session and scan as `29087-3-7`, where a recording's name or key holds them; else the name itself."""
    named = _NAME.match(name)
    return named.group(1) if named else name
