"""Steps of training, evaluation and prediction on CUDA tensors without data, as a process of its own prints them.

    python fake_steps.py GUARD 'NAME' ...

prints a line of JSON for each scenario: the operators and how many kernels each launched, the specialisations, and the
error that ended it. GUARD is the library made of `device_guard.cpp`, which must be there before PyTorch is.
"""

from __future__ import annotations

import ctypes
import sys

if __name__ == "__main__":
    ctypes.CDLL(sys.argv[1])

import collections
import itertools
import json
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from viv1t.kernels.common.dispatch import Gpu
from viv1t.kernels.common.launch import Launch
from viv1t.kernels.common.variant import variant_of
from viv1t.kernels.dry_run import DryRun, dry_run

from viv1t.families.known import FAMILIES
from viv1t.model.twin import Neurons, ViV1T
from viv1t.system.switches import tensor_cores
from viv1t.training.step import Step
from viv1t.training.validate import ensemble_prediction
from viv1t.types import Batch

H100 = Gpu("H100", (9, 0), 232_448)
CUDA = "cuda:0"
MICE = {"A": 8000, "B": 8000}
UNEVEN = {"A": 8000, "B": 7001}  # what a kernel is compiled again for
PUBLISHED = {
    "data": "data", "output_dir": "run", "transform_mode": 2, "crop_frame": 140, "ds_mode": 3, "core": "vivit",
    "core_parallel_attention": True, "core_spatial_depth": 1, "core_temporal_depth": 1, "readout": "gaussian2d",
    "output_mode": 1, "batch_size": 6, "grad_checkpointing": 0,
}  # fmt: skip
SECOND = {
    "data_dir": "data", "output_dir": "run", "core": "vivit", "readout": "gaussian", "output_mode": 1, "batch_size": 6,
    "core_spatial_depth": 1, "core_temporal_depth": 1, "core_use_causal_attention": 1, "grad_checkpointing": 0,
}  # fmt: skip
# Family and options of each scenario; `predicts` stands for no training.
SCENARIOS: dict[str, tuple[str, dict[str, Any]]] = {
    "train bf16": ("2023", {"precision": "bf16"}),
    "train tf32": ("2023", {"precision": "tf32"}),
    "train 32": ("2023", {}),
    "recompute bf16": ("2023", {"precision": "bf16", "grad_checkpointing": 1, "grad_norm": 1.0}),
    "variations bf16": (
        "2023",
        {"precision": "bf16", "mice": UNEVEN, "core_norm_qk": True, "core_ff_activation": "swiglu",
         "core_behavior_mode": 4, "modulator_mode": 1, "readout_grid_mode": 0, "shifter_mode": 2},
    ),
    "predict bf16": ("2023", {"precision": "bf16", "predicts": True}),
    "predict tf32": ("2023", {"precision": "tf32", "predicts": True}),
    "second train bf16": ("2025", {}),
    "second predict bf16": ("2025", {"predicts": True}),
}  # fmt: skip


class Lengths(list[int]):
    """Numbers of frames, which are on the host: tensors there would be without data too."""

    def tolist(self) -> list[int]:
        return list(self)

    def __getitem__(self, key: Any) -> Any:
        found = super().__getitem__(key)
        return Lengths(found) if isinstance(key, slice) else found


def make_batch(mouse: str, neurons: int, trials: int, frames: int) -> Batch:
    def new(*shape: int) -> torch.Tensor:
        return torch.rand(trials, *shape, device=CUDA)

    video, response, behavior, gaze = new(1, frames, 36, 64), new(neurons, frames), new(2, frames), new(2, frames)
    return Batch(mouse, tuple(range(trials)), video, response, behavior, gaze, Lengths([frames] * trials))  # type: ignore[arg-type]


def build(name: str, options: dict[str, Any]) -> tuple[Any, ViV1T]:
    counts = options.pop("mice", MICE)
    family = FAMILIES[name]
    config = family.from_options((SECOND if name == "2025" else PUBLISHED) | options)
    with torch.device(CUDA):  # where it is moved in earnest, which tensors without data do not let themselves be
        mice = {mouse: Neurons(count, 100 * torch.rand(count, 3)) for mouse, count in counts.items()}
        return config, family.build_model(config, mice, (36, 64))


