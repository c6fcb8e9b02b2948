"""Stimuli as files: lossless video, or an array."""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from viv1t.errors import ConfigError
from viv1t.system.files import replacing
from viv1t.types import FRAME_RATE

ENDINGS = (".mkv", ".avi", ".npy")


def write_film(path: Path, film: np.ndarray) -> None:
    """Writes grey levels exactly: `.mkv` and `.avi` as FFV1 video at 30 Hz, `.npy` as the array.

    Args:
        path: of the file, replaced when all of it is written.
        film: (T, H, W) uint8.

    Raises:
        ConfigError: another ending, or a video without PyAV.
        WriteError: it cannot be written.
    """
    if path.suffix not in ENDINGS:
        raise ConfigError(f"{path}: its name must end in one of {', '.join(ENDINGS)}")
    if path.suffix == ".npy":
        with replacing(path) as temporary:
            np.save(temporary, film)
        return
    av = _av()
    with replacing(path) as temporary, av.open(str(temporary), "w") as container:
        stream = container.add_stream("ffv1", rate=round(FRAME_RATE))
        stream.height, stream.width = film.shape[1:]
        stream.pix_fmt = "gray"
        stream.codec_context.color_range = 2  # full
        for index, frame in enumerate(film):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="gray")
            picture.color_range = 2
            picture.pts, picture.time_base = index, Fraction(1, round(FRAME_RATE))
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


def as_shown_lossy(film: np.ndarray) -> np.ndarray | None:
    """A film as an H.264 video file holds it, as films are often shown; None where that cannot be written here.

    Args:
        film: (T, H, W) uint8.
    """
    try:
        av = _av()
        file = io.BytesIO()
        with av.open(file, "w", format="mp4") as container:
            stream = container.add_stream("libx264", rate=round(FRAME_RATE))
            stream.height, stream.width = film.shape[1:]
            stream.pix_fmt = "yuv420p"
            for frame in film:
                stacked = np.repeat(np.ascontiguousarray(frame)[..., None], 3, axis=2)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(stacked, format="rgb24")))
            container.mux(stream.encode())
        file.seek(0)
        with av.open(file) as container:
            frames = [frame.to_ndarray(format="gray") for frame in container.decode(video=0)]
    except Exception:  # no PyAV, no encoder, or a size that it does not take
        return None
    return np.stack(frames) if len(frames) == len(film) else None


def _av() -> Any:
    try:
        import av
    except ImportError as error:
        raise ConfigError(
            "video files need PyAV: install it with `pip install 'viv1t[video]'`, or write .npy"
        ) from error
    return av
