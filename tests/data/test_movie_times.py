"""Which frames of a video are shown, when, and which way up: what containers say beside the frames themselves."""

from __future__ import annotations

import dataclasses
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from small_videos import av, moving_pattern, write_video

from viv1t.data.formats.sensorium.trial_video import array_header, read_array
from viv1t.data.mice import open_recording
from viv1t.errors import DataError
from viv1t.stimuli import dali
from viv1t.stimuli.container import Edit
from viv1t.stimuli.decode import decode, probe
from viv1t.stimuli.film import Movie
from viv1t.stimuli.timeline import by_stamps, by_ticks, with_edits

SIZE = (48, 64)
B_FRAMES = {"crf": "2", "preset": "medium", "bf": "2", "g": "12", "x264-params": "b-adapt=0"}
Box = tuple[int, int]  # where it starts, and where it ends


def boxes(content: bytes, *path: bytes) -> list[Box]:
    """The boxes of an mp4 file on the way to one."""
    start, stop, found = 0, len(content), []
    for name in path:
        while True:
            size, kind = struct.unpack_from(">I4s", content, start)
            if kind == name:
                break
            start += size
            assert start < stop, name
        stop = start + size
        found.append((start, stop))
        start += 8
    return found


def with_matrix(path: Path, matrix: tuple[float, ...]) -> Path:
    """Writes a display matrix (a, b, c, d) into an mp4 file: a pixel at (x, y) is shown at (a x + c y, b x + d y)."""
    content = bytearray(path.read_bytes())
    a, b, c, d = (round(m * 65536) for m in matrix)
    track = boxes(content, b"moov", b"trak", b"tkhd")[-1][0]
    struct.pack_into(">9i", content, track + 48, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(bytes(content))
    return path


def with_edit_list(path: Path, edits: list[tuple[int, int, float]]) -> Path:
    """Replaces the edit list of an mp4 file: for each part milliseconds, start in the media's units, and rate."""
    content = bytearray(path.read_bytes())
    rows = b"".join(struct.pack(">Iii", length, start, round(rate * 65536)) for length, start, rate in edits)
    table = struct.pack(">I4sII", 16 + len(rows), b"elst", 0, len(edits)) + rows
    new = struct.pack(">I4s", 8 + len(table), b"edts") + table
    *parents, (start, stop) = boxes(content, b"moov", b"trak", b"edts")
    assert parents[0][0] > boxes(content, b"mdat")[0][0]  # frames stay where they are
    content[start:stop] = new
    for at, _ in parents:
        (size,) = struct.unpack_from(">I", content, at)
        struct.pack_into(">I", content, at, size + len(new) - (stop - start))
    path.write_bytes(bytes(content))
    return path


def shown(path: Path, luma: np.ndarray) -> list[int]:
    """Which frame each 30 Hz frame of a film shows; in every case as good as its codec keeps it."""
    movie = Movie(path, luma.shape[1:])
    found = movie.read().numpy()
    assert len(found) == movie.frames
    numbers = [int(np.abs(luma - frame).mean((1, 2)).argmin()) for frame in found]
    assert np.abs(found - luma[numbers]).mean() < 3
    return numbers


# -- which way up ------------------------------------------------------------------------------------------------------

ORIENTATIONS = {
    "as it is": ((1, 0, 0, 1), lambda x: x),
    "mirrored": ((-1, 0, 0, 1), lambda x: x[..., ::-1]),
    "upside down, mirrored": ((1, 0, 0, -1), lambda x: x[:, ::-1]),
    "turned by 180": ((-1, 0, 0, -1), lambda x: x[:, ::-1, ::-1]),
    "transposed": ((0, 1, 1, 0), lambda x: x.swapaxes(1, 2)),
    "turned clockwise": ((0, 1, -1, 0), lambda x: np.rot90(x, -1, (1, 2))),
    "turned counterclockwise": ((0, -1, 1, 0), lambda x: np.rot90(x, 1, (1, 2))),
    "transposed the other way": ((0, -1, -1, 0), lambda x: np.rot90(x, 2, (1, 2)).swapaxes(1, 2)),
    "mirrored, half as large": ((-0.5, 0, 0, 0.5), lambda x: x[..., ::-1]),
}  # fmt: skip


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_films_and_trials_are_shown_as_their_matrix_says(name: str, tmp_path: Path) -> None:
    matrix, expected = ORIENTATIONS[name]
    luma = moving_pattern(3, *SIZE)
    path = with_matrix(write_video(tmp_path / "0.mp4", luma), matrix)
    wanted = expected(luma)
    assert np.array_equal(Movie(path, wanted.shape[1:]).read().numpy(), wanted)
    assert np.array_equal(np.moveaxis(read_array(path), -1, 0), wanted)
    assert array_header(path).shape == (*wanted.shape[1:], 3)
    if not dali.missing("cpu"):
        assert np.array_equal(Movie(path, wanted.shape[1:], decoder="dali").read().numpy(), wanted)


@pytest.mark.parametrize(
    ("matrix", "reason"),
    [
        ((1, 0.3, 0, 1), r"its display matrix \(1, 0\.3, 0, 1\) does more than turning by right angles"),
        ((2, 0, 0, 1), "its display matrix"),
        ((0, 0, 0, 0), "its display matrix"),
        ((0.7071, 0.7071, 0.7071, -0.7071), "its display matrix"),
        ((0.7071, -0.7071, 0.7071, 0.7071), "is to be turned by 45 degrees"),
    ],
)
def test_other_matrices_are_refused(matrix: tuple[float, ...], reason: str, tmp_path: Path) -> None:
    path = with_matrix(write_video(tmp_path / "0.mp4", moving_pattern(2, *SIZE)), matrix)
    for read in (lambda: Movie(path, SIZE), lambda: read_array(path)):
        with pytest.raises(DataError, match=rf"0\.mp4: {reason}.*; convert it to upright frames"):
            read()


# -- AVI, which has no time stamps -------------------------------------------------------------------------------------


@pytest.mark.parametrize("frames", [1, 2, 40, 45])
@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_b_frames_in_avi(frames: int, codec: str, tmp_path: Path) -> None:
    luma = moving_pattern(frames, *SIZE)
    options = B_FRAMES if codec == "libx264" else {"bf": "2", "g": "12", "qmin": "1", "qmax": "1"}
    limited = moving_pattern(frames, *SIZE, low=16, high=235)  # AVI does not say, and MPEG-4 is
    path = write_video(tmp_path / "film.avi", luma if codec == "libx264" else limited, codec, options)
    assert shown(path, luma) == list(range(frames))


@pytest.mark.parametrize("per_second", [30, 1000])
def test_frames_that_a_camera_dropped_are_held(per_second: int, tmp_path: Path) -> None:
    luma = moving_pattern(30, *SIZE)
    frames = [*range(10), *range(40, 60)]
    ticks = [round(k * per_second / 30) for k in frames]
    path = write_video(tmp_path / "0.avi", luma, "libx264", {"qp": "0", "bf": "0"}, rate=per_second, stamps=ticks)
    expected = [max(i for i, frame in enumerate(frames) if frame <= k) for k in range(60)]
    assert shown(path, luma) == expected
    assert array_header(path).shape == (*SIZE, 60)
    assert np.array_equal(np.moveaxis(read_array(path), -1, 0), luma[expected])


def test_frames_dropped_at_the_beginning_and_the_end() -> None:
    line = by_ticks([2, 3, 4, 5, 9], 14, 0.1)
    assert line.times.tolist() == pytest.approx([0, 0.3, 0.4, 0.5, 0.9])
    assert line.repeats.tolist() == [3, 1, 1, 4, 5]
    assert by_ticks([0, 33, 66, 100, 200], 233, 1e-3).repeats.tolist() == [1, 1, 1, 3, 1]
    assert line.end == pytest.approx(1.4)
    assert by_ticks([0, 1], 0, 0.1).repeats.tolist() == [1, 1]  # a header that says nothing


def test_an_avi_file_cut_short_is_no_film_of_dropped_frames(tmp_path: Path) -> None:
    path = write_video(tmp_path / "film.avi", moving_pattern(40, *SIZE), "ffv1")
    content = path.read_bytes()
    for size in (len(content) // 2, len(content) - 3000):
        path.write_bytes(content[:size])
        with pytest.raises(DataError, match=r"truncated: \d+ frames are left of 40|damaged"):
            Movie(path, SIZE).read()


# -- edit lists --------------------------------------------------------------------------------------------------------

FRAME, FIRST = 512, 1024  # units of the media: of a frame, and of the first one's time stamp where there are B-frames


@pytest.mark.parametrize(
    ("edits", "expected"),
    [
        ([(1000, 12, 1)], [*range(12, 42)]),  # from a key frame on
        ([(1000, 15, 1)], [*range(15, 45)]),  # from amidst
        ([(500, 0, 1)], [*range(15)]),
        ([(1000, 15.25, 1)], [*range(15, 45)]),  # the frame that is on when it starts is shown
        ([(1000, 15.75, 1)], [*range(16, 46)]),  # ... for a quarter of a frame only
        ([(500, -1, 1), (1000, 12, 1)], [*range(12, 42)]),  # nothing at first: the film starts with what is shown
        ([(500, 30, 1), (500, 3, 1)], [*range(30, 45), *range(3, 18)]),
        ([(200, 12, 1), (200, 12, 1)], [*range(12, 18)] * 2),
        ([(200, 3, 1), (200, -1, 1), (200, 20, 1)], [*range(3, 9), *[8] * 6, *range(20, 26)]),
        ([(500, 10, 2)], [*range(10, 40, 2)]),
        ([(800, 10, 0.5)], [i for i in range(10, 22) for _ in "ab"]),
        ([(500, 7, 0), (200, 7, 1)], [*[7] * 15, *range(7, 13)]),  # a still
        ([(9000, 40, 1)], [*range(40, 60)]),  # no more than there is
        ([(0, 40, 1)], [*range(40, 60)]),  # 0 is the rest
        ([(2000, 0, 1)], [*range(60)]),
    ],
)  # fmt: skip
def test_edit_lists_say_what_is_shown_and_when(
    edits: list[tuple[int, float, float]], expected: list[int], tmp_path: Path
) -> None:
    luma = moving_pattern(60, *SIZE)
    path = write_video(tmp_path / "0.mp4", luma, "libx264", B_FRAMES)
    starts = [(length, -1 if start == -1 else round(FIRST + start * FRAME), rate) for length, start, rate in edits]
    with_edit_list(path, starts)
    assert shown(path, luma) == expected


def test_trials_are_trimmed_by_their_edit_list(tmp_path: Path) -> None:
    luma = moving_pattern(40, *SIZE)
    path = with_edit_list(write_video(tmp_path / "0.mp4", luma), [(700, 5 * FRAME, 1)])
    assert array_header(path).shape == (*SIZE, 21)
    assert np.array_equal(np.moveaxis(read_array(path), -1, 0), luma[5:26])
    obstacle = dali.obstacle(probe(path), torch.device("cpu"))
    assert obstacle == (dali.missing("cpu") or "the video is cut by an edit list")


def test_a_trim_within_a_long_still_keeps_its_time() -> None:
    """A screen recording: frames at 0, 4 and 5 s, trimmed to what is on from 1 s to 4.5 s."""
    line = by_stamps([0, 4000, 5000], [4000, 1000, 1000], 1e-3, 30)
    cut = with_edits(line, [0, 4000, 5000], [Edit(3.5, 1.0, 1.0, 1 / 600)], 1e-3)
    assert cut.times.tolist() == [0, 3]
    assert cut.end == 3.5


@pytest.mark.parametrize(
    ("edits", "reason"),
    [
        ([(1000, 0, -1)], "a part of it is played backwards by its edit list"),
        ([(1000, 70 * FRAME, 1)], "its edit list shows no frame"),
        ([(1, 0, 1)] * 1001, "has an edit list of 1001 parts, at most 1000 are taken"),
    ],
)
def test_edit_lists_that_cannot_be_shown_are_refused(
    edits: list[tuple[int, int, float]], reason: str, tmp_path: Path
) -> None:
    path = with_edit_list(write_video(tmp_path / "film.mp4", moving_pattern(60, *SIZE), "libx264"), edits)
    with pytest.raises(DataError, match=rf"film\.mp4: {reason}.*; convert it anew"):
        Movie(path, SIZE)


def test_a_truncated_film_with_an_edit_list_is_still_found(tmp_path: Path) -> None:
    luma = moving_pattern(60, *SIZE)
    path = with_edit_list(write_video(tmp_path / "film.mp4", luma, "libx264", B_FRAMES), [(1000, FIRST, 1)])
    content = bytearray(path.read_bytes())
    table = boxes(content, b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stco")[-1][0]
    struct.pack_into(">I", content, table + 16, len(content) - 900)  # where the frames are said to lie
    path.write_bytes(bytes(content))
    with pytest.raises(DataError, match=r"film\.mp4: (truncated|damaged)"):
        Movie(path, SIZE).read()


# -- time stamps -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("container", "starts"), [("mkv", (-200, 3000)), ("mp4", (0, 3000))])
def test_films_that_start_late_or_early(container: str, starts: tuple[int, ...], tmp_path: Path) -> None:
    luma = moving_pattern(20, *SIZE)
    for start in starts:
        times = [start + round(k * 1000 / 30) for k in range(20)]
        path = write_video(tmp_path / f"{start}.{container}", luma, milliseconds=times)
        assert shown(path, luma) == list(range(20))


def test_a_single_frame_and_unknown_durations() -> None:
    one = by_stamps([700], [0], 1e-3, 25)
    assert one.end == pytest.approx(1 / 25)
    several = by_stamps([-100, 0, 150], [0, 0, 0], 1e-3, 25)
    assert several.start == -0.1
    assert several.end == pytest.approx(0.25 + 0.125)  # the last as long as the one in the middle
    unknown = by_stamps([None, 0], [0, 0], 1e-3, 25)
    assert unknown.times.tolist() == [0, 0.04]


@pytest.mark.parametrize("container", ["mkv", "mp4"])
def test_b_frames_with_the_time_stamps_of_decoding(container: str, tmp_path: Path) -> None:
    """As tools write that copy them from AVI files."""
    luma = moving_pattern(40, *SIZE)
    plain = write_video(tmp_path / "plain.mp4", luma, "libx264", B_FRAMES)
    with av.open(str(plain)) as source, av.open(str(tmp_path / f"film.{container}"), "w") as target:
        film = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.dts += 2048
                packet.stream, packet.pts = film, packet.dts
                target.mux(packet)
    assert shown(tmp_path / f"film.{container}", luma) == list(range(40))


def test_time_stamps_that_go_back_are_not_believed(tmp_path: Path) -> None:
    path = write_video(tmp_path / "film.avi", moving_pattern(9, *SIZE), "libx264", B_FRAMES)
    info = dataclasses.replace(probe(path), start=0.0)
    with pytest.raises(DataError, match=r"film\.avi: time stamps are damaged: they go back after 0\.\d+ s; convert"):
        list(decode(info))


# -- pixels that phones, cameras and editors write ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "codec", "pixel_format", "options", "rotation"),
    [
        ((35, 63), "ffv1", "yuva420p", {}, 0),  # alpha is left out
        ((35, 63), "libvpx-vp9", "yuv420p", None, 90),
        ((36, 64), "libx264", "yuv420p", {"qp": "0", "x264-params": "interlaced=1", "flags": "+ildct+ilme"}, 270),
        ((35, 63), "ffv1", "yuv410p", {}, 0),
    ],
)
def test_odd_sizes_alpha_fields_and_coarse_colour(
    size: tuple[int, int],
    codec: str,
    pixel_format: str,
    options: dict[str, str] | None,
    rotation: int,
    tmp_path: Path,
) -> None:
    luma = moving_pattern(4, *size)
    container = "mp4" if rotation else "mkv"
    path = write_video(tmp_path / f"0.{container}", luma, codec, options, pixel_format=pixel_format, rotation=rotation)
    wanted = np.rot90(luma, rotation // 90, (1, 2))
    assert np.array_equal(Movie(path, wanted.shape[1:]).read().numpy(), wanted)
    assert np.array_equal(np.moveaxis(read_array(path), -1, 0), wanted)


def test_a_pyav_that_cannot_be_loaded_is_not_called_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "film.mp4", moving_pattern(2, *SIZE))
    (tmp_path / "av.py").write_text("raise ImportError('libx.so.1: cannot open shared object file', name='av._core')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "av")
    with pytest.raises(DataError, match=r"cannot be loaded \(libx.so.1: .*\); pip install --force-reinstall 'viv1t\["):
        probe(path)


# -- names, lists of files, sizes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".MP4", ".mov", ".avi", ".webm", ".M4V", ".MKV"])
def test_trials_by_any_suffix_of_a_video(suffix: str, make_session: Callable[..., Path]) -> None:
    session = make_session(frames=20)
    luma = moving_pattern(20, 6, 8)
    container = {".m4v": ".mp4"}.get(suffix.lower(), suffix.lower())
    codec = "libx264" if container in (".avi", ".mov") else "libvpx-vp9"
    videos = session / "data" / "videos"
    write_video(videos / f"0{container}", luma, codec).rename(videos / f"0{suffix}")
    (videos / "0.npy").unlink()
    opened = open_recording(session)
    assert opened.computed
    assert np.array_equal(opened.read("video", 0), np.moveaxis(luma, 0, -1))


@pytest.mark.parametrize("other", ["0.mov", "00.mp4", "0.MP4"])
def test_two_videos_of_one_trial_are_refused(other: str, make_session: Callable[..., Path]) -> None:
    session = make_session(frames=20)
    videos = session / "data" / "videos"
    (videos / "0.npy").unlink()
    for name in ("0.mp4", other):
        (videos / name).write_bytes(b"any")
    with pytest.raises(DataError, match=r"data/videos holds \S+ and \S+, both of trial 0; keep the one that was shown"):
        open_recording(session)


@pytest.mark.parametrize(
    "text",
    ["ffconcat version 1.0\nfile '{film}'\n", "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:1,\nfile:{film}\n"],
)
def test_lists_of_other_files_are_not_followed(text: str, tmp_path: Path) -> None:
    film = write_video(tmp_path / "real.mp4", moving_pattern(3, *SIZE))
    path = tmp_path / "film.mp4"
    path.write_text(text.format(film=film))
    with pytest.raises(DataError, match=r"film\.mp4: is a list of other files, which is not followed; give the video"):
        Movie(path, SIZE)


@pytest.mark.parametrize("name", ["concat:a|b.mp4", "http:film.mp4", "mouse 1: day 2.mp4", "%d.mp4", "#1?.mp4"])
def test_names_are_names_of_files(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    luma = moving_pattern(2, *SIZE)
    write_video(tmp_path / "film.mp4", luma).rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert np.array_equal(Movie(Path(name), SIZE).read().numpy(), luma)


def test_frames_of_another_size_are_refused_before_they_are_decoded(
    make_session: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from viv1t.data.formats.sensorium import trial_video

    session = make_session(frames=20)
    videos = session / "data" / "videos"
    write_video(videos / "2.mp4", np.zeros((20, 1024, 1024), np.uint8), "libx264", {"preset": "ultrafast"})
    (videos / "2.npy").unlink()
    monkeypatch.setattr(trial_video, "decode", None)
    words = r"mouse mouse-1, trial 2: .*2\.mp4: expected 20 frames of 6 x 8 pixels, but found 20 frames of 1024 x 1024"
    with pytest.raises(DataError, match=words):
        open_recording(session).read("video", 2)
    monkeypatch.setattr(trial_video, "LARGEST_TRIAL", 19 << 20)
    with pytest.raises(DataError, match="20 frames of 1024 x 1024 pixels take more than 19 MiB; give the movie as the"):
        read_array(videos / "2.mp4")


@pytest.mark.parametrize(("codec", "container"), [("libx264", "mp4"), ("libvpx-vp9", "webm"), ("ffv1", "avi")])
def test_frames_that_are_too_large_are_refused(
    codec: str, container: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from viv1t.stimuli import decode as video

    path = write_video(tmp_path / f"film.{container}", moving_pattern(2, 96, 128), codec)
    assert Movie(path, SIZE).read().shape == (2, *SIZE)
    monkeypatch.setattr(video, "LARGEST", 10_000)
    monkeypatch.setitem(video._OPTIONS, "max_pixels", "10000")
    with pytest.raises(DataError, match=r"film\.\w+: .*10,000 pixels .*; (convert it to smaller ones|copy)"):
        Movie(path, SIZE)


def test_films_of_days_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from viv1t.stimuli import decode as video

    path = write_video(tmp_path / "film.mkv", moving_pattern(3, *SIZE), milliseconds=[0, 3_500_000, 7_000_000])
    assert Movie(path, SIZE).frames > 200_000
    monkeypatch.setattr(video, "LONGEST", 3600.0)
    with pytest.raises(DataError, match=r"film\.mkv: lasts 2 hours, at most 1 are taken; cut it"):
        Movie(path, SIZE)
