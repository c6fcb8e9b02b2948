"""Memory that a process may take: of the machine, within its control groups, its own limits and its job's."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest

from viv1t.system import memory

MIB = 2**20
UNLIMITED = 9223372036854771712  # of version 1


def tree(root: Path, cgroup: str, mounts: list[str], groups: dict[str, dict[str, Any]]) -> Path:
    """`/proc/self` and control groups, `folder: {file: content}`, below a root."""
    proc = root / "proc" / "self"
    proc.mkdir(parents=True)
    (proc / "cgroup").write_text(cgroup)
    (proc / "mountinfo").write_text("".join(f"{line}\n" for line in mounts))
    for folder, files in groups.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (root / folder / name).write_text(f"{content}\n")
    return root


def group_2(limit: Any, used: int, high: Any = "max", inactive: int = 0, active: int = 0) -> dict[str, Any]:
    stat = f"anon {used - inactive - active}\nfile {inactive + active}\ninactive_file {inactive}\nactive_file {active}"
    return {"memory.max": limit, "memory.high": high, "memory.current": used, "memory.stat": stat}


def group_1(limit: int, used: int, around: int = UNLIMITED, cached: int = 0) -> dict[str, Any]:
    stat = f"cache {cached}\nhierarchical_memory_limit {around}\ntotal_inactive_file {cached}\ntotal_active_file 0"
    return {"memory.limit_in_bytes": limit, "memory.usage_in_bytes": used, "memory.stat": stat}


UNIFIED = "31 23 0:28 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate"
VERSION_1 = [
    "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755",
    "33 31 0:30 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct",
    "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory",
]

TREES: dict[str, tuple[str, list[str], dict[str, dict[str, Any]], list[int]]] = {
    "a container of version 2": (
        "0::/\n", [UNIFIED], {"sys/fs/cgroup": group_2(1024 * MIB, 300 * MIB)}, [724 * MIB],
    ),
    "page cache makes room": (
        "0::/\n", [UNIFIED], {"sys/fs/cgroup": group_2(1024 * MIB, 900 * MIB, inactive=500 * MIB, active=100 * MIB)},
        [724 * MIB],
    ),
    "a group that is slowed down before it is full": (
        "0::/\n", [UNIFIED], {"sys/fs/cgroup": group_2(1024 * MIB, 300 * MIB, high=512 * MIB)}, [212 * MIB],
    ),
    "a job's step, the limit on the job": (
        "0::/system.slice/slurmstepd.scope/job_7/step_0/user/task_0\n",
        [UNIFIED],
        {
            "sys/fs/cgroup/system.slice/slurmstepd.scope/job_7": group_2(2048 * MIB, 1000 * MIB),
            "sys/fs/cgroup/system.slice/slurmstepd.scope/job_7/step_0": group_2("max", 900 * MIB),
            "sys/fs/cgroup/system.slice/slurmstepd.scope/job_7/step_0/user/task_0": group_2("max", 900 * MIB),
            "sys/fs/cgroup/system.slice": group_2(4096 * MIB, 3500 * MIB),
        },
        [1048 * MIB, 596 * MIB],
    ),
    "no limit": ("0::/user.slice\n", [UNIFIED], {"sys/fs/cgroup/user.slice": group_2("max", 5 * MIB)}, []),
    "no group with memory": ("0::/\n", [UNIFIED], {"sys/fs/cgroup": {}}, []),
    "a group of another name space": (
        "0::/../../other\n", [UNIFIED], {"sys/fs/cgroup": group_2(64 * MIB, 4 * MIB)}, [60 * MIB],
    ),
    "version 1, nested": (
        "4:memory:/slurm/uid_1/job_2/step_0\n3:cpu,cpuacct:/slurm\n1:name=systemd:/x\n0::/\n",
        VERSION_1,
        {
            "sys/fs/cgroup/memory/slurm/uid_1/job_2": group_1(1024 * MIB, 700 * MIB, cached=100 * MIB),
            "sys/fs/cgroup/memory/slurm/uid_1/job_2/step_0": group_1(UNLIMITED, 700 * MIB, 1024 * MIB, 100 * MIB),
            "sys/fs/cgroup/memory/slurm/uid_1": group_1(UNLIMITED, 700 * MIB),
        },
        [424 * MIB, 424 * MIB],
    ),
    "version 1, a container that sees its group alone": (
        "4:memory:/docker/abc\n",
        ["35 31 0:32 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory"],
        {"sys/fs/cgroup/memory": group_1(512 * MIB, 12 * MIB)},
        [500 * MIB],
    ),
    "memory left to version 1 beside version 2": (
        "4:memory:/\n0::/\n",
        [*VERSION_1, "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw"],
        {"sys/fs/cgroup/memory": group_1(UNLIMITED, 12 * MIB), "sys/fs/cgroup/unified": {}},
        [],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TREES)
def test_what_is_left_below_the_limits_of_groups(name: str, tmp_path: Path) -> None:
    cgroup, mounts, groups, expected = TREES[name]
    assert list(memory.cgroup_rooms(tree(tmp_path, cgroup, mounts, groups))) == expected


def test_without_proc_there_are_no_groups(tmp_path: Path) -> None:
    assert list(memory.cgroup_rooms(tmp_path)) == []


def test_the_least_room_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = SimpleNamespace(available=1000 * MIB, total=2000 * MIB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: machine)
    for name in ("SLURM_MEM_PER_NODE", "SLURM_MEM_PER_CPU"):
        monkeypatch.delenv(name, raising=False)
    for group, expected in ([], 1000), ([700], 700), ([700, 20], 20), ([-5], 0), ([5000], 1000):
        monkeypatch.setattr(memory, "cgroup_rooms", lambda group=group: [n * MIB for n in group])
        assert memory.available_bytes() == expected * MIB
    assert memory.total_bytes() == 2000 * MIB


@pytest.mark.parametrize(
    ("environment", "megabytes"),
    [
        ({}, None),
        ({"SLURM_MEM_PER_NODE": "4000"}, 4000),
        ({"SLURM_MEM_PER_NODE": "0"}, None),
        ({"SLURM_MEM_PER_CPU": "1500", "SLURM_CPUS_ON_NODE": "4"}, 6000),
        ({"SLURM_MEM_PER_NODE": "4G"}, None),
    ],
)
def test_what_a_slurm_job_asked_for(environment: dict[str, str], megabytes: int | None) -> None:
    taken = psutil.Process().memory_info().rss
    rooms = list(memory._slurm_rooms(environment))
    assert rooms == ([] if megabytes is None else [pytest.approx(megabytes * MIB - taken, abs=64 * MIB)])


@pytest.mark.parametrize("limit", ["RLIMIT_AS", "RLIMIT_DATA"])
@pytest.mark.skipif(sys.platform != "linux", reason="kept on Linux")
def test_the_process_s_own_limits(limit: str) -> None:
    code = (
        "import resource; from viv1t.system import memory; before = memory.available_bytes();"
        f"resource.setrlimit(resource.{limit}, (2**32, 2**32)); print(before, memory.available_bytes())"
    )
    before, after = map(int, subprocess.check_output([sys.executable, "-c", code]).split())
    assert 0 < after < 2**32
    assert after <= before


@pytest.mark.parametrize("measured_by", ["VmHWM", "getrusage"])
def test_the_peak_that_work_adds(measured_by: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if measured_by == "getrusage":  # no /proc, or one that is closed: never less than was added
        monkeypatch.setattr(memory, "lines_of", lambda path: [])
        monkeypatch.setattr(memory, "_CLEAR", tmp_path / "missing" / "clear_refs")
    size = 300 * MIB
    added = memory.peak_added_bytes(lambda: np.ones(size, np.uint8))
    assert added >= 0.95 * size
    assert measured_by == "getrusage" or added < 1.5 * size
    if measured_by == "getrusage":
        highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        assert added <= highest
