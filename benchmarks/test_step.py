"""A training step on two CPU cores: forward, criterion, backward and AdamW, with the published default model.

Both variants start from the same weights and see the same trial, in training mode with all dropouts on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from benchmarks.baseline.model import PlainViV1T
from benchmarks.baseline.step import TrainingStep
from benchmarks.harness import Report, peak_bytes, seconds
from benchmarks.published import Published
from viv1t.config import RunConfig
from viv1t.memory import available_bytes
from viv1t.model.published import to_published
from viv1t.model.viv1t import Neurons, ViV1T, build_model
from viv1t.train.optimizer import build_optimizer
from viv1t.train.step import Step
from viv1t.types import Batch

MOUSE, TRAIN_TRIALS, THREADS = "F", 400, 2
NEEDED_BYTES = 12e9  # the published way takes 10.3 GB

# The published command.
PUBLISHED_OPTIONS: Mapping[str, Any] = {
    "output_dir": "unused", "transform_mode": 2, "crop_frame": 140, "ds_mode": 3, "core": "vivit",
    "core_parallel_attention": True, "grad_checkpointing": 0, "output_mode": 1, "readout": "gaussian2d",
}  # fmt: skip


@dataclass(frozen=True)
class Size:
    """How large the measured step is."""

    neurons: int = 8000
    frames: int = 140
    trials: int = 1
    frame_size: tuple[int, int] = (36, 64)
    options: Mapping[str, Any] = field(default_factory=dict)  # on top of the published command's

    @property
    def config(self) -> RunConfig:
        return RunConfig.from_options({**PUBLISHED_OPTIONS, **self.options})

    def batch(self) -> Batch:
        generator = torch.Generator().manual_seed(1)
        trials, frames = self.trials, self.frames
        return Batch(
            mouse_id=MOUSE,
            trial_ids=tuple(range(trials)),
            video=torch.randn(trials, 1, frames, *self.frame_size, generator=generator),
            response=torch.randn(trials, self.neurons, frames, generator=generator).clamp_min(0),
            behavior=torch.rand(trials, 2, frames, generator=generator),
            pupil_center=torch.rand(trials, 2, frames, generator=generator),
            frames=torch.full((trials,), frames),
        )

    def model(self) -> ViV1T:
        torch.manual_seed(2)
        neurons = Neurons(self.neurons, coordinates=1000 * torch.rand(self.neurons, 3))
        return build_model(self.config, {MOUSE: neurons}, self.frame_size).train()

    @property
    def training(self) -> dict[str, Any]:
        """What the published step is made with."""
        config, options = self.config, self.config.optimizer
        rates = {"core_lr": config.core_lr, "core_weight_decay": options.core_weight_decay}
        rates |= {"lr": options.lr, "weight_decay": options.weight_decay}
        return {"train_trials": TRAIN_TRIALS, **rates, "betas": (options.beta1, options.beta2), "eps": options.eps}


class EngineStep:
    """The engine's step, as its trainer calls it."""

    def __init__(self, size: Size) -> None:
        self.batch, self.model, config = size.batch(), size.model(), size.config
        self.step = Step(self.model, build_optimizer(self.model, config), config, {MOUSE: TRAIN_TRIALS})

    def __call__(self) -> float:
        loss = self.step.accumulate(self.batch)
        self.step.update()
        return float(loss)


class PublishedStep(TrainingStep):
    """The same step the published model's plain way."""

    def __init__(self, size: Size) -> None:
        model = PlainViV1T(size.config, {MOUSE: size.neurons}, size.frame_size)
        model.load_state_dict(to_published(size.model()))
        super().__init__(model, size.batch(), **size.training)


VARIANTS = {"viv1t": EngineStep, "published": PublishedStep}
# Options of the engine's step; the published way knows float32 alone, and keeps everything.
CASES: Mapping[str, Mapping[str, Any]] = {
    "float32": {"grad_checkpointing": 0},
    "float32-recomputed": {"grad_checkpointing": 1},
    "bf16": {"grad_checkpointing": 0, "precision": "bf16"},
}


@pytest.fixture(autouse=True)
def enough_memory() -> None:
    if available_bytes() < NEEDED_BYTES:
        pytest.skip(f"needs {NEEDED_BYTES / 1e9:.0f} GB of memory, {available_bytes() / 1e9:.1f} GB are available")


def add_cases(report: Report, benchmark: str, metric: str, unit: str, size: Size, samples: Mapping[str, Any]) -> None:
    """One row per case of the engine, and beside it what the published way took."""
    for case in (name for name in samples if name != "published"):
        name = f"{case}-{size.frames}-frames-{size.neurons}-neurons"
        report.add(benchmark, name, metric, unit, {"viv1t": samples[case], "published": samples["published"]})


def test_step_seconds(report: Report, published: Published) -> None:
    works = {case: EngineStep(Size(options=options)) for case, options in CASES.items()}
    samples = seconds(
        {**works, "published": published.work(PublishedStep, Size(), THREADS)}, repeats=2, threads=THREADS
    )
    add_cases(report, "step", "seconds", "s", Size(), samples)


def test_step_peak_bytes(report: Report, published: Published) -> None:
    samples = {case: peak_bytes(EngineStep, Size(options=o), threads=THREADS) for case, o in CASES.items()}
    samples["published"] = published.peak_bytes(PublishedStep, Size(), THREADS)
    add_cases(report, "step", "peak_bytes", "B", Size(), samples)
