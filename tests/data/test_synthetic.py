"""Synthetic mice: the published format, the same bytes every time, and a truth that is true."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from commands import viv1t_data as main

from viv1t.data.synthetic import mice as synthetic
from viv1t.data.synthetic.mice import Size, synthesize
from viv1t.data.synthetic.movies import behave, gaze, naturalistic_movie, parametric_movie
from viv1t.data.synthetic.neurons import MEMORY, draw_population, shift_frames
from viv1t.data.synthetic.truth import EVALUATION_TIERS, load_population, noise_ceiling
from viv1t.errors import ConfigError, DataError
from viv1t.types import SENSORIUM_SESSIONS

SIZE = Size(neurons=20, frames=100, trials=9, evaluation=((2, 3), (1, 2), (1, 2), (1, 2), (1, 2)))
TINY = Size(neurons=6, frames=40, trials=3, evaluation=((1, 2), (0, 1), (0, 1), (0, 1), (0, 1)))
HIDDEN, OPEN = SENSORIUM_SESSIONS["F"], SENSORIUM_SESSIONS["A"]


@pytest.fixture(scope="module")
def mice(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("mice")
    synthesize(out, mice=["F", "A"], size=SIZE, seed=5, workers=2)
    return out


def digests(session: Path) -> dict[str, str]:
    files = sorted(p for p in session.rglob("*") if p.is_file())
    return {str(p.relative_to(session)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def trials_of(session: Path, tier: str) -> list[int]:
    return [int(i) for i in np.flatnonzero(np.load(session / "meta/trials/tiers.npy") == tier)]


def load(session: Path, kind: str, trial: int) -> np.ndarray:
    return np.asarray(np.load(session / "data" / kind / f"{trial}.npy"))


def duration(session: Path, trial: int) -> int:
    return int((~np.isnan(load(session, "videos", trial)[0, 0])).sum())


# --- the format ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [HIDDEN, OPEN])
def test_arrays_have_the_published_shapes_and_nan_tails(mice: Path, name: str) -> None:
    session = mice / name
    tiers = np.load(session / "meta/trials/tiers.npy")
    assert tiers.dtype.kind == "U"
    assert {t: int((tiers == t).sum()) for t in np.unique(tiers)} == {
        "train": 9, "oracle": 6, "live_test_main": 2, "live_test_bonus": 2, "final_test_main": 2, "final_test_bonus": 2,
    }  # fmt: skip
    coordinates = np.load(session / "meta/neurons/cell_motor_coordinates.npy")
    assert coordinates.shape == (20, 3)
    assert coordinates.dtype.kind == "i"
    assert len(set(np.load(session / "meta/neurons/unit_ids.npy"))) == 20
    lengths = set()
    for trial in range(len(tiers)):
        frames = duration(session, trial)
        lengths.add(frames)
        for kind, shape in {"videos": (36, 64), "responses": (20,), "behavior": (2,), "pupil_center": (2,)}.items():
            array = load(session, kind, trial)
            assert array.shape == (*shape, 124)
            assert array.flags.c_contiguous
            assert np.isfinite(array[..., :frames]).all()
            if kind != "responses" or array.any():
                assert np.isnan(array[..., frames:]).all()
        video = load(session, "videos", trial)[..., :frames]
        assert video.min() >= 0
        assert video.max() <= 255
        assert np.array_equal(video, np.rint(video))
        assert load(session, "behavior", trial)[1, :frames].min() >= 0
        response = load(session, "responses", trial)
        assert response.dtype == np.float32
        assert np.nanmin(response) >= 0
    assert max(lengths) == 100
    assert len(lengths) > 1
    assert min(lengths) >= 90


def test_only_the_new_mice_hide_their_test_responses(mice: Path) -> None:
    for tier in EVALUATION_TIERS:
        for trial in trials_of(mice / HIDDEN, tier):
            hidden = tier != "oracle"
            assert (load(mice / HIDDEN, "responses", trial) == 0).all() == hidden
            assert (mice / HIDDEN / "truth/withheld" / f"{trial}.npy").exists() == hidden
        for trial in trials_of(mice / OPEN, tier):
            assert np.nanmax(load(mice / OPEN, "responses", trial)) > 0
    assert not (mice / OPEN / "truth/withheld").exists()


def test_repeats_share_the_movie_but_not_the_animal(mice: Path) -> None:
    session = mice / HIDDEN
    plans = json.loads((session / "truth/trials.json").read_text())
    movies = {p["movie"] for p in plans if p["tier"] == "oracle"}
    assert len(movies) == 2
    for movie in movies:
        first, second, _ = [p["trial"] for p in plans if p["movie"] == movie]
        assert np.array_equal(load(session, "videos", first), load(session, "videos", second), equal_nan=True)
        for kind in ("responses", "behavior", "pupil_center"):
            assert not np.array_equal(load(session, kind, first), load(session, kind, second), equal_nan=True)
    shown = {digests(session)[f"data/videos/{p['trial']}.npy"] for p in plans}
    assert len(shown) == len({p["movie"] for p in plans})
    own = {digests(mice / OPEN)[f"data/videos/{p['trial']}.npy"] for p in plans}
    assert not shown & own


def test_statistics_are_those_of_the_training_trials(mice: Path) -> None:
    session = mice / HIDDEN
    for kind in ("videos", "responses", "behavior", "pupil_center"):
        stacked = np.stack([load(session, kind, t) for t in trials_of(session, "train")]).astype(np.float64)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # no trial reaches the last, padded frames
            expected: dict[str, Callable[..., np.ndarray]] = {
                "min": np.nanmin,
                "max": np.nanmax,
                "mean": np.nanmean,
                "std": np.nanstd,
            }
            for name, function in expected.items():
                value = np.load(session / "meta/statistics" / kind / "all" / f"{name}.npy")
                assert value.shape == stacked.shape[1:]
                np.testing.assert_allclose(value, function(stacked, axis=0), rtol=1e-5, atol=1e-5)


def test_movies_move_and_differ_in_kind() -> None:
    for movie in (naturalistic_movie, parametric_movie):
        video = movie(np.random.default_rng(0), 150)
        assert video.shape == (150, 36, 64)
        assert video.std(axis=(1, 2)).mean() > 15
        change = np.abs(np.diff(video, axis=0)).mean(axis=(1, 2))
        assert (change > 0).mean() > 0.9
        assert change.mean() < video.std() / 2  # motion, not flicker


# --- the same bytes -----------------------------------------------------------------------------------------------


def test_bytes_depend_on_seed_and_options_alone(mice: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from viv1t.data.synthetic.mice import *;"
        f"synthesize(Path(sys.argv[1]), mice=['F'], size={SIZE!r}, seed=5, workers=1)"
    )
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    root = str(Path(synthetic.__file__).resolve().parents[3])
    environment["PYTHONPATH"] = os.pathsep.join([root, environment.get("PYTHONPATH", "")])
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=environment, check=True)
    assert digests(tmp_path / HIDDEN) == digests(mice / HIDDEN)


def test_another_seed_gives_another_mouse(tmp_path: Path) -> None:
    a, b = (synthesize(tmp_path / str(seed), mice=1, size=TINY, seed=seed)[0] for seed in (1, 2))
    same = {f for f, digest in digests(a).items() if digests(b).get(f) == digest}
    assert same == {"meta/neurons/unit_ids.npy"} | (same & {"meta/trials/tiers.npy", "truth/trials.json"})


# --- the truth ----------------------------------------------------------------------------------------------------


def test_rates_are_those_of_the_recorded_movie_behavior_and_gaze(mice: Path) -> None:
    session = mice / HIDDEN
    cells = load_population(session)
    for tier in EVALUATION_TIERS:
        trial = trials_of(session, tier)[0]
        frames = duration(session, trial)
        video, behavior, pupil_center = (
            load(session, kind, trial)[..., :frames] for kind in ("videos", "behavior", "pupil_center")
        )
        rates = cells.expected(video.transpose(2, 0, 1), behavior, pupil_center)
        assert np.array_equal(np.load(session / "truth/rates" / f"{trial}.npy"), rates)
    assert np.array_equal(np.load(session / "truth/positions.npy"), cells.positions)


def test_recordings_scatter_around_their_expected_response() -> None:
    rng = np.random.default_rng(3)
    cells = draw_population(rng, 30)
    video = naturalistic_movie(rng, 60)
    spikes = cells.spikes(video, behave(rng, 60), gaze(rng, 60, cells.gaze_center))
    draws = np.stack([cells.observe(spikes, rng) for _ in range(1500)]).astype(np.float64)
    z = (draws.mean(axis=0) - cells.response(spikes)) / (draws.std(axis=0) / np.sqrt(len(draws)))
    assert abs(z.mean()) < 0.15
    assert 0.8 < z.std() < 1.25
    assert np.abs(z).max() < 7


def test_the_response_remembers_fifteen_frames_and_no_future() -> None:
    rng = np.random.default_rng(4)
    cells = draw_population(rng, 40)
    video, behavior = naturalistic_movie(rng, 80), behave(rng, 80)
    pupil_center = np.repeat(cells.gaze_center[:, None], 80, axis=1)
    changed = video.copy()
    changed[30] = 255 - changed[30]
    differs = np.flatnonzero(
        (cells.expected(video, behavior, pupil_center) != cells.expected(changed, behavior, pupil_center)).any(axis=0)
    )
    assert MEMORY == 15
    assert differs.min() >= 30
    assert 30 + 8 < differs.max() < 30 + MEMORY


def test_gaze_moves_the_receptive_fields() -> None:
    video = np.random.default_rng(0).normal(size=(3, 36, 64)).astype(np.float32)
    moved = shift_frames(video, np.array([[0, 2, 0], [0, 0, -3]], dtype=np.float32))
    for read, shown in ((moved[0], video[0]), (moved[1][:, :-2], video[1][:, 2:]), (moved[2][3:], video[2][:-3])):
        np.testing.assert_allclose(read, shown, atol=1e-6)
    half = shift_frames(video, np.full((2, 3), 0.5, dtype=np.float32))
    np.testing.assert_allclose(half[:, 4, 7], video[:, 4:6, 7:9].mean(axis=(1, 2)), rtol=1e-5, atol=1e-6)


def test_receptive_fields_are_found_where_the_truth_says() -> None:
    rng = np.random.default_rng(6)
    cells, frames, lag = draw_population(rng, 60), 400, 4  # the lag is the kernels' peak and the blur
    still = np.repeat(cells.gaze_center[:, None], frames, axis=1)
    quiet = np.repeat([[35.0], [2.0]], frames, axis=1)
    triggered = np.zeros((60, 18 * 32))
    for _ in range(10):
        # Checks of 6 pixels on a grid that jumps, new every other frame.
        checks = np.kron(rng.integers(0, 2, (frames // 2, 8, 13)) * 200 + 28, np.ones((1, 6, 6)))
        at = rng.integers(0, 6, (frames // 2, 2))
        noise = np.stack([c[i : i + 36, j : j + 64] for c, (i, j) in zip(checks, at, strict=True)])
        video = np.repeat(noise, 2, axis=0).astype(np.float32)
        response = cells.observe(cells.spikes(video, quiet, still), rng)
        seen = video[:-lag, ::2, ::2].reshape(frames - lag, -1) - 128
        triggered += (response - response.mean(axis=1, keepdims=True))[:, lag:] @ seen
    power = (triggered**2).reshape(60, 18, 32)
    peak = power.max(axis=(1, 2))
    simple = np.flatnonzero(cells.complexity < 0.2)
    best = simple[np.argsort((peak / np.median(power, axis=(1, 2)))[simple])[-8:]]
    weight = np.where(power > 0.25 * peak[:, None, None], power, 0)[best]
    y, x = np.mgrid[:18, :32] * 2 + 0.5
    found = np.stack([(weight * x).sum((1, 2)), (weight * y).sum((1, 2))], 1) / weight.sum((1, 2))[:, None]
    truth = ((cells.positions + 1) / 2 * [63, 35])[best]
    error = np.linalg.norm(found - truth, axis=1)
    assert np.median(error) < 2.5, error
    assert np.median(np.linalg.norm(found - np.roll(truth, 1, axis=0), axis=1)) > 3 * np.median(error)


def test_responses_are_as_sparse_and_noisy_as_recorded_ones(tmp_path: Path) -> None:
    size = Size(neurons=200, frames=300, trials=2, evaluation=((4, 2), (0, 1), (0, 1), (0, 1), (0, 1)))
    (session,) = synthesize(tmp_path, mice=["F"], size=size, seed=1)
    ceiling = noise_ceiling(session)
    assert 0.35 < np.median(ceiling) < 0.6
    assert np.quantile(ceiling, 0.75) - np.quantile(ceiling, 0.25) > 0.1
    assert noise_ceiling(session, to_average=True).mean() > ceiling.mean()
    response = np.concatenate([load(session, "responses", t) for t in trials_of(session, "oracle")], axis=1)
    mean, std = np.nanmean(response, axis=1), np.nanstd(response, axis=1)
    assert (std > mean).mean() > 0.95
    assert 0.3 < (response[np.isfinite(response)] == 0).mean() < 0.7


def test_noise_ceiling_is_the_pooled_correlation(mice: Path) -> None:
    for tier in ("oracle", "final_test_main"):
        session = mice / HIDDEN
        expected, recorded = [], []
        for trial in trials_of(session, tier):
            stop = duration(session, trial)
            folder = "data/responses" if tier == "oracle" else "truth/withheld"
            expected.append(np.load(session / "truth/rates" / f"{trial}.npy")[:, 50:])
            recorded.append(np.load(session / folder / f"{trial}.npy")[:, 50:stop])
        pairs = zip(np.concatenate(expected, axis=1), np.concatenate(recorded, axis=1), strict=True)
        correlation = [np.corrcoef(x, y)[0, 1] for x, y in pairs]
        np.testing.assert_allclose(noise_ceiling(session, tier), correlation, atol=1e-5)
    assert np.array_equal(noise_ceiling(session, "validation"), np.load(session / "truth/noise_ceiling.npy"))


def test_noise_ceiling_to_average_averages_both_over_repeats(mice: Path) -> None:
    session = mice / OPEN
    plans = [p for p in json.loads((session / "truth/trials.json").read_text()) if p["tier"] == "oracle"]
    expected, recorded = [], []
    for movie in sorted({p["movie"] for p in plans}):
        trials = [p["trial"] for p in plans if p["movie"] == movie]
        assert len(trials) == 3
        rates = [np.load(session / "truth/rates" / f"{t}.npy") for t in trials]
        assert not np.array_equal(rates[0], rates[1])  # behavior differs
        stop = duration(session, trials[0])
        expected.append(np.mean(rates, axis=0)[:, 50:stop])
        recorded.append(np.mean([load(session, "responses", t)[:, 50:stop] for t in trials], axis=0))
    pairs = zip(np.concatenate(expected, axis=1), np.concatenate(recorded, axis=1), strict=True)
    correlation = [np.corrcoef(x, y)[0, 1] for x, y in pairs]
    np.testing.assert_allclose(noise_ceiling(session, to_average=True), correlation, atol=1e-5)


@pytest.mark.parametrize("tier", ["train", "none"])
def test_noise_ceiling_needs_expected_responses(mice: Path, tier: str) -> None:
    with pytest.raises(DataError, match=tier):
        noise_ceiling(mice / HIDDEN, tier)
    with pytest.raises(DataError, match="not a synthetic session"):
        noise_ceiling(mice)
    with pytest.raises(DataError, match="no frame is left"):
        noise_ceiling(mice / HIDDEN, skip=100)


# --- names, sizes, interruptions ----------------------------------------------------------------------------------


def test_names_follow_the_published_mice() -> None:
    names = synthetic.session_names(12)
    assert names[:10] == [SENSORIUM_SESSIONS[m] for m in "FGHIJABCDE"]
    assert names[10:] == ["synthetic-011", "synthetic-012"]
    assert synthetic.session_names(["B", "mine"]) == [SENSORIUM_SESSIONS["B"], "mine"]
    for bad in (0, [], ["F", "F"], ["../x"], [".hidden"], [""]):
        with pytest.raises(ConfigError, match="--mice"):
            synthetic.session_names(bad)


def test_full_scale_is_the_published_size() -> None:
    sizes = [synthetic.full_scale(name) for name in SENSORIUM_SESSIONS.values()]
    assert len({s.neurons for s in sizes}) > 5
    for s in sizes:
        assert 7440 <= s.neurons <= 8600
        assert 340 <= s.trials <= 360
        assert [m * r for m, r in s.evaluation][::2][0] == 60
        assert all(60 <= m * r <= 140 for m, r in s.evaluation)


def test_an_interrupted_session_does_not_look_complete_and_can_be_made_again(tmp_path: Path) -> None:
    def stop(_: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        synthesize(tmp_path, mice=["F", "G"], size=TINY, report=stop)
    assert not [p for p in tmp_path.iterdir() if not p.name.startswith(".")]
    first = synthesize(tmp_path, mice=["F"], size=TINY)[0]
    made = (first / "truth/truth.json").stat().st_mtime_ns
    synthesize(tmp_path, mice=["F", "G"], size=TINY, existing="resume")
    assert (first / "truth/truth.json").stat().st_mtime_ns == made
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(SENSORIUM_SESSIONS[m] for m in "FG")
    with pytest.raises(DataError, match="other options"):
        synthesize(tmp_path, mice=["F"], size=TINY, seed=9, existing="resume")
    synthesize(tmp_path, mice=["F"], size=TINY, seed=9, existing="keep")
    assert (first / "truth/truth.json").stat().st_mtime_ns == made
    synthesize(tmp_path, mice=["F"], size=TINY, seed=9, existing="overwrite")
    assert json.loads((first / "truth/truth.json").read_text())["options"]["seed"] == 9


# --- the command --------------------------------------------------------------------------------------------------

SYNTH = ["--neurons", "5", "--trials", "3", "--frames", "40", "--movies", "1", "--repeats", "2", "--test_movies", "0"]


def test_command_writes_sessions_and_names_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["synth", str(tmp_path / "out"), "--mice", "J", *SYNTH]) == 0
    out, err = capsys.readouterr()
    session = tmp_path / "out" / SENSORIUM_SESSIONS["J"]
    assert out == f"{session}\n"
    assert "5/5 trials" in err
    assert np.load(session / "data/responses/0.npy").shape == (5, 64)
    assert main(["synth", str(tmp_path / "out"), "--mice", "J", *SYNTH]) == 1
    error = capsys.readouterr().err
    assert error.startswith("viv1t-data: error: ")
    assert error.count("\n") == 1
    assert main(["synth", str(tmp_path / "out"), "--mice", "J", "--resume", "--quiet", *SYNTH]) == 0


def test_a_real_recording_is_never_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    real = tmp_path / SENSORIUM_SESSIONS["F"] / "data"
    real.mkdir(parents=True)
    assert main(["synth", str(tmp_path), "--mice", "F", "--overwrite", *SYNTH]) == 1
    assert "is not a synthetic mouse" in capsys.readouterr().err
    assert real.is_dir()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--full_scale", "--neurons", "5"], "--neurons does not go with --full_scale"),
        (["--mice", "F,F"], "different mice"),
        (["--mice", "0"], "--mice must be at least 1"),
        (["--seed", "-1"], "--seed"),
        (["--workers", "0"], "--workers"),
        (["--frames", "5"], "--frames must be at least"),
        (["--neurons", "0"], "at least one neuron"),
        (["--repeats", "0"], "repeats"),
    ],
)
def test_bad_options_are_one_line_and_exit_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert main(["synth", str(tmp_path / "out"), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("viv1t-data: error: ")
    assert error.count("\n") == 1
    assert words in error
    assert not (tmp_path / "out").exists()


def test_usage_errors_exit_2_and_a_file_in_the_way_exits_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["synth"])
    assert stopped.value.code == 2
    (tmp_path / "out").write_text("")
    assert main(["synth", str(tmp_path / "out"), *SYNTH]) == 1
    assert "is a file" in capsys.readouterr().err
