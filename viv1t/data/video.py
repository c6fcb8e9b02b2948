"""Video files through PyAV: what a file says of itself, and its luma frame by frame."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from viv1t.errors import DataError

if TYPE_CHECKING:
    import av

SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v")
LONGEST_STILL = 3600.0  # seconds between frames, above which time stamps are not believed

_LUMA_FIRST = re.compile(r"(yuvj?a?4\d\dp|gray)(9|10|12|14|16)?(le)?|nv(12|16|21|24)|p(010|012|016|210|216)le")
_RGB = {"rgb24", "bgr24", "rgba", "bgra", "argb", "abgr", "rgb0", "bgr0", "0rgb", "0bgr", "gbrp", "gbrap", "pal8"}
_GREY = np.array((0.299, 0.587, 0.114), np.float32)  # of red, green and blue: ITU-R BT.601
_FULL = 2  # FFmpeg's number for full range


@dataclass(frozen=True)
class VideoInfo:
    """What is known of a video before it is decoded.

    Attributes:
        path: the file.
        codec: FFmpeg's name of it.
        pixel_format: FFmpeg's name of it.
        bits: of a luma sample.
        full_range: whether luma is 0 to 2^bits - 1, not 16 to 235 times 2^(bits - 8).
        size: (H, W) of the frames as decoded, in pixels.
        pixel_aspect: width of a pixel divided by its height.
        rotation: by how many degrees frames are turned counterclockwise to be shown: 0, 90, 180 or 270.
        interlaced: whether frames hold two fields; both are taken as one frame.
        start: time stamp of the first frame in seconds; None where frames have none and keep a constant rate.
        times: (frames,) float64, seconds after the first frame at which each is shown, ascending.
        end: seconds after the first frame at which the last one ends.
        comment: the container's comment, "" for none.
    """

    path: Path
    codec: str
    pixel_format: str
    bits: int
    full_range: bool
    size: tuple[int, int]
    pixel_aspect: float
    rotation: int
    interlaced: bool
    start: float | None
    times: np.ndarray
    end: float
    comment: str

    @property
    def has_luma(self) -> bool:
        """Whether frames hold luma, and not red, green and blue."""
        return self.pixel_format not in _RGB

    @property
    def frames(self) -> int:
        """How many frames the file holds."""
        return len(self.times)


def is_video(path: Path) -> bool:
    """Whether a file is a video by its name."""
    return path.suffix.lower() in SUFFIXES


def require_av() -> ModuleType:
    """PyAV.

    Raises:
        DataError: it is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise DataError("video files need PyAV, which is not here; pip install 'viv1t[video]'") from error
    return av


def probe(path: Path) -> VideoInfo:
    """Reads a video's headers, the time stamps of all its packets, and its first frame.

    Raises:
        DataError: the file is missing, empty, no video, truncated, or of a kind that cannot be decoded.
    """
    stamps: list[int | None] = []
    durations: list[int] = []
    count = 0
    first: av.VideoFrame | None = None
    with opened(path, threads=1) as (container, stream):
        for packet in container.demux(stream):
            if packet.is_corrupt:
                raise DataError(f"{path}: damaged after {count} frames; copy or convert the file anew")
            if packet.size and not packet.is_discard:
                stamps.append(packet.pts)
                durations.append(packet.duration or 0)
            count += bool(packet.size)
            if first is None:
                first = next(iter(packet.decode()), None)
        if first is None:
            raise DataError(f"{path}: holds no frame; make the file anew")
        rate = float(stream.average_rate or stream.guessed_rate or 30)
        start, times, end = _times(stamps, durations, float(stream.time_base or 0), rate)
        _check_times(path, times)
        _check_complete(path, stream, count, (start or 0) + end)
        name = first.format.name
        bits = _check_format(path, first)
        rotation = round(float(first.rotation)) % 360
        if rotation % 90:
            raise DataError(f"{path}: is to be turned by {rotation} degrees; convert it to upright frames")
        return VideoInfo(
            path=path,
            codec=stream.codec_context.name,
            pixel_format=name,
            bits=bits,
            full_range=_is_full_range(first),
            size=(first.height, first.width),
            pixel_aspect=float(stream.sample_aspect_ratio or 1),
            rotation=rotation,
            interlaced=bool(first.interlaced_frame),
            start=start,
            times=times,
            end=end,
            comment=container.metadata.get("comment", container.metadata.get("COMMENT", "")),
        )


def decode(info: VideoInfo, threads: int = 0) -> Iterator[tuple[float, np.ndarray]]:
    """The frames of a video in the order they are shown, one at a time.

    Args:
        info: from `probe`.
        threads: of the decoder; 0 for as many as it likes.

    Yields:
        Seconds after the first frame, and (H, W) luma as decoded, uint8 or uint16 in native order; of formats that
        have no luma, float32 grey levels of 0 to 255 made of red, green and blue.

    Raises:
        DataError: the file is damaged, or its frames change their size or format.
    """
    time, index = 0.0, 0
    with opened(info.path, threads) as (container, stream):
        frames = container.decode(stream)
        while (frame := _next(info.path, frames, time)) is not None:
            if frame.is_corrupt:
                raise DataError(f"{info.path}: damaged after {time:.2f} s; copy or convert the file anew")
            if frame.format.name != info.pixel_format or (frame.height, frame.width) != info.size:
                raise DataError(
                    f"{info.path}: frames change after {time:.2f} s from {_kind(info.pixel_format, info.size)} to "
                    f"{_kind(frame.format.name, (frame.height, frame.width))}; convert it to one size and format"
                )
            if info.start is None or frame.time is None:
                time = float(info.times[min(index, info.frames - 1)])
            else:
                time = float(frame.time) - info.start
            index += 1
            yield time, _luma(frame, info.bits)
    check_end(info, time)


