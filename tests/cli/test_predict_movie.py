"""Responses to movies: windows, their joints, and the command."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import re
import shutil
import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from small_videos import moving_pattern, write_video
from tiny_runs import make_mice, script_validation, train

import viv1t
from viv1t.cli.data import main as data_main
from viv1t.cli.predict import main
from viv1t.data.mice import open_recording
from viv1t.data.recordings import Recordings
from viv1t.errors import ConfigError, DataError
from viv1t.model.twin import ViV1T
from viv1t.plot.movie import MovieSummary, movie_responses, raster
from viv1t.prediction.film import movie_windows, predict_movie
from viv1t.prediction.subject import Subject, SubjectModel, fitting, known_frames, state_of
from viv1t.prediction.windows import Joint, Windows, rhythm
from viv1t.runs.ensemble import open_ensemble
from viv1t.runs.folder import RunFolder
from viv1t.stimuli.film import Movie
from viv1t.types import SENSORIUM_SESSIONS

SIZE = (36, 64)


def pieces(movie: np.ndarray, size: int = 17) -> Iterator[torch.Tensor]:
    for first in range(0, len(movie), size):
        yield torch.from_numpy(movie[first : first + size]).float()


def subjects(recordings: Recordings) -> dict[str, Subject]:
    return {mouse: Subject.of(recordings, mouse) for mouse in recordings.mice}


def joined(models: list[ViV1T], recordings: Recordings, movie: np.ndarray, **options: Any) -> dict[str, np.ndarray]:
    """In the longest and fewest windows, if not told otherwise."""
    shown = {"window": known(recordings), "passes": 1} | {
        k: options.pop(k) for k in ("window", "passes") & options.keys()
    }
    mice = subjects(recordings)
    windows = movie_windows(models, mice, len(movie), **shown)
    parts: dict[str, list[np.ndarray]] = {}
    for mouse, part in predict_movie(models, mice, pieces(movie), windows, **options):
        parts.setdefault(mouse, []).append(part)
    return {mouse: np.concatenate(p, axis=1) for mouse, p in parts.items()}


@pytest.fixture
def opened(run: Path) -> Iterator[tuple[list[ViV1T], Recordings]]:
    models, recordings = open_ensemble([run], torch.device("cpu"))
    with closing(recordings):
        yield models, recordings


# -- windows -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("total", [50, 300, 301, 349, 350, 499, 500, 501, 1234])
@pytest.mark.parametrize(("longest", "unpredicted"), [(300, 0), (300, 14), (300, 49), (70, 4)])
def test_windows_cover_a_movie_and_every_frame_has_its_context(total: int, longest: int, unpredicted: int) -> None:
    windows = Windows.of(total, longest, unpredicted)
    starts = windows.starts
    assert starts[0] == 0
    assert starts[-1] + windows.length == total
    assert windows.length == min(total, longest)
    assert windows.skipped >= unpredicted
    for before, start in itertools.pairwise(starts):
        # The window before reaches over the context and the fading of the next.
        assert start < before + windows.length - windows.faded
        assert start + windows.skipped <= before + windows.length - windows.faded
    if longest == 300:
        assert (windows.skipped, windows.faded) == (50, 50)


def test_windows_that_are_too_short_are_refused() -> None:
    with pytest.raises(DataError, match="4 frames are too short: the core predicts nothing for the first 4 frames"):
        Windows.of(4, 70, 4)
    with pytest.raises(DataError, match="windows of 70 frames are too short to be joined"):
        Windows.of(200, 70, 60)
    assert Windows.of(70, 70, 60).starts == [0]


def test_what_windows_agree_on_is_joined_exactly() -> None:
    truth = np.random.default_rng(0).random((3, 977)).astype(np.float32)
    windows = Windows.of(977, 300, 14)
    joint = Joint(windows)
    parts = []
    for start in windows.starts:
        parts.append(joint.add(truth[:, start + 14 : start + 300]))
    found = np.concatenate(parts, axis=1)
    assert np.isnan(found[:, :14]).all()
    assert np.allclose(found[:, 14:], truth[:, 14:], rtol=0, atol=1e-6)


def test_what_windows_disagree_on_passes_over_in_equal_steps() -> None:
    windows = Windows.of(500, 300, 0)
    assert windows.starts == [0, 200]
    joint = Joint(windows)
    low, high = np.zeros((1, 300), np.float32), np.ones((1, 300), np.float32)
    found = np.concatenate([joint.add(low), joint.add(high)], axis=1)[0]
    assert (found[:250] == 0).all()
    assert np.allclose(found[250:300], np.arange(1, 51) / 51)
    assert (found[300:] == 1).all()


@pytest.mark.parametrize("total", [70, 71, 200, 260])
@pytest.mark.parametrize("passes", [2, 3, 16])
def test_denser_windows_join_what_they_agree_on_exactly(total: int, passes: int) -> None:
    truth = np.random.default_rng(0).random((3, total)).astype(np.float32)
    windows = Windows.of(total, 70, 4, passes)
    joint = Joint(windows)
    found = np.concatenate([joint.add(truth[:, start + 4 : start + 70]) for start in windows.starts], axis=1)
    assert found.shape == truth.shape
    assert np.isnan(found[:, :4]).all()
    assert np.allclose(found[:, 4:], truth[:, 4:], rtol=0, atol=1e-6)
    few, many = (len(Windows.of(10000, 300, 4, n).starts) for n in (1, passes))
    assert many == pytest.approx(passes * few, rel=0.05)  # the cost that is told


def test_denser_windows_take_a_rhythm_away() -> None:
    """Windows that add to each frame what depends on its place in them, as learned positions in time do."""
    rng = np.random.default_rng(0)
    truth, places = rng.normal(size=(1, 3000)).astype(np.float32), 2 * rng.normal(size=(1, 300)).astype(np.float32)
    shares = []
    for passes in (1, 2, 4, 8):
        windows = Windows.of(3000, 300, 0, passes)
        joint = Joint(windows)
        found = np.concatenate([joint.add(truth[:, s : s + 300] + places) for s in windows.starts], axis=1)
        shares.append(rhythm(found[0], windows.step))
    assert shares[0] > 0.6
    assert shares[1:] == sorted(shares[1:], reverse=True)
    assert shares[3] < 0.4
    assert rhythm(truth[0], 200) < 0.05
    slow = np.cumsum(truth[0])
    assert rhythm(slow, 200) < 0.1
    assert np.isnan(rhythm(truth[0], 800))
    assert np.isnan(rhythm(np.ones(3000), 200))


# -- predictions -------------------------------------------------------------------------------------------------------


def test_a_movie_of_one_window_is_the_direct_prediction(opened: tuple[list[ViV1T], Recordings]) -> None:
    """A trial shown as a movie, with its own behaviour and gaze, is predicted bit for bit as the trial is."""
    models, recordings = opened
    session = recordings._sessions["F"]
    for trial in session.trials("validation"):
        duration = session.duration(trial)
        raw = {v: session.read(v, trial)[..., :duration] for v in ("video", "behavior", "pupil_center")}
        (batch,) = (b for b in recordings.trials("F", "validation") if b.trial_ids == (trial,))
        with torch.no_grad():
            direct = models[0](batch.video, "F", batch.behavior, batch.pupil_center)[0].numpy()
        states = {"behavior": raw["behavior"], "pupil_center": raw["pupil_center"]}
        found = joined(models, recordings, np.moveaxis(raw["video"], -1, 0), states=states)["F"]
        before = duration - direct.shape[1]
        assert np.isnan(found[:, :before]).all()
        assert np.array_equal(found[:, before:], direct)


def known(recordings: Recordings) -> int:
    """The longest window of the tiny mice: their statistics reach that far."""
    return min(known_frames(recordings.transform(mouse)) for mouse in recordings.mice)


def test_joints_jump_no_more_than_a_different_context_explains(opened: tuple[list[ViV1T], Recordings]) -> None:
    models, recordings = opened
    movie = moving_pattern(260, *SIZE)
    windows = Windows.of(260, known(recordings), 4)
    assert len(windows.starts) > 3
    found = joined(models, recordings, movie)["F"]
    assert found.shape == (6, 260)
    for before, start in itertools.pairwise(windows.starts):
        # The two windows by themselves: the same frames in one context and in the other.
        one, other = (np.full((6, 260), np.nan, np.float32) for _ in range(2))
        for alone, first in ((one, before), (other, start)):
            span = slice(first, first + windows.length)
            alone[:, span] = joined(models, recordings, movie[span])["F"]
        stop = before + windows.length
        faded = slice(stop - windows.faded, stop)
        assert (found[:, faded] >= np.fmin(one, other)[:, faded] - 1e-6).all()
        assert (found[:, faded] <= np.fmax(one, other)[:, faded] + 1e-6).all()
        # Beyond the steps that the windows' own predictions make, one small step of what sets the two apart.
        share = np.arange(windows.faded + 1, dtype=np.float32) / (windows.faded + 1)  # of the other, before each step
        around = slice(faded.start - 1, faded.stop)
        own = (1 - share[:-1]) * np.diff(one[:, around]) + share[:-1] * np.diff(other[:, around])
        apart = np.abs(one - other)[:, faded].max(axis=1, keepdims=True) / (windows.faded + 1)
        assert apart.min() > 1e-5
        assert (np.abs(np.diff(found[:, around]) - own) <= apart + 1e-6).all()
        if stop < 260:
            last = slice(stop - 1, stop + 1)
            assert (np.abs(np.diff(found[:, last]) - np.diff(other[:, last])) <= apart + 1e-6).all()


def test_frames_between_joints_are_those_of_their_window(opened: tuple[list[ViV1T], Recordings]) -> None:
    models, recordings = opened
    movie = moving_pattern(200, *SIZE)
    found = joined(models, recordings, movie)
    longest = known(recordings)
    windows = Windows.of(200, longest, 4)
    second = windows.starts[1]
    for mouse in ("F", "G"):
        alone = joined(models, recordings, movie[second : second + longest])[mouse]
        own = slice(longest, second + longest - windows.faded)  # after the first fading, before the second
        assert own.stop > own.start
        assert np.array_equal(found[mouse][:, own], alone[:, own.start - second : own.stop - second])


def test_long_films_are_shown_in_windows_that_the_positions_in_time_were_trained_on(
    opened: tuple[list[ViV1T], Recordings], monkeypatch: pytest.MonkeyPatch
) -> None:
    models, recordings = opened
    mice = {"F": SubjectModel(models, Subject.of(recordings, "F"))}
    assert models[0].core.most_frames == 300
    longest = known(recordings)
    assert (fitting(mice, longest).length, fitting(mice, longest).passes) == (longest, 1)  # like a trial
    assert (fitting(mice, longest + 1).length, fitting(mice, longest + 1).passes) == (40, 1)  # --crop_frame
    assert fitting(mice, 500, passes=1) == Windows.of(500, 40, 4)
    assert fitting(mice, 500, window=60, passes=3) == Windows.of(500, 60, 4, 3)
    with pytest.raises(ConfigError, match=f"windows of 301 frames are longer than the model .* know: {longest}"):
        fitting(mice, 500, window=301)
    monkeypatch.setattr(type(models[0].core), "most_frames", None)  # without positions in time
    mice = {"F": SubjectModel(models, Subject.of(recordings, "F"))}
    assert fitting(mice, 500) == Windows.of(500, longest, 4)


def test_what_is_not_finite_is_refused_with_its_place(opened: tuple[list[ViV1T], Recordings]) -> None:
    models, recordings = opened
    movie = moving_pattern(200, *SIZE).astype(np.float32)
    movie[120:] = 1e38
    with pytest.raises(DataError, match=r"mouse F, the movie: predictions of \d of 6 neurons are not finite"):
        joined(models, recordings, movie)


@pytest.mark.parametrize(
    ("levels", "scale"), [((0, 255), 1), ((12, 180), 1), ((-3, 260), 1), ((0, 1), 1 / 255), ((0.1, 0.9), 1 / 255)]
)
def test_films_are_shown_in_the_grey_levels_of_the_recordings(
    levels: tuple[float, float], scale: float, opened: tuple[list[ViV1T], Recordings]
) -> None:
    subject = Subject.of(opened[1], "F")
    assert subject.levels is not None
    assert subject.levels[1] > 2
    assert dataclasses.replace(subject, levels=levels).film_scale() == pytest.approx(scale)


@pytest.mark.parametrize("levels", [(-2.5, 3.1), (0, 4095), (-1, 1)])
def test_films_are_refused_where_recordings_hold_no_grey_levels(
    levels: tuple[float, float], opened: tuple[list[ViV1T], Recordings]
) -> None:
    subject = dataclasses.replace(Subject.of(opened[1], "F"), levels=levels)
    reason = "mouse F: a film has grey levels of 0 to 255, but the recorded movies have values from"
    with pytest.raises(ConfigError, match=reason):
        next(predict_movie(opened[0], {"F": subject}, pieces(moving_pattern(60, *SIZE)), Windows.of(60, 70, 4)))


def test_medians_stand_in_for_behaviour_and_gaze(opened: tuple[list[ViV1T], Recordings]) -> None:
    models, recordings = opened
    movie = moving_pattern(60, *SIZE)
    session = recordings._sessions["F"]
    medians = {}
    for variable in ("behavior", "pupil_center"):
        arrays = [session.read(variable, t)[:, : session.duration(t)] for t in session.trials("train")]
        medians[variable] = np.median(np.concatenate(arrays, axis=1), axis=1)
        assert np.allclose(recordings.state_median("F", variable), medians[variable], rtol=1e-6)
    default = joined(models, recordings, movie)["F"]
    given = joined(models, recordings, movie, states={k: np.float32(v) for k, v in medians.items()})["F"]
    assert np.allclose(default, given, equal_nan=True, atol=1e-5)
    other = joined(models, recordings, movie, states={"behavior": medians["behavior"] * 3})["F"]
    assert not np.allclose(default, other, equal_nan=True, atol=1e-3)


def test_recorded_units_divide_by_the_precision(opened: tuple[list[ViV1T], Recordings]) -> None:
    models, recordings = opened
    movie = moving_pattern(60, *SIZE)
    scaled = joined(models, recordings, movie)["F"]
    recorded = joined(models, recordings, movie, units="recorded")["F"]
    assert np.allclose(recorded * recordings.response_precision("F", 60), scaled, equal_nan=True)


def test_states_that_do_not_fit_are_refused() -> None:
    assert state_of(np.array([1, 2]), "behavior", 5).shape == (2, 5)
    for values, reason in (
        (np.zeros((2, 4)), r"--behavior: expected \(2,\) or \(2, 5\) numbers, as the movie has, found \(2, 4\)"),
        (np.zeros(3), "expected"),
        (np.array(["a", "b"]), "expected"),
        (np.array([1, np.nan]), "holds values that are not finite"),
    ):
        with pytest.raises(DataError, match=reason):
            state_of(values, "behavior", 5)


def test_a_movie_of_another_length_than_said_is_refused(opened: tuple[list[ViV1T], Recordings]) -> None:
    models, recordings = opened
    for said in (59, 61):
        windows = movie_windows(models, subjects(recordings), said)
        with pytest.raises(DataError, match=r"the movie (ended after 60 frames of 61|has more than the 59 frames)"):
            for _ in predict_movie(models, subjects(recordings), pieces(moving_pattern(60, *SIZE)), windows):
                pass


# -- the command -------------------------------------------------------------------------------------------------------


def predicted(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    status = main([str(word) for word in words])
    captured = capsys.readouterr()
    assert status == 0, captured.err
    return captured.out


def test_the_command_writes_npy_parquet_and_a_picture(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], opened: tuple[list[ViV1T], Recordings]
) -> None:
    luma = moving_pattern(240, 72, 128)
    film = write_video(tmp_path / "film.webm", luma, rate=60)
    out = tmp_path / "out"
    text = predicted(capsys, run, "--movie", film, "--out", out, "--plot", "--quiet")
    assert "240 frames of 72 x 128 pixels in 4.00 s became 120 of 36 x 64 at 30 Hz, decoded by pyav" in text
    models, recordings = opened
    small = luma[::2].reshape(120, 36, 2, 64, 2).mean((2, 4))
    expected = joined(models, recordings, small.astype(np.float32), window=None, passes=None)
    predicted(capsys, run, "--movie", film, "--out", out, "--format", "parquet", "--quiet")
    for id, mouse in recordings.mice.items():
        found = np.load(out / mouse.session / "film.npy")
        assert found.dtype == np.float32
        assert np.allclose(found, expected[id], equal_nan=True, atol=1e-5)
        assert str(out / mouse.session / "film.npy") in text
        table = pq.read_table(out / mouse.session / "film.parquet")
        assert np.array_equal(np.stack(table["response"].to_numpy()).T, found, equal_nan=True)
        assert table["frame"].to_pylist() == list(range(120))
        assert np.allclose(table["time"], np.arange(120) / 30)
        assert json.loads(table.schema.metadata[b"neuron_ids"]) == mouse.unit_ids.tolist()
        assert table.schema.metadata[b"mouse"].decode() == mouse.session
    assert (out / "film.png").read_bytes().startswith(b"\x89PNG")
    assert not list(out.rglob("*.part*"))


def test_states_from_files_and_chosen_mice(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    film = write_video(tmp_path / "film.mp4", moving_pattern(90, *SIZE))
    np.save(tmp_path / "running.npy", np.random.default_rng(0).random((2, 90)) * 5)
    np.save(tmp_path / "gaze.npy", np.array([30.0, 20.0]))
    common = (run, "--movie", film, "--mouse_ids", "F", "--quiet")
    predicted(capsys, *common, "--out", tmp_path / "a")
    states = ("--behavior", tmp_path / "running.npy", "--pupil_center", tmp_path / "gaze.npy")
    predicted(capsys, *common, *states, "--out", tmp_path / "b")
    (one,), (other,) = ([*(tmp_path / name).rglob("*.npy")] for name in "ab")
    assert np.load(one).shape == np.load(other).shape == (6, 90)
    assert not np.allclose(np.load(one), np.load(other), equal_nan=True, atol=1e-3)


def test_movies_of_one_name_do_not_replace_each_other_s_responses(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = write_video(tmp_path / "film.mp4", moving_pattern(60, *SIZE))
    second = write_video(tmp_path / "film.mkv", moving_pattern(60, *SIZE, seed=1))
    third = tmp_path / "other" / "film.mp4"
    third.parent.mkdir()
    third.write_bytes(second.read_bytes())
    out = tmp_path / "out"
    common = ("--mouse_ids", "F", "--out", str(out), "--quiet", "--plot")
    predicted(capsys, run, "--movie", first, *common)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    for other in (second, third):
        for kind in ("npy", "parquet"):
            assert main([str(run), "--movie", str(other), *common, "--format", kind]) == 1
            line = capsys.readouterr().err
            assert line.count("\n") == 1
            assert re.search(rf"film\.npy: holds responses to {first}; give another --output_dir, or rename", line)
            assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    predicted(capsys, run, "--movie", first, *common)  # the same movie again is no other one
    predicted(capsys, run, "--movie", second, "--mouse_ids", "F", "--out", tmp_path / "else", "--quiet")


@pytest.mark.parametrize(
    ("words", "status", "reason"),
    [
        (["--movie", "{film}", "--tier", "train"], 2, "leave --tier and --submission out"),
        (["--movie", "{film}", "--fit", "fill"], 2, "--fit must be one of crop, pad, stretch, not 'fill'"),
        (["--movie", "{film}", "--plot", "p.gif"], 2, "its name must end in one of pdf, svg, png"),
        (["--movie", "{film}", "--decoder", "dali"], 2, "DALI cannot decode it: it does not decode h264 on the CPU"),
        (["--movie", "absent.mp4"], 1, "--movie absent.mp4: no such file"),
        (["--movie", "{text}"], 1, "text.mp4: not a video file, or damaged"),
        (["--movie", "{film}", "--behavior", "{short}"], 1, r"--behavior: expected (2,) or (2, 90) numbers"),
        (["--movie", "{film}", "--behavior", "absent.npy"], 1, "--behavior absent.npy: no such file"),
        (["--movie", "{film}", "--data", "absent"], 1, "--data absent: no such folder"),
        (["--fit", "pad"], 2, "--fit is for --movie"),
        (["--plot"], 2, "--plot is for --movie"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    words: list[str], status: int, reason: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    film = write_video(tmp_path / "film.mp4", moving_pattern(90, *SIZE), "libx264")
    np.save(tmp_path / "short.npy", np.zeros((2, 89)))
    (tmp_path / "text.mp4").write_bytes(b"no film" * 100)
    names = {"film": film, "short": tmp_path / "short.npy", "text": tmp_path / "text.mp4"}
    given = [word.format(**names) for word in words]
    try:
        found = main([str(run), *given, "--out", str(tmp_path / "out"), "--quiet"])
    except SystemExit as error:
        found = int(str(error.code))
    captured = capsys.readouterr()
    assert found == status
    assert reason in captured.err
    assert captured.err.count("\n") == 1
    assert not [p for p in (tmp_path / "out").rglob("*") if p.is_file()]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_prediction_that_is_stopped_leaves_no_half_of_a_file(
    number: int,
    status: int,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    film = write_video(tmp_path / "film.mp4", moving_pattern(200, *SIZE))
    predicted(capsys, run, "--movie", film, "--out", tmp_path / "out", "--quiet")
    before = responses(tmp_path / "out")
    window, calls = SubjectModel.window, 0

    def stopped(*args: Any, **options: Any) -> np.ndarray:
        nonlocal calls
        calls += 1
        if calls == 5:
            assert list((tmp_path / "out").rglob(".*.part*"))
            os.kill(os.getpid(), number)
        return window(*args, **options)

    monkeypatch.setattr(SubjectModel, "window", stopped)
    assert main([str(w) for w in (run, "--movie", film, "--out", tmp_path / "out", "--quiet")]) == status
    assert calls == 5
    assert not list((tmp_path / "out").rglob(".*"))
    after = responses(tmp_path / "out")
    assert all(np.array_equal(after[name], array, equal_nan=True) for name, array in before.items())
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_memory_does_not_grow_with_the_movie(opened: tuple[list[ViV1T], Recordings]) -> None:
    """The movie is asked for piece by piece, no further ahead than the window that is predicted."""
    models, recordings = opened
    asked = 0

    def movie() -> Iterator[torch.Tensor]:
        nonlocal asked
        for _ in range(100):
            asked += 10
            yield torch.zeros(10, *SIZE)

    given = 0
    windows = movie_windows(models, subjects(recordings), 1000)
    for mouse, part in predict_movie(models, subjects(recordings), movie(), windows):
        if mouse == "F":
            given += part.shape[1]
            assert asked - given <= 70 + 10
    assert given == 1000


# -- without recordings ------------------------------------------------------------------------------------------------


@pytest.fixture
def film(tmp_path: Path) -> Path:
    return write_video(tmp_path / "film.mp4", moving_pattern(90, *SIZE))


def elsewhere(run: Path, to: Path, *, published: bool = False) -> Path:
    """A copy of a run whose recordings are not there; of a published one, which keeps nothing of them."""
    shutil.copytree(run, to)
    args = yaml.safe_load((to / "args.yaml").read_text())
    (to / "args.yaml").write_text(yaml.safe_dump(args | {"data": str(to / "gone")}))
    if published:
        (to / "recordings.safetensors").unlink()
    return to


def responses(out: Path) -> dict[str, np.ndarray]:
    return {str(p.relative_to(out)): np.load(p) for p in sorted(out.rglob("*.npy"))}


def same(found: Path, expected: Path) -> None:
    one, other = responses(found), responses(expected)
    assert one.keys() == other.keys()
    assert one
    for name, array in one.items():
        assert np.allclose(array, other[name], rtol=1e-4, atol=1e-5, equal_nan=True)


def test_a_run_and_a_movie_are_enough(
    run: Path, film: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for units in ("scaled", "recorded"):
        common = ("--movie", film, "--units", units, "--quiet", "--out")
        data = yaml.safe_load((run / "args.yaml").read_text())["data"]
        predicted(capsys, run, "--data", data, *common, tmp_path / units)
        moved = elsewhere(run, tmp_path / f"moved-{units}")
        predicted(capsys, moved, *common, tmp_path / f"moved-{units}-out")
        same(tmp_path / f"moved-{units}-out", tmp_path / units)


@pytest.mark.parametrize("mode", [0, 5])
def test_a_run_on_grey_levels_of_0_to_1_is_shown_films_in_its_range(
    mode: int, film: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same recordings in grey levels of 0 to 1 and of 0 to 255: standardised, a film is the same to both."""
    data = make_mice(tmp_path / "mice")
    for path in (data / SENSORIUM_SESSIONS["F"] / "data" / "videos").glob("*.npy"):
        np.save(path, np.load(path).astype(np.float32) / 255)
    changes: dict[str, Any] = {"transform_mode": mode, "mouse_ids": ["F"], "epochs": 1}
    with pytest.MonkeyPatch.context() as patch:
        script_validation(patch, [0.25], mice=("F",))
        train(data, tmp_path / "run", **changes)
    shown: list[float] = []
    inside = SubjectModel.window

    def window(self: SubjectModel, video: torch.Tensor, *args: Any, **options: Any) -> np.ndarray:
        shown.append(float(video.max()))
        return inside(self, video, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SubjectModel, "window", window)
        for words in ([], ["--data", data]):
            text = predicted(capsys, tmp_path / "run", *words, "--movie", film, "--quiet", "--out", tmp_path / "out")
            assert "trained on grey levels of 0 to 1: the film's were divided by 255" in text
    assert 0.3 < max(shown) <= 1
    with pytest.raises(ConfigError, match="recordings' lie between 0 and 1: divide by 255"):
        viv1t.Predictor(tmp_path / "run").predict(moving_pattern(60, *SIZE))


