"""`viv1t-export`, and `viv1t-predict` with what it wrote: round trips, descriptions, mistakes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_runs import script_validation, train

import viv1t
from viv1t.cli.export import main
from viv1t.cli.predict import main as predict_main
from viv1t.data.mice import open_recording
from viv1t.errors import CheckpointError, ConfigError, DataError
from viv1t.export import check, program
from viv1t.onnx_model import OnnxModel
from viv1t.runs.folder import RunFolder
from viv1t.types import SENSORIUM_SESSIONS

for package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(package, reason=f"the extra [onnx] is not installed: {package}")

F = SENSORIUM_SESSIONS["F"]


def export(*argv: Any) -> int:
    return main([str(word) for word in argv])


@pytest.fixture(scope="module")
def raw(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`F.onnx`, which takes values as recorded."""
    folder = tmp_path_factory.mktemp("raw")
    assert export(run, "--output_dir", folder, "--transforms", "--mouse_ids", "F") == 0
    return folder / "F.onnx"


@pytest.fixture(scope="module")
def convolutional(mice: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the other core, on F and G, with a crop of movies."""
    folder = tmp_path_factory.mktemp("runs") / "fb"
    with pytest.MonkeyPatch.context() as patch:
        script_validation(patch, [0.25])
        train(mice, folder, epochs=1, core="factorized_baseline", center_crop=0.8)
    return folder


def failed(argv: list[Any], capsys: pytest.CaptureFixture[str], status: int, words: str, command: Any = main) -> None:
    assert command([str(word) for word in argv]) == status
    err = capsys.readouterr().err
    assert err.count("\n") == 1, err
    assert words in err


def test_the_file_describes_itself(raw: Path, run: Path, mice: Path) -> None:
    model = OnnxModel(raw)
    session = open_recording(mice / F)
    assert (model.mouse_id, model.session, model.frame_rate, model.frame_size) == ("F", F, 30.0, (36, 64))
    assert model.neuron_ids is not None
    assert model.neuron_ids.tolist() == session.mouse.unit_ids.tolist()
    assert (model.fewest_frames, model.most_frames) == (5, 70)  # the statistics know 70
    how = json.loads(model.metadata["transform"])
    assert how == {"mode": "published", "statistics": "computed", "center_crop": 1.0, "in_graph": True}
    assert json.loads(model.metadata["runs"]) == [str(run)]
    assert json.loads(model.metadata["versions"])["viv1t"] == viv1t.__version__
    assert model.metadata["precision"] == "fp32"


def test_dimensions_have_names_and_operators_are_onnxs_own(raw: Path) -> None:
    import onnx

    model = onnx.load(raw)
    shapes = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert shapes == {
        "video": ["trials", 1, "frames", 36, 64], "behavior": ["trials", 2, "frames"],
        "pupil_center": ["trials", 2, "frames"], "response": ["trials", 6, "predicted_frames"],
    }  # fmt: skip
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 23)]


def test_recorded_trials_are_predicted_as_by_the_run(
    raw: Path, run: Path, mice: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--tier", "validation", "live_test_main", "--data", str(mice), "--mouse_ids", "F", "--quiet", "--out"]
    assert predict_main([str(raw), *argv, str(tmp_path / "file")]) == 0
    assert predict_main([str(run), *argv, str(tmp_path / "run")]) == 0
    names = sorted(p.relative_to(tmp_path / "run") for p in (tmp_path / "run").rglob("*.npy"))
    assert len(names) == 3
    assert names == sorted(p.relative_to(tmp_path / "file") for p in (tmp_path / "file").rglob("*.npy"))
    for name in names:
        found, expected = np.load(tmp_path / "file" / name), np.load(tmp_path / "run" / name)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_prediction_needs_neither_pytorch_nor_the_engines_own_module(raw: Path, mice: Path, tmp_path: Path) -> None:
    code = f"""
import sys
from viv1t.cli.predict import main
assert main([{str(raw)!r}, "--data", {str(mice)!r}, "--out", {str(tmp_path)!r}, "--quiet"]) == 0
from viv1t.onnx_model import OnnxModel
import numpy as np
model = OnnxModel({str(raw)!r}, threads=1)
response = model(np.zeros((2, 1, 9, 36, 64)), np.zeros((2, 2, 9)), np.zeros((2, 2, 9)))
assert response.shape == (2, 6, 5), response.shape
loaded = [name for name in sys.modules if name.split(".")[0] in ("torch", "onnx") or "_prefetcher" in name]
assert not loaded, loaded[:3]
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.rglob("*.npy"))) == 2


