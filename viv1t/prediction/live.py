"""Frames that come one after the other, from a pipe or a file, and responses that go out one after the other."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from viv1t.errors import ConfigError, DataError
from viv1t.inputs import STATES

# Of a raw frame's pixels: their type, and what brings them to grey levels of 0 to 255; float32 is taken as it comes.
PIXELS: Mapping[str, tuple[str, float]] = {"gray8": ("u1", 1.0), "gray16": ("<u2", 1 / 257), "float32": ("<f4", 1.0)}
FORMATS = ("jsonl", "csv", "float32")
_STATE_BYTES = 16  # four float32 numbers


def raw_frames(
    source: BinaryIO, frame_size: tuple[int, int], pixels: str = "gray8", with_state: bool = False
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """The frames of a pipe, each as soon as it is whole.

    Args:
        source: rows of pixels, frame after frame, without anything between them.
        frame_size: (H, W).
        pixels: gray8, gray16 (little endian) or float32 (little endian).
        with_state: whether four float32 numbers follow every frame: pupil dilation, running speed and gaze (x, y).

    Yields:
        (H, W) float32, whole numbers as grey levels of 0 to 255; and (4,) float32, or None.

    Raises:
        DataError: the pipe ends within a frame.
    """
    kind, scale = PIXELS[pixels]
    dtype = np.dtype(kind)
    picture = frame_size[0] * frame_size[1] * dtype.itemsize
    size = picture + (_STATE_BYTES if with_state else 0)
    number = 0
    while whole := _read(source, size):
        if len(whole) < size:
            rest = ", then 4 float32 numbers" if with_state else ""
            raise DataError(
                f"the frames end within frame {number}: {len(whole)} bytes of {size} "
                f"({frame_size[0]} x {frame_size[1]} pixels of {pixels}{rest}): check their size and --pixels"
            )
        frame = np.frombuffer(whole[:picture], dtype).reshape(frame_size).astype(np.float32)
        state = np.frombuffer(whole[picture:], "<f4").astype(np.float32) if with_state else None
        yield frame if scale == 1 else frame * np.float32(scale), state
        number += 1


def _read(source: BinaryIO, size: int) -> bytes:
    """As many bytes, or what there is before the end."""
    parts: list[bytes] = []
    left = size
    while left and (part := source.read(left)):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


class States:
    """Behaviour and gaze of every frame, from files or fixed values.

    Args:
        given: raw `behavior` and `pupil_center`, (2,) for every frame or (2, T).

    Raises:
        DataError: an array of another shape, or values that are not finite.
    """

    def __init__(self, given: Mapping[str, np.ndarray]) -> None:
        for name, values in given.items():
            if values.ndim not in (1, 2) or values.shape[0] != 2 or values.dtype.kind not in "fiu":
                raise DataError(f"--{name}: expected (2,) or (2, T) numbers, found {values.shape}")
            if not np.isfinite(values).all():
                raise DataError(f"--{name}: holds values that are not finite")
        self._given = given

    def at(self, frame: int, of_frame: np.ndarray | None = None) -> dict[str, np.ndarray | None]:
        """`behavior` and `pupil_center` (2,) of a frame; those that came with it go before files, None for neither.

        Raises:
            DataError: a file ends before that frame.
        """
        if of_frame is not None:
            return {"behavior": of_frame[:2], "pupil_center": of_frame[2:]}
        found: dict[str, np.ndarray | None] = dict.fromkeys(STATES)
        for name, values in self._given.items():
            if values.ndim == 2 and frame >= values.shape[1]:
                raise DataError(
                    f"--{name}: has {values.shape[1]} frames, but frame {frame} has come: give as many as there are "
                    "frames, or (2,) for all of them"
                )
            found[name] = values if values.ndim == 1 else values[:, frame]
        return found


def check_format(name: str | None) -> str:
    """How responses are written, `jsonl` by default; raises a ConfigError for another."""
    if name not in (None, *FORMATS):
        raise ConfigError(f"--format must be {', '.join(FORMATS)} with --live, not {name}")
    return name or FORMATS[0]


def writer(to: BinaryIO, format: str, neurons: Mapping[str, int]) -> Callable[[int, Mapping[str, np.ndarray]], None]:
    """What writes the responses to a frame and sends them off.

    jsonl: a line {"frame": 0, "responses": {mouse: [..]}}; csv: a heading, then a line a frame: its number, and a
    column for each neuron; float32: the numbers alone, little endian, mouse after mouse. Where a frame has no response,
    a line has none and the numbers are NaN.

    Args:
        to: where they go.
        format: one of `FORMATS`.
        neurons: N of each mouse, in order.
    """
    if format == "csv":
        heading = ["frame", *(f"{mouse}:{i}" for mouse, count in neurons.items() for i in range(count))]
        _send(to, (",".join(heading) + "\n").encode())

    def write(frame: int, responses: Mapping[str, np.ndarray]) -> None:
        if format == "jsonl":
            lists = {mouse: [_number(x) for x in values] for mouse, values in responses.items()}
            _send(to, (json.dumps({"frame": frame, "responses": lists}) + "\n").encode())
            return
        rows = [responses.get(mouse, np.full(count, np.nan, np.float32)) for mouse, count in neurons.items()]
        if format == "csv":
            numbers = ["" if np.isnan(x) else str(_number(x)) for row in rows for x in row]
            _send(to, (",".join([str(frame), *numbers]) + "\n").encode())
        else:
            _send(to, np.concatenate(rows).astype("<f4").tobytes())

    return write


def _number(value: np.floating) -> float:
    """In as few digits as float32 needs."""
    return float(str(np.float32(value)))


def _send(to: BinaryIO, content: bytes) -> None:
    to.write(content)
    to.flush()


def scaled_frames(frame: np.ndarray, scales: Mapping[str, float]) -> np.ndarray | dict[str, np.ndarray]:
    """A frame as every mouse's recordings have it: one for all, or one for each where their grey levels differ."""
    if len(kinds := set(scales.values())) == 1:
        return frame * np.float32(kinds.pop())
    return {mouse: frame * np.float32(scale) for mouse, scale in scales.items()}


def onnx_files(runs: Sequence[str], mouse_ids: Sequence[str] | None) -> list[Path]:
    """The files of an export with --live that are followed: those given, or of a mouse of `mouse_ids`."""
    files = [Path(run) for run in runs]
    if mouse_ids is None:
        return files
    chosen = [file for file in files if file.stem.removeprefix("live_") in mouse_ids]
    if missing := [m for m in mouse_ids if f"live_{m}" not in [file.stem for file in files]]:
        raise ConfigError(f"--mouse_ids {' '.join(missing)}: no file live_MOUSE.onnx of these was given")
    return chosen
