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
from viv1t.errors import DataError
from viv1t.stimuli.decode import SUFFIXES, VideoInfo, decode, is_video, probe, require_av
from viv1t.system.files import save_npy, writing
from viv1t.types import FRAME_RATE

TRIAL_SUFFIXES = SUFFIXES
LARGEST_TRIAL = 256 << 20  # bytes of grey levels in memory
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
    return _header(probe(path)) if is_video(path) else read_header(path)


def read_array(path: Path, expected: tuple[int, ...] | None = None) -> np.ndarray:
    """A trial's array in memory, (H, W, T) grey levels of 0 to 255 for a video; raises as `array_header`.

    Grey levels are uint8 where luma is, in full range, and float32 elsewhere. A frame that stands for several of the
    camera's, as AVI files have it, is there as often.

    Args:
        path: of the file.
        expected: the shape a video must have to be decoded at all; None for any.
    """
    return _read_video(path, expected) if is_video(path) else read_npy(path)


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
        OSError: the file cannot be written.
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
    try:
        written = _read_video(path)
    except DataError as error:  # a full disk stops the encoder without a word
        raise OSError(f"{path}: what was written cannot be read again ({error})") from error
    if not np.array_equal(np.moveaxis(written, -1, 0), movie):
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
                with writing(file), open(file, "wb") as array:
                    save_npy(array, movie)
                start = perf_counter()
                read_array(file)
                seconds["array"] += perf_counter() - start
                frames += movie.shape[-1]
    size = sum(path.stat().st_size for path in paths)
    return VideoCost(size, arrays, frames / seconds["video"], frames / seconds["array"])


def _header(info: VideoInfo) -> NpyHeader:
    frames = info.frames if info.repeats is None else int(info.repeats.sum())
    return NpyHeader((*_frame_size(info), frames), False, np.dtype(np.uint8 if _is_exact(info) else np.float32), 0)


def _read_video(path: Path, expected: tuple[int, ...] | None = None) -> np.ndarray:
    info = probe(path)
    header = _header(info)
    height, width, frames = header.shape
    if expected is not None and header.shape != expected:
        raise DataError(
            f"{path}: expected {_size(expected)}, but found {_size(header.shape)}; give the trial's own video, or set "
            "its tier to 'none'"
        )
    if math.prod(header.shape) * header.dtype.itemsize > LARGEST_TRIAL:
        raise DataError(
            f"{path}: {_size(header.shape)} take more than {LARGEST_TRIAL >> 20} MiB; give the movie as the model sees "
            "it, such as 36 x 64 pixels"
        )
    movie = np.empty((frames, height, width), header.dtype)
    resize = None
    if not _is_exact(info):
        import torch  # recordings are also read where there is no PyTorch

        from viv1t.stimuli.frames import Resize

        resize = Resize(
            info.size, (height, width), bits=info.bits, full_range=info.full_range, rotation=info.rotation,
            mirrored=info.mirrored,
        )  # of the same size: only the grey levels change  # fmt: skip
    decoded = index = 0
    for _, luma in decode(info, threads=1):
        count = 1 if info.repeats is None or decoded >= info.frames else int(info.repeats[decoded])
        decoded += 1
        if decoded > info.frames:
            continue
        if resize is None:
            movie[index : index + count] = luma[:height, :width]
        else:
            movie[index : index + count] = resize(torch.from_numpy(luma.astype(np.float32))[None]).numpy()
        index += count
    if decoded != info.frames:
        raise DataError(f"{path}: has {info.frames} frames, but {decoded} can be decoded; copy the file anew")
    return np.moveaxis(movie, 0, -1)


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[-1]} frames of {shape[0]} x {shape[1]} pixels"


def _frame_size(info: VideoInfo) -> tuple[int, int]:
    written = re.fullmatch(_COMMENT.format(r"(\d+)", r"(\d+)"), info.comment)
    if written and info.upright:
        return min(int(written[1]), info.size[0]), min(int(written[2]), info.size[1])
    return info.shown_size


def _is_exact(info: VideoInfo) -> bool:
    """Whether luma is grey levels as they are."""
    return info.has_luma and info.full_range and info.bits == 8 and info.upright
