"""Responses to a movie of any length: windows of the length that the model knows, joined without a seam."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from viv1t.data.device import MovieTransform
from viv1t.data.loader import Recordings
from viv1t.data.transform import Transform
from viv1t.errors import DataError
from viv1t.model.twin import ViV1T
from viv1t.train.validate import check_every_frame, ensemble_prediction
from viv1t.types import MAX_FRAMES, UNSCORED_FRAMES, Batch

STATES = ("behavior", "pupil_center")


@dataclass(frozen=True)
class Windows:
    """How a movie is divided into windows that overlap.

    The first `skipped` frames of every window but the first serve as context alone; over the last `faded` frames of a
    window its prediction passes, in equal steps, into that of the next.

    Attributes:
        total: T, frames of the movie.
        length: frames of a window.
        skipped: first frames of a window that are not used.
        faded: last frames of a window that are shared with the next.
    """

    total: int
    length: int
    skipped: int
    faded: int

    @classmethod
    def of(cls, total: int, longest: int, unpredicted: int) -> Windows:
        """Windows for a movie.

        Args:
            total: T.
            longest: frames that the model and its statistics know.
            unpredicted: first frames of a window for which the core predicts nothing.

        Raises:
            DataError: the movie or the windows are too short.
        """
        length = min(total, longest)
        if length <= unpredicted:
            raise DataError(
                f"{length} frames are too short: the core predicts nothing for the first {unpredicted} frames"
            )
        quarter = longest // 4
        windows = cls(total, length, max(min(UNSCORED_FRAMES, quarter), unpredicted), min(UNSCORED_FRAMES, quarter))
        if total > longest and windows.step < 1:
            raise DataError(f"windows of {longest} frames are too short to be joined: the core skips {unpredicted}")
        return windows

    @property
    def step(self) -> int:
        """Frames from a window's start to the next one's."""
        return self.length - self.skipped - self.faded

    @property
    def starts(self) -> list[int]:
        """First frame of every window; the last one ends with the movie."""
        last = self.total - self.length
        return [*range(0, last, self.step), last] if last else [0]


class Joint:
    """Joins the windows of one mouse, one after the other.

    Args:
        windows: how they overlap.
    """

    def __init__(self, windows: Windows) -> None:
        self._windows = windows
        self._tail: np.ndarray | None = None  # the last frames of the window before, to be faded
        self._end = 0  # frames that are finished

    def add(self, start: int, response: np.ndarray, *, final: bool) -> np.ndarray:
        """The frames that are finished with the window from `start` on, (N, n), following those given before.

        Args:
            start: first frame of the window.
            response: (N, length), NaN where nothing is predicted.
            final: whether it is the last window.
        """
        response = response[:, self._end - start :]
        if self._tail is not None:
            faded = self._tail.shape[1]
            share = np.arange(1, faded + 1, dtype=np.float32) / (faded + 1)
            response = response.copy()
            response[:, :faded] = self._tail + share * (response[:, :faded] - self._tail)
        kept = response.shape[1] - (0 if final else self._windows.faded)
        self._tail, self._end = response[:, kept:], self._end + kept
        return response[:, :kept]


def state_of(values: np.ndarray, name: str, frames: int) -> np.ndarray:
    """(2, frames) of a state that is given as (2,) for all frames, or for each.

    Raises:
        DataError: another shape, or values that are not finite.
    """
    if values.shape not in ((2,), (2, frames)) or values.dtype.kind not in "fiu":
        raise DataError(f"--{name}: expected (2,) or (2, {frames}) numbers, as the movie has, found {values.shape}")
    if not np.isfinite(values).all():
        raise DataError(f"--{name}: holds values that are not finite")
    return np.broadcast_to(values.reshape(2, -1), (2, frames))


def known_frames(transform: Transform) -> int:
    """The longest window that a mouse's statistics allow."""
    affine = [transform.affine[v].frames for v in ("video", *STATES)] if transform.affine else []
    return min([MAX_FRAMES, *(frames for frames in affine if frames is not None)])


