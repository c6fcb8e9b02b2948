"""How much memory there is for this process, and how much something takes.

What a machine has free is not what a process may take: containers and schedulers set limits of their own, and end
whoever passes them.
"""

from __future__ import annotations

import contextlib
import gc
import os
import re
import resource
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath

import psutil

_CLEAR = Path("/proc/self/clear_refs")


def total_bytes() -> int:
    """The machine's memory."""
    return int(psutil.virtual_memory().total)


def available_bytes() -> int:
    """Memory that this process can take: without swapping, and within the limits it was started under."""
    room = [int(psutil.virtual_memory().available), *cgroup_rooms(), *_limit_rooms(), *_slurm_rooms(os.environ)]
    return max(0, min(room))


# -- limits of groups of processes (containers, Slurm, systemd) --------------------------------------------------------


def cgroup_rooms(root: Path = Path("/")) -> Iterator[int]:
    """What is left below each limit of the control groups that this process is in, and of those around them.

    Linux describes them in its `Documentation/admin-guide/cgroup-v2.rst` and `cgroup-v1/memory.rst`. Files in the page
    cache count as used, but make room when it is needed.

    Args:
        root: where `proc` and `sys` are; a tree of files for tests.
    """
    for top, group, version in _memory_groups(root / "proc" / "self", root):
        for folder in (group, *group.parents):
            yield from (_rooms_2 if version == 2 else _rooms_1)(folder)
            if folder == top:
                break


def _memory_groups(proc: Path, root: Path) -> Iterator[tuple[Path, Path, int]]:
    """Of each hierarchy with memory limits: the folder it is mounted at, that of this process, and its version."""
    groups = {}
    for line in _lines(proc / "cgroup"):  # "4:memory:/job" in version 1, "0::/job" in 2
        _, kinds, group = line.split(":", 2)
        if not kinds or "memory" in kinds.split(","):
            groups[1 if kinds else 2] = group
    for line in _lines(proc / "mountinfo"):
        # 36 35 98:0 /root /mounted/at options - type source options
        before, _, after = line.partition(" - ")
        fields, (kind, *_, options) = before.split(), after.split()
        version = {"cgroup": 1, "cgroup2": 2}.get(kind)
        if version in groups and (version == 2 or "memory" in options.split(",")):
            top = root / fields[4].lstrip("/")
            seen, group = PurePosixPath(fields[3]), PurePosixPath(groups[version])
            # A container may see its own group alone, mounted as if it were the top.
            inside = top / group.relative_to(seen) if group.is_relative_to(seen) else top
            yield top, inside if inside.is_dir() and ".." not in group.parts else top, version


def _rooms_2(group: Path) -> Iterator[int]:
    limits = [n for name in ("memory.max", "memory.high") if (n := _number(group / name)) is not None]
    used = _number(group / "memory.current")
    if limits and used is not None:
        stat = _table(group / "memory.stat")
        yield min(limits) - (used - stat.get("inactive_file", 0) - stat.get("active_file", 0))


def _rooms_1(group: Path) -> Iterator[int]:
    stat = _table(group / "memory.stat")
    limits = [_number(group / "memory.limit_in_bytes"), stat.get("hierarchical_memory_limit")]
    limits = [n for n in limits if n is not None and n < 2**62]  # "no limit" is the largest multiple of a page
    used = _number(group / "memory.usage_in_bytes")
    if limits and used is not None:
        yield min(limits) - (used - stat.get("total_inactive_file", 0) - stat.get("total_active_file", 0))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:  # not Linux, or closed to us
        return []


def _number(path: Path) -> int | None:
    """The number in a file; None where there is none, as in "max"."""
    line = next(iter(_lines(path)), "").strip()
    return int(line) if line.isdigit() else None


def _table(path: Path) -> dict[str, int]:
    return {name: int(value) for name, value in (line.split() for line in _lines(path))}


# -- limits of one process, and of a scheduler that only watches -------------------------------------------------------


def _limit_rooms() -> Iterator[int]:
    used = psutil.Process().memory_info()
    for limit, taken in ((resource.RLIMIT_AS, used.vms), (resource.RLIMIT_DATA, getattr(used, "data", 0))):
        most = resource.getrlimit(limit)[0]
        if most != resource.RLIM_INFINITY:
            yield most - taken


def _slurm_rooms(environment: Mapping[str, str]) -> Iterator[int]:
    """Without control groups Slurm looks from time to time, and ends jobs that have more than they asked for."""
    sizes = [environment.get(name, "") for name in ("SLURM_MEM_PER_NODE", "SLURM_MEM_PER_CPU", "SLURM_CPUS_ON_NODE")]
    node, each, count = (int(size) if size.isdigit() else 0 for size in sizes)
    megabytes = node or each * count  # 0: all of the machine
    if megabytes:
        yield megabytes * 2**20 - psutil.Process().memory_info().rss


# -- what something takes ----------------------------------------------------------------------------------------------


def peak_added_bytes(work: Callable[[], object]) -> int:
    """Resident memory of this process that `work` adds at its highest, over what was resident before.

    What an allocator kept from earlier work is not added anew, and not counted. Where the system does not set its
    high-water mark back, the highest of the process's life is taken: no less than was added.
    """
    gc.collect()
    with contextlib.suppress(OSError):
        _CLEAR.write_text("5")  # sets the high-water mark back to the present
    before = int(psutil.Process().memory_info().rss)
    work()
    return max(0, _highest() - before)


def _highest() -> int:
    """The high-water mark of resident memory."""
    found = re.search(r"^VmHWM:\s+(\d+) kB$", "\n".join(_lines(Path("/proc/self/status"))), re.MULTILINE)
    if found is not None:
        return int(found[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
