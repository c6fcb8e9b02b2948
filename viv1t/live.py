"""How a movie is followed frame by frame, whatever computes: whose inputs agree, where positions end, what is refused.

No PyTorch here: `viv1t.stream` and `viv1t.onnx_stream` say how a frame's work is done.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from viv1t.errors import ConfigError, DataError
from viv1t.inputs import as_array
from viv1t.types import MAX_FRAMES, UNSCORED_FRAMES

AFTER = ("overlap", "restart", "stop")
_NAMES = ("frame", "behavior", "pupil_center")


def check_after(after: str) -> str:
    """`after`; raises a ConfigError for another word than those of `AFTER`."""
    if after not in AFTER:
        raise ConfigError(f"after must be one of {', '.join(AFTER)}, not {after!r}")
    return after


class Past(Protocol):
    """What is kept of the frames so far.

    Attributes:
        frame: how many there were; a smaller number goes back.
    """

    frame: int

    def copy(self) -> Past:
        """The same, to go on from differently."""

    def step(self, frame: np.ndarray, state: np.ndarray) -> Any:
        """Takes a frame (H, W) and the state (4,); gives the core's maps, or None where none are due."""


P = TypeVar("P", bound=Past)


class _Lane(Generic[P]):
    """Mice whose inputs have been the same so far, and their common past; `coming` takes over when positions end.

    The first `context` frames of the past gave no responses: those were of the window before.
    """

    def __init__(self, mice: list[str], past: P, coming: P | None = None, context: int = 0) -> None:
        self.mice, self.past, self.coming, self.context = mice, past, coming, context

    def copy(self, mice: list[str]) -> _Lane[P]:
        """The same past for other mice."""
        coming = None if self.coming is None else self.coming.copy()
        return _Lane(mice, self.past.copy(), coming, self.context)  # type: ignore[arg-type]


