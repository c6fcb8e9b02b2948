"""A causal model that `viv1t-export --live` has written, followed frame by frame with NumPy and ONNX Runtime alone.

`live_core.onnx` does one frame's work for all mice; `live_MOUSE.onnx` reads a mouse's responses from what it gives.

    inputs of the core     video (1, 1, pt, H, W) and state (1, 4, pt), the last frames, zeros before the first;
                           position (1,) int64, the number of tokens so far; for each temporal block i `keys_i` and
                           `values_i` (P, heads, n, d), those of the tokens so far in the first of any number n of rows
    outputs                maps (1, D, 1, h, w); for each block `new_keys_i` and `new_values_i` (P, heads, 1, d), which
                           the caller puts into row `position`
    inputs of a readout    maps, behavior (1, 2, 1), pupil_center (1, 2, 1)
    output                 response (1, N, 1)

The core's metadata hold, beside those of `viv1t.onnx_model`, `live`: JSON of `LiveShape`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from viv1t.errors import CheckpointError, ConfigError, DataError
from viv1t.inputs import STATES
from viv1t.live import Live, check_after
from viv1t.onnx_model import FORMAT, OnnxModel, open_session, run_for
from viv1t.types import MAX_FRAMES

if TYPE_CHECKING:
    import onnxruntime

CORE_FILE = "live_core.onnx"
_FIRST_ROWS = 75  # of the caches; they double when they are full, so that a short past is read quickly
_MOST = 100_000_000  # of any size in a file


@dataclass(frozen=True)
class LiveShape:
    """What is to be kept of the past.

    Attributes:
        window: pt, frames that a token is made of.
        front: zeros before the first frame that tokens may be made of.
        stride: frames between tokens.
        channels: state variables that the core takes: 0, 2 or 4.
        tokens: positions in time that there are.
        patches, heads, head_dim: P, heads and d of keys and values.
        blocks: temporal ones.
    """

    window: int
    front: int
    stride: int
    channels: int
    tokens: int
    patches: int
    heads: int
    head_dim: int
    blocks: int

    @classmethod
    def from_text(cls, text: str) -> LiveShape:
        """Of a file's metadata; raises a ValueError where they are not those of a core."""
        known = json.loads(text)
        names = [field.name for field in fields(cls)]
        if not isinstance(known, dict) or sorted(known) != sorted(names):
            raise ValueError(f"the sizes {', '.join(names)} were expected")
        shape = cls(**known)
        if not all(type(size) is int and 0 <= size < _MOST for size in known.values()) or not (
            min(shape.window, shape.stride, shape.tokens, shape.patches) >= 1
            and max(shape.window, shape.front, shape.tokens) <= 4 * MAX_FRAMES
        ):
            raise ValueError(f"sizes that no core has: {text[:200]}")
        return shape


class OnnxPast:
    """What a core in ONNX Runtime keeps of the frames so far.

    Args:
        session: of `live_core.onnx`.
        shape: from its metadata.
        frame_size: (H, W) in pixels.
    """

    def __init__(self, session: onnxruntime.InferenceSession, shape: LiveShape, frame_size: tuple[int, int]) -> None:
        self._session, self.shape, self.frame = session, shape, 0
        self._outputs = [f"new_{name}" for name in cache_names(shape)]
        self._video = np.zeros((1, 1, shape.window - 1 + MAX_FRAMES, *frame_size), np.float32)
        self._state = np.zeros((1, 4, shape.window - 1 + MAX_FRAMES), np.float32)
        rows = min(_FIRST_ROWS, shape.tokens)
        size = (shape.patches, shape.heads, rows, shape.head_dim)
        self._caches = [np.zeros(size, np.float32) for _ in range(2 * shape.blocks)]

    def copy(self) -> OnnxPast:
        """The same past, to go on from differently."""
        other = copy(self)
        other._video, other._state = self._video.copy(), self._state.copy()
        other._caches = [cache.copy() for cache in self._caches]
        return other

    def step(self, frame: np.ndarray, state: np.ndarray) -> np.ndarray | None:
        """Takes a frame (H, W) and the state (4,), gives the core's maps (1, D, 1, h, w); None where no token ends."""
        shape, lead = self.shape, self.shape.window - 1
        place = lead + self.frame
        self._video[0, 0, place], self._state[0, :, place] = frame, state
        self.frame += 1
        token, between = divmod(self.frame - 1 - (lead - shape.front), shape.stride)
        if token < 0 or between:
            return None
        self._grow(token)
        window = slice(place - lead, place + 1)
        feed: dict[str, np.ndarray] = {
            "video": self._video[:, :, window],
            "state": np.ascontiguousarray(self._state[:, :, window]),
            "position": np.array([token]),
        }
        feed |= dict(zip(cache_names(shape), self._caches, strict=True))
        maps, *new = run_for(self._session, ["maps", *self._outputs], feed)
        for cache, values in zip(self._caches, new, strict=True):
            cache[:, :, token] = values[:, :, 0]
        return maps

    def _grow(self, token: int) -> None:
        """Makes room for a row more than are there."""
        for i, cache in enumerate(self._caches):
            if token >= (rows := cache.shape[2]):
                self._caches[i] = np.zeros(
                    (*cache.shape[:2], min(2 * rows, self.shape.tokens), cache.shape[3]), np.float32
                )
                self._caches[i][:, :, :rows] = cache


