"""A run folder that is moved or deleted while its run trains."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import same_weights, train

from viv1t.errors import CheckpointError, Interrupted
from viv1t.runs.checkpoint import read_checkpoint
from viv1t.runs.folder import RunFolder
from viv1t.training.trainer import Trainer


def after_step(monkeypatch: pytest.MonkeyPatch, number: int, act: Callable[[], object]) -> None:
    """Does something once, after the run's step of this number."""
    step, steps = Trainer._train_step, []

    def acting(self: Trainer, *args: Any) -> None:
        step(self, *args)
        steps.append(1)
        if len(steps) == number:
            act()

    monkeypatch.setattr(Trainer, "_train_step", acting)


@pytest.mark.parametrize("changes", [{}, {"save_every": "1"}], ids=["saved at the epoch's end", "within it"])
def test_a_moved_run_is_saved_where_it_is_and_goes_on_from_there(
    mice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    train(mice, tmp_path / "straight")
    old, new = tmp_path / "old", tmp_path / "archive" / "new"
    new.parent.mkdir()
    with monkeypatch.context() as patch:
        after_step(patch, 1, lambda: old.rename(new))
        with pytest.raises(
            CheckpointError, match=f"moved while training; saved in {new} after epoch .*--output_dir {new}"
        ):
            train(mice, old, **changes)
    assert not old.exists()
    assert not (new / ".lock").exists()
    train(mice, new, **changes)
    states = [read_checkpoint(folder / "ckpt" / "last.safetensors")[0] for folder in (tmp_path / "straight", new)]
    assert same_weights(*states)


def test_a_folder_that_took_its_place_is_left_alone(
    mice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def move() -> None:
        (tmp_path / "run").rename(tmp_path / "moved")
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / ".lock").write_text("")

    after_step(monkeypatch, 1, move)
    with pytest.raises(CheckpointError, match="moved while training"):
        train(mice, tmp_path / "run")
    assert [p.name for p in (tmp_path / "run").iterdir()] == [".lock"]
    assert RunFolder(tmp_path / "moved").started


def test_a_deleted_run_ends_and_is_not_made_again(mice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    after_step(monkeypatch, 1, lambda: shutil.rmtree(tmp_path / "run"))
    with pytest.raises(CheckpointError, match="was deleted or moved to another disk"):
        train(mice, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_signal_after_the_move_saves_in_the_new_place(
    mice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def act() -> None:
        (tmp_path / "run").rename(tmp_path / "moved")
        raise Interrupted(15)

    after_step(monkeypatch, 1, act)
    with pytest.raises(Interrupted):
        train(mice, tmp_path / "run")
    assert [p.name for p in tmp_path.iterdir()] == ["moved"]
    log = (tmp_path / "moved" / "output.log").read_text()
    assert f"--output_dir {tmp_path / 'moved'} continues" in log
