"""Recordings written as experanto folders, from which the same trials are read, value for value.

Trials follow each other on one time line with half a second of grey between them. Responses are sampled at 30 Hz, half
a period before the frames, and held; the animal's state three times a frame, all three alike, so that neither depends
on the last bits of the time.
"""

from __future__ import annotations

import hashlib
import shutil
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from viv1t.data.formats.experanto.folder import EYE, RESPONSES, TREADMILL, numbers_of
from viv1t.data.session import Session
from viv1t.data.synthetic.saving import save_array, save_json, save_text
from viv1t.system.files import writing
from viv1t.system.safe_yaml import dump_yaml
from viv1t.types import FRAME_RATE

_GAP = 15  # frames of grey between trials
_MARGIN = 30  # frames before the first trial and after the last
_EPOCH = 1_520_000_000.0  # seconds: recordings are timed by the system's clock
_GREY = 128


def write_experiment(folder: Path, session: Session, name: str) -> None:
    """Writes an experanto folder that holds the trials of a session, in order.

    Args:
        folder: where to; it may hold something else.
        session: whose trials, of all tiers.
        name: of the recording.
    """
    start = _EPOCH + zlib.crc32(name.encode()) % 10**6
    trials: dict[str, Any] = {}
    times: list[np.ndarray] = []
    state: list[np.ndarray] = []  # (4, frames): dilation, speed, gaze x and y
    at, frames = _MARGIN, 0  # on the grid, and of the screen

    def show(meta: dict[str, Any], shown: int) -> str:
        nonlocal frames
        key = f"{len(trials):05d}"
        trials[key] = {"first_frame_idx": frames, "image_size": [*session.frame_size], "trial_idx": len(trials)} | meta
        times.append(start + at / FRAME_RATE + np.arange(shown) / FRAME_RATE)
        frames += shown
        return key

    data = folder / RESPONSES / "data.mem"
    data.parent.mkdir(parents=True)
    grey = {"modality": "blank", "interleave_value": _GREY, "tier": "blank", "stim_type": "stimulus.Blank"}
    with writing(data), data.open("wb") as file:

        def rest(length: int) -> None:
            file.write(bytes(4 * length * session.mouse.neurons))
            state.append(np.repeat(state[-1][:, -1:] if state else np.zeros((4, 1)), length, axis=1))

        rest(_MARGIN)
        for trial, tier in session.tiers.items():
            duration = session.duration(trial)
            movie = np.moveaxis(session.read("video", trial)[..., :duration], -1, 0)
            movie = np.ascontiguousarray(movie, np.uint8 if np.array_equal(movie, movie.astype(np.uint8)) else None)
            key = show(
                {
                    "modality": "video", "num_frames": duration, "tier": "oracle" if tier == "validation" else tier,
                    "condition_hash": hashlib.blake2b(movie.tobytes(), digest_size=10).hexdigest(),
                    "stim_type": "stimulus.Clip",
                },
                duration,
            )  # fmt: skip
            save_array(folder / "screen" / "data" / f"{key}.npy", movie)
            file.write(np.ascontiguousarray(session.read("response", trial)[:, :duration].T, "<f4").tobytes())
            states = (session.read(variable, trial)[:, :duration] for variable in ("behavior", "pupil_center"))
            state.append(np.concatenate([*states]).astype(np.float64))
            at += duration
            show(grey, 1)
            rest(_GAP)
            at += _GAP
        show(grey, 1)
        rest(_MARGIN)
        at += _MARGIN
    save_json(folder / "screen" / "combined_meta.json", trials)
    save_array(folder / "screen" / "timestamps.npy", np.concatenate(times))
    _save_yaml(folder / "screen" / "meta.yml", {"modality": "screen", "frame_rate": FRAME_RATE})
    properties = {"cell_motor_coordinates": session.mouse.coordinates, "unit_ids": session.mouse.unit_ids}
    for property, array in properties.items():
        save_array(folder / RESPONSES / "meta" / f"{property}.npy", array)
    more = {"neuron_properties": {property: f"meta/{property}.npy" for property in properties}}
    _save_device(folder / RESPONSES, FRAME_RATE, start - 0.5 / FRAME_RATE, (at, session.mouse.neurons), "float32", more)
    state[0][:] = state[1][:, :1]
    dilation, speed, x, y = np.repeat(np.concatenate(state, axis=1), 3, axis=1)
    rate = 3 * FRAME_RATE
    for device, signals in {EYE: [x, y, dilation, np.gradient(dilation)], TREADMILL: [speed]}.items():
        samples = np.stack(signals, axis=1).astype("<f8")
        (folder / device).mkdir()
        with writing(folder / device / "data.mem"):
            samples.tofile(folder / device / "data.mem")
        _save_device(folder / device, rate, start - 1 / rate, samples.shape, "float64", {})
    save_json(folder / "meta.json", {"data_key": numbers_of(name)})


def as_experiment(folder: Path, session: Session, name: str) -> None:
    """Turns the Sensorium folder of a session into an experanto folder, where it lies."""
    write_experiment(folder, session, name)
    for part in ("data", "meta"):
        shutil.rmtree(folder / part)


def _save_device(
    folder: Path, rate: float, start: float, shape: tuple[int, ...], dtype: str, more: dict[str, Any]
) -> None:
    meta = {
        "modality": "sequence", "sampling_rate": rate, "start_time": start, "end_time": start + shape[0] / rate,
        "n_timestamps": shape[0], "n_signals": shape[1], "dtype": dtype, "is_mem_mapped": True,
        "phase_shift_per_signal": False,
    }  # fmt: skip
    _save_yaml(folder / "meta.yml", meta | more)


def _save_yaml(path: Path, value: dict[str, Any]) -> None:
    save_text(path, dump_yaml(value))
