"""Exported models: read, described and run with NumPy and ONNX Runtime alone.

`viv1t.export` writes these files. What is needed to use one stands in its metadata, every entry a string:

    format              this description's version
    part                model, core or readout; live core or live readout of `viv1t.onnx_stream`
    mouse, session      whose responses, from which recording; empty for a core, which all mice share
    neuron_ids          JSON, the recording's neuron numbers in the order of the responses; empty where not known
    frame_rate          of movies and responses, in Hz
    frame_size          JSON, [H, W] in pixels
    frames              JSON, [fewest, most] frames that can be taken
    transform           JSON, what is done to recorded values before the model sees them (`mode`, `center_crop`), and
                        whether the graph does it itself (`in_graph`) or the caller has to
    transform_arrays    base64 of a NumPy .npz file with the arrays of `InputTransform`; empty where not known
    medians             JSON, of `behavior` and `pupil_center` as recorded, two numbers each; empty where not known
    levels              JSON, [smallest, largest] value of the recorded movies; empty where not known
    core                of a readout: name of the core's file beside it
    precision           fp32, fp16 or int8
    runs, versions      JSON, where it comes from
"""

from __future__ import annotations

import base64
import io
import json
import math
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from viv1t.errors import CheckpointError, ConfigError, DataError
from viv1t.inputs import OVERSHOOT, as_inputs, check_levels
from viv1t.system.cores import usable_cores

if TYPE_CHECKING:
    import onnxruntime

FORMAT = "viv1t-onnx-1"
OPSET = 23  # of ONNX's operators, the newest
PRECISIONS = ("fp32", "fp16", "int8")
INSTALL = "install it with `pip install 'viv1t[onnx]'`"
_INPUTS = ("video", "behavior", "pupil_center", "maps")
_MOST_PIXELS = 4096  # of a frame's side
_MOST_BYTES = 256 << 20  # of a transform's arrays; statistics of every frame of 36 x 64 pixels take 6 MB


