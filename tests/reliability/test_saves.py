"""Saving a checkpoint: whatever happens at whatever moment, what was saved last can be read."""

from __future__ import annotations

import errno
import io
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from full_disks import largest_file

from viv1t.errors import CheckpointError
from viv1t.runs import checkpoint
from viv1t.runs.checkpoint import read_checkpoint, read_newest, write_checkpoint
from viv1t.system.files import remove_leftovers

TENSORS = 64  # of 4 KiB: several writes of a buffered file


def state(count: int) -> dict[str, torch.Tensor]:
    """Tensors that tell which save they belong to."""
    return {f"t{i}": torch.full((1024,), float(count)) for i in range(TENSORS)}


def save(folder: Path, count: int) -> None:
    write_checkpoint(folder / "last.safetensors", state(count), {"count": count}, folder / "previous.safetensors")


def newest(folder: Path) -> int:
    """The number of the newest save that can be read; its tensors are its own."""
    _, tensors, facts = read_newest(folder / "last.safetensors", folder / "previous.safetensors")
    assert all(torch.equal(value, state(facts["count"])[key]) for key, value in tensors.items())
    return int(facts["count"])


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


# -- faults ----------------------------------------------------------------------------------------------------------


class Faults:
    """Fails one call of the operating system among those that a save makes, by its number."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        self.at = -1
        for name in ("fsync", "replace", "fchmod", "open"):
            monkeypatch.setattr(os, name, self.counted(name, getattr(os, name)))
        monkeypatch.setattr(checkpoint, "open", self.open, raising=False)

    def counted(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*args: Any, **kwargs: Any) -> Any:
            self.calls.append(name)
            if len(self.calls) - 1 == self.at:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return call(*args, **kwargs)

        return counting

    def open(self, path: Path, mode: str) -> io.BufferedWriter:
        faults = self

        class Raw(io.FileIO):
            """Takes at most 40,000 bytes at a time, so that one save needs several writes."""

            def write(self, data: Any) -> int:
                return int(faults.counted("write", super().write)(memoryview(data).cast("B")[:40_000]))

            def close(self) -> None:
                was = self.closed
                super().close()
                if not was:
                    faults.counted("close", lambda: None)()

        return io.BufferedWriter(Raw(os.fspath(path), mode))


def test_a_fault_at_every_call_of_a_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)
    with monkeypatch.context() as patch:
        faults = Faults(patch)
        save(tmp_path, 2)
        calls = list(faults.calls)
    assert calls.count("write") >= 7
    assert [c for c in calls if c != "write"] == ["close", "fchmod", "fsync", "replace", "replace", "open", "fsync"]
    for at, call in enumerate(calls):
        save(tmp_path, 3)
        with monkeypatch.context() as patch:
            faults = Faults(patch)
            faults.at = at
            with pytest.raises(CheckpointError, match=r"last\.safetensors: cannot be written \(Input/output error\)"):
                save(tmp_path, 4)
        # Once it has its name, the new one is there, though perhaps not yet for good.
        named = calls[:at].count("replace") == 2
        assert newest(tmp_path) == (4 if named else 3), f"call {at}, {call}"
        assert set(names(tmp_path)) <= {"last.safetensors", "previous.safetensors"}


def test_a_disk_that_is_full_at_64_points(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    size = (tmp_path / "last.safetensors").stat().st_size
    before = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
    for point in range(64):
        with largest_file(size * point // 64), pytest.raises(CheckpointError, match=r"cannot be written \(File too"):
            save(tmp_path, 3)
        assert {name: (tmp_path / name).read_bytes() for name in names(tmp_path)} == before
    with largest_file(size):
        save(tmp_path, 3)
    assert newest(tmp_path) == 3


# -- kills -----------------------------------------------------------------------------------------------------------

# Imports once, then forks a process per line, which does nothing but save: nothing here has started threads.
SAVER = """
import os, sys
from pathlib import Path
sys.path[:0] = {tests!r}
from test_saves import save
from viv1t.system.files import remove_leftovers
folder = Path({folder!r})
for line in sys.stdin:
    child = os.fork()
    if not child:
        os.write(1, b"started %d\\n" % os.getpid())
        remove_leftovers(folder)
        for count in range(int(line), 10**9):
            save(folder, count)
            os.write(1, b"%d\\n" % count)
    os.waitpid(child, 0)
    os.write(1, b"dead\\n")
"""


def survive_kills(folder: Path, kills: int) -> tuple[int, int]:
    """Kills savers at random moments; returns how many saves were made and how many files were left half written."""
    rng = random.Random(0)
    source = SAVER.format(tests=[str(p) for p in Path(__file__).parents[:2]], folder=str(folder))
    save(folder, 0)
    began = time.monotonic()
    save(folder, 0)
    several_saves = max(0.06, 5 * (time.monotonic() - began))
    made, halves = 0, 0
    with subprocess.Popen(
        [sys.executable, "-c", source], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as saver:
        assert saver.stdin is not None
        assert saver.stdout is not None
        for _ in range(kills):
            saver.stdin.write(f"{made + 1}\n")
            saver.stdin.flush()
            pid = int(saver.stdout.readline().split()[1])
            time.sleep(rng.random() * several_saves)
            os.kill(pid, signal.SIGKILL)
            told = list(iter(saver.stdout.readline, "dead\n"))
            reported = int(told[-1]) if told else made
            halves += any(".part" in name for name in names(folder))
            made = newest(folder)
            # A save that was not reported may have been finished.
            assert made in (reported, reported + 1)
            if reported > 1:
                assert read_checkpoint(folder / "previous.safetensors")[1]["count"] >= reported - 1
        saver.stdin.close()
    return made, halves


def test_kills_at_random_moments_of_saving(tmp_path: Path) -> None:
    made, halves = survive_kills(tmp_path, 20)
    assert made >= 5
    assert halves  # some died in the middle
    remove_leftovers(tmp_path)
    save(tmp_path, 0)  # the last kill may have come when only the previous save had its name
    assert names(tmp_path) == ["last.safetensors", "previous.safetensors"]


@pytest.mark.slow
def test_a_thousand_kills_at_random_moments_of_saving(tmp_path: Path) -> None:
    made, halves = survive_kills(tmp_path, 1000)
    print(f"1000 kills, {made} saves, {halves} half files, 0 unreadable")
    assert made > 500
    assert halves > 100


# -- damage ----------------------------------------------------------------------------------------------------------


def test_any_changed_byte_is_noticed_and_the_save_before_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    path = tmp_path / "last.safetensors"
    whole = path.read_bytes()
    rng = random.Random(1)
    places = [*range(0, 200, 10), *(rng.randrange(len(whole)) for _ in range(40)), len(whole) - 1]
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"last\.safetensors: (damaged|not a checkpoint)"):
            read_checkpoint(path)
        caplog.clear()
        assert newest(tmp_path) == 1
        assert f"going back to the save before it, {tmp_path / 'previous.safetensors'}" in caplog.text
    for size in (0, 7, 8, 9, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert newest(tmp_path) == 1
    path.unlink()
    assert newest(tmp_path) == 1
    (tmp_path / "previous.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"last\.safetensors: no checkpoint there"):
        newest(tmp_path)
