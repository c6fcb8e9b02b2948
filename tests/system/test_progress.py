"""Progress: what is printed, when, and where."""

from __future__ import annotations

import logging
import re
import sys

import pytest

from viv1t.system import progress
from viv1t.system.progress import ConsoleHandler, Progress, duration


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (9.4, "0:09"), (95, "1:35"), (3599.6, "1:00:00"), (3725, "1:02:05"), (-3, "0:00")],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_line_every_ten_seconds_in_the_log_of_a_job(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    shown = Progress("epoch 1/2", 100)
    for _ in range(21):
        clock.now += 1
        shown.step("loss 3.0")
    shown.close()
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "epoch 1/2: 10/100 [00:10<01:30,  1.00step/s, loss 3.0]",
        "epoch 1/2: 20/100 [00:20<01:20,  1.00step/s, loss 3.0]",
    ]


def test_what_was_done_before_counts_for_no_rate(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    shown = Progress("validation", 50, "trials", done=40)
    clock.now += 10
    shown.step(count=5)
    assert capsys.readouterr().err == "validation: 45/50 [00:10<00:10,  2.00s/trial]\n"


def test_a_bar_on_a_terminal_is_taken_away_at_the_end(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    shown = Progress("epoch", 10)
    for _ in range(10):
        shown.step("loss 2.5")
    shown._bar.refresh()  # type: ignore[union-attr]
    shown.close()
    out, err = capsys.readouterr()
    assert out == ""
    assert "epoch: 100%|" in err
    assert "loss 2.5" in err
    assert re.search(r"\r *\r$", err), "the line is cleared"
    assert "\n" not in err


def test_log_lines_stand_above_the_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    shown = Progress("epoch", 10)
    ConsoleHandler(sys.stderr).emit(logging.makeLogRecord({"msg": "a warning"}))
    shown.close()
    assert re.search(r"\r *\ra warning\n", capsys.readouterr().err)


def test_hidden_progress_prints_nothing(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    shown = Progress("epoch", 10, show=False)
    clock.now += 100
    shown.step()
    shown.close()
    assert capsys.readouterr() == ("", "")
