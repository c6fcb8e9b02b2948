"""What `step`, `inference` and `onnx` work on: the published default model, a batch, and the forms that are compared.

All variants have the same weights and see the same trials, on the GPU where there is one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch

from benchmarks.baseline.model import PlainViV1T
from benchmarks.harness import DEVICE, Report, Work, float32_products, peak_bytes, seconds
from benchmarks.published import Published
from viv1t.families.sensorium2023.build import build_model
from viv1t.families.sensorium2023.names import to_published
from viv1t.families.sensorium2023.run import RunConfig
from viv1t.model.twin import Neurons, ViV1T
from viv1t.system.memory import available_bytes
from viv1t.types import Batch

MOUSE, TRAIN_TRIALS, THREADS = "F", 400, 2
NEEDED_BYTES = 12e9  # a trial of 140 frames in training, the published way
BATCH_SIZE = 6  # of the published command; taken on a GPU if it fits

# The published command.
PUBLISHED_OPTIONS: Mapping[str, Any] = {
    "output_dir": "unused", "transform_mode": 2, "crop_frame": 140, "ds_mode": 3, "core": "vivit",
    "core_parallel_attention": True, "grad_checkpointing": 0, "output_mode": 1, "readout": "gaussian2d",
}  # fmt: skip


@dataclass(frozen=True)
class Size:
    """How large the measured work is, where it is done and in which form."""

    neurons: int = 8000
    frames: int = 140
    trials: int = 1
    frame_size: tuple[int, int] = (36, 64)
    device: str = DEVICE
    options: Mapping[str, Any] = field(default_factory=dict)  # on top of the published command's

    @property
    def config(self) -> RunConfig:
        return RunConfig.from_options({**PUBLISHED_OPTIONS, **self.options})

    @property
    def tf32(self) -> bool:
        """Whether float32 is multiplied on tensor cores."""
        return self.config.train.precision == "tf32" and self.device == "cuda"

    def products(self) -> AbstractContextManager[None]:
        """Has float32 multiplied as asked for."""
        return float32_products(self.tf32)

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
        ).to(self.device)

    def model(self) -> ViV1T:
        """The engine's, in training mode."""
        torch.manual_seed(2)
        neurons = Neurons(self.neurons, coordinates=1000 * torch.rand(self.neurons, 3))
        return build_model(self.config, {MOUSE: neurons}, self.frame_size).train().to(self.device)

    def plain_model(self) -> PlainViV1T:
        """Our plain version of the published one, with the same weights."""
        train = self.config.train
        model = PlainViV1T(self.config, {MOUSE: self.neurons}, self.frame_size)
        model.load_state_dict(to_published(self.model()))
        model.bf16 = train.precision == "bf16"
        if train.compile:
            model.core["vivit"].compile()
        return model.to(self.device)

    @property
    def training(self) -> dict[str, Any]:
        """What the published step is made with."""
        config, options = self.config, self.config.optimizer
        rates = {"core_lr": config.core_lr, "core_weight_decay": options.core_weight_decay}
        rates |= {"lr": options.lr, "weight_decay": options.weight_decay}
        return {"train_trials": TRAIN_TRIALS, **rates, "betas": (options.beta1, options.beta2), "eps": options.eps}


class InPrecision:
    """Work that has float32 multiplied as its size asks for; the work's own class comes second."""

    size: Size

    def __call__(self) -> Any:
        with self.size.products():
            return super().__call__()  # type: ignore[misc]


@dataclass(frozen=True)
class Case:
    """Options of the engine, and of the published way that it is held against."""

    engine: Mapping[str, Any]
    published: Mapping[str, Any] = field(default_factory=dict)

    @property
    def form(self) -> str:
        """The published way's name among what is measured."""
        return " ".join(("published", *(f"{name}={value}" for name, value in self.published.items())))


