"""Video files through PyAV: what a file says of itself, and its luma frame by frame."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from viv1t.errors import DataError
from viv1t.stimuli.container import edit_list, is_cut_short
from viv1t.stimuli.orientation import orientation
from viv1t.stimuli.timeline import Timeline, by_stamps, by_ticks, with_edits
from viv1t.system.cores import usable_cores

if TYPE_CHECKING:
    import av

SUFFIXES = (
    ".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".3gp", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv", ".flv",
    ".ogv", ".mjpeg", ".mjpg",
)  # fmt: skip
LONGEST_STILL = 3600.0  # seconds between frames, above which time stamps are not believed
LONGEST = 48 * 3600.0  # seconds of a film
LARGEST = 8192 * 4320  # pixels of a frame

_LUMA_FIRST = re.compile(r"(yuvj?a?4\d\dp|gray)(9|10|12|14|16)?(le)?|nv(12|16|21|24)|p(010|012|016|210|216)le")
_RGB = {"rgb24", "bgr24", "rgba", "bgra", "argb", "abgr", "rgb0", "bgr0", "0rgb", "0bgr", "gbrp", "gbrap", "pal8"}
_GREY = np.array((0.299, 0.587, 0.114), np.float32)  # of red, green and blue: ITU-R BT.601
_FULL = 2  # FFmpeg's number for full range
_THREAD_BYTES = 96 << 20  # of frames that threads decode at once
_MOV, _AVI = "mov,mp4,m4a,3gp,3g2,mj2", "avi"  # FFmpeg's names
# Formats of one file that holds its frames: none that names other files, or places in a network.
_FORMATS = (
    _MOV, "matroska,webm", _AVI, "mpeg", "mpegts", "mpegvideo", "asf", "flv", "live_flv", "ogg", "mjpeg", "m4v", "h264",
    "hevc", "av1", "obu", "ivf", "nut", "mxf", "yuv4mpegpipe", "vc1", "dv", "wtv", "rm", "gif",
)  # fmt: skip
_OPTIONS = {
    "format_whitelist": ",".join(_FORMATS), "protocol_whitelist": "file", "max_pixels": str(LARGEST),
    "ignore_editlist": "1",  # it is applied here, exactly
}  # fmt: skip
_PLAYLISTS = (b"ffconcat", b"#EXTM3U", b"<?xml", b"<MPD", b"[playlist]", b"v=0")


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
        mirrored: whether left and right are exchanged before that.
        interlaced: whether frames hold two fields; both are taken as one frame.
        start: time stamp of the first frame in seconds; None where the n-th frame shown is at the n-th of `times`.
        times: (frames,) float64, seconds after the film's beginning at which each is shown, ascending.
        end: seconds after the film's beginning at which the last one ends.
        comment: the container's comment, "" for none.
        repeats: (frames,) for how many frames of a constant rate each stands, in AVI files whose camera dropped some;
            None for one each.
        cuts: of a film with an edit list, what `Timeline` says of its parts.
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
    mirrored: bool = False
    repeats: np.ndarray | None = None
    cuts: tuple[dict[int, float], ...] = ()

    @property
    def upright(self) -> bool:
        """Whether frames are shown as they are decoded, neither turned nor mirrored."""
        return not self.rotation and not self.mirrored

    @property
    def shown_size(self) -> tuple[int, int]:
        """(H, W) of the frames as shown, in pixels."""
        return (self.size[1], self.size[0]) if self.rotation % 180 else self.size

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
        DataError: it is not installed, or cannot be loaded.
    """
    try:
        import av
    except ImportError as error:
        if error.name not in ("av", None):
            what = f"PyAV, which video files need, cannot be loaded ({error})"
            raise DataError(f"{what}; pip install --force-reinstall 'viv1t[video]'") from error
        raise DataError("video files need PyAV, which is not here; pip install 'viv1t[video]'") from error
    return av


