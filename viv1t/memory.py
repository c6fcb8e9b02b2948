"""How much memory there is, and how much something takes, as Linux tells."""

from __future__ import annotations

import gc
import os
import re
from collections.abc import Callable
from pathlib import Path

_CLEAR = Path("/proc/self/clear_refs")


def total_bytes() -> int:
    """The machine's memory."""
    return _proc_bytes("/proc/meminfo", "MemTotal")


def available_bytes() -> int:
    """Memory that can be taken without swapping."""
    return _proc_bytes("/proc/meminfo", "MemAvailable")


def can_measure() -> bool:
    """Whether `peak_added_bytes` works here."""
    return os.access(_CLEAR, os.W_OK)


def peak_added_bytes(work: Callable[[], object]) -> int:
    """Resident memory of this process that `work` adds at its highest, over what was resident before.

    What an allocator kept from earlier work is not added anew, and not counted.
    """
    gc.collect()
    _CLEAR.write_text("5")  # sets the high-water mark back to the present
    before = _proc_bytes("/proc/self/status", "VmRSS")
    work()
    return _proc_bytes("/proc/self/status", "VmHWM") - before


def _proc_bytes(path: str, key: str) -> int:
    found = re.search(rf"^{key}:\s+(\d+) kB$", Path(path).read_text(), re.MULTILINE)
    assert found is not None, f"{path} has no {key}"
    return int(found[1]) * 1024