@torch.no_grad()
def predict_movie(
    models: Sequence[ViV1T],
    recordings: Recordings,
    stimulus: Iterable[Tensor],
    frames: int,
    states: Mapping[str, np.ndarray] | None = None,
    units: str = "scaled",
) -> Iterator[tuple[str, np.ndarray]]:
    """The mean prediction of `models` for a movie, mouse by mouse and piece by piece; memory is that of a window.

    Each window is transformed like a trial that begins with it: by statistics of each frame, where the run has such.

    Args:
        models: in evaluation mode, made for the recordings.
        recordings: whose mice are predicted, and whose statistics transform what the models see.
        stimulus: (n, H, W) grey levels of 0 to 255, in order.
        frames: T, of all pieces together.
        states: raw `behavior` and `pupil_center`, (2,) or (2, T); the recording's medians where missing.
        units: as for `predict`.

    Yields:
        mouse and (N, n) float32, the frames that follow those given before, together T; NaN before the core's reach.

    Raises:
        ConfigError: a model does not predict every frame.
        DataError: the movie is too short, or states do not fit it.
    """
    for model in models:
        check_every_frame(model.config)
    device = next(models[0].parameters()).device
    transforms = {mouse: recordings.transform(mouse) for mouse in recordings.mice}
    longest = min(known_frames(transform) for transform in transforms.values())
    unpredicted = max(longest - model.core.output_frames(longest) for model in models)
    windows = Windows.of(frames, longest, unpredicted)
    given = {name: state_of(values, name, frames) for name, values in (states or {}).items()}
    videos = {mouse: MovieTransform(transform, device) for mouse, transform in transforms.items()}
    raw = {mouse: _states(recordings, mouse, given, frames) for mouse in recordings.mice}
    joints = {mouse: Joint(windows) for mouse in recordings.mice}
    for start, piece in _windows(stimulus, windows, device):
        stop = start + windows.length
        for mouse, joint in joints.items():
            video = torch.empty_like(piece)
            videos[mouse].write(video, piece, 0)
            state = {
                name: torch.from_numpy(transforms[mouse].state(name, values[:, start:stop])).to(device)[None]
                for name, values in raw[mouse].items()
            }
            frames_of = torch.tensor([windows.length])
            nothing = torch.empty(1, 0, 0)
            batch = Batch(
                mouse, (0,), video[None, None], nothing, state["behavior"], state["pupil_center"], frames_of
            )
            response = ensemble_prediction(models, batch)[0].float().cpu().numpy()
            if units == "recorded":
                scale = recordings.response_precision(mouse, windows.length)
                response = response / scale[:, -response.shape[1] :]
            before = windows.length - response.shape[1]
            aligned = np.pad(response, ((0, 0), (before, 0)), constant_values=np.nan)
            yield mouse, joint.add(start, aligned, final=stop == frames)


def _states(
    recordings: Recordings, mouse: str, given: Mapping[str, np.ndarray], frames: int
) -> dict[str, np.ndarray]:
    return {
        name: given[name] if name in given else state_of(recordings.state_median(mouse, name), name, frames)
        for name in STATES
    }


def _windows(stimulus: Iterable[Tensor], windows: Windows, device: torch.device) -> Iterator[tuple[int, Tensor]]:
    """First frame and (length, H, W) of every window."""
    pieces = iter(stimulus)
    held, first = torch.empty(0), 0  # frames that are still needed, and where they begin
    for start in windows.starts:
        held, first = held[start - first :], start
        waiting = [held] if len(held) else []
        count = len(held)
        while count < windows.length:
            piece = next(pieces, None)
            if piece is None:
                raise DataError(f"the movie ended after {start + count} frames of {windows.total}")
            waiting.append(piece.to(device))
            count += len(piece)
        held = torch.cat(waiting)
        yield start, held[: windows.length]
    if any(len(piece) for piece in pieces) or len(held) > windows.length:
        raise DataError(f"the movie has more than the {windows.total} frames that were expected")
