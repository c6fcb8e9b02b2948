"""Epochs in TensorBoard and Weights & Biases: with the packages, without them, and when a run goes on."""

from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_runs import as_arguments, options, script_validation

from viv1t.cli.train import main
from viv1t.training import trackers


def words(mice: Path, run: Path, **changes: Any) -> list[str]:
    return as_arguments(options(mice, run, **changes))


def without(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    """As if these were not installed."""
    found = trackers.find_spec
    monkeypatch.setattr(trackers, "find_spec", lambda name: None if name in packages else found(name))


def scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard reads from a run: (step, value) by name."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard")).Reload()
    return {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}


def test_tensorboard_has_every_number_of_every_epoch(
    mice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    script_validation(monkeypatch, [0.125, 0.25, 0.5])
    assert main(words(mice, tmp_path / "run", epochs=2)) == 0
    assert main(words(mice, tmp_path / "run", epochs=3)) == 0  # goes on
    found = scalars(tmp_path / "run")
    assert found["correlation"] == [(1, 0.125), (2, 0.25), (3, 0.5)]
    with open(tmp_path / "run" / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert set(found) == set(rows[0]) - {"epoch"}
    for name, values in found.items():
        assert [value for _, value in values] == pytest.approx([float(row[name]) for row in rows], rel=1e-6)


def test_without_tensorboard_there_is_the_table(mice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "tensorboard")
    assert main(words(mice, tmp_path / "run", epochs=1)) == 0
    assert not (tmp_path / "run" / "tensorboard").exists()
    assert (tmp_path / "run" / "metrics.csv").is_file()


def test_wandb_works_offline(
    mice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("wandb")
    for name in ("WANDB_API_KEY", "WANDB_RUN_ID", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    assert main(words(mice, tmp_path / "run", epochs=1, wandb="group")) == 0
    (kept,) = (tmp_path / "run" / "wandb").glob("offline-run-*")
    name = (tmp_path / "run" / "wandb_id").read_text().strip()
    assert kept.name.endswith(name)
    assert [p.stat().st_size > 0 for p in kept.glob("run-*.wandb")] == [True]


def test_wandb_gets_every_epoch_and_goes_on(mice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    made: list[dict[str, Any]] = []
    logged: list[tuple[int, float]] = []
    closed: list[str] = []

    def init(**given: Any) -> Any:
        made.append(given)
        name = given["id"] or "drawn"
        return SimpleNamespace(
            id=name, log=lambda row, step: logged.append((step, row["correlation"])), finish=lambda: closed.append(name)
        )

    monkeypatch.setattr(wandb, "init", init)
    script_validation(monkeypatch, [0.1, 0.2, 0.3])
    assert main(words(mice, tmp_path / "run", wandb="group", epochs=2)) == 0
    assert main(words(mice, tmp_path / "run", wandb="group", epochs=3)) == 0
    assert main(words(mice, tmp_path / "other", wandb="group", wandb_id="mine", epochs=1)) == 0
    assert logged == [(1, 0.1), (2, 0.2), (3, 0.3), (1, 0.3)]
    assert [given["id"] for given in made] == [None, "drawn", "mine"]
    assert {given["resume"] for given in made} == {"allow"}
    assert (made[0]["group"], made[0]["name"], made[0]["config"]["batch_size"]) == ("group", "run", 2)
    assert closed == ["drawn", "drawn", "mine"]


def test_wandb_that_is_not_installed(
    mice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    without(monkeypatch, "wandb")
    assert main(words(mice, tmp_path / "run", wandb="group")) == 2
    _, err = capsys.readouterr()
    assert err == "viv1t-train: error: --wandb needs the package wandb: install it with `pip install 'viv1t[wandb]'`\n"
    assert not (tmp_path / "run").exists()


def test_wandb_that_does_not_let_in(
    mice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wandb = pytest.importorskip("wandb")

    def init(**_: Any) -> Any:
        raise wandb.errors.UsageError("api_key not configured")

    monkeypatch.setattr(wandb, "init", init)
    assert main(words(mice, tmp_path / "run", wandb="group")) == 2
    _, err = capsys.readouterr()
    assert "--wandb: api_key not configured; or set WANDB_MODE=offline" in err
    assert err.count("\n") == 1
