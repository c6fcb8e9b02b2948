"""Recordings whose movies are video files, as recorded and as packed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import viv1t_data as main
from small_videos import moving_pattern, write_video

from viv1t.config.data import DataConfig
from viv1t.data.formats.sensorium.trial_video import read_array, write_trial
from viv1t.data.inspect.check import check_folder
from viv1t.data.inspect.info import format_table, session_info
from viv1t.data.mice import open_recording
from viv1t.data.recordings import Recordings
from viv1t.data.store.pack import pack
from viv1t.data.store.verify import verify
from viv1t.errors import ConfigError, DataError
from viv1t.types import Batch

DURATIONS = (24, 20, 24, 24, 17, 24, 24, 24, 24, 21)
MakeSession = Callable[..., Path]


def with_videos(session: Path, suffix: str = ".mp4") -> Path:
    """Replaces the movies of a recording by video files."""
    for file in (session / "data" / "videos").glob("*.npy"):
        movie = np.load(file)
        shown = movie[..., : int(np.isnan(movie[0, 0]).argmax()) or movie.shape[-1]]
        video = file.with_suffix(suffix)
        frames = np.moveaxis(shown, -1, 0).astype(np.uint8)
        write_trial(video, frames) if suffix == ".mp4" else write_video(video, frames, "ffv1")
        file.unlink()
        for folder in ("responses", "behavior", "pupil_center"):  # they are as long as the movie
            other = session / "data" / folder / file.name
            np.save(other, np.load(other)[:, : shown.shape[-1]])
    return session


def batches(folder: Path, workers: int = 2, cache: str | None = None) -> list[Batch]:
    config = DataConfig(
        path=str(folder), mice="all", transform="published", crop_frame=12, batch_size=2, num_workers=workers,
        cache_data=cache,
    )  # fmt: skip
    recordings = Recordings.open(config, seed=3)
    found = [*recordings.train_batches(0), *recordings.train_batches(1)]
    found += recordings.trials("mouse-1", "validation")
    recordings.close()
    return found


def same(found: list[Batch], expected: list[Batch]) -> bool:
    variables = ("video", "response", "behavior", "pupil_center", "frames")
    return len(found) == len(expected) and all(
        a.trial_ids == b.trial_ids and all(torch.equal(getattr(a, v), getattr(b, v)) for v in variables)
        for a, b in zip(found, expected, strict=True)
    )


@pytest.fixture
def arrays(make_session: MakeSession) -> Path:
    return make_session("arrays/mouse-1", durations=DURATIONS)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_training_from_videos_gives_the_same_batches(arrays: Path, suffix: str, tmp_path: Path) -> None:
    videos = with_videos(Path(shutil.copytree(arrays, tmp_path / "videos" / "mouse-1")), suffix)
    expected = batches(arrays.parent)
    for options in ({"workers": 0}, {"workers": 2}, {"workers": 2, "cache": "cpu"}):
        assert same(batches(videos.parent, **options), expected), options  # type: ignore[arg-type]


def test_training_from_packed_videos_gives_the_same_batches(arrays: Path, tmp_path: Path) -> None:
    expected = batches(arrays.parent)
    (packed,) = pack(arrays, tmp_path / "packed", video=True)
    assert packed.document.has_videos
    assert not (packed.path / "videos.npy").exists()
    for options in ({"workers": 0}, {"workers": 2}, {"workers": 2, "cache": "cpu"}):
        assert same(batches(packed.path.parent, **options), expected), options  # type: ignore[arg-type]


def test_a_session_of_videos_reads_as_one_of_arrays(arrays: Path, tmp_path: Path) -> None:
    recorded = open_recording(arrays)
    (packed,) = pack(arrays, tmp_path / "packed", video=True)
    videos = open_recording(with_videos(Path(shutil.copytree(arrays, tmp_path / "videos" / "mouse-1"))))
    for session in (videos, open_recording(packed.path)):
        assert session.computed
        assert session.frame_size == recorded.frame_size == (6, 8)
        assert session.repeats("train") == recorded.repeats("train")
        for trial in (0, 1, 4, 9):
            assert session.duration(trial) == recorded.duration(trial) == DURATIONS[trial]
            assert session.read("video", trial).dtype == np.uint8
            expected = recorded.read("video", trial)[..., : DURATIONS[trial]]
            assert np.array_equal(session.read("video", trial), expected)
            assert np.array_equal(session.place("video", trial).map(), expected)


def test_packing_videos_and_arrays_gives_the_same_store(arrays: Path, tmp_path: Path) -> None:
    (plain,) = pack(arrays, tmp_path / "plain")
    videos = with_videos(Path(shutil.copytree(arrays, tmp_path / "videos" / "mouse-1")))
    (from_videos,) = pack(videos, tmp_path / "from_videos")
    (as_videos,) = pack(arrays, tmp_path / "as_videos", video=True)
    for store in (from_videos, as_videos):
        for file, array in plain.document.arrays.items():
            assert {k: v for k, v in store.document.arrays[file].items() if k != "files"} == array
        assert store.document.repeats == plain.document.repeats
        assert (store.path / "meta.safetensors").read_bytes() == (plain.path / "meta.safetensors").read_bytes()
    (again,) = pack(as_videos.path, tmp_path / "again")
    assert (again.path / "videos.npy").read_bytes() == (plain.path / "videos.npy").read_bytes()


@pytest.mark.parametrize("size", [(36, 64), (35, 63), (144, 144), (150, 161)])
def test_written_trials_are_exact(size: tuple[int, int], tmp_path: Path) -> None:
    movie = np.random.default_rng(0).integers(0, 256, (9, *size)).astype(np.uint8)
    movie[0], movie[1] = 0, 255
    write_trial(tmp_path / "0.mp4", movie)
    assert np.array_equal(np.moveaxis(read_array(tmp_path / "0.mp4"), -1, 0), movie)


def test_an_encoder_that_loses_something_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from viv1t.data.formats.sensorium import trial_video

    monkeypatch.setitem(trial_video._OPTIONS, "lossless", "0")
    with pytest.raises(DataError, match="the encoder has not kept every grey level; pack without --video"):
        write_trial(tmp_path / "0.mp4", moving_pattern(9, 36, 64))


def test_people_s_own_films_are_taken_frame_for_frame(make_session: MakeSession) -> None:
    session = make_session(frames=20)
    film = moving_pattern(20, 6, 8, low=16, high=235)
    write_video(session / "data" / "videos" / "0.mp4", film, "libx264", rate=25, full_range=False)
    (session / "data" / "videos" / "0.npy").unlink()
    found = open_recording(session).read("video", 0)
    assert found.shape == (6, 8, 20)
    expected = (np.moveaxis(film, 0, -1).astype(np.float64) - 16) * 255 / 219
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() < 1e-3


def test_an_array_goes_before_a_video(arrays: Path) -> None:
    write_trial(arrays / "data" / "videos" / "0.mp4", moving_pattern(5, 6, 8))
    session = open_recording(arrays)
    assert session.file("video", 0).suffix == ".npy"
    assert not session.computed
    (finding,) = [f for f in check_folder(arrays) if "videos holds" in f.what]
    assert "0.mp4" in finding.what


# -- packing -----------------------------------------------------------------------------------------------------------


def test_grey_levels_that_video_cannot_hold_are_refused(make_session: MakeSession, tmp_path: Path) -> None:
    for trial in (0, 8):  # the first, found at once, and a later one
        session = make_session(f"mouse-{trial}")
        file = session / "data" / "videos" / f"{trial}.npy"
        np.save(file, np.load(file) + np.float32(0.5))
        with pytest.raises(DataError, match=f"mouse mouse-{trial}: .* not all whole numbers from 0 to 255"):
            list(pack(session, tmp_path / "packed", video=True))
        assert not (tmp_path / "packed" / f"mouse-{trial}").exists()


def test_interrupted_packing_of_videos_goes_on(
    arrays: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from viv1t.data.store import pack as module

    (whole,) = pack(arrays, tmp_path / "whole", video=True)
    written: list[str] = []

    def write(path: Path, movie: np.ndarray) -> None:
        if len(written) == 4:
            path.write_bytes(b"half")
            raise KeyboardInterrupt
        written.append(path.name)
        write_trial(path, movie)

    monkeypatch.setattr(module, "write_trial", write)
    with pytest.raises(KeyboardInterrupt):
        list(pack(arrays, tmp_path / "packed", video=True))
    assert not (tmp_path / "packed" / "mouse-1").exists()
    monkeypatch.setattr(module, "write_trial", write_trial)
    done = (tmp_path / "packed" / ".mouse-1.part" / "videos").glob("[0-9]*.mp4")
    first = {p.name: p.stat().st_mtime_ns for p in done}
    (packed,) = pack(arrays, tmp_path / "packed", video=True)
    assert len(first) == 4
    assert all((packed.path / "videos" / name).stat().st_mtime_ns == time for name, time in first.items())
    assert packed.document.arrays == whole.document.arrays
    assert sorted(p.name for p in (packed.path / "videos").iterdir()) == sorted(
        f"{trial}.mp4" for trial in packed.document.trials
    )
    assert not list(verify(packed.path))


def test_packing_with_other_options_leaves_nothing_of_the_first(
    arrays: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from viv1t.data.store import pack as module

    def stop(path: Path, movie: np.ndarray) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_trial", stop)
        with pytest.raises(KeyboardInterrupt):
            list(pack(arrays, tmp_path / "packed", video=True))
    (packed,) = pack(arrays, tmp_path / "packed")
    assert sorted(p.name for p in packed.path.iterdir()) == [
        "behavior.npy", "meta.safetensors", "pupil_center.npy", "responses.npy", "store.json", "videos.npy",
    ]  # fmt: skip
    with pytest.raises(DataError, match="was packed from other files or with other options"):
        list(pack(arrays, tmp_path / "packed", video=True))


def test_the_command_says_what_video_costs(
    arrays: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pack", str(arrays), str(tmp_path / "packed"), "--video", "--quiet"]) == 0
    out = capsys.readouterr().out
    size = sum(f.stat().st_size for f in (tmp_path / "packed" / "mouse-1" / "videos").iterdir())
    packed_trials = [d for trial, d in enumerate(DURATIONS) if trial != 5]
    assert f"video takes {size / (48 * sum(packed_trials)):.2f} of the bytes of uint8 arrays" in out
    assert "movies lossless video" in out


# -- check, info, verify -----------------------------------------------------------------------------------------------


def test_check_reads_videos(arrays: Path) -> None:
    session = with_videos(arrays)
    before = [str(f) for f in check_folder(session)]
    assert not any("videos" in line for line in before)
    damaged, missing, longer = (session / "data" / "videos" / f"{trial}.mp4" for trial in (0, 2, 4))
    damaged.write_bytes(damaged.read_bytes()[:500])
    missing.unlink()
    write_trial(longer, moving_pattern(19, 6, 8))
    found: dict[tuple[int, ...], str] = {}
    for finding in check_folder(session):
        found[finding.trials] = found.get(finding.trials, "") + str(finding)
    assert "data/videos: not a readable array" in found[0,]
    assert "0.mp4: not a video file, or damaged" in found[0,]
    assert "data/videos: the file is missing" in found[2,]
    assert "arrays differ in their frames: videos 19, responses 17" in found[4,]


def test_info_counts_videos(arrays: Path) -> None:
    info = session_info("mouse-1", with_videos(arrays))
    assert sorted(info.durations) == sorted(d for trial, d in enumerate(DURATIONS) if trial != 5)
    assert info.frame_size == (6, 8)
    assert "mouse mouse-1: the movies of 9 trials are video files" in format_table([info])


def test_verify_finds_changed_and_missing_videos(arrays: Path, tmp_path: Path) -> None:
    (packed,) = pack(arrays, tmp_path / "packed", video=True)
    assert not list(verify(packed.path))
    changed = packed.path / "videos" / "0.mp4"
    changed.write_bytes(changed.read_bytes()[:-1] + b"x")
    (packed.path / "videos" / "4.mp4").unlink()
    found = {f.trials: f.what for f in verify(packed.path)}
    assert found == {
        (0,): "videos are not what was packed: checksums differ", (4,): "videos are missing or cannot be read",
    }  # fmt: skip


def test_damage_names_mouse_and_trial(arrays: Path) -> None:
    session = with_videos(arrays)
    file = session / "data" / "videos" / "4.mp4"
    file.write_bytes(b"")
    with pytest.raises(DataError, match=rf"mouse mouse-1, trial 4: {file}: the file is empty; copy it anew"):
        open_recording(session).read("video", 4)
    with pytest.raises(DataError, match="trial 4"):
        batches(session.parent)
    with pytest.raises((DataError, ConfigError)):
        list(pack(session, session.parent / "packed"))
