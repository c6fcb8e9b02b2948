"""Locks between processes: who holds them, who is told, and what is left behind."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from viv1t.system.locks import Lock, LockedError

HOLD = """
import pathlib, sys
from viv1t.system.locks import Lock
held = Lock(pathlib.Path(sys.argv[1]))
print(flush=True)
sys.stdin.read()
"""


def test_whoever_comes_second_is_told_who_holds_it_and_a_killed_holder_keeps_nobody_out(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(LockedError) as refused:
            Lock(path)
        assert refused.value.holder.startswith(f"process {other.pid} on ")
        other.kill()
    assert path.exists()
    lock = Lock(path)
    assert path.read_text().startswith(f"process {os.getpid()} on ")
    lock.release()
    assert not path.exists()


def test_whoever_waits_gets_it(tmp_path: Path) -> None:
    path, done = tmp_path / ".lock", []
    lock = Lock(path)

    def wait() -> None:
        second = Lock(path, wait=True)
        done.append("second")
        second.release()

    thread = threading.Thread(target=wait)
    thread.start()
    thread.join(0.2)
    done.append("first")
    lock.release()
    thread.join(10)
    assert done == ["first", "second"]
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_took_its_place_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    lock = Lock(path)
    path.rename(tmp_path / "aside")
    path.write_text("another's")
    lock.release()
    assert path.read_text() == "another's"
