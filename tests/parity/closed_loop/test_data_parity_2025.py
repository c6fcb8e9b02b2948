"""Statistics, samples and selections of 2025, and a whole published run evaluated to its own numbers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from closed_loop_cases import closed_loop_folder, required
from golden_files import golden_folder

from viv1t.data.mice import open_recording
from viv1t.data.session import VARIABLES, Session
from viv1t.data.statistics import MouseStatistics, compute_statistics
from viv1t.data.transform import Transform
from viv1t.families.closed_loop.data import (
    build_transform,
    find_sessions,
    limited_neurons,
    limited_trials,
    open_recordings,
    over_pixels,
)
from viv1t.families.closed_loop.options import ClosedLoopDataConfig
from viv1t.prediction.evaluate import family_scores
from viv1t.prediction.trials import predict
from viv1t.runs.ensemble import open_ensemble
from viv1t.runs.folder import RunFolder
from viv1t.types import SENSORIUM_SESSIONS, Trial

MICE = ("B", "F")
INPUTS, OUTPUTS = ("none", "standardize", "min_max"), ("none", "deviation", "min_max")


@pytest.fixture(scope="module")
def sessions() -> dict[str, tuple[Session, MouseStatistics]]:
    required()
    folder = golden_folder() / "data" / "sensorium"
    opened = {mouse: open_recording(folder / SENSORIUM_SESSIONS[mouse]) for mouse in MICE}
    return {mouse: (s, compute_statistics(s, s.trials("train"))) for mouse, s in opened.items()}


def expected(name: str) -> dict[str, np.ndarray]:
    with np.load(required() / "data" / "expected" / f"{name}.npz") as file:
        return dict(file)


def transform(of: tuple[Session, MouseStatistics], inputs: int, outputs: int, crop: float = 1.0) -> Transform:
    session, statistics = of
    return build_transform(
        session.mouse.id, statistics, INPUTS[inputs], OUTPUTS[outputs], crop, session.frame_size
    )  # fmt: skip


def sample(session: Session, t: Transform, trial: int, first: int = 0, frames: int | None = None) -> Trial:
    raw = {variable: session.read(variable, trial) for variable in VARIABLES}
    return t.apply(trial, raw, first, t.frames(session.duration(trial)) if frames is None else frames)


def close(found: np.ndarray, wanted: np.ndarray, tolerance: float = 1e-6) -> None:
    assert found.shape == wanted.shape
    size = max(1.0, float(np.nanmax(np.abs(wanted))))
    known = np.isfinite(wanted)
    np.testing.assert_allclose(found[known], wanted[known], rtol=3e-6, atol=tolerance * size)
    assert not found[~known].any()  # nothing to divide by: 0 instead of NaN


def tolerance(variable: str) -> float:
    """Gaze varies little about a large mean, whose rounding in float32 shows."""
    return 3e-5 if variable == "pupil_center" else 1e-6


@pytest.mark.parametrize("mouse", MICE)
def test_statistics(sessions: dict[str, tuple[Session, MouseStatistics]], mouse: str) -> None:
    wanted = expected(f"statistics_{mouse}")
    time = sessions[mouse][1].time
    assert time is not None
    for variable in VARIABLES:
        moments = over_pixels(time[variable]) if variable == "video" else time[variable]
        for name in ("min", "max", "mean", "std"):
            found, number = getattr(moments, name), wanted[f"{variable}/{name}"]
            assert found.shape == number.shape
            np.testing.assert_allclose(found, number, rtol=3e-7, atol=1e-6, err_msg=f"{variable}/{name}")


@pytest.mark.parametrize("mouse", MICE)
@pytest.mark.parametrize("inputs", range(3))
@pytest.mark.parametrize("outputs", range(3))
def test_samples(sessions: dict[str, tuple[Session, MouseStatistics]], mouse: str, inputs: int, outputs: int) -> None:
    wanted, session = expected(f"samples_{mouse}"), sessions[mouse][0]
    compared = 0
    for crop in (1.0, 0.8, 0.5):
        t = transform(sessions[mouse], inputs, outputs, crop)
        for trial in session.trials("validation"):
            prefix = f"in{inputs}/out{outputs}/crop{crop}/{trial}/"
            keys = [k for k in wanted if k.startswith(prefix)]
            found = sample(session, t, trial)
            for key in keys:
                name = key.removeprefix(prefix)
                if name == "video":
                    close(found.video[:, wanted[prefix + "video_frames"]], wanted[key], 2e-6)
                elif name == "video_shape":
                    assert found.video.shape == tuple(wanted[key])
                elif name in VARIABLES:
                    close(getattr(found, name), wanted[key], tolerance(name))
                    compared += 1
    assert compared >= len(session.trials("validation"))


@pytest.mark.parametrize("mouse", MICE)
def test_response_precision_and_its_inverse(sessions: dict[str, tuple[Session, MouseStatistics]], mouse: str) -> None:
    wanted, session = expected(f"samples_{mouse}"), sessions[mouse][0]
    close(transform(sessions[mouse], 1, 1).affine["response"].scale, wanted["response_precision"])
    for outputs in range(3):
        affine = transform(sessions[mouse], 1, outputs).affine["response"]
        for trial in session.trials("validation"):
            key = f"in1/out{outputs}/crop1.0/{trial}/response_inverse"
            found = sample(session, transform(sessions[mouse], 1, outputs), trial).response
            recorded = found / np.where(affine.scale, affine.scale, np.inf) + affine.offset
            known = np.isfinite(wanted[key])
            np.testing.assert_allclose(recorded[known], wanted[key][known], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mouse", MICE)
def test_training_crops_at_given_starts(sessions: dict[str, tuple[Session, MouseStatistics]], mouse: str) -> None:
    wanted, session = expected(f"train_crops_{mouse}"), sessions[mouse][0]
    rows = json.loads((required() / "data" / "expected" / "train_crops.json").read_text())[mouse]
    t = transform(sessions[mouse], 1, 1)
    for row in rows:
        recorded = t.frames(session.duration(row["trial"]))
        start = 0
        if row["randint"] is not None:
            low, high, start = row["randint"]
            assert (low, high) == (0, recorded - row["frames"])  # the published bound: our last start, left out there
        found = sample(session, t, row["trial"], start, row["frames"])
        prefix = f"seed{row['numpy_seed']}/{row['trial']}/"
        for name in ("response", "behavior", "pupil_center"):
            close(getattr(found, name), wanted[prefix + name], tolerance(name))
        close(found.video[0, :, 3, 5], wanted[prefix + "pixel35"])


@pytest.mark.parametrize("mouse", MICE)
def test_selections(sessions: dict[str, tuple[Session, MouseStatistics]], mouse: str) -> None:
    wanted = json.loads((required() / "data" / "expected" / "selection.json").read_text())[mouse]
    session, statistics = sessions[mouse]
    assert session.trials("train") == wanted["train"]
    assert session.trials("validation") == wanted["validation"]
    compared = 0
    for key, value in wanted.items():
        kind, _, seed = key.partition("/seed")
        if kind.startswith("limit_data"):
            assert limited_trials(session.trials("train"), int(kind[10:]), int(seed)) == value
            compared += 1
        if kind.startswith("limit_neurons") and "/" not in seed:
            chosen = limited_neurons(session.mouse.neurons, int(kind[13:]), int(seed))
            assert chosen.tolist() == value
            if f"{key}/precision" in wanted:  # the threshold counts neurons that are left out
                scale = transform((session, statistics), 1, 1).affine["response"].scale[chosen, 0]
                np.testing.assert_allclose(scale, wanted[f"{key}/precision"], rtol=1e-6)
                np.testing.assert_allclose(session.mouse.coordinates[chosen], wanted[f"{key}/coordinates"])
            compared += 1
    assert compared == 14


def test_mice_are_found_by_laboratory_in_the_order_they_are_asked_for(tmp_path: Path) -> None:
    source = required() / "run" / "data" / "sensorium"
    shutil.copytree(source, tmp_path / "sensorium")
    shutil.copytree(source / SENSORIUM_SESSIONS["G"], tmp_path / "rochefort-lab" / "VIPcre232_FOV2_day3")
    shutil.copytree(source / SENSORIUM_SESSIONS["H"], tmp_path / "rochefort-lab" / "VT288_FOV1_day1")
    config = ClosedLoopDataConfig(path=str(tmp_path), mouse_ids=("O", "H", "L_day3"))
    assert list(find_sessions(config)) == ["O", "H", "L_day3"]


# -- a whole run -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy that may be written: the cache of statistics goes beside the recordings."""
    required()
    return Path(shutil.copytree(closed_loop_folder() / "run" / "data", tmp_path_factory.mktemp("run") / "data"))


