"""The log of a run: to the console, and to the run folder once there is one."""

from __future__ import annotations

import contextlib
import logging
import sys
from logging.handlers import MemoryHandler
from pathlib import Path
from types import TracebackType

from viv1t.errors import Viv1tError
from viv1t.system.files import advice
from viv1t.system.progress import ConsoleHandler


class LevelFormat(logging.Formatter):
    """Offers `%(prefix)s`: the level of what is more than information."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.prefix = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        return super().formatMessage(record)


class _LogFile(logging.FileHandler):
    """A file that is given up with one line where it cannot be written; what is computed goes on."""

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        self.addFilter(lambda _: False)  # that of the warning would fail in turn
        path = self.baseFilename
        why = f"{error.strerror or error}{advice(error, Path(path))}"
        logging.getLogger("viv1t").warning("%s: cannot be written, the rest of the log is not in it (%s)", path, why)

    def close(self) -> None:
        with contextlib.suppress(OSError):  # of what was held back
            super().close()


class RunLog:
    """While entered, takes what the package logs; what comes before `open` is written to the file as well.

    Args:
        verbose: 0 keeps the console silent.
    """

    def __init__(self, verbose: int) -> None:
        self._logger = logging.getLogger("viv1t")
        # Holds records until there is a file to pass them on to.
        self._memory = MemoryHandler(10_000, logging.CRITICAL + 1)
        self._handlers: list[logging.Handler] = [self._memory]
        if verbose:
            console = ConsoleHandler()
            console.setFormatter(LevelFormat("%(prefix)s%(message)s"))
            self._handlers.append(console)

    def open(self, path: Path) -> None:
        """Appends to `path` from now on."""
        file = _LogFile(path, encoding="utf-8")
        file.setFormatter(LevelFormat("%(asctime)s %(prefix)s%(message)s", "%Y-%m-%d %H:%M:%S"))
        self._memory.setTarget(file)
        self._memory.flush()
        self._memory.capacity = 1

    def __enter__(self) -> RunLog:
        self._before = self._logger.level, self._logger.propagate
        self._logger.setLevel(logging.INFO)
        self._logger.propagate = False
        for handler in self._handlers:
            self._logger.addHandler(handler)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        for handler in self._handlers[1:]:
            self._logger.removeHandler(handler)
        # The command tells the console by itself; the file is told here.
        if isinstance(error, Viv1tError):
            self._logger.error("%s", error)
        elif isinstance(error, KeyboardInterrupt):
            self._logger.warning("interrupted")
        self._logger.removeHandler(self._memory)
        file = self._memory.target
        self._memory.close()
        if file is not None:
            file.close()
        self._logger.setLevel(self._before[0])
        self._logger.propagate = self._before[1]
