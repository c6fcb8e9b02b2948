"""Progress of long work: how far, how fast, how long still."""

from __future__ import annotations

import sys
import time


def duration(seconds: float) -> str:
    """`95` -> `1:35`, `3725` -> `1:02:05`."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Progress:
    """A line that is redrawn on a terminal, and printed every ten seconds elsewhere.

    Args:
        label: what is going on.
        total: steps in all.
        unit: name of a step.
        done: how many steps were done before.
        show: print at all.
    """

    def __init__(self, label: str, total: int, unit: str = "steps", *, done: int = 0, show: bool = True) -> None:
        self.label, self.total, self.unit, self.show = label, total, unit, show
        self.done = self.before = done
        self.start = time.monotonic()
        self.terminal = sys.stdout.isatty()
        self.next = self.start + (0.1 if self.terminal else 10.0)

    def step(self, note: str = "", count: int = 1) -> None:
        """Counts steps; prints when it is time."""
        self.done += count
        now = time.monotonic()
        if not self.show or now < self.next:
            return
        self.next = now + (0.1 if self.terminal else 10.0)
        rate = (self.done - self.before) / max(now - self.start, 1e-9)
        left = duration((self.total - self.done) / rate) if rate > 0 else "?"
        speed = f"{rate:.2f} {self.unit}/s" if rate >= 0.1 else f"{1 / rate:.1f} s per {self.unit.rstrip('s')}"
        line = f"{self.label}  {self.done}/{self.total}  {speed}  {left} left  {note}".rstrip()
        sys.stdout.write(f"\r\x1b[2K{line}" if self.terminal else line + "\n")
        sys.stdout.flush()

    def close(self) -> None:
        """Clears the line."""
        if self.show and self.terminal:
            sys.stdout.write("\r\x1b[2K")
            sys.stdout.flush()
