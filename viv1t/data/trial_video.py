"""Trials whose movie is a video file, frame for frame: read as an array, and written without loss.

Written ones are VP9, lossless, full range, in mp4: the one lossless form that DALI decodes on CPU and GPU alike. Frames
lie in the upper left corner of at least 144 x 144 pixels, below which GPUs decode no VP9; the container's comment says
their size.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import numpy as np

from viv1t.data.npy import NpyHeader, map_npy, read_header, read_npy
from viv1t.data.video import VideoInfo, decode, is_video, probe, require_av
from viv1t.errors import DataError
from viv1t.types import FRAME_RATE

TRIAL_SUFFIXES = (".mp4", ".mkv")
SMALLEST = 144  # pixels that NVDEC decodes, high and wide
_COMMENT = "viv1t trial, {} x {} pixels"
_OPTIONS = {
    "lossless": "1", "cpu-used": "8", "g": "30",
    "auto-alt-ref": "0", "lag-in-frames": "0",  # no hidden frames, which would upset whoever counts
}  # fmt: skip


def array_header(path: Path) -> NpyHeader:
    """What a trial's file holds, `.npy` or video; of a video (H, W, T), in the order of axes that `read_array` gives.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is damaged; a DataError for a video.
    """
    if not is_video(path):
        return read_header(path)
    info = probe(path)
    return NpyHeader((*_frame_size(info), info.frames), False, np.dtype(np.uint8 if _is_exact(info) else np.float32), 0)


def read_array(path: Path) -> np.ndarray:
    """A trial's array in memory, (H, W, T) grey levels of 0 to 255 for a video; raises as `array_header`.

    Grey levels are uint8 where luma is, in full range, and float32 elsewhere.
    """
    return _read_video(path) if is_video(path) else read_npy(path)


def map_array(path: Path) -> np.ndarray:
    """The same, mapped from the file where it is `.npy`, for reading a small part of it."""
    return _read_video(path) if is_video(path) else map_npy(path)


def write_trial(path: Path, movie: np.ndarray) -> None:
    """Writes a movie as lossless video, and reads it again to be sure.

    Args:
        path: an mp4 file, replaced if it is there.
        movie: (T, H, W) uint8 grey levels.

    Raises:
        DataError: what was written decodes to something else, or PyAV is missing.
    """
    av = require_av()
    size = movie.shape[1:]
    padded = [-(-max(n, SMALLEST) // 2) * 2 for n in size]
    rate = round(FRAME_RATE)
    with av.open(str(path), "w") as container:
        container.metadata["comment"] = _COMMENT.format(*size)
        stream = container.add_stream("libvpx-vp9", rate=rate, options=dict(_OPTIONS))
        stream.height, stream.width = padded
        stream.pix_fmt = "yuv420p"
        stream.codec_context.color_range = 2  # full
        stream.codec_context.thread_count = 1
        picture = av.VideoFrame(padded[1], padded[0], "yuv420p")
        picture.color_range = 2
        for plane in picture.planes[1:]:
            plane.update(np.full((plane.height, plane.line_size), 128, np.uint8))
        luma = picture.planes[0]
        rows = np.zeros((luma.height, luma.line_size), np.uint8)
        for index, frame in enumerate(movie):
            rows[: size[0], : size[1]] = frame
            picture.make_writable()
            luma = picture.planes[0]
            luma.update(rows)
            picture.pts, picture.time_base = index, Fraction(1, rate)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    if not np.array_equal(np.moveaxis(_read_video(path), -1, 0), movie):
        raise DataError(f"{path}: the encoder has not kept every grey level; pack without --video")


@dataclass(frozen=True)
class VideoCost:
    """Trials as video beside the same as uint8 arrays: bytes of all, and frames a second that a few are read at."""

    video_bytes: int
    array_bytes: int
    video_speed: float
    array_speed: float


def video_cost(paths: Sequence[Path], timed: int = 20) -> VideoCost:
    """Measures trials that `write_trial` has written, reading at most `timed` of them."""
    arrays = 0
    seconds = {"video": 0.0, "array": 0.0}
    frames = 0
    with TemporaryDirectory() as folder:
        file = Path(folder) / "trial.npy"
        for index, path in enumerate(paths):
            arrays += math.prod(array_header(path).shape)
            if index < timed:
                start = perf_counter()
                movie = read_array(path)
                seconds["video"] += perf_counter() - start
                np.save(file, movie)
                start = perf_counter()
                read_array(file)
                seconds["array"] += perf_counter() - start
                frames += movie.shape[-1]
    size = sum(path.stat().st_size for path in paths)
    return VideoCost(size, arrays, frames / seconds["video"], frames / seconds["array"])


def _read_video(path: Path) -> np.ndarray:
    info = probe(path)
    height, width = _frame_size(info)
    movie = np.stack([luma for _, luma in decode(info, threads=1)])
    if len(movie) != info.frames:
        raise DataError(f"{path}: has {info.frames} frames, but {len(movie)} can be decoded; copy the file anew")
    if _is_exact(info):
        movie = movie[:, :height, :width]
    else:
        import torch  # recordings are also read where there is no PyTorch

        from viv1t.data.frames import Resize

        resize = Resize(
            info.size, (height, width), bits=info.bits, full_range=info.full_range, rotation=info.rotation
        )  # of the same size: only the grey levels change
        movie = resize(torch.from_numpy(movie.astype(np.float32))).numpy()
    return np.moveaxis(movie, 0, -1)


def _frame_size(info: VideoInfo) -> tuple[int, int]:
    written = re.fullmatch(_COMMENT.format(r"(\d+)", r"(\d+)"), info.comment)
    if written:
        return min(int(written[1]), info.size[0]), min(int(written[2]), info.size[1])
    return (info.size[1], info.size[0]) if info.rotation % 180 else info.size


def _is_exact(info: VideoInfo) -> bool:
    """Whether luma is grey levels as they are."""
    return info.has_luma and info.full_range and info.bits == 8 and not info.rotation
