"""Progress: what is printed, and when."""

from __future__ import annotations

import sys

import pytest

from viv1t.system import progress
from viv1t.system.progress import Progress, duration


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


def test_a_line_every_ten_seconds_in_a_file(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    shown = Progress("epoch 1/2", 100)
    for _ in range(21):
        clock.now += 1
        shown.step("loss 3.0")
    shown.close()
    assert capsys.readouterr().out.splitlines() == [
        "epoch 1/2  10/100  1.00 steps/s  1:30 left  loss 3.0",
        "epoch 1/2  20/100  1.00 steps/s  1:20 left  loss 3.0",
    ]


def test_slow_steps_are_given_in_seconds(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    shown = Progress("validation", 3, "trials")
    clock.now += 40
    shown.step()
    assert capsys.readouterr().out == "validation  1/3  40.0 s per trial  1:20 left\n"


def test_one_line_is_redrawn_and_cleared_on_a_terminal(
    clock: Clock, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    shown = Progress("epoch", 10)
    for _ in range(3):
        clock.now += 0.06
        shown.step()
    shown.close()
    assert capsys.readouterr().out == "\r\x1b[2Kepoch  2/10  16.67 steps/s  0:00 left\r\x1b[2K"


def test_hidden_progress_prints_nothing(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    shown = Progress("epoch", 10, show=False)
    clock.now += 100
    shown.step()
    shown.close()
    assert capsys.readouterr().out == ""
