"""Video files as stimuli: codecs, containers, sizes, rates, and what cannot be read."""

from __future__ import annotations

import gc
import re
import struct
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from small_videos import LOSSY, av, moving_pattern, write_video

from viv1t.errors import ConfigError, DataError
from viv1t.stimuli.decode import decode, probe
from viv1t.stimuli.film import Movie

SIZE = (48, 64)


def stimulus(path: Path, frame_size: tuple[int, int] = SIZE, **options: str) -> np.ndarray:
    movie = Movie(path, frame_size, **options)
    found = movie.read().numpy()
    assert found.shape == (movie.frames, *frame_size)
    assert found.dtype == np.float32
    return found


@pytest.mark.parametrize(
    ("codec", "container"),
    [
        ("libvpx-vp9", "webm"), ("libvpx-vp9", "mp4"), ("libvpx-vp9", "mkv"), ("libx264", "mp4"), ("libx264", "mkv"),
        ("libx264", "avi"), ("libx264", "mov"), ("libx265", "mp4"), ("libx265", "mkv"), ("ffv1", "mkv"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("full_range", [True, False])
def test_lossless_films_keep_every_grey_level(codec: str, container: str, full_range: bool, tmp_path: Path) -> None:
    luma = moving_pattern(33, *SIZE, low=0 if full_range else 16, high=255 if full_range else 235)
    found = stimulus(write_video(tmp_path / f"film.{container}", luma, codec, full_range=full_range))
    if full_range:
        assert np.array_equal(found, luma)
    else:
        assert np.abs(found - (luma.astype(np.float64) - 16) * 255 / 219).max() < 1e-3


@pytest.mark.parametrize(
    ("codec", "container", "full_range"),
    [
        ("libx264", "mp4", True), ("libx265", "mkv", True), ("libvpx-vp9", "webm", True), ("libsvtav1", "mp4", True),
        ("libsvtav1", "webm", False), ("mjpeg", "avi", True), ("mjpeg", "mp4", True), ("libvpx", "webm", False),
        ("mpeg4", "avi", False),
    ],
)  # fmt: skip
def test_lossy_films_come_close(codec: str, container: str, full_range: bool, tmp_path: Path) -> None:
    luma = moving_pattern(20, *SIZE, low=0 if full_range else 16, high=255 if full_range else 235)
    path = write_video(tmp_path / f"film.{container}", luma, codec, LOSSY[codec], full_range=full_range)
    grey = luma if full_range else (luma.astype(np.float64) - 16) * 255 / 219
    found = stimulus(path)
    assert len(found) == 20
    assert np.abs(found - grey).mean() < 3  # the codec's loss; a range or channel mistaken would be 8 and more
    # Reduced as the model sees it, the loss of the codec averages out.
    small = stimulus(path, (6, 8))
    assert np.abs(small - grey.reshape(20, 6, 8, 8, 8).mean((2, 4))).max() < 3


@pytest.mark.parametrize("size", [(35, 63), (36, 64), (17, 301), (144, 144)])
@pytest.mark.parametrize("frames", [1, 2, 31])
def test_sizes_and_lengths_even_and_odd(size: tuple[int, int], frames: int, tmp_path: Path) -> None:
    luma = moving_pattern(frames, *size)
    assert np.array_equal(stimulus(write_video(tmp_path / "film.webm", luma), size), luma)


@pytest.mark.parametrize("rate", [Fraction(24000, 1001), 25, Fraction(30000, 1001), 60])
@pytest.mark.parametrize("container", ["mp4", "mkv"])
def test_constant_rates_become_30_hz(rate: Fraction | int, container: str, tmp_path: Path) -> None:
    luma = moving_pattern(50, 16, 16)
    found = stimulus(write_video(tmp_path / f"film.{container}", luma, rate=rate), (16, 16))
    expected = [max(i for i in range(50) if i / rate < (k + 0.47) / 30) for k in range(len(found))]
    assert np.array_equal(found, luma[expected])
    assert abs(len(found) - 50 * 30 / rate) <= 0.5


def test_varying_rates_follow_the_time_stamps(tmp_path: Path) -> None:
    luma = moving_pattern(40, 16, 16)
    times = np.cumsum(np.random.default_rng(0).integers(5, 120, 40))
    found = stimulus(write_video(tmp_path / "film.mkv", luma, milliseconds=times.tolist()), (16, 16))
    shown_from = (times - times[0]) / 1000  # what comes first starts the film
    expected = [int(np.flatnonzero(shown_from < (k + 0.47) / 30).max()) for k in range(len(found))]
    assert np.array_equal(found, luma[expected])
    assert expected[-1] == 39


def test_b_frames_are_shown_in_order_even_without_time_stamps(tmp_path: Path) -> None:
    luma = moving_pattern(40, *SIZE)
    options = {"qp": "0", "preset": "medium", "bf": "3", "x264-params": "b-adapt=0"}
    for container in ("mp4", "mkv", "avi"):
        path = write_video(tmp_path / f"film.{container}", luma, "libx264", options)
        assert np.array_equal(stimulus(path), luma), container


@pytest.mark.parametrize(
    ("pixel_format", "codec", "scale"), [("yuv420p10le", "libx265", 4), ("gray", "ffv1", 1), ("yuv444p", "libx264", 1)]
)
def test_other_pixel_formats(pixel_format: str, codec: str, scale: int, tmp_path: Path) -> None:
    luma = moving_pattern(5, *SIZE).astype(np.uint16 if scale > 1 else np.uint8) * scale
    options = {"x265-params": "lossless=1:log-level=none"} if codec == "libx265" else None
    path = write_video(tmp_path / "film.mkv", luma, codec, options, pixel_format=pixel_format, chroma=128 * scale)
    assert np.abs(stimulus(path) - luma * (255 / 1023 if scale > 1 else 1)).max() < 1e-3


def test_films_of_red_green_and_blue_become_grey(tmp_path: Path) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (4, *SIZE, 3)).astype(np.uint8)
    with av.open(str(tmp_path / "film.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=30)
        stream.height, stream.width = SIZE
        stream.pix_fmt = "bgr0"
        for index, frame in enumerate(colours):
            picture = av.VideoFrame.from_ndarray(frame, "rgb24").reformat(format="bgr0")
            picture.pts = index
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    assert np.abs(stimulus(tmp_path / "film.mkv") - colours @ np.array([0.299, 0.587, 0.114])).max() < 1e-3


def test_an_unknown_pixel_format_is_named(tmp_path: Path) -> None:
    path = write_video(tmp_path / "film.mkv", moving_pattern(2, *SIZE), "ffv1", pixel_format="gray16le")
    assert probe(path).bits == 16
    with av.open(str(tmp_path / "film.avi"), "w") as container:
        stream = container.add_stream("rawvideo", rate=30)
        stream.height, stream.width, stream.pix_fmt = *SIZE, "yuyv422"
        picture = av.VideoFrame(SIZE[1], SIZE[0], "yuyv422")
        picture.pts = 0
        container.mux(stream.encode(picture))
    with pytest.raises(DataError, match=r"film\.avi: the pixel format yuyv422 is not supported; convert it to yuv420p"):
        Movie(tmp_path / "film.avi", SIZE)


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_rotated_films_are_turned_upright(rotation: int, tmp_path: Path) -> None:
    luma = moving_pattern(3, *SIZE)
    path = write_video(tmp_path / "film.mp4", luma, rotation=rotation)
    size = SIZE if rotation == 180 else SIZE[::-1]
    assert np.array_equal(stimulus(path, size), np.rot90(luma, rotation // 90, (1, 2)))


def test_the_rotation_that_phones_write_is_clockwise(tmp_path: Path) -> None:
    luma = moving_pattern(2, *SIZE)
    path = write_video(tmp_path / "film.mp4", luma)
    content = bytearray(path.read_bytes())
    matrix = content.index(b"tkhd") + 4 + 40  # ISO 14496-12: (x, y) of a frame is shown at (-y, x)
    assert struct.unpack_from(">i", content, matrix)[0] == 1 << 16
    struct.pack_into(">9i", content, matrix, 0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)
    path.write_bytes(bytes(content))
    assert np.array_equal(stimulus(path, SIZE[::-1]), np.rot90(luma, -1, (1, 2)))


def test_pixels_that_are_not_square(tmp_path: Path) -> None:
    luma = moving_pattern(2, 48, 32)
    path = write_video(tmp_path / "film.mp4", luma, "libx264", aspect=Fraction(2))
    assert np.array_equal(stimulus(path), luma.repeat(2, axis=2))


def test_only_the_first_video_counts_and_no_cover_picture(tmp_path: Path) -> None:
    luma = moving_pattern(6, *SIZE)
    plain = write_video(tmp_path / "plain.mp4", luma, "libx264")
    with av.open(str(plain)) as source, av.open(str(tmp_path / "film.mp4"), "w") as target:
        cover = target.add_stream("mjpeg", rate=30)
        cover.height, cover.width, cover.pix_fmt = 16, 16, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        film = target.add_stream_from_template(source.streams.video[0])
        picture = av.VideoFrame(16, 16, "yuvj420p")
        picture.pts = 0
        target.mux(cover.encode(picture))
        target.mux(cover.encode())
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = film
                target.mux(packet)
    assert np.array_equal(stimulus(tmp_path / "film.mp4"), luma)


# -- what cannot be read -----------------------------------------------------------------------------------------------


def refused(path: Path, match: str) -> None:
    with pytest.raises(DataError, match=f"{re.escape(str(path))}: {match}"):
        Movie(path, SIZE).read()


def test_files_that_are_no_film(tmp_path: Path) -> None:
    for name, content, reason in (
        ("empty.mp4", b"", "the file is empty"),
        ("text.mp4", b"no film at all " * 100, "not a video file, or damaged"),
    ):
        (tmp_path / name).write_bytes(content)
        refused(tmp_path / name, reason)
    refused(tmp_path / "absent.mp4", "no such file")
    refused(tmp_path, "no such file")


def test_a_file_without_video(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 4410), np.float32), format="fltp", layout="mono")
        sound.rate, sound.pts = 44100, 0
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    refused(tmp_path / "sound.mp4", "holds no video")


def test_a_film_without_frames(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "none.avi"), "w") as container:
        stream = container.add_stream("mjpeg", rate=30)
        stream.height, stream.width, stream.pix_fmt = *SIZE, "yuvj420p"
        container.start_encoding()
    refused(tmp_path / "none.avi", "(holds no (frame|video)|not a video file)")


def test_an_unknown_codec(tmp_path: Path) -> None:
    path = write_video(tmp_path / "film.mp4", moving_pattern(5, *SIZE), "libx264")
    path.write_bytes(path.read_bytes().replace(b"avc1", b"zzzz").replace(b"avcC", b"zzzC"))
    refused(path, "its codec is unknown or cannot be decoded here; convert it to H.264 or VP9")


@pytest.mark.parametrize(
    ("codec", "container"), [("libx264", "mp4"), ("libx264", "mkv"), ("libvpx-vp9", "webm"), ("mjpeg", "avi")]
)
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_truncated_film(codec: str, container: str, share: float, tmp_path: Path) -> None:
    path = write_video(tmp_path / f"film.{container}", moving_pattern(60, *SIZE), codec)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    refused(path, r"(truncated: .* are left of .*; copy|not a video file, or damaged|damaged after \d+ frames)")


@pytest.mark.parametrize(("codec", "container"), [("libx264", "mp4"), ("mjpeg", "avi"), ("ffv1", "mkv")])
def test_a_damaged_film_says_where(codec: str, container: str, tmp_path: Path) -> None:
    path = write_video(tmp_path / f"film.{container}", moving_pattern(60, *SIZE), codec)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 600] = np.random.default_rng(1).bytes(600)
    path.write_bytes(bytes(content))
    refused(path, r"damaged after [01]\.\d\d s")


def test_turning_by_anything_but_right_angles_is_refused(tmp_path: Path) -> None:
    refused(write_video(tmp_path / "film.mp4", moving_pattern(2, *SIZE), rotation=45), "is to be turned by 45 degrees")


def test_frames_that_change_their_size_are_refused(tmp_path: Path) -> None:
    parts = [moving_pattern(4, *SIZE), moving_pattern(4, 24, 32)]
    paths = [write_video(tmp_path / f"{i}.mjpeg", part, "mjpeg") for i, part in enumerate(parts)]
    (tmp_path / "film.mjpeg").write_bytes(b"".join(p.read_bytes() for p in paths))
    refused(tmp_path / "film.mjpeg", "frames change after .* s from 48 x 64 yuvj420p to 24 x 32 yuvj420p")


def test_time_stamps_that_leap_are_not_believed(tmp_path: Path) -> None:
    path = write_video(tmp_path / "film.mkv", moving_pattern(3, *SIZE), milliseconds=[0, 33, 36_000_000])
    refused(path, "time stamps are damaged: the frame at 0.03 s is shown for 36000 s")


def test_unknown_choices_are_refused(tmp_path: Path) -> None:
    path = write_video(tmp_path / "film.mp4", moving_pattern(2, *SIZE))
    with pytest.raises(ConfigError, match="--fit must be one of crop, pad, stretch, not 'fill'"):
        Movie(path, SIZE, fit="fill")
    with pytest.raises(ConfigError, match="--decoder must be dali or pyav, not ffmpeg"):
        Movie(path, SIZE, decoder="ffmpeg")


def test_without_pyav_the_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "film.mp4", moving_pattern(2, *SIZE))
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(DataError, match=r"need PyAV, which is not here; pip install 'viv1t\[video\]'"):
        Movie(path, SIZE)


# -- long films --------------------------------------------------------------------------------------------------------


def peak() -> int:
    """Bytes of memory that the process had at most since the last time it was asked to forget."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024  # type: ignore[index]


def test_large_frames_are_let_go_one_by_one(tmp_path: Path) -> None:
    luma = np.zeros((24, 1536, 2048), np.uint8)
    luma[:, 5, 5] = np.arange(24) * 10
    path = write_video(tmp_path / "film.mp4", luma, "libx264", {"preset": "ultrafast"})  # 4.7 MB each, decoded
    gc.collect()
    gc.disable()  # frames in a cycle of references would wait for it
    try:
        frames = decode(probe(path))
        for _ in range(6):
            next(frames)
        Path("/proc/self/clear_refs").write_text("5")
        before = peak()
        assert sum(1 for _ in frames) == 18
        assert peak() - before < 30e6
    finally:
        gc.enable()


def test_a_long_film_streams_with_bounded_memory(tmp_path: Path) -> None:
    height, width, repeats = 480, 640, 3
    luma = moving_pattern(12, height, width).repeat(50, axis=0)  # 184 MB as it is, three quarters of a GB as float32
    path = write_video(tmp_path / "film.mp4", luma[:600], "mpeg4", {"qmin": "9", "qmax": "9"})
    del luma

    for _ in decode(probe(path)):  # what the decoder itself takes
        pass
    for _ in range(repeats):
        Path("/proc/self/clear_refs").write_text("5")
        before = peak()
        frames = sum(len(piece) for piece in Movie(path, (36, 64)).chunks())
        assert frames == 600
        assert peak() - before < 120e6
