"""How many processor cores this process may use."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from viv1t.system.memory import control_groups, lines_of, number_in

# How OpenMP waits; the number counts looks of GNU's, the time in milliseconds is LLVM's and Intel's.
_WAITING = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "0"}


def usable_cores() -> int:
    """Those it is bound to (by Slurm, `taskset`), at most what its control groups may use of them at a time."""
    return max(1, min([_bound(), *(math.ceil(share) for share in _shares())]))


def keep_threads_within(cores: int) -> None:
    """Lets PyTorch, loaded or not yet, start no more threads than cores, unless the user has said how many.

    By itself it looks at what the process is bound to, and not at the time its control groups have: threads beyond that
    wait for one another.
    """
    if "OMP_NUM_THREADS" in os.environ:
        return
    torch = sys.modules.get("torch")
    if torch is not None:
        if cores < torch.get_num_threads():
            torch.set_num_threads(cores)
    elif cores < _bound():
        os.environ["OMP_NUM_THREADS"] = str(cores)


def let_threads_sleep() -> None:
    """Lets PyTorch's threads, not loaded yet, sleep soon while they wait for one another, unless the user has chosen.

    By itself GNU's OpenMP looks again and again for milliseconds: beside another program it takes the time of the very
    thread that is waited for. About as long as it takes to wake up is worth a wait awake.
    """
    if "torch" not in sys.modules and not any(name in os.environ for name in _WAITING):
        os.environ.update(_WAITING)


def _bound() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _shares(root: Path = Path("/")) -> Iterator[float]:
    """Cores' worth of time that each control group has."""
    for group, version in control_groups("cpu", root):
        if version == 2:
            quota, _, period = next(iter(lines_of(group / "cpu.max")), "").partition(" ")
        else:
            quota, period = (str(number_in(group / f"cpu.cfs_{name}_us")) for name in ("quota", "period"))
        if quota.isdigit() and period.isdigit() and int(period):  # "max", or -1: as much as there is
            yield int(quota) / int(period)