_KEPT, _RECOMPUTED = {"grad_checkpointing": 0}, {"grad_checkpointing": 1}
_TF32, _BF16 = {"precision": "tf32"}, {"precision": "bf16"}
_COMPILED = _BF16 | {"core_compile": True}
# The published way is float32 on a CPU; on a GPU, also as TF32 and as bf16 with a compiled core.
_CASES: Mapping[str, Mapping[str, Case]] = {
    "cpu": {"float32": Case(_KEPT), "float32-recomputed": Case(_RECOMPUTED), "bf16": Case(_KEPT | _BF16)},
    "cuda": {
        "float32": Case(_KEPT),
        "tf32": Case(_KEPT | _TF32, _TF32),
        "tf32-recomputed": Case(_RECOMPUTED | _TF32, _TF32),
        "bf16": Case(_KEPT | _BF16, _COMPILED),
        "bf16-recomputed": Case(_RECOMPUTED | _BF16, _COMPILED),
    },
}


def full_size(frames: int = 140) -> Size:
    """One trial, or on a GPU as many of a batch as fit the published way; skips the test where none does."""
    available = torch.cuda.mem_get_info()[0] if DEVICE == "cuda" else available_bytes()
    if available < NEEDED_BYTES:
        pytest.skip(f"needs {NEEDED_BYTES / 1e9:.0f} GB of memory, {available / 1e9:.1f} GB are available")
    trials = min(BATCH_SIZE, int(available // NEEDED_BYTES)) if DEVICE == "cuda" else 1
    return Size(frames=frames, trials=trials)


@dataclass(frozen=True)
class Subject:
    """A benchmark of whole models.

    Attributes:
        name: of the benchmark.
        engine, plain: make the engine's work and the published way's.
        gradients: are computed, so that it matters what is kept for them.
    """

    name: str
    engine: Callable[[Size], Work]
    plain: Callable[[Size], Work]
    gradients: bool

    def cases(self, published: Published, device: str) -> dict[str, Case]:
        """What is compared on a kind of device."""
        return {
            name: case
            for name, case in _CASES[device].items()
            if (self.gradients or case.engine["grad_checkpointing"] == 0)
            and (published.compiles or not case.published.get("core_compile"))
        }

    def add_seconds(self, report: Report, size: Size, published: Published, repeats: int) -> None:
        """Measures the seconds of every case, all in turns."""
        cases = self.cases(published, size.device)
        # First what may turn out not to work at all.
        theirs = {form: published.work(self.plain, each, THREADS) for form, each in self._forms(size, cases).items()}
        works = {name: self.engine(replace(size, options={**size.options, **c.engine})) for name, c in cases.items()}
        works |= theirs
        # A GPU's work is short, and compiled in the first rounds.
        rounds = {"repeats": repeats} if size.device == "cpu" else {"repeats": 20, "warmup": 3}
        self._add(report, "seconds", "s", size, cases, seconds(works, threads=THREADS, **rounds))

    def add_peak_bytes(self, report: Report, size: Size, published: Published) -> None:
        """Measures the peak memory of every case, each in a fresh process."""
        cases = self.cases(published, size.device)
        own = {name: replace(size, options={**size.options, **c.engine}) for name, c in cases.items()}
        forms = self._forms(size, cases)
        samples: dict[str, Any] = {
            form: published.peak_bytes(self.plain, each, THREADS) for form, each in forms.items()
        }
        samples |= {name: peak_bytes(self.engine, each, threads=THREADS) for name, each in own.items()}
        self._add(report, "peak_bytes", "B", size, cases, samples)

    def _forms(self, size: Size, cases: Mapping[str, Case]) -> dict[str, Size]:
        """The published way's forms, each once."""
        return {c.form: replace(size, options={**size.options, **c.published}) for c in cases.values()}

    def _add(
        self, report: Report, metric: str, unit: str, size: Size, cases: Mapping[str, Case], samples: Mapping[str, Any]
    ) -> None:
        """A row of the engine for every case, and beside it what the published way took."""
        trials = f"-{size.trials}-trials" if size.trials > 1 else ""
        for name, case in cases.items():
            row = {"viv1t": samples[name], "published": samples[case.form]}
            report.add(self.name, f"{name}{trials}-{size.frames}-frames-{size.neurons}-neurons", metric, unit, row)