def check_end(info: VideoInfo, time: float) -> None:
    """Raises a DataError when decoding ended, with a frame at `time`, before the last frame of the file."""
    if time < info.times[-1] - 1e-3:
        raise DataError(
            f"{info.path}: damaged: its last frame is at {info.times[-1]:.2f} s, but decoding ended at {time:.2f} s; "
            "copy or convert the file anew"
        )


@contextmanager
def opened(path: Path, threads: int) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """A video file open for reading, and its first video stream that is no cover picture; raises as `probe`."""
    av = require_av()
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    if not path.stat().st_size:
        raise DataError(f"{path}: the file is empty; copy it anew")
    try:
        container = av.open(str(path))
    except av.FFmpegError as error:
        raise DataError(f"{path}: not a video file, or damaged ({_reason(error)}); copy or convert it anew") from error
    with container:
        pictures = av.stream.Disposition.attached_pic
        streams = [s for s in container.streams.video if not s.disposition & pictures]
        if not streams:
            raise DataError(f"{path}: holds no video")
        stream = streams[0]
        context = stream.codec_context
        if context is None or context.codec is None:
            raise DataError(f"{path}: its codec is unknown or cannot be decoded here; convert it to H.264 or VP9")
        context.thread_count = threads
        context.thread_type = "AUTO" if threads != 1 else "NONE"
        context.options = {"err_detect": "explode"}  # damage is an error, not a guess
        try:
            yield container, stream
        except av.FFmpegError as error:
            raise DataError(f"{path}: damaged ({_reason(error)}); copy or convert the file anew") from error


def _next(path: Path, frames: Iterator[av.VideoFrame], time: float) -> av.VideoFrame | None:
    av = require_av()
    try:
        return next(frames, None)
    except av.FFmpegError as error:
        raise DataError(
            f"{path}: damaged after {time:.2f} s ({_reason(error)}); copy or convert the file anew"
        ) from error


def _times(
    stamps: list[int | None], durations: list[int], time_base: float, rate: float
) -> tuple[float | None, np.ndarray, float]:
    """Time stamp of the first frame, and seconds after it at which frames are shown and at which the last one ends."""
    known = [s for s in stamps if s is not None]
    if len(known) < len(stamps):  # some containers do not say: a constant rate, then
        return None, np.arange(len(stamps)) / rate, len(stamps) / rate
    order = np.argsort(known, kind="stable")
    times = np.array(known, np.float64)[order] * time_base
    last = durations[order[-1]] * time_base
    if last <= 0:
        last = float(np.median(np.diff(times))) if len(times) > 1 else 1 / rate
    return float(times[0]), times - times[0], float(times[-1] - times[0] + last)


def _check_times(path: Path, times: np.ndarray) -> None:
    gaps = np.diff(times)
    if gaps.size and gaps.max() > LONGEST_STILL:
        at = float(times[gaps.argmax()])
        raise DataError(
            f"{path}: time stamps are damaged: the frame at {at:.2f} s is shown for {gaps.max():.0f} s; convert it anew"
        )


def _check_complete(path: Path, stream: av.VideoStream, packets: int, end: float) -> None:
    """Whether the file holds what its headers promise."""
    promised = stream.metadata.get("DURATION", "")
    clock = re.match(r"(\d+):(\d+):(\d+(?:\.\d+)?)", promised)
    frame = 1 / float(stream.average_rate or 10)
    short = clock and end < int(clock[1]) * 3600 + int(clock[2]) * 60 + float(clock[3]) - 2 * frame
    if packets < stream.frames or short:
        expected = f"{stream.frames} frames" if packets < stream.frames else promised
        raise DataError(f"{path}: truncated: {packets} frames are left of {expected}; copy the file anew")


def _check_format(path: Path, frame: av.VideoFrame) -> int:
    """Bits of a luma sample of a format that can be taken."""
    name = frame.format.name
    if name in _RGB:
        return 8
    if not _LUMA_FIRST.fullmatch(name):
        raise DataError(f"{path}: the pixel format {name} is not supported; convert it to yuv420p")
    return int(frame.format.components[0].bits)


def _is_full_range(frame: av.VideoFrame) -> bool:
    name, color_range = frame.format.name, int(frame.color_range)
    return color_range == _FULL or name in _RGB or name.startswith("yuvj") or (not color_range and name[:4] == "gray")


def _luma(frame: av.VideoFrame, bits: int) -> np.ndarray:
    name = frame.format.name
    if name in _RGB:
        return np.asarray(frame.to_ndarray(format="rgb24") @ _GREY, np.float32)
    plane: Any = frame.planes[0]
    dtype = np.dtype("u1" if bits == 8 else "<u2")
    rows = np.frombuffer(plane, dtype).reshape(-1, plane.line_size // dtype.itemsize)
    luma = rows[: frame.height, : frame.width]
    return luma >> (16 - bits) if name.startswith("p") and bits < 16 else luma.copy()


def _kind(pixel_format: str, size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]} {pixel_format}"


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)
