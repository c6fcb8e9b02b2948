"""The arrays that a user gives a model: in any form people have, brought to one shape, or refused in a sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from viv1t.errors import ConfigError

STATES = ("behavior", "pupil_center")
UNITS = ("scaled", "recorded")  # of responses: as the model was trained, or those of the recordings
OVERSHOOT = 0.125  # how far, in parts of their range, resized movies may lie outside of their grey levels

Shape = tuple[int, ...]


def input_shapes(
    video: Shape, states: Mapping[str, Shape], frame_size: tuple[int, int], where: str = ""
) -> tuple[Shape, dict[str, tuple[Shape, Shape]]]:
    """How inputs become (B, 1, T, H, W) and (B, 2, T).

    Args:
        video: shape (T, H, W), (1, T, H, W), (B, T, H, W) or (B, 1, T, H, W).
        states: shapes of `behavior` and `pupil_center`: (B, 2, T), (2, T) for every movie, or (2,) for every frame.
        frame_size: (H, W) of the model.
        where: what takes them, named before each error.

    Returns:
        The video's shape, and for each state the shape to be seen with and then the one to be repeated to.

    Raises:
        ConfigError: a shape is none of these; names the argument.
    """
    height, width = frame_size
    expected = f"(T, {height}, {width}) or (B, 1, T, {height}, {width})"
    whole = {3: (1, 1, *video), 4: (video[0], 1, *video[1:])}.get(len(video), video) if video else video
    if len(whole) == 5 and whole[1] == 1 and whole[-3:-1] == frame_size and whole[-2:] != frame_size:
        raise ConfigError(
            f"{where}video must be {expected}, not {video}: time comes first here, and last in recordings: "
            "np.moveaxis(video, -1, 0)"
        )
    if len(whole) != 5 or whole[1] != 1:
        raise ConfigError(f"{where}video must be {expected}, not {video}")
    if whole[-2:] != frame_size:
        found = f"{whole[-2]} x {whole[-1]}"
        raise ConfigError(f"{where}video must be {expected}: the model takes frames of {height} x {width}, not {found}")
    trials, frames = whole[0], whole[2]
    if not trials or not frames:
        raise ConfigError(f"{where}video has no frames: {video}")
    seen: dict[str, tuple[Shape, Shape]] = {}
    for name, shape in states.items():
        view = {1: (1, *shape, 1), 2: (1, *shape)}.get(len(shape), shape)
        fits = len(view) == 3 and view[0] in (1, trials) and view[1] == 2 and view[2] in (1, frames)
        if not fits or (view[2] == 1 and frames > 1 and len(shape) > 1):
            raise ConfigError(
                f"{where}{name} must be (2, {frames}) or ({trials}, 2, {frames}), as the video has {trials} "
                f"{'movie' if trials == 1 else 'movies'} of {frames} frames, or (2,) for all of them; not {shape}"
            )
        seen[name] = view, (trials, 2, frames)
    return whole, seen


def as_array(values: Any, name: str, where: str = "") -> np.ndarray:
    """Numbers in whatever holds them (lists, PyTorch tensors on any device, NumPy arrays) as a NumPy array.

    Raises:
        ConfigError: they are no numbers, or their rows differ in length.
    """
    if hasattr(values, "detach"):  # a tensor, of PyTorch's if it is loaded
        values = values.detach().cpu()
    try:
        array = np.asarray(values)
    except (ValueError, TypeError, RuntimeError) as error:
        raise ConfigError(f"{where}{name} must be an array of numbers: {error}") from error
    if array.dtype.kind not in "fiub":
        raise ConfigError(f"{where}{name} must be an array of numbers, not of {array.dtype}")
    return array


def as_inputs(
    video: Any, states: Mapping[str, Any], frame_size: tuple[int, int], where: str = ""
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Video (B, 1, T, H, W) and states (B, 2, T), of the types given, not copied where that can be.

    Args:
        video, states, frame_size, where: as for `input_shapes`, in anything that `as_array` takes.

    Raises:
        ConfigError: an argument is no array of numbers, holds values that are not finite, or does not fit.
    """
    movie = as_array(video, "video", where)
    arrays = {name: as_array(values, name, where) for name, values in states.items()}
    whole, seen = input_shapes(movie.shape, {name: a.shape for name, a in arrays.items()}, frame_size, where)
    for name, array in {"video": movie, **arrays}.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ConfigError(
                f"{where}{name} holds NaN or infinity: leave out the padding after a trial's end, and fill gaps"
            )
    return movie.reshape(whole), {
        name: np.broadcast_to(array.reshape(seen[name][0]), seen[name][1]) for name, array in arrays.items()
    }


def check_levels(video: np.ndarray, unit: bool, where: str = "") -> None:
    """Raises a ConfigError for a movie that is not in the grey levels of the recordings.

    Args:
        video: grey levels.
        unit: whether the recordings' lie between 0 and 1, instead of 0 and 255.
        where: named before the error.
    """
    high = float(video.max())
    if unit and high > 1 + OVERSHOOT:
        raise ConfigError(
            f"{where}video has grey levels up to {high:g}, but the recordings' lie between 0 and 1: divide by 255"
        )
    if not unit and high <= 1 and video.dtype.kind == "f" and np.any((video > 0) & (video < 1)):
        raise ConfigError(
            f"{where}video has grey levels up to {high:g}, but the recordings' lie between 0 and 255: multiply by 255"
        )
