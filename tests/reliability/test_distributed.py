"""Several processes make the steps of one, and a run moves between any numbers of them."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import as_arguments, metrics, options, train

from viv1t.errors import ConfigError
from viv1t.runs.checkpoint import read_checkpoint
from viv1t.training.ranks import Ranks, started

# Three mice for two processes, with noise of every kind, and clipping, which needs the norm over all mice.
CHANGES: dict[str, Any] = {
    "ds_mode": 2, "mouse_ids": ["A", "F", "G"], "batch_size": 4, "deterministic": True, "core_p_dropout": 0.3,
    "core_drop_path": 0.3, "grad_norm": 50.0, "critic_mode": None,
}  # fmt: skip


def torchrun(ranks: int, words: list[str], *more: str) -> list[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", *more]
    return [*launcher, "-m", "viv1t.cli.train", *words]


def run_ranks(ranks: int, mice: Path, run: Path, **changes: Any) -> subprocess.CompletedProcess[str]:
    words = as_arguments(options(mice, run, **CHANGES | {"verbose": 2} | changes))
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        torchrun(ranks, words), capture_output=True, text=True, timeout=300, check=False, env=environment
    )


def saved(run: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    return read_checkpoint(run / "ckpt" / "last.safetensors")


def assert_close(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], tolerance: float) -> None:
    assert a.keys() == b.keys()
    for name, value in a.items():
        # Batch norm's running statistics follow the batches of all processes more slowly than those of one.
        if "running" not in name and "num_batches" not in name:
            assert float((value - b[name]).norm()) <= tolerance * float(b[name].norm()) + 1e-12, name


def test_two_processes_make_the_steps_of_one(mice: Path, tmp_path: Path) -> None:
    done = run_ranks(2, mice, tmp_path / "two", epochs=1)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("correlation on the tier validation") == 1  # one of them speaks
    train(mice, tmp_path / "one", **CHANGES, epochs=1)
    (two, facts), (one, expected) = saved(tmp_path / "two"), saved(tmp_path / "one")
    assert facts["cursor"] == expected["cursor"]
    # After the first step, AdamW's first moments are the gradients.
    gradients = [{k: v for k, v in tensors.items() if k.endswith("/exp_avg")} for tensors in (two, one)]
    assert len(gradients[0]) > 20
    assert_close(*gradients, 1e-5)
    assert facts["losses"] == pytest.approx(expected["losses"], rel=1e-6)
    assert [float(v) for v in metrics(tmp_path / "two")[0].values()] == pytest.approx(
        [float(v) for v in metrics(tmp_path / "one")[0].values()], rel=1e-3, abs=1e-4
    )
    # What two have saved, one continues.
    for run in ("one", "two"):
        train(mice, tmp_path / run, **CHANGES, epochs=2)
    assert [row["epoch"] for row in metrics(tmp_path / "two")] == ["1", "2"]
    assert_close(saved(tmp_path / "two")[0], saved(tmp_path / "one")[0], 1e-2)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [{}, {"core": "factorized_baseline", "core_p_dropout": None, "core_drop_path": None}, {"core_behavior_mode": 5}],
    ids=["vivit", "factorized", "encoders"],
)
def test_three_processes_continue_what_one_has_saved(mice: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    given = CHANGES | changes
    for run in ("one", "three"):
        train(mice, tmp_path / run, **given, epochs=1)
    done = run_ranks(3, mice, tmp_path / "three", **changes, epochs=2)
    assert done.returncode == 0, done.stderr
    train(mice, tmp_path / "one", **given, epochs=2)
    assert_close(saved(tmp_path / "three")[0], saved(tmp_path / "one")[0], 1e-2)


# -- losing some -------------------------------------------------------------------------------------------------------


def workers(launcher: int) -> list[int]:
    """The training processes that a launcher has started."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    return [int(pid) for pid in children if "viv1t.cli.train" in Path(f"/proc/{pid}/cmdline").read_text()]


