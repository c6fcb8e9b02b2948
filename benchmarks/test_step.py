"""A training step: forward, criterion, backward and AdamW, with the published default model.

In training mode with all dropouts on; on two CPU cores, or on a GPU.
"""

from __future__ import annotations

import pytest
from torch.profiler import ProfilerActivity, profile

from benchmarks.baseline.step import TrainingStep
from benchmarks.harness import DEVICE, Report
from benchmarks.published import Published
from benchmarks.workload import MOUSE, TRAIN_TRIALS, InPrecision, Size, Subject, full_size
from viv1t.families.sensorium2023.training import training
from viv1t.training.step import Step


class EngineStep:
    """The engine's step, as its trainer calls it."""

    def __init__(self, size: Size) -> None:
        self.size, self.batch, self.model, config = size, size.batch(), size.model(), size.config
        self.step = Step(
            self.model,
            training(self.model, config, {MOUSE: TRAIN_TRIALS}),
            micro_batch_size=config.train.micro_batch_size,
            checkpointing=config.train.grad_checkpointing,
            compiled=config.train.compiles(size.device),
        )

    def __call__(self) -> float:
        with self.size.products():
            loss = self.step.accumulate(self.batch)
            self.step.update()
            return float(loss)


class PublishedStep(InPrecision, TrainingStep):
    """The same step the published model's plain way."""

    def __init__(self, size: Size) -> None:
        self.size = size
        super().__init__(size.plain_model(), size.batch(), **size.training)


STEP = Subject("step", EngineStep, PublishedStep, gradients=True)


def test_step_seconds(report: Report, published: Published) -> None:
    STEP.add_seconds(report, full_size(), published, repeats=2)


def test_step_peak_bytes(report: Report, published: Published) -> None:
    STEP.add_peak_bytes(report, full_size(), published)


@pytest.mark.skipif(DEVICE != "cuda", reason="needs a CUDA GPU")
def test_step_profile(report: Report) -> None:
    """What a bf16 step spends its time on, kernel by kernel."""
    size = full_size()
    step = EngineStep(Size(trials=size.trials, options={"grad_checkpointing": 0, "precision": "bf16"}))
    for _ in range(3):
        step()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        step()
    table = found.key_averages().table(sort_by="self_device_time_total", row_limit=40, max_name_column_width=80)
    report.texts["step-profile.txt"] = f"bf16, {size.trials} trials of {size.frames} frames\n{table}\n"