def probe(path: Path) -> VideoInfo:
    """Reads a video's headers, the time stamps of all its packets, and its first frame.

    Raises:
        DataError: the file is missing, empty, no video, truncated, too large, or of a kind that cannot be decoded.
    """
    packets: list[tuple[int | None, int | None, int]] = []  # presented, decoded, duration
    first: av.VideoFrame | None = None
    with opened(path, threads=1) as (container, stream):
        kind = container.format.name
        promised = sum(entry.size > 0 for entry in stream.index_entries) if kind in (_MOV, _AVI) else 0
        for packet in container.demux(stream):
            if packet.is_corrupt:
                raise DataError(f"{path}: damaged after {len(packets)} frames; copy or convert the file anew")
            if packet.size:
                packets.append((packet.pts, packet.dts, packet.duration or 0))
            if first is None:
                first = next(iter(packet.decode()), None)
        if first is None:
            raise DataError(f"{path}: holds no frame; make the file anew")
        line = _timeline(path, kind, stream, packets)
        _check_complete(path, kind, stream, len(packets), promised, (line.start or 0) + line.end)
        if kind == _MOV:
            line = with_edits(line, [p[0] for p in packets], edit_list(path, stream.id), float(stream.time_base or 0))
        if stream.codec_context.has_b_frames and not line.cuts and _are_ascending([p[0] for p in packets]):
            line = replace(line, start=None)  # stamps of decoding, if they are reordered at all
        _check_times(path, line)
        rotation, mirrored = orientation(path, first)
        return VideoInfo(
            path=path,
            codec=stream.codec_context.name,
            pixel_format=first.format.name,
            bits=_check_format(path, first),
            full_range=_is_full_range(first),
            size=(first.height, first.width),
            pixel_aspect=float(stream.sample_aspect_ratio or 1),
            rotation=rotation,
            interlaced=bool(first.interlaced_frame),
            start=line.start,
            times=line.times,
            end=line.end,
            comment=container.metadata.get("comment", container.metadata.get("COMMENT", "")),
            mirrored=mirrored,
            repeats=line.repeats if (line.repeats > 1).any() else None,
            cuts=line.cuts,
        )


def decode(info: VideoInfo, threads: int = 0) -> Iterator[tuple[float, np.ndarray]]:
    """The frames of a video in the order they are shown, one at a time.

    Args:
        info: from `probe`.
        threads: of the decoder; 0 for as many as it likes.

    Yields:
        Seconds after the film's beginning, and (H, W) luma as decoded, uint8 or uint16 in native order; of formats that
        have no luma, float32 grey levels of 0 to 255 made of red, green and blue.

    Raises:
        DataError: the file is damaged, or its frames change their size or format, or how they are turned.
    """
    time = 0.0
    for cut in info.cuts or (None,):
        for time, frame in _decode_part(info, cut, threads):
            yield time, _luma(frame, info.bits)
    check_end(info, time)


