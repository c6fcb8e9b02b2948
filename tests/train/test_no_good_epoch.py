"""A run whose correlation never rises above 0: its last weights stand for it, everywhere."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest
import torch
from commands import viv1t_convert, viv1t_evaluate, viv1t_predict, viv1t_train
from tiny_runs import as_arguments, options, same_weights, script_validation, train, weights

import viv1t
from viv1t.errors import CheckpointError
from viv1t.export.files import Settings, export_runs


@pytest.fixture(scope="module")
def poor(mice: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run without a good epoch; not to be changed."""
    folder = tmp_path_factory.mktemp("poor") / "run"
    with pytest.MonkeyPatch.context() as patch:
        script_validation(patch, [-0.1])
        train(mice, folder)
    assert not (folder / "ckpt" / "best.safetensors").exists()
    return folder


def test_the_last_weights_are_loaded_with_one_warning(
    poor: Path, mice: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with caplog.at_level(logging.WARNING):
        model = viv1t.load_model(poor)
    (line,) = (r.getMessage() for r in caplog.records)
    assert line == (
        f"{poor}: no epoch's correlation has been above 0, so there are no best weights: the last ones are used, of "
        "epoch 2"
    )
    script_validation(monkeypatch, [-0.1])
    trainer, _ = train(mice, shutil.copytree(poor, tmp_path / "again"))  # finished: nothing more is trained
    assert same_weights(weights(model), weights(trainer.model))


def test_training_says_what_happened(
    mice: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    script_validation(monkeypatch, [float("nan")])
    words = as_arguments(options(mice, tmp_path / "run", epochs=1, verbose=1))
    assert viv1t_train(words) == 0
    err = capsys.readouterr().err
    assert "run is finished after epoch 1: that is all of --epochs 1; more go on from here\n" in err
    assert "warning: no epoch's correlation was above 0, so there are no best weights: the last ones stand" in err
    assert viv1t_train(words) == 0  # a job that was queued again
    err = capsys.readouterr().err
    assert (
        "run is finished after epoch 1: that is all of --epochs 1; more go on from here; nothing was trained now" in err
    )


def test_a_run_that_its_schedule_ended_says_so(
    mice: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    script_validation(monkeypatch, [0.3, 0.1])
    monkeypatch.setattr("viv1t.optim.schedule.PlateauSchedule.__init__.__kwdefaults__", {
        "patience": 1, "max_reduce": 1, "factor": 0.3, "min_lr": 0.0, "min_epochs": 0,
    })  # fmt: skip
    assert viv1t_train(as_arguments(options(mice, tmp_path / "run", epochs=9, verbose=1))) == 0
    assert "run is finished after epoch 2: its correlation had stopped rising\n" in capsys.readouterr().err


def test_other_commands_work_on_it(
    poor: Path, mice: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = shutil.copytree(poor, tmp_path / "run")
    assert viv1t_evaluate([str(run)]) == 0
    assert viv1t_predict([str(run), "--out", str(tmp_path / "p"), "--quiet"]) == 0
    assert list((tmp_path / "p").rglob("*.npy"))
    assert viv1t_convert([str(run), str(tmp_path / "converted")]) == 0
    assert same_weights(weights(viv1t.load_model(tmp_path / "converted")), weights(viv1t.load_model(run)))
    content = torch.load(tmp_path / "converted" / "ckpt" / "model_state.pt", weights_only=True)
    assert (content["epoch"], content["value"]) == (2, 0.0)
    script_validation(monkeypatch, [0.1])
    train(mice, tmp_path / "restored", restore=str(run), epochs=1)
    train(mice, tmp_path / "fitted", pretrain_core=str(run), epochs=1)
    pytest.importorskip("onnxruntime")
    exported = list(export_runs([run], tmp_path / "onnx", Settings(), mouse_ids=["F"]))
    assert [file.path.name for file in exported] == ["F.onnx"]


def test_best_weights_that_were_lost_are_not_replaced(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    (copy / "ckpt" / "best.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"has no checkpoint ckpt/best\.safetensors, though epoch 1 was the best"):
        viv1t.load_model(copy)
