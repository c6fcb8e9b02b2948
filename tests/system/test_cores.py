"""Cores that a process may use: bound to it, within the time of its control groups."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_memory import UNIFIED, VERSION_1, tree

from viv1t.system import cores
from viv1t.system.cores import keep_threads_within, let_threads_sleep, usable_cores


@pytest.mark.parametrize(
    ("cgroup", "mounts", "groups", "expected"),
    [
        ("0::/\n", [UNIFIED], {"sys/fs/cgroup": {"cpu.max": "150000 100000"}}, [1.5]),
        ("0::/\n", [UNIFIED], {"sys/fs/cgroup": {"cpu.max": "max 100000"}}, []),
        (
            "0::/a/b\n",
            [UNIFIED],
            {"sys/fs/cgroup/a/b": {"cpu.max": "max 100000"}, "sys/fs/cgroup/a": {"cpu.max": "400000 100000"}},
            [4.0],
        ),
        (
            "3:cpu,cpuacct:/job\n4:memory:/\n",
            VERSION_1,
            {
                "sys/fs/cgroup/cpu,cpuacct/job": {"cpu.cfs_quota_us": 300000, "cpu.cfs_period_us": 100000},
                "sys/fs/cgroup/cpu,cpuacct": {"cpu.cfs_quota_us": -1, "cpu.cfs_period_us": 100000},
            },
            [3.0],
        ),
        ("", [], {}, []),
    ],
)
def test_time_of_groups(
    cgroup: str, mounts: list[str], groups: dict[str, dict[str, object]], expected: list[float], tmp_path: Path
) -> None:
    assert list(cores._shares(tree(tmp_path, cgroup, mounts, groups))) == expected


@pytest.mark.parametrize(("shares", "expected"), [([], 8), ([1.5], 2), ([4.0, 0.2], 1), ([64.0], 8)])
def test_the_fewest_count(shares: list[float], expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(cores, "_shares", lambda: iter(shares))
    assert usable_cores() == expected
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert usable_cores() == expected


def test_pytorch_starts_no_more_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
        keep_threads_within(1)
        assert torch.get_num_threads() == 3  # as the user said
        monkeypatch.delenv("OMP_NUM_THREADS")
        for cores_now, expected in ((8, 3), (2, 2)):
            keep_threads_within(cores_now)
            assert torch.get_num_threads() == expected
        assert "OMP_NUM_THREADS" not in os.environ
        monkeypatch.setattr(cores, "_bound", lambda: 4)
        monkeypatch.delitem(sys.modules, "torch")
        keep_threads_within(4)
        assert "OMP_NUM_THREADS" not in os.environ
        keep_threads_within(2)
        assert os.environ["OMP_NUM_THREADS"] == "2"
    finally:
        torch.set_num_threads(before)


def test_threads_sleep_while_they_wait_unless_the_user_has_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in cores._WAITING:
        monkeypatch.delenv(name, raising=False)
    let_threads_sleep()
    assert "OMP_WAIT_POLICY" not in os.environ  # too late: PyTorch is loaded
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    let_threads_sleep()
    assert "OMP_WAIT_POLICY" not in os.environ
    monkeypatch.delenv("GOMP_SPINCOUNT")
    let_threads_sleep()
    assert {name: os.environ[name] for name in cores._WAITING} == cores._WAITING
    for name in cores._WAITING:
        monkeypatch.delenv(name)


_COMMAND = """
import sys, time
from viv1t.cli.options import run_main

def work(argv):
    assert "torch" not in sys.modules
    import torch
    torch.set_num_threads(2)
    x = torch.ones(100_000)
    x.sin()  # both threads are there now
    began = time.process_time()
    for _ in range(20):
        x.sin()
        time.sleep(0.02)
    print(time.process_time() - began)
    return 0

raise SystemExit(run_main("test", work, []))
"""


def test_a_command_s_threads_take_no_time_while_they_wait() -> None:
    """Milliseconds each time otherwise, 0.2 s in all."""
    environment = {name: value for name, value in os.environ.items() if name not in cores._WAITING}
    done = subprocess.run([sys.executable, "-c", _COMMAND], env=environment, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 0.08