class Live(Generic[P]):
    """A causal model that follows a movie.

    The responses are those that the model gives for the whole movie at once. Its positions end at 300 frames. From then
    on they are those of windows of 300 frames that overlap by 50 (`overlap`): while a window ends, the next one is
    under way, so that no response is without a past of 50 frames; these 50 frames cost twice the work. `restart`
    begins anew without a past, `stop` raises an error.

    Args:
        mouse_ids: whose responses are given; None for every mouse of the model.
        known: the mice of the model.
        frame_size: (H, W) in pixels.
        after: what happens after 300 frames: `overlap`, `restart` or `stop`.

    Raises:
        ConfigError: a mouse is not in the model, or `after` is none of these.
    """

    def __init__(
        self, mouse_ids: Sequence[str] | None, known: Sequence[str], frame_size: tuple[int, int], after: str
    ) -> None:
        self.after, self.frame_size = check_after(after), frame_size
        self.mouse_ids = list(dict.fromkeys([mouse_ids] if isinstance(mouse_ids, str) else mouse_ids or known))
        if unknown := [m for m in self.mouse_ids if m not in known]:
            raise ConfigError(f"mouse {', '.join(unknown)} is not in this model; it has {', '.join(known)}")
        self.reset()

    # What a kind of model brings.

    def _new_past(self) -> P:
        raise NotImplementedError

    def _read_out(self, maps: Any, mouse: str, state: np.ndarray) -> np.ndarray:
        """Responses (N,) float32 of a mouse to a frame's maps and state (4,)."""
        raise NotImplementedError

    def neurons(self, mouse: str) -> int:
        """N of a mouse."""
        raise NotImplementedError

    def _transformed(self, mouse: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """`frame` (H, W), `behavior` and `pupil_center` (2,), as given, to what the model takes."""
        return inputs

    # What all have.

    @property
    def frame(self) -> int:
        """How many frames have been seen."""
        return self._frame

    @property
    def lanes(self) -> int:
        """How many times the core runs for a frame, outside of overlaps: mice of the same inputs share one."""
        return len(self._lanes)

    def reset(self) -> None:
        """Forgets everything: the next frame is a movie's first."""
        self._frame = 0
        self._lanes = [_Lane(list(self.mouse_ids), self._new_past())]

    def rewind(self, frame: int) -> None:
        """Goes back to when `frame` frames had been seen: those that come next replace what came then.

        Raises:
            ConfigError: that lies ahead, or before the responses of the present window of 300 frames.
        """
        seen = {lane.past.frame - lane.context for lane in self._lanes}
        back = self._frame - frame
        if back < 0 or any(back > n for n in seen):
            first = self._frame - min(seen)
            raise ConfigError(f"frame must be from {first} to {self._frame}, the frames that are kept, not {frame}")
        for lane in self._lanes:
            lane.past.frame -= back
            if lane.coming is not None:
                lane.coming.frame -= back
                if lane.coming.frame <= 0:
                    lane.coming = None
        self._frame = frame

    def step(self, frame: Any, behavior: Any = None, pupil_center: Any = None) -> dict[str, np.ndarray]:
        """The responses to a frame.

        Args:
            frame: (H, W).
            behavior: (2,) pupil dilation and running speed, of every mouse or by mouse.
            pupil_center: (2,) gaze, of every mouse or by mouse.

        Returns:
            (N,) float32 of each mouse. Empty where the model gives none: before one without padding has seen enough
            frames, and between the frames that one with a stride in time predicts.

        Raises:
            ConfigError: values are missing, of another shape, or not finite, or a 301st frame with `after` `stop`.
            DataError: a response is not finite.
        """
        given = {"frame": frame, "behavior": behavior, "pupil_center": pupil_center}
        inputs = {mouse: self._inputs(mouse, given) for mouse in self.mouse_ids}
        if self.after == "stop" and self._frame == MAX_FRAMES:
            raise ConfigError(
                f"the model has positions for {MAX_FRAMES} frames: call reset(), or choose another `after`"
            )
        lanes = []
        for lane in self._lanes:
            groups: dict[bytes, list[str]] = {}
            for mouse in lane.mice:
                groups.setdefault(b"".join(x.tobytes() for x in inputs[mouse]), []).append(mouse)
            first, *others = groups.values()
            lanes += [lane.copy(mice) for mice in others]
            lane.mice = first
            lanes.append(lane)
        self._lanes = lanes
        self._frame += 1
        found = {}
        for lane in self._lanes:
            video, state = inputs[lane.mice[0]]
            maps = self._advance(lane, video, state)
            if maps is not None:
                for mouse in lane.mice:
                    found[mouse] = self._read_out(maps, mouse, state)
                    if not np.isfinite(found[mouse]).all():
                        raise DataError(
                            f"mouse {mouse}, frame {self._frame - 1}: a response is not finite: check the frame's "
                            "values and the checkpoint"
                        )
        return {mouse: found[mouse] for mouse in self.mouse_ids if mouse in found}

    def push(self, video: Any, behavior: Any, pupil_center: Any) -> dict[str, np.ndarray]:
        """The responses to several frames: video (T, H, W), behavior and pupil_center (2, T) -> (N, t) by mouse.

        Raises:
            ConfigError: as `step`, before anything is taken where the arrays do not fit each other.
        """
        movie = as_array(video, "video")
        states = {"behavior": as_array(behavior, "behavior"), "pupil_center": as_array(pupil_center, "pupil_center")}
        if movie.ndim != 3:
            raise ConfigError(f"video must be (T, {self.frame_size[0]}, {self.frame_size[1]}), not {movie.shape}")
        for name, values in states.items():
            if values.shape != (2, len(movie)):
                raise ConfigError(f"{name} must be (2, {len(movie)}), as the video has {len(movie)} frames, not "
                                  f"{values.shape}")  # fmt: skip
        steps = [self.step(movie[i], *(values[:, i] for values in states.values())) for i in range(len(movie))]
        given = [step for step in steps if step]
        return {mouse: np.stack([step[mouse] for step in given], axis=1) for mouse in (given[0] if given else ())}

    def _advance(self, lane: _Lane[P], video: np.ndarray, state: np.ndarray) -> Any:
        if lane.past.frame == MAX_FRAMES:
            lane.past, lane.coming = lane.coming or self._new_past(), None
            lane.context = lane.past.frame
        if lane.coming is None and self.after == "overlap" and lane.past.frame >= MAX_FRAMES - UNSCORED_FRAMES:
            lane.coming = self._new_past()
        if lane.coming is not None:
            lane.coming.step(video, state)
        return lane.past.step(video, state)

    def _inputs(self, mouse: str, given: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """The frame (H, W) and the state (4,) as the model takes them."""
        arrays = {}
        for name in _NAMES:
            value = given[name]
            if isinstance(value, Mapping):
                value = value.get(mouse)
            expected = self.frame_size if name == "frame" else (2,)
            if value is None:
                raise ConfigError(f"{name}: nothing is given for mouse {mouse}, {expected} values were expected")
            array = as_array(value, name).astype(np.float32)
            if array.shape != expected:
                raise ConfigError(f"{name}: {expected} values were expected, not {array.shape}")
            if not np.isfinite(array).all():
                raise ConfigError(f"{name}: values that are not finite, at frame {self._frame}")
            arrays[name] = array
        arrays = self._transformed(mouse, arrays)
        return np.ascontiguousarray(arrays["frame"]), np.concatenate((arrays["behavior"], arrays["pupil_center"]))