def test_parts_and_integers(
    convolutional: Path, mice: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = (convolutional, "--split", "--mouse_ids", "F")
    assert export(*argv, "--output_dir", tmp_path, "--precision", "int8") == 0
    out = capsys.readouterr().out
    assert out.count("int8: correlates ") == 2
    assert out.count("; single-trial correlation ") == 1  # of the readout
    assert "on 2 held-out trials" in out
    assert sorted(p.name for p in tmp_path.iterdir()) == ["core.onnx", "readout_F.onnx"]
    with pytest.raises(ConfigError, match="give the readout of a mouse"):
        OnnxModel(tmp_path / "core.onnx")
    readout = OnnxModel(tmp_path / "readout_F.onnx", threads=1)
    assert readout.metadata["precision"] == "int8"
    session, trial = open_recording(mice / F), 0
    video, behavior, pupil = (session.read(v, trial)[None, ..., :60] for v in ("video", "behavior", "pupil_center"))
    found = readout.predict(video.transpose(0, 3, 1, 2)[:, None], behavior, pupil)
    from viv1t.data.recordings import Recordings

    recordings = Recordings.open(RunFolder(convolutional).config().data, 1)
    recorded = {name: session.read(name, trial) for name in ("video", "response", "behavior", "pupil_center")}
    inputs = recordings.transform("F").apply(trial, recorded, 0, 60)  # its crop of the movie included
    recordings.close()
    with torch.no_grad():
        expected = viv1t.load_model(convolutional)(
            *(torch.from_numpy(x)[None] if isinstance(x, np.ndarray) else x
              for x in (inputs.video, "F", inputs.behavior, inputs.pupil_center))
        ).numpy()  # fmt: skip
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert 0 < error < 0.02
    (tmp_path / "core.onnx").unlink()
    with pytest.raises(CheckpointError, match=r"core\.onnx: no such file"):
        OnnxModel(tmp_path / "readout_F.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_an_ensemble_in_every_precision(
    convolutional: Path, run: Path, mice: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], precision: str
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        script_validation(patch, [0.25])
        train(mice, tmp_path / "two", epochs=1, seed=5, core_temporal_patch_size=9)
    out = tmp_path / "out"
    assert export(run, tmp_path / "two", "--output_dir", out, "--mouse_ids", "G", "--precision", precision) == 0
    said = capsys.readouterr().out
    assert ("held-out trials; single-trial correlation" in said) == (precision != "fp32")
    argv = ["--mouse_ids", "G", "--quiet", "--data", str(mice), "--out"]
    assert predict_main([str(out / "G.onnx"), *argv, str(tmp_path / "file")]) == 0
    assert predict_main([str(run), str(tmp_path / "two"), *argv, str(tmp_path / "runs")]) == 0
    for path in (tmp_path / "runs").rglob("*.npy"):
        expected = np.load(path)[:, 8:]
        found = np.load(tmp_path / "file" / path.relative_to(tmp_path / "runs"))
        assert np.isnan(found[:, :8]).all()
        error = np.linalg.norm(found[:, 8:] - expected) / np.linalg.norm(expected)
        assert error < {"fp32": 1e-5, "fp16": 1e-3, "int8": 0.05}[precision]
    size = (out / "G.onnx").stat().st_size
    assert precision == "fp32" or size > 0


@pytest.mark.slow
def test_without_recordings(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(run, tmp_path / "run")
    args = (run / "args.yaml").read_text()
    (tmp_path / "run" / "args.yaml").write_text(args.replace(RunFolder(run).config().data.path, "nowhere"))
    argv: list[Any] = [tmp_path / "run", "--output_dir", tmp_path / "out"]
    failed([*argv, "--transforms"], capsys, 2, "--transforms needs the recordings")
    assert not (tmp_path / "out").exists()
    assert export(*argv, "--mouse_ids", "F", "--precision", "int8") == 0
    assert "nowhere is not there: neuron ids and statistics are left out" in caplog.text
    out = capsys.readouterr().out
    assert "with float32 on random inputs\n" in out
    model = OnnxModel(tmp_path / "out" / "F.onnx")
    assert model.neuron_ids is None
    state = np.zeros((1, 2, 9))
    with pytest.raises(DataError, match="does not hold the statistics"):
        model.predict(np.zeros((1, 1, 9, 36, 64)), state, state)
    assert model(np.zeros((1, 1, 9, 36, 64)), state, state).shape == (1, 6, 5)


def test_mistakes_are_one_line_and_write_nothing(
    run: Path, mice: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    for argv, status, words in (
        ([tmp_path / "nowhere", "--output_dir", out], 1, "is not a run folder"),
        ([run, "--output_dir", out, "--mouse_ids", "A"], 2, "--mouse_ids A: not in every run"),
        ([run, "--output_dir", out, "--data", tmp_path], 1, "missing mice F"),
        ([run, "--output_dir", out, "--split", "--transforms"], 2, "--split cannot take --transforms"),
        ([run, run, "--output_dir", out, "--split"], 2, "--split takes one run"),
        ([run, "--output_dir", run / "args.yaml" / "x"], 2, "cannot be written"),
    ):
        failed(argv, capsys, status, words)
    for argv in ([run], [run, "--output_dir", out, "--opset", "17"], [run, "--output_dir", out, "--precision", "fp8"]):
        with pytest.raises(SystemExit) as exit:
            export(*argv)
        assert exit.value.code == 2
        assert capsys.readouterr().err.count("\n") == 1
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    failed([run, "--output_dir", out], capsys, 2, "pip install 'viv1t[onnx]'")
    assert not out.exists()


def test_a_file_that_differs_is_not_kept(
    convolutional: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "TOLERANCE", 1e-12)
    argv = [convolutional, "--output_dir", tmp_path, "--mouse_ids", "F"]
    failed(argv, capsys, 1, "ONNX Runtime's result differs from PyTorch's by ")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(program, "FILE_BYTES", 1000)
    failed(argv, capsys, 2, "one ONNX file holds 2 GB")
    assert list(tmp_path.iterdir()) == []


def test_mistakes_with_exported_files(
    raw: Path, run: Path, mice: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import onnx

    (tmp_path / "damaged.onnx").write_bytes(raw.read_bytes()[:1000])
    model = onnx.load(raw)
    entries = {p.key: p.value for p in model.metadata_props}

    def written(name: str, **changes: str) -> Path:
        del model.metadata_props[:]
        onnx.helper.set_model_props(model, entries | changes)
        onnx.save(model, tmp_path / name)
        return tmp_path / name

    data = ["--data", mice, "--out", tmp_path / "out"]
    for argv, status, words in (
        ([raw], 2, "need --data"),
        ([raw, run, *data], 2, "not both"),
        ([raw, raw, *data], 2, "are both of mouse F"),
        ([raw, *data, "--mouse_ids", "G"], 2, "no file of these mice"),
        ([raw, *data, "--units", "recorded"], 2, "--units recorded needs the run"),
        ([raw, *data, "--device", "cuda"], 2, "run on the CPU"),
        ([raw, "--data", tmp_path], 1, "holds no recording of mouse F"),
        ([raw, "--data", tmp_path / "nowhere"], 1, "no such folder"),
        ([tmp_path / "none.onnx", *data], 1, "no such file"),
        ([tmp_path / "damaged.onnx", *data], 1, "ONNX Runtime cannot read it"),
        ([written("other.onnx", format="x"), *data], 1, "not a model exported by viv1t-export"),
        ([written("bad.onnx", frame_size="[1"), *data], 1, "its metadata are damaged"),
        ([written("size.onnx", frame_size="[3, 4]"), *data], 1, "frames of 36 x 64 pixels, but"),
        ([written("ids.onnx", neuron_ids="[1, 2]"), *data], 1, "has other neurons than"),
        ([written("long.onnx", frames="[5, 60]"), *data], 1, "takes 5 to 60"),
    ):
        failed(argv, capsys, status, words, predict_main)
    assert not (tmp_path / "out").exists()
    model = OnnxModel(raw)
    state = np.zeros((1, 2, 9))
    for video, words in (((1, 1, 9, 3, 3), "video must be"), ((1, 1, 8, 36, 64), "behavior must be")):
        with pytest.raises(ConfigError, match=words):
            model(np.zeros(video), state, state)
    with pytest.raises(ConfigError, match="takes 5 to 70 frames, not 4"):
        model(np.zeros((1, 1, 4, 36, 64)), state[..., :4], state[..., :4])
