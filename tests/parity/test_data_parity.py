"""The data room against the numbers the published loader made of the same recordings."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from viv1t.config.data import DataConfig
from viv1t.data.mice import open_recording
from viv1t.data.order import training_order
from viv1t.data.recordings import Recordings, training_trials
from viv1t.data.session import VARIABLES, Session
from viv1t.data.statistics import compute_statistics, medians, provided_statistics, response_precision
from viv1t.data.transform import Transform
from viv1t.types import SENSORIUM_SESSIONS, TIERS, Trial

MICE = ("B", "F")
MODES = ("none", "standardize_per_frame", "published", "standardize", "min_max")
MICE_MODES = ("old", "new", "all", "all_with_test")


@pytest.fixture(scope="module")
def recordings(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy that may be written: the cache of statistics goes beside the recordings."""
    copy = Path(shutil.copytree(golden / "data" / "sensorium", tmp_path_factory.mktemp("golden") / "sensorium"))
    for folder in (copy, *(path for path in copy.rglob("*") if path.is_dir())):
        folder.chmod(0o755)
    return copy


@pytest.fixture(scope="module")
def sessions(recordings: Path) -> dict[str, Session]:
    return {mouse: open_recording(recordings / SENSORIUM_SESSIONS[mouse]) for mouse in MICE}


def expected(golden: Path, name: str) -> dict[str, np.ndarray]:
    with np.load(golden / "data" / "expected" / f"{name}.npz") as file:
        return dict(file)


def close(actual: np.ndarray, wanted: np.ndarray, tolerance: float = 1e-6) -> None:
    """Within `tolerance` of the size of the value, or of the typical size of its row where that is larger."""
    assert actual.shape == wanted.shape
    size = np.maximum(np.abs(wanted), np.abs(wanted).mean(-1, keepdims=True))
    np.testing.assert_array_less(np.abs(actual - wanted), tolerance * size + 1e-12)


@pytest.mark.parametrize("mouse", MICE)
def test_statistics(golden: Path, sessions: dict[str, Session], mouse: str) -> None:
    wanted = expected(golden, f"statistics_{mouse}")
    errors = json.loads((golden / "data" / "expected" / "statistics_float32_error.json").read_text())
    session = sessions[mouse]
    statistics = compute_statistics(session, session.trials("train"))
    for family in ("trial", "time"):
        for variable in VARIABLES:
            moments = getattr(statistics, family)[variable]
            for name in ("min", "max", "median", "mean", "std"):
                actual = medians(session, variable, family) if name == "median" else getattr(moments, name)
                key = f"{family}/{variable}/{name}"
                assert actual.shape == wanted[key].shape, key
                atol = 2 * errors.get(f"{mouse}/{key}", 0.0) + 1e-7
                np.testing.assert_allclose(actual, wanted[key], rtol=3e-7, atol=atol, err_msg=key)


@pytest.mark.parametrize("mouse", MICE)
@pytest.mark.parametrize("source", [0, 1])
def test_response_precision(golden: Path, sessions: dict[str, Session], mouse: str, source: int) -> None:
    session = sessions[mouse]
    statistics = compute_statistics(session, session.trials("train")) if source else provided_statistics(session)
    wanted = expected(golden, f"samples_{mouse}")[f"stat{source}/response_precision"]
    close(response_precision(statistics.trial["response"].std), wanted)


def transform(session: Session, source: int, mode: int, crop: float) -> Transform:
    statistics = compute_statistics(session, session.trials("train")) if source else provided_statistics(session)
    return Transform(session.mouse.id, MODES[mode], statistics, crop, session.frame_size)


def sample(session: Session, t: Transform, trial: int, first: int = 0, frames: int | None = None) -> Trial:
    raw = {variable: session.read(variable, trial) for variable in VARIABLES}
    return t.apply(trial, raw, first, t.frames(session.duration(trial)) if frames is None else frames)


def tolerance(variable: str, mode: int) -> float:
    return 3e-5 if variable == "pupil_center" and mode in (1, 3) else 1e-6