def cache_names(shape: LiveShape) -> list[str]:
    """The graph's inputs of past keys and values, in order."""
    return [f"{kind}_{i}" for i in range(shape.blocks) for kind in ("keys", "values")]


class OnnxStream(Live[OnnxPast]):
    """A causal model that follows a movie in ONNX Runtime, on the CPU; used as `viv1t.Stream` is.

    Args:
        files: `live_MOUSE.onnx` of one mouse or several, beside the `live_core.onnx` of the same export.
        after: what happens after 300 frames: `overlap`, `restart` or `stop`.
        recorded: whether frames and states are given as recorded. States that are left out are then the recordings'
            medians. Responses are as the model gives them.
        threads: of ONNX Runtime; default all cores that the process may use.

    Raises:
        CheckpointError: a file is missing, damaged, not one of a live export, or of another than the others.
        ConfigError: ONNX Runtime is missing.
        DataError: `recorded`, and a file does not hold the statistics of the recording.
    """

    def __init__(
        self,
        files: str | Path | Sequence[str | Path],
        *,
        after: str = "overlap",
        recorded: bool = False,
        threads: int | None = None,
    ) -> None:
        check_after(after)
        paths = [Path(f) for f in ([files] if isinstance(files, str | Path) else files)]
        if not paths:
            raise ConfigError("files: give the live_MOUSE.onnx of at least one mouse")
        self.files: dict[str, OnnxModel] = {}
        for path in paths:
            opened = OnnxModel(path, threads, live=True)
            if opened.mouse_id in self.files:
                raise ConfigError(f"{path}: mouse {opened.mouse_id} is given twice")
            self.files[opened.mouse_id] = opened
        first = next(iter(self.files.values()))
        core = first.path.with_name(first.metadata["core"])
        self.shape = self._open_core(core, threads)
        for each in self.files.values():
            if each.metadata.get("export") != self.core_metadata.get("export"):
                raise CheckpointError(f"{each.path} is of another export than {core}: give files of one folder")
        self.recorded = recorded
        for each in self.files.values() if recorded else ():
            if each.recorded_transform is None:
                raise DataError(
                    f"{each.path} does not hold the statistics of the recording: export it again where the recording "
                    "is, with --data"
                )
        super().__init__(None, list(self.files), first.frame_size, after)

    def _open_core(self, path: Path, threads: int | None) -> LiveShape:
        self._session = open_session(path, threads)
        metadata: Mapping[str, str] = self._session.get_modelmeta().custom_metadata_map
        self.core_metadata = metadata
        if metadata.get("format") != FORMAT or metadata.get("part") != "live core":
            raise CheckpointError(f"{path}: not the core of an export with --live")
        try:
            shape = LiveShape.from_text(metadata["live"])
        except (KeyError, ValueError, TypeError) as error:
            raise CheckpointError(f"{path}: its metadata are damaged ({error}); export the model again") from error
        expected = {"video", "state", "position", *cache_names(shape)}
        if surplus := [i.name for i in self._session.get_inputs() if i.name not in expected]:
            raise CheckpointError(f"{path}: it takes {', '.join(surplus)[:100]}, which no exported model does")
        return shape

    def neurons(self, mouse: str) -> int:
        return self.files[mouse].neurons

    def _new_past(self) -> OnnxPast:
        return OnnxPast(self._session, self.shape, self.frame_size)

    def _read_out(self, maps: Any, mouse: str, state: np.ndarray) -> np.ndarray:
        now = state[None, :, None]
        return self.files[mouse].read_out(maps, now[:, :2], now[:, 2:])[0, :, 0]

    def step(self, frame: Any, behavior: Any = None, pupil_center: Any = None) -> dict[str, np.ndarray]:
        given = {"behavior": behavior, "pupil_center": pupil_center}
        if self.recorded:
            for name in STATES:
                if given[name] is None:
                    given[name] = {mouse: file.medians.get(name) for mouse, file in self.files.items()}
        return super().step(frame, **given)

    step.__doc__ = Live.step.__doc__

    def _transformed(self, mouse: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        transform = self.files[mouse].recorded_transform if self.recorded else None
        if transform is None:
            return inputs
        first = min(self._frame, (transform.frames or MAX_FRAMES) - 1)
        return transform.of_frame(inputs, first)