@pytest.mark.slow
def test_twenty_lost_processes(mice: Path, tmp_path: Path) -> None:
    """Processes are killed at random moments; torchrun starts all anew, and the run goes on from its last save."""
    run, losses = tmp_path / "run", 20
    given = CHANGES | {"verbose": 1, "epochs": 1000, "lr_schedule": "cosine", "save_every": "1"}
    given["clear_output_dir"] = True  # which counts at the first start alone
    words = as_arguments(options(mice, run, **given))
    rng = random.Random(0)
    before = (1, 0)
    with open(tmp_path / "log", "w") as log:
        launcher = subprocess.Popen(
            torchrun(2, words, f"--max-restarts={losses + 1}", "--monitor-interval=0.2"),
            stdout=log, stderr=subprocess.STDOUT, env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    try:
        for loss in range(losses):
            reached = wait_for(run, before, launcher)
            assert reached > before
            time.sleep(rng.random() * 0.3)
            alive = workers(launcher.pid)
            os.kill(rng.choice(alive), signal.SIGKILL)
            while set(alive) & set(workers(launcher.pid)):  # all are started anew
                time.sleep(0.05)
            before = max(before, wait_for(run, (0, 0), launcher))
            print(f"loss {loss + 1} at epoch {reached[0]}")
        reached = wait_for(run, before, launcher)
        assert reached > before
        launcher.send_signal(signal.SIGTERM)
        launcher.wait(60)
    finally:
        for pid in [*workers(launcher.pid), launcher.pid] if launcher.poll() is None else []:
            os.kill(pid, signal.SIGKILL)
        launcher.wait()
    epochs = [int(row["epoch"]) for row in metrics(run)]
    assert epochs == list(range(1, len(epochs) + 1))


def wait_for(run: Path, before: tuple[int, int], launcher: subprocess.Popen[bytes]) -> tuple[int, int]:
    """The position of the first save after `before`."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and launcher.poll() is None:
        if (run / "ckpt" / "last.safetensors").is_file():
            cursor = saved(run)[1]["cursor"]
            if (cursor["epoch"], cursor["batch"]) > before:
                return cursor["epoch"], cursor["batch"]
        time.sleep(0.05)
    return before


@pytest.mark.slow
def test_a_signal_to_torchrun_saves(mice: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    given = CHANGES | {"verbose": 1, "epochs": 1000, "lr_schedule": "cosine", "save_every": "100000"}
    with subprocess.Popen(
        torchrun(2, as_arguments(options(mice, run, **given))),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    ) as launcher:  # fmt: skip
        assert wait_for(run, (1, 0), launcher) > (1, 0)
        launcher.send_signal(signal.SIGTERM)
        out, _ = launcher.communicate(timeout=60)
    # torchrun itself ends with a traceback of its own.
    assert "saved after epoch" in (run / "output.log").read_text(), out
    assert "viv1t-train: interrupted" in out


def test_clearing_counts_at_the_first_start_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Ranks().may_clear()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert not Ranks(0, 2).may_clear()
    monkeypatch.setenv("GROUP_WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="--clear_output_dir with several machines"):
        Ranks(0, 2).may_clear()


@pytest.mark.parametrize("names", [["WORLD_SIZE"], ["RANK"], ["WORLD_SIZE", "RANK", "LOCAL_RANK", "GROUP_WORLD_SIZE"]])
def test_empty_variables_of_a_launcher_are_none(monkeypatch: pytest.MonkeyPatch, names: list[str]) -> None:
    for name in names:
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "")
    with started(torch.device("cpu")) as ranks:
        assert (ranks.rank, ranks.size, ranks.first) == (0, 1, True)
        assert ranks.may_clear()


@pytest.mark.parametrize(
    ("variables", "line"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is 2, but RANK and MASTER_ADDR and MASTER_PORT not set: start with torchrun"),
        ({"WORLD_SIZE": "2", "RANK": "", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}, "but RANK not set: start"),
        ({"RANK": "1"}, "RANK is 1, but WORLD_SIZE is 1: start with torchrun, which sets both, or unset RANK"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two', where a whole number is expected"),
        ({"WORLD_SIZE": "0"}, "RANK is 0, but WORLD_SIZE is 0"),
        ({"WORLD_SIZE": "-1"}, "WORLD_SIZE is '-1', where a whole number is expected"),
    ],
    ids=str,
)
def test_half_set_variables_of_a_launcher_are_one_line(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], line: str
) -> None:
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=re.escape(line)) as refusal, started(torch.device("cpu")):
        pass
    assert "\n" not in str(refusal.value)
