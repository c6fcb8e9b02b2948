"""Small video files, written with PyAV."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

av = pytest.importorskip("av", reason="video files need PyAV: pip install 'viv1t[video]'")

LOSSLESS = {
    "libvpx-vp9": {"lossless": "1", "cpu-used": "8", "auto-alt-ref": "0", "lag-in-frames": "0"},
    "libx264": {"qp": "0", "preset": "ultrafast"},
    "libx265": {"x265-params": "lossless=1:log-level=none", "preset": "ultrafast"},
    "ffv1": {},
}
LOSSY = {
    "libx264": {"crf": "4", "preset": "ultrafast"},
    "libx265": {"x265-params": "crf=4:log-level=none", "preset": "ultrafast"},
    "libvpx": {"crf": "4", "b": "4M", "cpu-used": "8"},
    "libvpx-vp9": {"crf": "4", "b": "0", "cpu-used": "8"},
    "libsvtav1": {"crf": "8", "preset": "12", "svtav1-params": "avif=0"},
    "mjpeg": {"qmin": "1", "qmax": "1", "flags": "+qscale", "global_quality": "118"},
    "mpeg4": {"qmin": "1", "qmax": "1", "flags": "+qscale", "global_quality": "118"},
}


def moving_pattern(frames: int, height: int, width: int, seed: int = 0, low: int = 0, high: int = 255) -> np.ndarray:
    """(frames, height, width) uint8: waves that drift, a little noise, and every grey level from `low` to `high`."""
    t, y, x = np.ogrid[:frames, :height, :width]
    waves = np.sin(x / 5 + t / 9 + seed) * np.cos(y / 7 - t / 11)
    noise = np.random.default_rng(seed).normal(0, 0.02, (frames, height, width))
    return np.rint((low + high) / 2 + (high - low) * 0.45 * (waves + noise)).clip(low, high).astype(np.uint8)


def write_video(
    path: Path,
    luma: np.ndarray,
    codec: str = "libvpx-vp9",
    options: dict[str, str] | None = None,
    *,
    rate: Fraction | int = 30,
    milliseconds: Sequence[int] | None = None,
    stamps: Sequence[int] | None = None,
    pixel_format: str = "yuv420p",
    full_range: bool = True,
    chroma: int = 128,
    rotation: int = 0,
    aspect: Fraction | None = None,
) -> Path:
    """Encodes (T, H, W) luma, lossless where the codec can.

    Args:
        milliseconds: when frames are shown; None for a constant `rate`.
        stamps: likewise in periods of `rate`; None for 0, 1, 2 and so on.
        chroma: of every pixel: 128 is grey.
        rotation: degrees counterclockwise by which players turn the frames.
        aspect: width of a pixel divided by its height.
    """
    if options is None:
        options = LOSSLESS.get(codec) or LOSSY.get(codec, {})
    time_base = Fraction(1, 1000) if milliseconds is not None else 1 / Fraction(rate)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=dict(options))
        stream.height, stream.width = luma.shape[1:]
        stream.pix_fmt = pixel_format
        stream.codec_context.time_base = time_base
        stream.codec_context.color_range = 2 if full_range else 1
        stream.codec_context.thread_count = 1
        if rotation:
            stream.set_display_rotation(rotation)
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        for index, frame in enumerate(luma):
            picture = av.VideoFrame(luma.shape[2], luma.shape[1], pixel_format)
            for number, plane in enumerate(picture.planes):
                kind = np.dtype("u1" if luma.dtype == np.uint8 else "<u2")
                rows = np.full((plane.height, plane.line_size // kind.itemsize), chroma, kind)
                if number == 0:
                    rows[:, : frame.shape[1]] = frame
                plane.update(rows)
            picture.pts = (milliseconds or stamps or range(len(luma)))[index]
            picture.time_base = time_base
            picture.color_range = 2 if full_range else 1
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path
