"""What a process holds, before and after work that should leave nothing behind."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable

import pytest


def held() -> tuple[int, int]:
    """Threads of this process, those of C++ among them, and open descriptors."""
    return len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def assert_no_growth(work: Callable[[int], None], times: int, allowed: int) -> None:
    """Does `work` as often as asked; after the first fifth, memory may grow by `allowed` bytes and nothing else."""
    if not os.path.exists("/proc/self/task"):
        pytest.skip("counts threads, descriptors and memory in /proc")
    for i in range(times // 5):
        work(i)
    gc.collect()
    before, memory = held(), resident_bytes()
    for i in range(times // 5, times):
        work(i)
    gc.collect()
    assert held() == before
    growth = resident_bytes() - memory
    print(f"{times} times: memory grew by {growth / 1024:.0f} KiB, threads and descriptors stayed at {before}")
    assert growth <= allowed