def train(name: str, options: dict[str, Any], fault: Callable[[Step], None] | None = None) -> None:
    config, model = build(name, options)
    training = FAMILIES[name].training(model.train(), config, dict.fromkeys(model.neurons, 700))
    step = Step(model, training)
    if fault is not None:
        fault(step)
    with tensor_cores(options.get("precision") == "tf32"):
        for mouse, neurons in model.neurons.items():
            step.accumulate(make_batch(mouse, neurons, 6, 140 if name == "2023" else 300))
        step._apply()
    assert all(p.grad is not None and p.grad.is_cuda for p in step.trained if p.requires_grad)
    step.forget()


def predict(family: str, options: dict[str, Any]) -> None:
    _, model = build(family, options)
    model.eval()
    model.looked = True
    with torch.no_grad(), tensor_cores(options.get("precision") == "tf32"):
        for trials in (1, 3):
            assert ensemble_prediction([model], make_batch("A", MICE["A"], trials, 300)).is_cuda


# -- all sizes that the operators take, each alone ---------------------------------------------------------------------


def every_attention() -> None:
    from viv1t.kernels.attention import triton
    from viv1t.kernels.attention.rotary import Rotary
    from viv1t.kernels.attention.settings import Settings

    heads = 4
    for dtype, head_dim, causal, drops, length in itertools.product(
        TYPES, range(16, 129, 16), (False, True), (False, True), (64, 116, 435)
    ):
        packed = torch.empty(3, length, 3 * heads * head_dim, dtype=dtype, device=CUDA)
        tables = Rotary(*(torch.empty(length, head_dim // 2, device=CUDA) for _ in range(2)))
        seed = torch.empty(1, dtype=torch.int64, device=CUDA) if drops else None
        rotary = tables if drops and length == 64 else None
        settings = Settings(heads, head_dim, 0.1, causal, 0.1 * drops, seed, rotary=rotary)
        for tf32 in (False, True) if dtype == torch.float32 else (False,):
            with tensor_cores(tf32):
                out, sums = triton.forward(packed, settings)
                triton.backward(torch.empty_like(out), packed, out, sums, settings, torch.empty_like(packed))


def every_parallel_block() -> None:
    from viv1t.kernels.parallel_block import BlockSettings, BlockWeights, triton

    shapes = [(depth, mlp, 528, "gelu") for depth, mlp in ((64, 100), (112, 136), (160, 256), (256, 512))]
    shapes += [(depth, mlp, inner, "swiglu") for depth, mlp, inner, _ in shapes]
    shapes += [(112, 224, 160, activation) for activation in ("relu", "silu", "elu", "tanh", "none")]
    for dtype, (depth, mlp, inner, activation), norm, drops in itertools.product(
        TYPES, shapes, ("layernorm", "rmsnorm", "dyt"), (False, True)
    ):
        hidden = mlp * (2 if activation == "swiglu" else 1)
        if norm != "layernorm" and activation != "relu":
            continue

        def new(*size: int) -> torch.Tensor:
            return torch.empty(size, device=CUDA)

        bias, alpha = None if norm == "rmsnorm" else new(depth), new(1) if norm == "dyt" else None
        weights = BlockWeights(
            new(depth), bias, new(3 * inner + hidden, depth), new(depth, inner), new(depth, mlp), norm_alpha=alpha
        )
        rate, seed = 0.1 * drops, torch.empty(1, dtype=torch.int64, device=CUDA) if drops else None
        settings = BlockSettings(
            inner // 16 if inner == 160 else 11, 0.1, rate, rate, rate, dtype=dtype, activation=activation, norm=norm
        )
        x = new(6, 116, depth)
        with tensor_cores(dtype == torch.float32):
            y, kept = triton.forward(x, weights, settings, None, seed, True)
            triton.backward(y, x, weights, settings, None, seed, kept)


def every_patch_embed() -> None:
    from viv1t.kernels.patch_embed import triton

    for dtype, depth, frames, same in itertools.product(TYPES, (32, 64, 112, 160), (88, 140), (False, True)):
        video, kernel = (torch.empty(s, dtype=dtype, device=CUDA) for s in ((2, 1, frames, 36, 64), (depth, 25, 7, 7)))
        length = frames - 24
        state = torch.empty(2, depth, length, device=CUDA) if same else None
        rstd = torch.empty(2, length, 15, 29, 1, device=CUDA)
        y = triton.project(video, kernel, (1, 2, 2), state, rstd, torch.empty(depth, device=CUDA))
        triton.project_backward(y, rstd, video, (25, 7, 7), (1, 2, 2))


def every_readout() -> None:
    from viv1t.kernels.readout import triton
    from viv1t.kernels.readout.settings import Places

    for dtype, depth, source, neurons in itertools.product(TYPES, (64, 112, 160), range(3), (1, 7001, 8000)):
        maps, features = (
            torch.empty(2, 20, 15, 29, depth, dtype=dtype, device=CUDA),
            torch.empty(depth, neurons, device=CUDA),
        )
        shift, noise = torch.empty(2, 20, 2, device=CUDA), torch.empty(2, 20, neurons, 2, device=CUDA)
        seed = torch.empty(1, dtype=torch.int64, device=CUDA)
        mu, sigma = torch.empty(neurons, 2, device=CUDA), torch.empty(neurons, 2, 2, device=CUDA)
        places = Places(mu, sigma, shift if source else None, *((None, None), (noise, None), (None, seed))[source])
        y = triton.sample(maps, features, places)
        triton.sample_backward(y, maps, features, places)


TYPES = (torch.bfloat16, torch.float16, torch.float32)
EVERY = {
    f"every {f.__name__[6:]}": f for f in (every_attention, every_parallel_block, every_patch_embed, every_readout)
}


# -- what must not be in a step, each for a test that it is found ------------------------------------------------------


def _after_losses(step: Step, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    losses = step.objective.losses

    def changed(*args: Any) -> Any:
        loss, critic = losses(*args)
        return change(loss), critic

    step.objective.losses = changed  # type: ignore[method-assign]


def read(step: Step) -> None:
    _after_losses(step, lambda loss: loss * (1 if loss.item() > 0 else 2))


def select(step: Step) -> None:
    _after_losses(step, lambda loss: loss + step.parameters[0].nonzero().sum())


def bring(step: Step) -> None:
    _after_losses(step, lambda loss: loss + torch.ones(3).to(loss.device).sum())


def take(step: Step) -> None:
    _after_losses(step, lambda loss: loss + loss.cpu().to(loss.device))


def fall_back(step: Step) -> None:
    from viv1t.kernels.parallel_block import operator

    operator._takes = lambda *_: False


FAULTS = {f.__name__: f for f in (read, select, bring, take, fall_back)}


class _Pointer:
    """A tensor as Triton's launcher looks at it."""

    def __init__(self, x: torch.Tensor) -> None:
        self.dtype, self.address = x.dtype, 4096 + x.storage_offset() * x.itemsize

    def data_ptr(self) -> int:
        return self.address


def as_triton(launch: Launch) -> tuple[dict[str, str], list[str]]:
    """Types, and what is known to be a multiple of 16, as Triton's own launcher finds them."""
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia.compiler import CUDABackend
    from triton.runtime.jit import create_function_from_signature

    backend, kernel = CUDABackend(GPUTarget("cuda", 90, 32)), launch.kernel
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    arguments = [_Pointer(x) if isinstance(x, torch.Tensor) else x for x in launch.arguments]
    found = list(zip(kernel.arg_names, bind(*arguments)[1], strict=True))
    return {name: kind for name, (kind, *_) in found}, [name for name, (_, attribute) in found if attribute == "D"]


def unlike_triton(launch: Launch) -> str | None:
    """A launch's name if Triton would compile something else for it than what is compiled here."""
    variant = variant_of(launch)
    ours = dict(variant.signature), list(variant.aligned)
    return None if ours == as_triton(launch) else f"{variant.label}: {ours}, Triton: {as_triton(launch)}"


def summary(run: DryRun) -> dict[str, Any]:
    counts: dict[str, list[int]] = collections.defaultdict(lambda: [0, 0])
    for name, launches in run.operators:
        counts[name][0] += 1
        counts[name][1] += not launches
    variants = collections.Counter(variant_of(launch).to_json() for launch in run.launches)
    unlike = [text for text in map(unlike_triton, run.launches) if text]
    grids = [launch.grid for launch in run.launches]
    return {"operators": counts, "variants": variants, "grids": grids, "unlike": unlike}


def main(scenario: str) -> dict[str, Any]:
    name, _, fault = scenario.partition("!")
    family, options = SCENARIOS.get(name, ("", {}))
    options = dict(options)
    predicts = options.pop("predicts", False)
    error = None
    with dry_run(H100) as run, torch.autograd.set_multithreading_enabled(False):
        try:
            if name in EVERY:
                EVERY[name]()
            elif predicts:
                predict(family, options)
            else:
                train(family, options, FAULTS.get(fault))
        except Exception as raised:
            error = f"{type(raised).__name__}: {raised}"
            if not fault:
                raise
    return {"scenario": scenario, "error": error, **summary(run)}


if __name__ == "__main__":
    nn.init.trunc_normal_ = lambda weight, **_: weight  # which reads
    for scenario in sys.argv[2:]:
        print(json.dumps(main(scenario)), flush=True)
