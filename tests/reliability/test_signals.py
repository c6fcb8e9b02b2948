"""Commands that are told to end: saved, with the right exit status, within five seconds."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import as_arguments, metrics, options

from viv1t.runs.checkpoint import read_checkpoint

# A command that tells when it is in a step, which takes STEP more: a sleep, or a wait in C where Python hears nothing.
SLOW = """
import ctypes, runpy, sys, time
from viv1t.training.objective import Objective
losses, mutex, lock = Objective.losses, ctypes.create_string_buffer(64), ctypes.CDLL(None).pthread_mutex_lock
def deaf():
    lock(mutex), lock(mutex)
def slow(self, batch, size):
    print("in a step", flush=True)
    STEP
    return losses(self, batch, size)
Objective.losses = slow
sys.argv[0] = "viv1t-train"
runpy.run_module("viv1t.cli.train", run_name="__main__")
"""


def start(step: str, words: Sequence[str]) -> subprocess.Popen[str]:
    """A command whose steps are slow, in a process of its own, which hears SIGINT also where this one ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(
            [sys.executable, "-c", SLOW.replace("STEP", step), *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    finally:
        signal.signal(signal.SIGINT, before)


def words(mice: Path, run: Path, **changes: Any) -> list[str]:
    return as_arguments(options(mice, run, **{"verbose": None, "batch_size": 1} | changes))


def position(run: Path) -> tuple[int, int]:
    cursor = read_checkpoint(run / "ckpt" / "last.safetensors")[1]["cursor"]
    return cursor["epoch"], cursor["batch"]


def stop(process: subprocess.Popen[str], number: int, delay: float = 0.0) -> tuple[str, float]:
    """Sends a signal twice some time after the first step has begun; returns standard error and the seconds taken."""
    assert process.stdout is not None
    assert process.stdout.readline() == "in a step\n"
    time.sleep(delay)
    process.send_signal(number)
    asked = time.monotonic()
    time.sleep(0.001)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    return err, time.monotonic() - asked


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_step_longer_than_five_seconds_is_not_waited_for(mice: Path, tmp_path: Path, number: int) -> None:
    with start("deaf()", words(mice, tmp_path / "run")) as process:
        err, _ = stop(process, number)
    assert process.returncode == 128 + number, err
    assert err.endswith("\nviv1t-train: interrupted; saved before the step that was under way\n")
    assert position(tmp_path / "run") == (1, 0)


def survive_signals(mice: Path, folder: Path, count: int) -> list[float]:
    """Ends a run again and again at random moments; returns the seconds that each end took."""
    rng = random.Random(0)
    given = words(mice, folder, epochs=1000, lr_schedule="cosine", save_every="1000")
    before, seconds = (1, 0), []
    for leg in range(count):
        number = (signal.SIGTERM, signal.SIGINT)[leg % 10 == 9]
        with start("time.sleep(0.02)", given) as process:
            err, taken = stop(process, number, rng.random() * 0.5)
        assert process.returncode == 128 + number, err
        assert "Traceback" not in err
        assert err.endswith("viv1t-train: interrupted\n")
        seconds.append(taken)
        reached = position(folder)
        assert reached > before
        before = reached
    rows = [int(row["epoch"]) for row in metrics(folder)] if before[0] > 1 else []
    assert rows == list(range(1, before[0]))
    return seconds


def test_signals_at_random(mice: Path, tmp_path: Path) -> None:
    survive_signals(mice, tmp_path / "run", 1)


@pytest.mark.slow
def test_fifty_signals_at_random(mice: Path, tmp_path: Path) -> None:
    seconds = sorted(survive_signals(mice, tmp_path / "run", 50))
    print(f"{len(seconds)} signals, ends took {seconds[len(seconds) // 2]:.2f} s (median), {seconds[-1]:.2f} s at most")


