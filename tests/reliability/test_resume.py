"""A run that stops at any optimizer step and goes on is, to the last bit, the run that did not stop."""

from __future__ import annotations

import itertools
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_runs import metrics, train

from viv1t.errors import CheckpointError, Interrupted
from viv1t.runs.checkpoint import read_checkpoint, write_checkpoint
from viv1t.training.step import Step
from viv1t.training.trainer import Trainer, noise_seed

# Every kind of noise there is, two epochs of four steps; two of two with batch norm, whose statistics change too.
VIVIT: dict[str, Any] = {
    "batch_size": 1, "deterministic": True, "core_p_dropout": 0.3, "core_drop_path": 0.3, "readout_dropout": 0.2,
    "micro_batch_size": 1,
}  # fmt: skip
FACTORIZED: dict[str, Any] = {
    "core": "factorized_baseline", "core_dropout": 0.2, "modulator_mode": 2, "batch_size": 2, "deterministic": True,
    "lr_schedule": "cosine",
}  # fmt: skip


def results(folder: Path) -> dict[str, Any]:
    """Everything a run leaves that does not depend on the clock."""
    files = ("ckpt/last.safetensors", "ckpt/best.safetensors", "evaluation.yaml", "model.txt")
    return {f: (folder / f).read_bytes() for f in files if (folder / f).is_file()} | {"metrics": metrics(folder)}


