"""A process that measures ends with the one that asked; nothing of any package is imported here."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_SET_DEATH_SIGNAL = 1  # of prctl(2)


def end_with_parent() -> None:
    """Has this process killed once the one that started it has ended, however that ended; on Linux.

    Whatever it computes would otherwise go on, for nobody.
    """
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
