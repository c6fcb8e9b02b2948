"""What a run tells: losses that can be read, and how long training takes, from its first steps."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from viv1t.families.closed_loop.training import ShareLoss
from viv1t.families.sensorium2023.training import SizeLoss
from viv1t.runs.folder import RunFolder
from viv1t.scoring.criterion import CRITERIA, EPS, TrainingLoss, unscaled_criterion
from viv1t.system.progress import Progress
from viv1t.training import report
from viv1t.training.report import Report, roughly

NEURONS, TRIALS, FRAMES = {"F": 3, "G": 7}, 4, 11
SIZES: Mapping[str, int] = {"F": 50, "G": 80}


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "1 second"), (40, "40 seconds"), (312, "5 minutes"), (5500, "2 hours"), (30000, "8 hours"), (4e5, "5 days")],
)
def test_roughly(seconds: float, words: str) -> None:
    assert roughly(seconds) == words


@pytest.mark.parametrize(
    "loss",
    [
        lambda name: SizeLoss(name, SIZES), lambda name: SizeLoss(name, None),
        lambda name: ShareLoss(name, SIZES, True, TRIALS), lambda name: ShareLoss(name, SIZES, False, TRIALS),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", CRITERIA)
def test_a_loss_is_read_per_neuron_and_frame(name: str, loss: type[TrainingLoss]) -> None:
    """Of mice that do equally badly, it is how badly, whatever their number, their sizes and what multiplies it."""
    chosen = loss(name)
    y, p = torch.full((), 0.25), torch.full((), 0.75)
    values = {
        "poisson": p + EPS - (y + EPS) * torch.log(p + EPS), "mse": (y - p).square(),
        "logMSE": torch.log((y + EPS) / (p + EPS)).square(), "gamma": (y + EPS) / (p + EPS) + torch.log(p + EPS),
        "correlation": torch.tensor(-1.0),  # a constant series correlates at 0
    }  # fmt: skip
    values["mean_poisson"] = values["poisson"]
    values["poisson_correlation"] = values["poisson"] + 1000 / (TRIALS * FRAMES)
    losses = []
    for mouse, count in NEURONS.items():
        shape = TRIALS, count, FRAMES
        criterion = unscaled_criterion(name, y.expand(shape), p.expand(shape), TRIALS)
        losses.append(float(criterion) * chosen.weight(mouse, TRIALS))
        one = (1, count, FRAMES)
        if name != "poisson_correlation":
            trial = float(chosen.of_trial(mouse, y.expand(one), p.expand(one)))
            assert trial / chosen.trial_size(mouse, count, FRAMES) == pytest.approx(float(values[name]), rel=1e-5)
    found = chosen.of_step(losses, len(losses)) / chosen.step_size(NEURONS, TRIALS, FRAMES)
    assert found == pytest.approx(float(values[name]), rel=1e-5)


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


def test_the_first_steps_tell_how_long_training_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    monkeypatch.setattr(report, "time", clock)
    notes = []
    monkeypatch.setattr(Progress, "step", lambda _, note: notes.append(note))
    told = Report(RunFolder(tmp_path), ["F"], 3, 1, writes=True, loss_size=2e6, validation_steps=5)
    progress = told.steps(2, 100, 20)
    with caplog.at_level(logging.INFO, "viv1t"):
        for seconds in [30, *[2] * 10]:  # the first one warms up
            clock.now += seconds
            told.step(progress, 1e6)
    assert set(notes) == {"loss 0.5000"}
    # Of 180 steps and three validations, 4 were made when it is told.
    assert caplog.messages == [
        f"about {roughly((180 + 15 - 4) * 2)} on this machine for all 3 epochs, judged by the first steps"
    ]