@pytest.mark.parametrize("with_metadata", [False, True])
def test_a_published_run_is_evaluated_to_its_own_numbers(data: Path, tmp_path: Path, with_metadata: bool) -> None:
    if with_metadata:  # the authors' own statistics and numbers of videos
        data = Path(shutil.copytree(data, tmp_path / "data"))
        shutil.copytree(closed_loop_folder() / "run" / "metadata", data / "metadata")
    folder = required() / "run" / "run"
    models, recordings = open_ensemble([folder], torch.device("cpu"), str(data))
    found = family_scores(models, recordings, ["validation"], RunFolder(folder).family())
    wanted = yaml.safe_load((folder / "evaluation.yaml").read_text())
    assert found.keys() == wanted.keys()
    for name, values in wanted["validation"].items():
        # Of sums in float32; within trials, which are short, they are less exact.
        tolerance = 5e-6 if name == "correlation" and not with_metadata else 1e-5
        assert found["validation"][name] == pytest.approx(values, abs=tolerance), name
    assert found["validation"].keys() == wanted["validation"].keys()
    compared = 0
    for mouse in recordings.mice:
        with np.load(required() / "run" / "expected" / f"predictions_{mouse}.npz") as file:
            expected = dict(file)
        for units, key in (("scaled", "prediction"), ("recorded", "recorded_units")):
            for prediction in predict(models, recordings, mouse, "validation", units):
                wanted_response = expected[f"{prediction.trial_id}/{key}"]
                distance = np.linalg.norm(prediction.response - wanted_response) / np.linalg.norm(wanted_response)
                assert distance < 1e-5
                compared += 1
    assert compared == 2 * sum(len(recordings.trial_ids(m, "validation")) for m in recordings.mice) > 10
    recordings.close()