@dataclass(frozen=True)
class InputTransform:
    """What is done to recorded values: (value - offset) * scale, then a movie's centre is resized to the frame.

    Attributes:
        arrays: per variable v (video, behavior, pupil_center) `<v>_offset` and `<v>_scale`, frames first for the movie,
            (T or 1, H, W), and last for the others, (2, T or 1); T is how many frames the statistics know.
            `crop_rows` (H, H) and `crop_columns` (W, W): the crop of a frame is rows @ frame @ columns'. Empty where
            nothing is done.
    """

    arrays: Mapping[str, np.ndarray]

    @property
    def frames(self) -> int | None:
        """How many frames of a trial the statistics know; None for any number."""
        known = [a.shape[-1] for n, a in self.arrays.items() if n in ("behavior_scale", "pupil_center_scale")]
        known += [a.shape[0] for n, a in self.arrays.items() if n == "video_scale"]
        return min((n for n in known if n > 1), default=None)

    def __call__(
        self, video: np.ndarray, behavior: np.ndarray, pupil_center: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Recorded video (B, 1, T, H, W), behavior and pupil_center (B, 2, T), as the model takes them, float32."""
        done = {"video": video, "behavior": behavior, "pupil_center": pupil_center}
        for name, values in done.items():
            done[name] = values.astype(np.float32)
            if self.arrays:
                offset, scale = self._of(name, values.shape[2])
                done[name] -= offset
                done[name] *= scale
        if "crop_rows" in self.arrays:
            done["video"] = self.arrays["crop_rows"] @ done["video"] @ self.arrays["crop_columns"].T
        return done["video"], done["behavior"], done["pupil_center"]

    def of_frame(self, values: Mapping[str, np.ndarray], frame: int) -> dict[str, np.ndarray]:
        """A frame of a trial, recorded `frame` (H, W), `behavior` and `pupil_center` (2,), as the model takes them."""
        done = {name: array.astype(np.float32) for name, array in values.items()}
        for name, variable in {"frame": "video", "behavior": "behavior", "pupil_center": "pupil_center"}.items():
            if self.arrays:
                offset, scale = (self.arrays[f"{variable}_{part}"] for part in ("offset", "scale"))
                axis = 0 if name == "frame" else 1
                offset, scale = (a.take(min(frame, a.shape[axis] - 1), axis) for a in (offset, scale))
                done[name] = (done[name] - offset) * scale
        if "crop_rows" in self.arrays:
            done["frame"] = self.arrays["crop_rows"] @ done["frame"] @ self.arrays["crop_columns"].T
        return done

    def undone(self, name: str, values: np.ndarray) -> np.ndarray:
        """The recorded values of a variable that are made `values`, but for the crop; 0 scales are taken as 1."""
        if not self.arrays:
            return values
        offset, scale = self._of(name, values.shape[2])
        return np.asarray(values / np.where(scale == 0, 1, scale) + offset, np.float32)

    def _of(self, name: str, frames: int) -> tuple[np.ndarray, np.ndarray]:
        offset, scale = self.arrays[f"{name}_offset"], self.arrays[f"{name}_scale"]
        return (offset[:frames], scale[:frames]) if name == "video" else (offset[:, :frames], scale[:, :frames])

    def to_text(self) -> str:
        """For a file's metadata."""
        file = io.BytesIO()
        np.savez_compressed(file, **self.arrays)  # type: ignore[arg-type]
        return base64.b64encode(file.getvalue()).decode()

    @classmethod
    def from_text(cls, text: str) -> InputTransform:
        """What `to_text` gave.

        Raises:
            ValueError: the arrays are not those of a transform, or larger than any is. Kinds of its own come from what
                is no text of arrays at all.
        """
        packed = io.BytesIO(base64.b64decode(text, validate=True))
        with zipfile.ZipFile(packed) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > _MOST_BYTES:
            raise ValueError(f"the transform would unpack to {unpacked} bytes")
        with np.load(packed, allow_pickle=False) as file:
            arrays = dict(file)
        variables = {f"{v}_{part}": v for v in ("video", "behavior", "pupil_center") for part in ("offset", "scale")}
        ranks = {name: 3 if v == "video" else 2 for name, v in variables.items()} | {"crop_rows": 2, "crop_columns": 2}
        for name, array in arrays.items():
            if array.dtype.kind != "f" or array.ndim != ranks.get(name) or not np.isfinite(array).all():
                raise ValueError(f"the transform's {name}: {array.dtype} {array.shape} of numbers that are not its own")
        if arrays and not set(variables) <= set(arrays):
            raise ValueError(f"the transform lacks {', '.join(sorted(set(variables) - set(arrays)))}")
        return cls(arrays)


class OnnxModel:
    """An exported model, ready to run on the CPU.

    Args:
        path: the file of a mouse; of a model exported in parts, its readout, which finds the core beside it.
        threads: of ONNX Runtime; default all cores that the process may use.
        live: whether the file is the part of a mouse of an export with --live, for `viv1t.onnx_stream`.

    Attributes:
        metadata: as described above.
        mouse_id, session: whose responses it predicts.
        neuron_ids: (N,) int64, None where not known.
        frame_rate: in Hz.
        frame_size: (H, W) in pixels.
        transform: what is to be done to recorded values before they are given; None where the statistics are not known.
        recorded_transform: what is done to recorded values in all, in the graph or before; None as above.
        transform_mode: the name of that, as in `viv1t.data.transform`.
        medians: (2,) float32 of `behavior` and `pupil_center` as recorded, where known.
        levels: smallest and largest value of the recorded movies; None where not known.

    Raises:
        CheckpointError: the file is missing, damaged, or not one of this program.
        ConfigError: ONNX Runtime is missing, or the file holds a core alone.
    """

    def __init__(self, path: str | Path, threads: int | None = None, *, live: bool = False) -> None:
        self.path = Path(path)
        self._session = open_session(self.path, threads)
        try:
            self.metadata: dict[str, str] = self._session.get_modelmeta().custom_metadata_map
        except Exception as error:  # text that is none
            raise _damaged(path, "its metadata are damaged", error) from error
        if self.metadata.get("format") != FORMAT:
            raise CheckpointError(f"{path}: not a model exported by viv1t-export ({FORMAT} expected)")
        part = self.metadata.get("part")
        if part in ("core", "live core"):
            raise ConfigError(f"{path} is the core that all mice share: give the readout of a mouse, beside it")
        if (part == "live readout") != live:
            raise ConfigError(
                f"{path} takes whole movies: export the run with --live to follow one frame by frame"
                if live
                else f"{path} follows a movie frame by frame: use viv1t.OnnxStream, or export the run without --live"
            )
        try:
            self._read_metadata()
        except Exception as error:  # they may be anything, and nested or packed to any depth
            raise _damaged(path, "its metadata are damaged", error) from error
        self._core: onnxruntime.InferenceSession | None = None
        if (core := self.metadata.get("core")) and not live:
            self._core = open_session(self.path.with_name(core), threads)
        for session in (self._session, *([self._core] if self._core is not None else [])):
            if surplus := [i.name for i in session.get_inputs() if i.name not in _INPUTS]:
                raise CheckpointError(f"{path}: it takes {', '.join(surplus)[:100]}, which no exported model does")

    def _read_metadata(self) -> None:
        m = self.metadata
        self.mouse_id, self.session = m["mouse"], m["session"]
        for name in (self.mouse_id, self.session, m.get("core", "")):
            if "/" in name or "\\" in name or "\0" in name or name in (".", ".."):
                raise ValueError(f"{name!r} is the name of no file or folder")
        self.neuron_ids = _whole(json.loads(m["neuron_ids"])) if m["neuron_ids"] else None
        self.frame_rate = float(m["frame_rate"])
        if not 0 < self.frame_rate < math.inf:
            raise ValueError(f"a frame rate of {self.frame_rate} Hz")
        height, width = _whole(json.loads(m["frame_size"])).tolist()
        self.frame_size: tuple[int, int] = height, width
        if not 0 < min(self.frame_size) <= max(self.frame_size) <= _MOST_PIXELS:
            raise ValueError(f"frames of {height} x {width} pixels")
        fewest, most = json.loads(m["frames"])
        self.fewest_frames = int(_whole([fewest])[0])
        self.most_frames = None if most is None else int(_whole([most])[0])
        how = json.loads(m["transform"])
        self.transform_mode = str(how["mode"])
        known = InputTransform.from_text(m["transform_arrays"]) if m["transform_arrays"] else None
        self.recorded_transform: InputTransform | None = known
        self.transform: InputTransform | None = InputTransform({}) if how["in_graph"] else known
        medians = json.loads(m.get("medians") or "{}")
        self.medians = {name: np.array(values, np.float32).reshape(2) for name, values in medians.items()}
        levels = json.loads(m.get("levels") or "null")
        self.levels: tuple[float, float] | None = None if levels is None else (float(levels[0]), float(levels[1]))
        if not all(np.isfinite(values).all() for values in (*self.medians.values(), *([levels] if levels else []))):
            raise ValueError("medians or levels that are not finite")

    def __call__(self, video: Any, behavior: Any, pupil_center: Any) -> np.ndarray:
        """Predicted responses of the last t frames.

        Arrays may be NumPy arrays, tensors or lists of any type of number.

        Args:
            video: (B, 1, T, H, W), or without B or the channel's 1: transformed, or as recorded where the graph holds
                the transform.
            behavior: (B, 2, T), or (2, T) for all movies: pupil dilation and running speed, likewise.
            pupil_center: the same of gaze.

        Returns:
            (B, N, t) float32.

        Raises:
            ConfigError: arrays that the model does not take; names the argument.
        """
        movie, states = self._inputs(video, behavior, pupil_center)
        feed = {name: np.ascontiguousarray(array, np.float32) for name, array in {"video": movie, **states}.items()}
        if self._core is not None:
            feed["maps"] = run_session(self._core, feed)
        return run_session(self._session, feed)

    @property
    def neurons(self) -> int:
        """N, as the graph says."""
        return int(self._session.get_outputs()[0].shape[1])

    def read_out(self, maps: np.ndarray, behavior: np.ndarray, pupil_center: np.ndarray) -> np.ndarray:
        """Responses (B, N, t) of a readout alone: maps (B, D, t, h, w), states (B, 2, t), as the model takes them."""
        return run_session(self._session, {"maps": maps, "behavior": behavior, "pupil_center": pupil_center})

    def predict(self, video: Any, behavior: Any = None, pupil_center: Any = None) -> np.ndarray:
        """Predicted responses (B, N, t) to inputs as recorded, shaped as above; medians in place of states left out.

        Raises:
            ConfigError: arrays that the model does not take, or movies in another range of grey levels than recorded.
            DataError: the file does not say how recorded values are transformed, or what their medians are.
        """
        if self.transform is None:
            raise DataError(
                f"{self.path} does not hold the statistics of the recording: export it again where the recording is, "
                "with --data"
            )
        given = {"behavior": behavior, "pupil_center": pupil_center}
        for name, values in given.items():
            if values is None and name not in self.medians:
                raise DataError(f"{self.path} does not hold the median {name} of the recording: give {name}")
            given[name] = self.medians[name] if values is None else values
        movie, states = self._inputs(video, **given)
        if self.levels is not None:
            check_levels(movie, self.levels[1] <= 1 + OVERSHOOT, f"{self.path}: ")
        return self(*self.transform(movie, states["behavior"], states["pupil_center"]))

    def _inputs(self, video: Any, behavior: Any, pupil_center: Any) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        states = {"behavior": behavior, "pupil_center": pupil_center}
        movie, states = as_inputs(video, states, self.frame_size, f"{self.path}: ")
        frames = movie.shape[2]
        if frames < self.fewest_frames or (self.most_frames is not None and frames > self.most_frames):
            most = "any number" if self.most_frames is None else self.most_frames
            raise ConfigError(f"{self.path} takes {self.fewest_frames} to {most} frames, not {frames}")
        return movie, states


def open_session(path: Path, threads: int | None = None) -> onnxruntime.InferenceSession:
    """A file in ONNX Runtime, on the CPU; raises as `OnnxModel`."""
    try:
        import onnxruntime
    except ImportError as error:
        raise ConfigError(f"{path}: running it needs the package onnxruntime: {INSTALL}") from error
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors alone
    if threads is None and usable_cores() < (os.cpu_count() or 1):  # it takes all cores there are, unless told
        threads = usable_cores()
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # kinds of its own, all of them plain Exceptions
        raise _damaged(path, "ONNX Runtime cannot read it", error) from error


def run_session(session: onnxruntime.InferenceSession, feed: Mapping[str, Any]) -> np.ndarray:
    """Its first output for the inputs that it takes."""
    return run_for(session, None, feed)[0]


def run_for(
    session: onnxruntime.InferenceSession, outputs: Sequence[str] | None, feed: Mapping[str, Any]
) -> list[np.ndarray]:
    """Its outputs of these names, or all in order, for the inputs that it takes."""
    taken = {i.name: feed[i.name] for i in session.get_inputs()}
    try:
        result: list[np.ndarray] = session.run(outputs, taken)
    except Exception as error:  # kinds of its own, all of them plain Exceptions
        raise CheckpointError(f"ONNX Runtime cannot run the model ({_short(error)}); export it again") from error
    return result


def _whole(values: Any) -> np.ndarray:
    """(n,) int64 of a list of whole numbers."""
    if not isinstance(values, list) or not all(type(value) is int for value in values):
        raise ValueError(f"{str(values)[:60]!r} is no list of whole numbers")
    return np.array(values, np.int64)


def _damaged(path: str | Path, what: str, error: Exception) -> CheckpointError:
    return CheckpointError(f"{path}: {what} ({_short(error)}); export the model again")


def _short(error: Exception) -> str:
    """An error in a few words of one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__
