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
_NO_LIMIT = 2**62  # version 1 writes the largest multiple of a page


def total_bytes() -> int:
    """The machine's memory."""
    return int(psutil.virtual_memory().total)


def available_bytes() -> int:
    """Memory that this process can take: without swapping, and within the limits it was started under."""
    room = [int(psutil.virtual_memory().available), *cgroup_rooms(), *_limit_rooms(), *_slurm_rooms(os.environ)]
    return max(0, min(room))


# -- limits of groups of processes -------------------------------------------------------------------------------------


def cgroup_rooms(root: Path = Path("/")) -> Iterator[int]:
    """What is left below each limit of the control groups that this process is in, and of those around them.

    Files in the page cache count as used there, but make room when it is needed.

    Args:
        root: where `proc` and `sys` are; a tree of files for tests.
    """
    for group, version in control_groups("memory", root):
        table = {name: int(value) for name, value in (line.split() for line in lines_of(group / "memory.stat"))}
        limits: list[int | None]
        if version == 2:
            limits = [number_in(group / "memory.max"), number_in(group / "memory.high")]
            used, prefix = number_in(group / "memory.current"), ""
        else:
            limits = [number_in(group / "memory.limit_in_bytes"), table.get("hierarchical_memory_limit")]
            used, prefix = number_in(group / "memory.usage_in_bytes"), "total_"
        known = [n for n in limits if n is not None and n < _NO_LIMIT]
        if known and used is not None:
            yield min(known) - used + sum(table.get(f"{prefix}{name}_file", 0) for name in ("inactive", "active"))


def control_groups(controller: str, root: Path = Path("/")) -> Iterator[tuple[Path, int]]:
    """The folders of the Linux control groups that this process is in, those around included, with their version.

    Containers, Slurm and systemd set their limits. Described in the kernel's `Documentation/admin-guide/cgroup-v2.rst`
    and `cgroup-v1/`.

    Args:
        controller: `memory` or `cpu`; version 2 has one hierarchy for all.
        root: where `proc` and `sys` are; a tree of files for tests.
    """
    own: dict[int, str] = {}
    for line in lines_of(root / "proc" / "self" / "cgroup"):  # "4:memory:/job" in version 1, "0::/job" in 2
        _, controllers, group = line.split(":", 2)
        if not controllers or controller in controllers.split(","):
            own[1 if controllers else 2] = group
    for line in lines_of(root / "proc" / "self" / "mountinfo"):
        # 36 35 98:0 /root /mounted/at options - type source options
        before, _, after = line.partition(" - ")
        fields, (kind, *_, options) = before.split(), after.split()
        version = {"cgroup": 1, "cgroup2": 2}.get(kind, 0)
        if version in own and (version == 2 or controller in options.split(",")):
            folder = top = root / fields[4].lstrip("/")
            seen, group_path = PurePosixPath(fields[3]), PurePosixPath(own[version])
            # A container may see its own group alone, mounted as if it were the top.
            if group_path.is_relative_to(seen) and ".." not in group_path.parts:
                folder = top / group_path.relative_to(seen)
            yield from ((place, version) for place in _up(folder if folder.is_dir() else top, top))


def _up(folder: Path, top: Path) -> Iterator[Path]:
    for place in (folder, *folder.parents):
        yield place
        if place == top:
            return


def lines_of(path: Path) -> list[str]:
    """The lines of a file of the system; none where it is not Linux, or the file is closed to us."""
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def number_in(path: Path) -> int | None:
    """The number in a file; None where there is none, as in "max"."""
    line = next(iter(lines_of(path)), "").strip()
    return int(line) if line.isdigit() else None


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
    found = re.search(r"^VmHWM:\s+(\d+) kB$", "\n".join(lines_of(Path("/proc/self/status"))), re.MULTILINE)
    if found is not None:
        return int(found[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
