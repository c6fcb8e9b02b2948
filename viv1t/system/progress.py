"""Progress of long work: how far, how fast, how long still. It goes to standard error, apart from what is computed."""

from __future__ import annotations

import importlib.util
import logging
import sys
import time
from typing import Any

from tqdm import tqdm

_LOG_SECONDS = 10.0
_FORMAT = "{desc}: {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"  # where there is no bar


def duration(seconds: float) -> str:
    """`95` -> `1:35`, `3725` -> `1:02:05`."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Progress:
    """A bar on a terminal or in a notebook, and a line every ten seconds in the log of a job.

    Args:
        label: what is going on.
        total: steps in all.
        unit: name of steps.
        done: how many steps were done before; rates are of the others.
        show: print at all.
    """

    def __init__(self, label: str, total: int, unit: str = "steps", *, done: int = 0, show: bool = True) -> None:
        self.label, self.total, self.unit = label, total, unit.removesuffix("s")
        self.done = self.before = done
        self.start = time.monotonic()
        self._lines, self._next = show, self.start + _LOG_SECONDS
        self._bar: tqdm[Any] | None = None
        if show and (in_notebook() or sys.stderr.isatty()):
            self._lines = False
            # The rate is that since the start, and the bar goes when it is closed.
            self._bar = _bar_class()(
                desc=label, total=total, unit=self.unit, initial=done, smoothing=0, leave=False, dynamic_ncols=True,
                file=sys.stderr,
            )  # fmt: skip

    def step(self, note: str = "", count: int = 1) -> None:
        """Counts steps; prints when it is time, with a `note` of how it goes."""
        self.done += count
        if self._bar is not None:
            if note:
                self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(count)
        elif self._lines and (now := time.monotonic()) >= self._next:
            self._next = now + _LOG_SECONDS
            line = tqdm.format_meter(
                self.done, self.total, now - self.start, prefix=self.label, unit=self.unit, initial=self.before,
                postfix=note or None, bar_format=_FORMAT,
            )  # fmt: skip
            print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Takes the bar away."""
        if self._bar is not None:
            self._bar.close()


class ConsoleHandler(logging.StreamHandler[Any]):
    """Writes log lines to standard error, above a bar that is shown there."""

    def emit(self, record: logging.LogRecord) -> None:
        with tqdm.external_write_mode(file=self.stream):
            super().emit(record)


def in_notebook() -> bool:
    """Whether standard error is a cell of a notebook."""
    return "ipykernel" in sys.modules and type(sys.stderr).__module__.startswith("ipykernel")


def _bar_class() -> Any:
    if in_notebook() and importlib.util.find_spec("ipywidgets") is not None:
        from tqdm.notebook import tqdm as widget

        return widget
    return tqdm