def test_negative_responses_become_zero_without_a_scale(data: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(data, tmp_path / "data"))
    session = open_recording(copied / "sensorium" / SENSORIUM_SESSIONS["G"])
    trial = session.trials("validation")[0]
    path = session.file("response", trial)
    values = np.load(path)
    np.save(path, values - 0.5)
    for workers in (0, 1):
        config = ClosedLoopDataConfig(path=str(copied), mouse_ids=("G",), outputs="none", num_workers=workers)
        recordings = open_recordings(config, 1)
        batch = next(iter(recordings.trials("G", "validation", [trial])))
        np.testing.assert_allclose(batch.response[0].numpy(), np.maximum(values - 0.5, 0)[:, :300], rtol=1e-6)
        recordings.close()


def test_the_command_writes_the_published_evaluation(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from commands import viv1t_evaluate as main

    folder, out = required() / "run" / "run", tmp_path / "evaluation.yaml"
    assert main([str(folder), "--data", str(data), "--output", str(out), "--device", "cpu"]) == 0
    found, wanted = (yaml.safe_load(path.read_text()) for path in (out, folder / "evaluation.yaml"))
    assert found["validation"].keys() == wanted["validation"].keys()
    for name, values in wanted["validation"].items():
        assert found["validation"][name] == pytest.approx(values, abs=1e-5)
    assert "correlation is over all trials together" in capsys.readouterr().out