def signal_after(monkeypatch: pytest.MonkeyPatch, owner: type, method: str, calls: int, number: int) -> None:
    """Sends this process a signal at the end of a call of a method."""
    original, count = getattr(owner, method), [0]

    def counting(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        count[0] += 1
        if count[0] == calls:
            os.kill(os.getpid(), number)
        return result

    monkeypatch.setattr(owner, method, counting)


@pytest.mark.parametrize(("changes", "steps"), [(VIVIT, 4), (FACTORIZED, 2)], ids=["vivit", "factorized"])
def test_resume_from_every_step(
    mice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], steps: int
) -> None:
    train(mice, tmp_path / "whole", **changes)
    whole = results(tmp_path / "whole")
    for step in range(2 * steps):
        with monkeypatch.context() as patch:
            signal_after(patch, Step, "update", 1, (signal.SIGTERM, signal.SIGINT)[step % 2])
            with pytest.raises(Interrupted) as stop:
                train(mice, tmp_path / "cut", **changes)
        assert stop.value.exit_code == (143, 130)[step % 2]
        _, facts = read_checkpoint(tmp_path / "cut" / "ckpt" / "last.safetensors")
        done = (facts["cursor"]["epoch"] - 1) * steps + facts["cursor"]["batch"] // 2
        assert done == step + 1  # one step at a time
        assert len(facts["losses"]) == facts["cursor"]["batch"] // 2
    train(mice, tmp_path / "cut", **changes)
    assert results(tmp_path / "cut") == whole


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_the_middle_of_a_step_lets_it_finish(
    mice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    with monkeypatch.context() as patch:
        signal_after(patch, Step, "accumulate", 3, number)
        signal_after(patch, Step, "update", 2, number)  # a second one is harmless
        with pytest.raises(Interrupted):
            train(mice, tmp_path / "run", **VIVIT)
    assert read_checkpoint(tmp_path / "run" / "ckpt" / "last.safetensors")[1]["cursor"]["batch"] == 4
    log = (tmp_path / "run" / "output.log").read_text()
    assert "saved after epoch 0 and 2 steps; the same command continues" in log
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == handlers


def test_a_signal_in_validation_costs_no_step(
    mice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(mice, tmp_path / "whole", **VIVIT)
    with monkeypatch.context() as patch:
        signal_after(patch, Trainer, "_train_epoch", 1, signal.SIGTERM)
        with pytest.raises(Interrupted):
            train(mice, tmp_path / "cut", **VIVIT)
    facts = read_checkpoint(tmp_path / "cut" / "ckpt" / "last.safetensors")[1]
    assert (facts["cursor"]["epoch"], facts["cursor"]["batch"]) == (1, 8)
    assert not (tmp_path / "cut" / "metrics.csv").exists()
    train(mice, tmp_path / "cut", **VIVIT)
    assert results(tmp_path / "cut") == results(tmp_path / "whole")


def test_saves_between_epochs_by_steps_and_by_minutes(
    mice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[tuple[int, int]] = []
    save = Trainer._save_last

    def saving(self: Trainer) -> None:
        saved.append((self.epoch, self.batch))
        save(self)

    monkeypatch.setattr(Trainer, "_save_last", saving)
    train(mice, tmp_path / "steps", save_every="3", **VIVIT)
    assert saved == [(0, 6), (1, 0), (1, 6), (2, 0)]
    saved.clear()
    train(mice, tmp_path / "seldom", **VIVIT)
    assert saved == [(1, 0), (2, 0)]
    saved.clear()
    clock = itertools.count(0.0, 13.0)
    monkeypatch.setattr("viv1t.training.saves.time", SimpleNamespace(monotonic=lambda: next(clock)))
    train(mice, tmp_path / "minutes", save_every="1m", **VIVIT)
    assert len(saved) > 2
    assert results(tmp_path / "minutes") == results(tmp_path / "steps") == results(tmp_path / "seldom")


def test_noise_belongs_to_the_batch() -> None:
    seeds = {noise_seed(s, e, b) for s in range(3) for e in range(3) for b in range(30)}
    assert len(seeds) == 270
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_an_unreadable_newest_save_costs_one_save(mice: Path, tmp_path: Path) -> None:
    changes = VIVIT | {"save_every": "3"}
    train(mice, tmp_path / "whole", **changes)
    train(mice, tmp_path / "cut", epochs=1, **changes)
    last = tmp_path / "cut" / "ckpt" / "last.safetensors"
    damaged = last.read_bytes()[:-1]
    last.write_bytes(damaged)
    trainer, _ = train(mice, tmp_path / "cut", verbose=1, **changes)
    log = (tmp_path / "cut" / "output.log").read_text()
    assert f"warning: {last}: damaged" in log
    assert f"continuing {tmp_path / 'cut'} after epoch 0 and 3 steps" in log
    assert trainer.epoch == 2
    assert results(tmp_path / "cut") == results(tmp_path / "whole")
    assert (last.parent / "damaged.safetensors").read_bytes() == damaged


def test_other_recordings_are_refused(mice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(mice, tmp_path / "run", epochs=1)
    from viv1t.data.session import Session

    trials = Session.trials
    monkeypatch.setattr(Session, "trials", lambda self, tier: trials(self, tier)[:3])
    with pytest.raises(CheckpointError, match="was saved with other trials"):
        train(mice, tmp_path / "run", epochs=2)


@pytest.mark.parametrize(
    "damage",
    [{"lr": [0.1]}, {"lr": ["x", "y"]}, {"cursor": {}}, {"cursor": 3}, {"losses": None}, {"micro_batch_size": "all"},
     {"schedule": {"wait": []}}, {"schedule": 1}, {"schedule": {}}, {"cursor": {"epoch": 1, "batch": 1, "order": ""}}],
)  # fmt: skip
def test_a_state_that_makes_no_sense_is_refused(mice: Path, tmp_path: Path, damage: dict[str, Any]) -> None:
    run = tmp_path / "run"
    train(mice, run, epochs=1)
    tensors, facts = read_checkpoint(run / "ckpt" / "last.safetensors")
    if isinstance(damage.get("cursor"), dict) and damage["cursor"]:
        damage = {"cursor": damage["cursor"] | {"order": facts["cursor"]["order"]}}
    write_checkpoint(run / "ckpt" / "last.safetensors", tensors, facts | damage)
    with pytest.raises(CheckpointError, match=r"not the state of (a|this) run"):
        train(mice, run, epochs=2)


def test_metrics_that_are_damaged_are_named(mice: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(mice, run, epochs=1)
    whole = (run / "metrics.csv").read_bytes()
    for content in (b"\xff\xfe", b"epoch\nx\n", b"a,b\n1,2\n", whole.replace(b"correlation/G", b"correlation/H")):
        (run / "metrics.csv").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"metrics\.csv: damaged .*; delete it to go on without"):
            train(mice, run, epochs=2)
    (run / "metrics.csv").unlink()
    train(mice, run, epochs=2)
    assert [row["epoch"] for row in metrics(run)] == ["2"]