def test_a_published_run_says_what_it_lacks_and_takes_it_from_a_file(
    run: Path, mice: Path, film: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    published = elsewhere(run, tmp_path / "published", published=True)
    common = ("--movie", film, "--quiet", "--out")
    assert main([str(word) for word in (published, *common, tmp_path / "none")]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    for word in ("published", "gone is not there", "--data DIR", "--statistics FILE", "viv1t-data statistics DIR FILE"):
        assert word in error
    assert not (tmp_path / "none").exists()

    known = tmp_path / "known.safetensors"
    assert data_main(["statistics", str(mice), str(known), "--quiet"]) == 0
    assert "A, F, G" in capsys.readouterr().out
    predicted(capsys, run, *common, tmp_path / "direct", "--data", mice)
    predicted(capsys, published, *common, tmp_path / "out", "--statistics", known)
    same(tmp_path / "out", tmp_path / "direct")

    # Of one mouse, from a folder or a file that has no other.
    one = tmp_path / "one"
    one.mkdir()
    (one / SENSORIUM_SESSIONS["G"]).symlink_to(mice / SENSORIUM_SESSIONS["G"])
    for index, words in enumerate((["--data", one], ["--statistics", tmp_path / "g.safetensors"])):
        if index:
            assert data_main(["statistics", str(mice), words[1].__fspath__(), "--mouse_ids", "G", "--quiet"]) == 0
        predicted(capsys, published, "--mouse_ids", "G", *words, *common, tmp_path / f"g{index}")
        found = responses(tmp_path / f"g{index}")
        assert list(found) == [f"{SENSORIUM_SESSIONS['G']}/film.npy"]
    for file, reason in ((words[1], "nothing of mouse F: they know G"), (tmp_path / "no", "no such file or folder")):
        assert main([str(w) for w in (published, *common, tmp_path / "x", "--statistics", file)]) == 1
        assert reason in capsys.readouterr().err


def test_an_exported_file_serves_as_statistics(
    run: Path, film: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxscript")
    from viv1t.cli.export import main as export

    assert export([str(run), "--output_dir", str(tmp_path / "exported"), "--mouse_ids", "F", "--transforms"]) == 0
    capsys.readouterr()
    published = elsewhere(run, tmp_path / "published", published=True)
    common = ("--movie", film, "--mouse_ids", "F", "--quiet", "--out")
    predicted(capsys, run, *common, tmp_path / "direct")
    file = ("--statistics", tmp_path / "exported" / "F.onnx")
    predicted(capsys, published, *common, tmp_path / "out", *file)
    same(tmp_path / "out", tmp_path / "direct")
    # The file itself takes what a Predictor takes, in the same forms.
    model, movie = viv1t.OnnxModel(file[1]), moving_pattern(40, *SIZE)
    expected = viv1t.Predictor(run, mouse_ids="F").predict(movie)
    assert np.allclose(model.predict(movie), expected, atol=1e-4)
    states = [model.medians[name] for name in ("behavior", "pupil_center")]
    assert np.allclose(model.predict(movie[None].tolist(), *states), expected, atol=1e-4)
    for given, reason in (
        ((movie / 255,), "lie between 0 and 255: multiply by 255"),
        ((np.moveaxis(movie, 0, -1),), "last in recordings"),
        ((movie, np.zeros((2, 39))), "F.onnx: behavior must be"),
    ):
        with pytest.raises(ConfigError, match=reason):
            model.predict(*given)
    assert main([str(w) for w in (published, *common, tmp_path / "x", *file, "--units", "recorded")]) == 2
    assert "--units recorded needs the responses' deviations" in capsys.readouterr().err


def test_the_published_metadata_folder_serves_as_statistics(
    run: Path, mice: Path, film: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    published = elsewhere(run, tmp_path / "published", published=True)
    args = yaml.safe_load((published / "args.yaml").read_text())
    session = open_recording(mice / SENSORIUM_SESSIONS["F"])
    recorded = {
        v: np.concatenate([session.read(v, t)[..., : session.duration(t)] for t in session.trials("train")], -1)
        for v in ("video", "response", "behavior", "pupil_center")
    }
    folder = tmp_path / "metadata"
    for variable, values in recorded.items():
        place = folder / "statistics" / "mouseF" / variable
        place.mkdir(parents=True)
        axis = None if variable == "video" else -1
        for name in ("min", "max", "median", "mean", "std"):
            np.save(place / f"{name}.npy", getattr(np, name)(values, axis=axis))
    (folder / "neuron_coordinates").mkdir()
    np.save(folder / "neuron_coordinates" / "mouseF.npy", session.mouse.coordinates)
    common = ("--movie", film, "--mouse_ids", "F", "--quiet", "--statistics", folder, "--out")
    assert main([str(w) for w in (published, *common, tmp_path / "x")]) == 2  # the run's are of each frame
    assert "has no statistics of each frame, which the run's --transform_mode needs" in capsys.readouterr().err
    (published / "args.yaml").write_text(yaml.safe_dump(args | {"transform_mode": 3, "response_scale": "neuron"}))
    predicted(capsys, published, *common, tmp_path / "out", "--units", "recorded")
    (found,) = responses(tmp_path / "out").values()
    # By hand: standardised by the folder's numbers, medians for behaviour and gaze.
    movie = torch.cat(list(Movie(film, SIZE).chunks()))
    v, b, p = (recorded[name] for name in ("video", "behavior", "pupil_center"))
    model = viv1t.load_model(published)
    state = [np.median(b, -1) / b.std(-1), (np.median(p, -1) - p.mean(-1)) / p.std(-1)]
    states = [torch.tensor(s, dtype=torch.float32)[None, :, None].expand(1, 2, 90) for s in state]
    with torch.no_grad():
        expected = model(((movie - v.mean()) / v.std())[None, None].float(), "F", *states)[0].numpy()
    deviation = recorded["response"].std(-1)
    expected = expected * np.maximum(deviation, 0.01 * deviation.mean())[:, None]
    first = fitting({"F": SubjectModel([model], Subject.of(Recordings.open(RunFolder(run).config().data, 1), "F"))}, 90)
    assert np.allclose(found[:, 4 : first.skipped], expected[:, : first.skipped - 4], rtol=1e-3, atol=1e-3)


# -- the picture -------------------------------------------------------------------------------------------------------


def test_a_summary_takes_means_over_bins() -> None:
    rng = np.random.default_rng(0)
    responses = rng.random((5, 1500)).astype(np.float32)
    responses[:, :10] = np.nan
    summary = MovieSummary(1500, {"F": 5})
    for first in range(0, 1500, 70):
        summary.add_stimulus(np.full((len(responses[0, first : first + 70]), 2, 3), first))
        summary.add_response("F", responses[:, first : first + 70])
    rates = summary.rates("F")
    assert rates.shape == (5, 500)
    expected = responses[:, 12:].reshape(5, -1, 3).mean(2)
    assert np.allclose(rates[:, 4:], expected, atol=1e-5)
    assert np.isnan(rates[:, :3]).all()
    assert len(summary.stills) == 8
    order = raster(rates)
    assert order.shape == (5, 500)
    assert (np.diff(np.nanargmax(order, axis=1)) >= 0).all()


def test_nothing_predicted_is_not_drawn(tmp_path: Path) -> None:
    summary = MovieSummary(4, {"F": 2})
    summary.add_stimulus(np.zeros((4, 2, 2)))
    summary.add_response("F", np.full((2, 4), np.nan))
    with pytest.raises(DataError, match="nothing to draw: no frame of the movie was predicted"):
        movie_responses(summary, tmp_path / "p.png")
    assert not re.search("p.png", str(list(tmp_path.iterdir())))
