"""Ending a run that is told to end, or cannot go on, with nothing lost.

Python answers a signal between two steps of its own, and a backward pass or a read may take long. So a second thread
watches: it hears of signals through a pipe that the interpreter writes to at once, and ends the process by itself
when the first thread does not get there in time.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import Any

from viv1t.errors import Interrupted, Viv1tError

GRACE = 3.0  # seconds for a step to end after a signal; what is left of five is for the save
CLOSING = 60.0  # seconds for everything else to end once the signal is answered: a tracker may have much to send
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Watch:
    """While entered, turns SIGINT and SIGTERM into `Interrupted`: at once, or at the next `check` inside `saving`.

    Only the first signal counts. Outside the main thread, where Python allows no handlers, it only watches readers.

    Attributes:
        changing: a lock, held while what is to be saved changes.
        signal: the number of the signal that came; 0 before.
    """

    def __init__(self) -> None:
        self.changing = threading.Lock()
        self.signal = 0
        self._asked = self._answered = 0.0
        self._raised = False
        self._patient = False
        self._save: Callable[[], None] | None = None
        self._limit: tuple[float, Callable[[], Viv1tError]] | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Watch:
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        if threading.current_thread() is threading.main_thread():
            self._fd_before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
            self._before = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        self._thread = threading.Thread(target=self._watch, name="viv1t-watch", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self._before:
            signal.set_wakeup_fd(self._fd_before)
            for number, handler in self._before.items():
                signal.signal(number, handler)
        os.write(self._write, b"\0")  # no signal's number: ends the thread
        self._thread.join()
        os.close(self._write)
        os.close(self._read)

    def check(self) -> None:
        """Raises Interrupted if a signal has come."""
        if self.signal:
            self._raised = True
            if not self._patient:
                self.answer()
            raise Interrupted(self.signal)

    @contextmanager
    def saving(self, save: Callable[[], None] | None) -> Iterator[None]:
        """Meanwhile signals wait for `check`, and `save` may be called, between changes, by the second thread."""
        self._save, self._patient = save, True
        try:
            yield
        finally:
            with self.changing:
                self._save, self._patient = None, False
                if self.signal:
                    self.answer()

    @contextmanager
    def limit(self, seconds: float, error: Callable[[], Viv1tError]) -> Iterator[Callable[[], None]]:
        """Ends the process with an error if what is inside takes longer, or longer since it called what it is given.

        Args:
            seconds: 0 allows any time.
            error: makes the error.
        """

        def restart() -> None:
            self._limit = (time.monotonic() + seconds, error) if seconds else None

        restart()
        try:
            yield restart
        finally:
            self._limit = None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._note(number)
        if not self._patient and not self._raised:
            self.check()

    def answer(self) -> None:
        """Tells that the first thread has heard of the signal and sees to the save: it may take its time."""
        self._answered = self._answered or time.monotonic()

    def _note(self, number: int) -> None:
        if not self.signal:
            self._asked = time.monotonic()
            self.signal = number

    def _watch(self) -> None:
        while True:
            if select.select([self._read], [], [], 0.5)[0]:
                for number in os.read(self._read, 64):
                    if number == 0:
                        return
                    if number in _SIGNALS:  # others that the program handles are written too
                        self._note(number)
            limit, now = self._limit, time.monotonic()
            if self.signal and not self._answered and now > self._asked + GRACE:
                self._end(128 + self.signal, "interrupted", in_time=lambda: self._answered > 0)
            elif self.signal and self._answered and now > self._answered + CLOSING:
                words = f"interrupted, after all was saved; what was being closed took more than {CLOSING:.0f} s"
                self._end(128 + self.signal, words)
            elif limit is not None and now > limit[0]:
                error = limit[1]()
                self._end(error.exit_code, f"error: {error}")

    def _end(self, status: int, words: str, in_time: Callable[[], bool] = lambda: False) -> None:
        """Saves, if there is something to save, and ends the process as it stands: the first thread cannot.

        Args:
            status: of the process.
            words: to tell.
            in_time: whether the first thread has got there while a change was waited for, and nothing is to be done.
        """
        with self.changing:
            if in_time():
                return
            if self._save is not None:
                try:
                    self._save()
                    words += "; saved before the step that was under way"
                except Viv1tError as error:
                    words, status = f"error: {error}", error.exit_code
            with suppress(OSError, ValueError):
                print(f"\n{os.path.basename(sys.argv[0])}: {words}", file=sys.stderr, flush=True)
            os._exit(status)
