"""`import viv1t`: the names it gives, and that they do what the commands do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_runs
import yaml
from tiny_fixtures import mice, runs, torch_settings

import viv1t
from viv1t.types import SENSORIUM_SESSIONS

__all__ = ["mice", "runs", "torch_settings"]

NAMES = (
    "Lab", "OnnxModel", "OnnxStream", "Predictor", "RunConfig", "Stream", "errors", "evaluate", "load_model",
    "open_recordings", "predict", "predict_film", "synthesize", "train",
)  # fmt: skip


def test_every_name_is_there_and_listed() -> None:
    for name in NAMES:
        assert getattr(viv1t, name) is not None
        assert name in dir(viv1t)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        viv1t.nothing  # noqa: B018


def test_rooms_do_not_take_the_place_of_names() -> None:
    program = (
        "import viv1t, viv1t.training.trainer, viv1t.prediction.trials, viv1t.prediction.evaluate, viv1t.cli.train\n"
        f"for name in {NAMES!r}:\n"
        "    value = getattr(viv1t, name)\n"
        "    assert name == 'errors' or callable(value), name\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_the_package_itself_needs_no_pytorch() -> None:
    program = "import sys, viv1t, viv1t.errors; viv1t.RunConfig; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_a_run_from_options_to_scores(mice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_runs.script_validation(monkeypatch, [0.2])
    options = tiny_runs.options(mice, tmp_path / "run")
    folder = viv1t.train(options, epochs=1)
    assert folder == tmp_path / "run"
    again = viv1t.train(viv1t.RunConfig.from_options(options), epochs=1)  # finished: nothing is trained
    assert again == folder
    assert (folder / "ckpt" / "best.safetensors").is_file()


def test_scores_and_predictions_are_those_of_the_commands(mice: Path, runs: Path, tmp_path: Path) -> None:
    from commands import viv1t_evaluate as evaluate
    from commands import viv1t_predict as predict

    assert evaluate([str(runs / "one"), "--output", str(tmp_path / "scores.yaml"), "--device", "cpu"]) == 0
    written = yaml.safe_load((tmp_path / "scores.yaml").read_text())
    scores = viv1t.evaluate(runs / "one", device="cpu")
    assert scores["validation"] == written["validation"]

    assert predict([str(runs / "one"), "--tier", "validation", "--out", str(tmp_path / "out"), "--device", "cpu"]) == 0
    predictions = list(viv1t.predict(runs / "one", mouse_ids=["F"], device="cpu"))
    assert predictions
    for prediction in predictions:
        file = tmp_path / "out" / prediction.mouse.session / "validation" / f"{prediction.trial_id}.npy"
        np.testing.assert_array_equal(prediction.aligned(), np.load(file))


def test_recordings_are_opened_by_mouse(mice: Path) -> None:
    found = viv1t.open_recordings(mice)
    assert sorted(found) == ["A", "F", "G"]
    trial = found["F"].trials("train")[0]
    assert found["F"].read("response", trial).shape[0] == found["F"].mouse.neurons
    with pytest.raises(viv1t.errors.ConfigError, match="mouse_ids Z: not in"):
        viv1t.open_recordings(mice, mouse_ids=["Z"])


def test_recordings_are_chosen_as_in_a_run(mice: Path, tmp_path: Path) -> None:
    for mouse in "FG":
        (tmp_path / SENSORIUM_SESSIONS[mouse]).symlink_to(mice / SENSORIUM_SESSIONS[mouse])
    (tmp_path / "cut.zip").write_bytes(b"no archive")
    assert list(viv1t.open_recordings(tmp_path, mouse_ids=["G", SENSORIUM_SESSIONS["F"]])) == ["F", "G"]
    with pytest.raises(viv1t.errors.DataError, match=r"^mouse_ids cut\.zip: .*cut short"):
        viv1t.open_recordings(tmp_path, mouse_ids=["cut"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(viv1t.errors.DataError, match="holds no recording session"):
        viv1t.open_recordings(tmp_path / "empty")


def test_mistakes_name_the_argument(tmp_path: Path, runs: Path) -> None:
    with pytest.raises(viv1t.errors.ConfigError, match="tier must be one of train, validation"):
        viv1t.predict(runs / "one", tier="testing")
    with pytest.raises(viv1t.errors.ConfigError, match="units must be"):
        viv1t.predict(runs / "one", units="volts")
    with pytest.raises(viv1t.errors.CheckpointError, match="nowhere"):
        viv1t.evaluate(tmp_path / "nowhere")
    with pytest.raises(viv1t.errors.DataError, match="no such folder"):
        viv1t.open_recordings(tmp_path / "nowhere")


@pytest.mark.slow
def test_a_user_s_script_passes_the_strictest_type_check(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    script = tmp_path / "script.py"
    script.write_text(
        "import numpy as np\nimport viv1t\n\n"
        "folder = viv1t.train({'data': 'data/mine'}, epochs=1)\n"
        "scores: dict[str, dict[str, object]] = viv1t.evaluate(folder, tiers=['validation'])\n"
        "for prediction in viv1t.predict(folder, tier='validation'):\n    response: np.ndarray = prediction.response\n"
        "film: np.ndarray = viv1t.predict_film(folder, 'film.mp4', mouse_id='F')\n"
        "neurons: int = viv1t.open_recordings('data/mine')['F'].mouse.neurons\n"
        "try:\n    viv1t.load_model(folder)\nexcept viv1t.errors.CheckpointError as error:\n    print(error)\n"
    )
    result = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", str(script)], capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, result.stdout
