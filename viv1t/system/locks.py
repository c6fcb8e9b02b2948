"""Locks between processes: one is at work in a place, others wait or are told who it is."""

from __future__ import annotations

import errno
import os
import socket
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

_NONE = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class LockedError(OSError):
    """Another process holds the lock; `holder` says which, "" where it is not known."""

    def __init__(self, path: Path, holder: str) -> None:
        super().__init__(errno.EAGAIN, os.strerror(errno.EAGAIN), str(path))
        self.holder = holder


class NoLocksError(OSError):
    """The file system has no locks, as some network disks: nobody can be kept out."""


class Lock:
    """A lock on a file that this process makes, names itself in, and deletes when done.

    The system gives the lock up when the process ends, however it does: what a killed process leaves is a file that
    keeps nobody out.

    Args:
        path: the file, in a folder that exists.
        wait: for whoever holds it.

    Raises:
        LockedError: another process, or another part of this one, holds it.
        NoLocksError: the file system has no locks.
        OSError: the file cannot be made.
    """

    def __init__(self, path: Path, *, wait: bool = False) -> None:
        self._lock = FileLock(path, timeout=-1 if wait else 0, thread_local=False, fallback_to_soft=False)
        try:
            while not self._taken(path):
                pass
        except OSError as error:
            if error.errno not in _NONE:
                raise
            with suppress(OSError):
                path.unlink()
            raise NoLocksError(error.errno, os.strerror(error.errno or 0), str(path)) from error
        self.path = path
        with suppress(OSError):  # of a full disk
            path.write_text(f"process {os.getpid()} on {socket.gethostname()}\n", encoding="utf-8")
        self._file = path.stat()

    def _taken(self, path: Path) -> bool:
        """Whether the lock is ours now; not yet where whoever had it has just deleted the file."""
        try:
            self._lock.acquire()
        except Timeout as error:
            if path.exists():
                raise LockedError(path, _holder(path)) from error
            return False
        return True

    def release(self) -> None:
        """Deletes the file, unless another lies at its `path` now, and gives the lock up."""
        try:
            with suppress(OSError):
                if os.path.samestat(self._file, self.path.stat()):
                    self.path.unlink()
        finally:
            self._lock.release()


def _holder(path: Path) -> str:
    """Who wrote its name into a lock's file."""
    try:
        return path.read_text(encoding="utf-8")[:200].strip()
    except (OSError, ValueError):
        return ""