@pytest.mark.parametrize("mouse", MICE)
@pytest.mark.parametrize(("source", "mode"), [(0, 0), (0, 1), (0, 2), *((1, mode) for mode in range(5))])
def test_samples(golden: Path, sessions: dict[str, Session], mouse: str, source: int, mode: int) -> None:
    wanted = expected(golden, f"samples_{mouse}")
    session = sessions[mouse]
    compared = 0
    for crop in (1.0, 0.8, 0.5):
        t = transform(session, source, mode, crop)
        for trial in session.trials("validation"):
            prefix = f"stat{source}/tm{mode}/crop{crop}/{trial}/"
            actual = sample(session, t, trial)
            assert actual.video.shape == tuple(wanted[prefix + "video_shape"])
            close(actual.video[:, wanted[prefix + "video_frames"]], wanted[prefix + "video"])
            for variable in VARIABLES[1:]:
                if prefix + variable in wanted:
                    np.testing.assert_allclose(
                        getattr(actual, variable),
                        wanted[prefix + variable],
                        rtol=tolerance(variable, mode),
                        atol=tolerance(variable, mode),
                        err_msg=prefix + variable,
                    )
                    compared += 1
    assert compared == 3 * len(session.trials("validation"))


@pytest.mark.parametrize("mouse", MICE)
def test_training_crops_at_given_starts(golden: Path, sessions: dict[str, Session], mouse: str) -> None:
    wanted = expected(golden, f"train_crops_{mouse}")
    session = sessions[mouse]
    rows = json.loads((golden / "data" / "expected" / f"train_crops_{mouse}.json").read_text())
    for row in rows:
        mode, _, trial = row["key"].split("/")
        t = transform(session, 1, int(mode.removeprefix("tm")), 1.0)
        low, high, start = row["randint"]
        recorded = t.frames(session.duration(int(trial)))
        assert (low, high) == (0, recorded - row["frames"])  # the published bound: our last start, left out there
        actual = sample(session, t, int(trial), start, row["frames"])
        close(actual.response, wanted[row["key"] + "/response"])
        close(actual.behavior, wanted[row["key"] + "/behavior"])
        close(actual.video[0, :, 3, 5], wanted[row["key"] + "/video_pixel"])
    first = sample(session, transform(session, 1, 2, 1.0), int(wanted["validation_crop_frame60/trial"]), 0, 60)
    close(first.response, wanted["validation_crop_frame60/response"])


@pytest.mark.parametrize("mouse", MICE)
def test_trial_selection(golden: Path, recordings: Path, sessions: dict[str, Session], mouse: str) -> None:
    wanted = json.loads((golden / "data" / "expected" / "selection.json").read_text())
    session = sessions[mouse]
    for code, mice in enumerate(MICE_MODES):
        for tier in TIERS:
            config = DataConfig(path=str(recordings), mice=mice, transform="none")
            actual = training_trials(session, config) if tier == "train" else session.trials(tier)
            key = f"{mouse}/ds_mode{code}/{tier}"
            assert actual == wanted[key], key
            if f"{key}/hidden_response" in wanted and tier != "train":
                assert session.hidden(tier) == wanted[f"{key}/hidden_response"], key
            for limit in (1, 3):
                if f"{key}/limit_data{limit}" in wanted:
                    limited = DataConfig(path=str(recordings), mice=mice, transform="none", limit_data=limit)
                    assert training_trials(session, limited) == wanted[f"{key}/limit_data{limit}"], key


def test_mice_are_visited_in_turn(golden: Path) -> None:
    for case in json.loads((golden / "data" / "expected" / "cycle_order.json").read_text()):
        trials = {mouse: list(range(2 * n)) for mouse, n in case["batches_of_each_mouse"].items()}
        order = training_order(1234, 0, trials, 2)
        assert [mouse for mouse, _ in order] == [mouse for mouse, _ in case["sequence"]]
        seen: dict[str, list[int]] = {mouse: [] for mouse in trials}
        for (mouse, batch), (_, number) in zip(order, case["sequence"], strict=True):
            if number == 0:  # the published loader starts the mouse over: so must ours, with every trial once
                assert not seen[mouse] or sorted(seen[mouse]) == trials[mouse]
                seen[mouse] = []
            seen[mouse] += batch


@pytest.mark.parametrize("mouse", MICE)
def test_evaluation_batches(golden: Path, recordings: Path, mouse: str) -> None:
    config = DataConfig(path=str(recordings), mice="all", transform="published", mouse_ids=(mouse,))
    wanted = expected(golden, f"samples_{mouse}")
    batches = list(Recordings.open(config, seed=1).trials(mouse, "validation"))
    assert [batch.trial_ids for batch in batches] == [
        (trial,) for trial in sorted(batch.trial_ids[0] for batch in batches)
    ]
    for batch in batches:
        close(batch.response[0].numpy(), wanted[f"stat1/tm2/crop1.0/{batch.trial_ids[0]}/response"])
