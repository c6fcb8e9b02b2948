"""Runs of the family of 2025 stop at any optimizer step and go on as if they had not; two processes are one."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from test_distributed import assert_close, saved, torchrun
from test_resume import results, signal_after
from tiny_runs import as_arguments, metrics, options_2025, train_2025

from viv1t.errors import Interrupted
from viv1t.optim.optimization import ScheduleFreeOptimization
from viv1t.runs.checkpoint import read_checkpoint
from viv1t.training.step import Step
from viv1t.training.trainer import Trainer

# Every kind of noise, the learned activation, clipping from a history; whole trials of unequal length in a batch.
SCHEDULE_FREE: dict[str, Any] = {
    "deterministic": True, "core_p_dropout": 0.3, "core_drop_path": 0.3, "output_mode": 3, "batch_size": 2,
    "micro_batch_size": 1, "shifter_mode": 2, "crop_frame": 60,
}  # fmt: skip
# Batch norm, whose statistics are those of the training form, and the plateau's AdamW.
PLAIN: dict[str, Any] = {
    "core": "fcnn", "core_dropout": 0.2, "schedule_free": None, "adam_warmup_steps": None, "deterministic": True,
    "batch_size": 2,
}  # fmt: skip


@pytest.mark.parametrize("changes", [SCHEDULE_FREE, PLAIN], ids=["schedule-free", "plain"])
def test_resume_from_every_step(
    mice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    train_2025(mice, tmp_path / "whole", **changes)
    whole = results(tmp_path / "whole")
    for step in range(4):
        with monkeypatch.context() as patch:
            signal_after(patch, Step, "update", 1, (signal.SIGTERM, signal.SIGINT)[step % 2])
            with pytest.raises(Interrupted):
                train_2025(mice, tmp_path / "cut", **changes)
        tensors, facts = read_checkpoint(tmp_path / "cut" / "ckpt" / "last.safetensors")
        assert (facts["cursor"]["epoch"] - 1) * 2 + facts["cursor"]["batch"] // 2 == step + 1
        assert len(tensors["clipping/history"]) == step + 1
    train_2025(mice, tmp_path / "cut", **changes)
    assert results(tmp_path / "cut") == whole


def test_a_signal_in_validation_costs_no_step_and_no_turn_of_the_weights(
    mice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_2025(mice, tmp_path / "whole", **SCHEDULE_FREE)
    for owner, method in ((Trainer, "_train_epoch"), (ScheduleFreeOptimization, "to_evaluation")):
        run = tmp_path / method
        with monkeypatch.context() as patch:
            signal_after(patch, owner, method, 1, signal.SIGTERM)
            with pytest.raises(Interrupted):
                train_2025(mice, run, **SCHEDULE_FREE)
        train_2025(mice, run, **SCHEDULE_FREE)
        assert results(run) == results(tmp_path / "whole"), method


def test_more_epochs_go_on_from_a_finished_run(mice: Path, tmp_path: Path) -> None:
    train_2025(mice, tmp_path / "whole", **SCHEDULE_FREE, epochs=3)
    for epochs in (1, 3):
        train_2025(mice, tmp_path / "parts", **SCHEDULE_FREE, epochs=epochs)
    # The first end evaluated the weights, and left them as they were saved.
    assert results(tmp_path / "parts") == results(tmp_path / "whole")


def test_two_processes_make_the_steps_of_one(mice: Path, tmp_path: Path) -> None:
    changes = SCHEDULE_FREE | {"mouse_ids": ["A", "F", "G"], "epochs": 1}
    words = as_arguments(options_2025(mice, tmp_path / "two", **changes))
    done = subprocess.run(
        torchrun(2, words), capture_output=True, text=True, timeout=300, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    train_2025(mice, tmp_path / "one", **changes)
    (two, facts), (one, expected) = saved(tmp_path / "two"), saved(tmp_path / "one")
    assert facts["cursor"] == expected["cursor"]
    assert facts["lr"] == expected["lr"]
    assert [g["k"] for g in facts["groups"]] == [g["k"] for g in expected["groups"]]
    assert two["clipping/history"].numpy() == pytest.approx(one["clipping/history"].numpy(), rel=1e-4)
    assert_close(two, one, 1e-2)
    assert [float(v) for v in metrics(tmp_path / "two")[0].values()] == pytest.approx(
        [float(v) for v in metrics(tmp_path / "one")[0].values()], rel=1e-3, abs=1e-3
    )
    for run in ("one", "two"):  # what two have saved, one continues
        train_2025(mice, tmp_path / run, **changes | {"epochs": 2})
    assert [row["epoch"] for row in metrics(tmp_path / "two")] == ["1", "2"]
