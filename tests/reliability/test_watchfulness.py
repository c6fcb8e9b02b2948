"""What goes wrong during training ends it with one clear error, and the last checkpoint as it was."""

from __future__ import annotations

import contextlib
import io
import json
import math
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from full_disks import largest_file
from test_resume import results
from tiny_runs import as_arguments, options, train

from viv1t.data.mice import open_recording
from viv1t.data.reading.reader import Batches
from viv1t.data.recordings import Recordings
from viv1t.errors import CheckpointError, DataError, TrainingError
from viv1t.runs.checkpoint import read_checkpoint
from viv1t.runs.folder import RunFolder
from viv1t.training.failure import reproduce
from viv1t.training.objective import Objective
from viv1t.training.trainer import Trainer
from viv1t.types import SENSORIUM_SESSIONS, Batch


def last(run: Path) -> bytes:
    return (run / "ckpt" / "last.safetensors").read_bytes()


# -- numbers -----------------------------------------------------------------------------------------------------------


def test_a_loss_that_explodes_is_kept_to_be_seen_again(mice: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(TrainingError, match=r"mouse [FG], trials \d+, \d+.*the weights were not updated.*failure") as e:
        train(mice, run, lr=1e30, core_lr=1e30)
    facts = json.loads((run / "failure" / "failure.json").read_text())
    trials = ", ".join(map(str, facts["trial_ids"]))
    assert f"mouse {facts['mouse_id']}, trials {trials}" in str(e.value)
    assert (facts["epoch"], facts["step"]) == (1, 2)
    loss, names = reproduce(RunFolder(run))
    assert not math.isfinite(loss) or names
    # The state is that before the step: finite still.
    assert f"{facts['loss']}" == f"{loss}"


def nan_gradient(monkeypatch: pytest.MonkeyPatch, mouse_id: str, once: bool) -> None:
    """A loss whose value is right and whose gradient is not."""
    losses, count = Objective.losses, [0]

    def broken(self: Objective, batch: Batch, size: int) -> Any:
        loss, critic_loss = losses(self, batch, size)
        if batch.mouse_id == mouse_id and (count[0] == 0 or not once):
            count[0] += 1
            parameter = next(self.model.core.parameters())
            loss = loss + torch.sqrt(parameter.sum() * 0)
        return loss, critic_loss

    monkeypatch.setattr(Objective, "losses", broken)


def test_a_gradient_that_is_not_finite_names_mouse_and_trials(
    mice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    train(mice, run, epochs=1)
    before = last(run)
    with monkeypatch.context() as patch:
        nan_gradient(patch, "G", once=False)
        with pytest.raises(TrainingError, match=r"mouse G, trials \d+, \d+, loss \d.*the gradient is not finite"):
            train(mice, run)
        facts = json.loads((run / "failure" / "failure.json").read_text())
        assert facts["mouse_id"] == "G"
        assert facts["not_finite"]
        loss, names = reproduce(RunFolder(run))
        assert math.isfinite(loss)
        assert names == facts["not_finite"]
        assert math.isclose(loss, facts["loss"], rel_tol=1e-6)
    assert reproduce(RunFolder(run))[1] == []
    assert last(run) == before
    train(mice, run)
    train(mice, tmp_path / "whole")
    assert results(run) == results(tmp_path / "whole")


def test_a_fault_of_the_machine_is_told_from_one_of_the_data(
    mice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nan_gradient(monkeypatch, "F", once=True)
    with pytest.raises(TrainingError, match="the same batches, tried again, were finite: look at the machine"):
        train(mice, tmp_path / "run", micro_batch_size=2)
    assert not (tmp_path / "run" / "failure").exists()


# -- memory, disk, files -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(),
     RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4000000000000 bytes")],
)  # fmt: skip
@pytest.mark.parametrize(
    ("fits", "words"),
    [(2, "the same command with --micro_batch_size 2 goes on"),
     (0, "not even one does: start a run in another folder with a lower --crop_frame or a smaller core")],
)  # fmt: skip
@pytest.mark.parametrize("core", ["vivit", "factorized_baseline"])
def test_out_of_memory_names_what_fits(
    mice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, fits: int, words: str, core: str
) -> None:
    if core == "vivit":  # the one that can do its blocks again
        words = words.replace("goes on", "goes on, or more with --grad_checkpointing 1")
        words = words.replace("does: start", "does: set --grad_checkpointing 1, or start")
    losses = Objective.losses

    def limited(self: Objective, batch: Batch, size: int) -> Any:
        if len(batch) > fits:
            raise error
        return losses(self, batch, size)

    monkeypatch.setattr(Objective, "losses", limited)
    of_core = {"core": core} | ({"output_mode": 0} if core != "vivit" else {})
    with pytest.raises(TrainingError, match=rf"mouse F, trials .*: 4 trials at a time do not fit in memory; {words}$"):
        train(mice, tmp_path / "run", batch_size=4, **of_core)


def test_the_advice_on_memory_can_be_followed(mice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    train(mice, run, batch_size=4, epochs=1)
    losses, sizes = Objective.losses, []

    def limited(self: Objective, batch: Batch, size: int) -> Any:
        sizes.append(len(batch))
        if len(batch) > 2:
            raise MemoryError
        return losses(self, batch, size)

    monkeypatch.setattr(Objective, "losses", limited)
    with pytest.raises(TrainingError, match=r"the same command with --micro_batch_size 2 goes on"):
        train(mice, run, batch_size=4, epochs=2)
    sizes.clear()
    train(mice, run, batch_size=4, epochs=2, micro_batch_size=2)
    train(mice, run, batch_size=4, epochs=3)  # as it was left
    assert max(sizes) == 2


def test_other_errors_are_not_taken_for_memory(mice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Objective, batch: Batch, size: int) -> Any:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(Objective, "losses", broken)
    with pytest.raises(RuntimeError, match="shapes differ"):
        train(mice, tmp_path / "run")


def test_a_full_disk_leaves_the_last_save(mice: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(mice, tmp_path / "whole", save_every="1")
    train(mice, run, epochs=1, save_every="1")
    before = last(run)
    with largest_file(len(before) // 2), pytest.raises(CheckpointError, match="cannot be written"):
        train(mice, run, save_every="1")
    assert last(run) == before
    assert not [p for p in run.rglob("*") if ".part" in p.name]
    train(mice, run, save_every="1")
    assert results(run) == results(tmp_path / "whole")


@pytest.fixture
def own_mice(mice: Path, tmp_path: Path) -> Path:
    """Mice to damage."""
    return Path(shutil.copytree(mice, tmp_path / "mice", ignore=shutil.ignore_patterns("truth", "viv1t_*")))


def after_first_epoch(monkeypatch: pytest.MonkeyPatch, act: Callable[[], Any]) -> None:
    end = Trainer._end_epoch

    def acting(self: Trainer, *args: Any) -> None:
        end(self, *args)
        if self.epoch == 1:
            act()

    monkeypatch.setattr(Trainer, "_end_epoch", acting)


def test_a_file_that_cannot_be_read_any_more(own_mice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = open_recording(own_mice / SENSORIUM_SESSIONS["F"], "F")
    path = session.file("response", session.trials("train")[0])
    whole, run = path.read_bytes(), tmp_path / "run"
    with monkeypatch.context() as patch:
        after_first_epoch(patch, lambda: path.write_bytes(whole[:200]))
        with pytest.raises(DataError, match=rf"mouse F, trial \d+: {path}: .*truncated"):
            train(own_mice, run)
    path.write_bytes(whole)
    train(own_mice, run)
    train(own_mice, tmp_path / "whole")
    assert results(run) == results(tmp_path / "whole")


def test_a_reader_that_takes_too_long(mice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first thread waits for a batch; the second ends the process: here, lets it go on."""
    ended: list[int] = []
    monkeypatch.setattr("viv1t.training.watch.os._exit", ended.append)
    batches = Recordings.train_batches

    def slow(self: Recordings, epoch: int, first: int = 0) -> Batches:
        for batch in batches(self, epoch, first):
            while not ended:
                time.sleep(0.01)
            yield batch

    monkeypatch.setattr(Recordings, "train_batches", slow)
    with contextlib.redirect_stderr(io.StringIO()) as err:
        train(mice, tmp_path / "run", reader_timeout=1, epochs=1)
    assert ended[0] == 1
    assert re.search(
        rf"error: mouse F, trials \d, \d: not read within 1 s \(--reader_timeout\); .*{mice}; saved before the step",
        err.getvalue(),
    )
    previous = read_checkpoint(tmp_path / "run" / "ckpt" / "previous.safetensors")[1]["cursor"]
    assert (previous["epoch"], previous["batch"]) == (1, 0)


# After the first step, the files of mouse F turn into pipes that nobody writes to: a disk that has gone away.
STUCK = """
import os, runpy, sys
from pathlib import Path
from viv1t.training.step import Step
update, files = Step.update, [Path(name) for name in sys.argv[1].split(",")]
def last_update(self):
    result = update(self)
    for file in files:
        if file.is_file():
            file.unlink()
            os.mkfifo(file)
    return result
Step.update = last_update
sys.argv = ["viv1t-train", *sys.argv[2:]]
runpy.run_module("viv1t.cli.train", run_name="__main__")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tier", "words_of_it"),
    [("train", "mouse F, trials "), ("validation", "the next trial of the tier validation")],
)
def test_a_stuck_reader_ends_in_time(own_mice: Path, tmp_path: Path, tier: str, words_of_it: str) -> None:
    words = as_arguments(options(own_mice, tmp_path / "run", reader_timeout=1, epochs=50, verbose=None))
    session = open_recording(own_mice / SENSORIUM_SESSIONS["F"], "F")
    files = ",".join(str(session.file("response", trial)) for trial in session.trials(tier))
    done = subprocess.run(
        [sys.executable, "-c", STUCK, files, *words], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1, done.stderr
    error = done.stderr.splitlines()[-1]
    assert error.startswith("viv1t-train: error: " + words_of_it)
    assert f"not read within 1 s (--reader_timeout); look at the disk or network that holds {own_mice}" in error
    assert error.endswith("; saved before the step that was under way")
    assert "Traceback" not in done.stderr
    cursor = read_checkpoint(tmp_path / "run" / "ckpt" / "last.safetensors")[1]["cursor"]
    assert (cursor["epoch"], cursor["batch"]) > (1, 0)