def _decode_part(info: VideoInfo, cut: dict[int, float] | None, threads: int) -> Iterator[tuple[float, av.VideoFrame]]:
    """All frames, or those of a part, in the order they are shown, with their times."""
    time, index, angle = 0.0, 0, None
    last = max(cut) if cut else 0
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
            angle = frame.rotation if angle is None else angle
            if frame.rotation != angle:  # not `side_data`, which would keep frames in memory
                raise DataError(f"{info.path}: frames are turned otherwise after {time:.2f} s; convert it anew")
            if cut is not None:
                if frame.pts not in cut:
                    if frame.pts is not None and frame.pts > last:
                        return
                    continue
                time = cut[frame.pts]
            elif info.start is None or frame.time is None:
                time = float(info.times[min(index, info.frames - 1)])
            else:
                before, time = time, float(frame.time) - info.start
                if time < before - 1e-6:
                    raise DataError(
                        f"{info.path}: time stamps are damaged: they go back after {before:.2f} s; convert it anew"
                    )
            index += 1
            yield time, frame


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
        # Named as a file, or FFmpeg takes what stands before a colon for a protocol.
        container = av.open(f"file:{path.absolute()}", options=dict(_OPTIONS), metadata_errors="replace")
    except av.FFmpegError as error:
        raise _unopened(path, error) from error
    with container:
        pictures = av.stream.Disposition.attached_pic
        streams = [s for s in container.streams.video if not s.disposition & pictures]
        if not streams:
            raise DataError(f"{path}: holds no video")
        stream = streams[0]
        context = stream.codec_context
        if context is None or context.codec is None:
            raise DataError(f"{path}: its codec is unknown or cannot be decoded here; convert it to H.264 or VP9")
        pixels = context.width * context.height
        if pixels > LARGEST:
            raise _too_large(path, f"{context.height} x {context.width} pixels")
        most = max(1, min(16, _THREAD_BYTES // (3 * max(pixels, 1))))
        context.thread_count = min(threads or usable_cores(), most)
        context.thread_type = "AUTO" if context.thread_count != 1 else "NONE"
        # Damage is an error, not a guess.
        context.options = {"err_detect": "explode", "max_pixels": str(LARGEST)}
        try:
            yield container, stream
        except av.FFmpegError as error:
            why = _reason(error)
            if not context.width:  # FFmpeg forgets a size above `max_pixels`
                why += f", or frames of more than the {LARGEST:,} pixels that are taken"
            raise DataError(f"{path}: damaged ({why}); copy or convert the file anew") from error


def _next(path: Path, frames: Iterator[av.VideoFrame], time: float) -> av.VideoFrame | None:
    av = require_av()
    try:
        return next(frames, None)
    except av.FFmpegError as error:
        raise DataError(
            f"{path}: damaged after {time:.2f} s ({_reason(error)}); copy or convert the file anew"
        ) from error


def _unopened(path: Path, error: Exception) -> DataError:
    with open(path, "rb") as file:
        beginning = file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n")
    if beginning.startswith(_PLAYLISTS):
        return DataError(f"{path}: is a list of other files, which is not followed; give the video itself")
    return DataError(f"{path}: not a video file, or damaged ({_reason(error)}); copy or convert it anew")


def _too_large(path: Path, found: str) -> DataError:
    return DataError(f"{path}: frames of {found}, at most {LARGEST:,} pixels are taken; convert it to smaller ones")


def _timeline(
    path: Path, kind: str, stream: av.VideoStream, packets: list[tuple[int | None, int | None, int]]
) -> Timeline:
    time_base = float(stream.time_base or 0)
    rate = float(stream.average_rate or stream.guessed_rate or 30)
    decoded = [dts for _, dts, _ in packets if dts is not None]
    if kind == _AVI and len(decoded) == len(packets) and time_base:
        return by_ticks(decoded, stream.duration or 0, time_base)
    return by_stamps([pts for pts, _, _ in packets], [duration for _, _, duration in packets], time_base, rate)


def _are_ascending(stamps: list[int | None]) -> bool:
    known = np.array([s for s in stamps if s is not None], np.int64)
    return len(known) == len(stamps) and bool((np.diff(known) > 0).all())


def _check_times(path: Path, line: Timeline) -> None:
    if not len(line.times):
        raise DataError(f"{path}: its edit list shows no frame; convert it anew")
    gaps = np.diff(np.append(line.times, line.end))
    if gaps.max() > LONGEST_STILL:
        at = float(line.times[gaps.argmax()])
        raise DataError(
            f"{path}: time stamps are damaged: the frame at {at:.2f} s is shown for {gaps.max():.0f} s; convert it anew"
        )
    if line.end > LONGEST:
        raise DataError(f"{path}: lasts {line.end / 3600:.0f} hours, at most {LONGEST / 3600:.0f} are taken; cut it")


def _check_complete(path: Path, kind: str, stream: av.VideoStream, packets: int, promised: int, end: float) -> None:
    """Whether the file holds what its headers promise."""
    if kind == _AVI:  # whose number of frames counts those that were dropped
        promised = max(promised, stream.frames if is_cut_short(path) else 0)
    elif stream.frames and not promised:
        promised = stream.frames
    duration = stream.metadata.get("DURATION", "")
    clock = re.match(r"(\d+):(\d+):(\d+(?:\.\d+)?)", duration)
    frame = 1 / float(stream.average_rate or 10)
    short = clock and end < int(clock[1]) * 3600 + int(clock[2]) * 60 + float(clock[3]) - 2 * frame
    if packets < promised or short:
        expected = f"{promised} frames" if packets < promised else duration
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
