"""Steps of training and prediction on CUDA tensors without data: nothing waits, every operator takes its kernels.

What they launch is compiled for the GPUs that there are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from viv1t.kernels.common.tiles import SHARED_MEMORY, parallel_block_memory
from viv1t.kernels.common.variant import Usage, Variant

Steps = Callable[..., list[dict[str, Any]]]
Usages = Callable[[list[Variant], tuple[int, ...]], list[Usage]]

TRAINED = ("train bf16", "train tf32", "train 32", "recompute bf16", "variations bf16", "second train bf16")
PREDICTED = ("predict bf16", "predict tf32", "second predict bf16")
# Two mice, or two batches; two blocks each. The second family pads patches, and takes them as a convolution.
EMBED, READOUT, ONE, BLOCKS = "patch_embed", "readout", [2, 0], [4, 0]
# Kernels of a training step by operator: attention runs within the block, or alone in float32.
KERNELS = {
    "patch_embed.project", "patch_embed.weight", "attention.forward", "attention.backward_q", "attention.backward_kv",
    "readout.sample", "readout.neurons", "readout.map",
}  # fmt: skip
OF_BLOCK = {f"parallel_block.{name}" for name in ("project", "output", "rows", "input", "weight", "ff_weight")}


def operators(block: str, trained: bool, patches: bool) -> dict[str, list[int]]:
    """How often each operator is called, never without a kernel."""
    names = {block: BLOCKS, READOUT: ONE} | ({EMBED: ONE} if patches else {})
    return names | ({f"{name}_backward": counts for name, counts in names.items()} if trained else {})


@pytest.mark.parametrize("scenario", [*TRAINED, *PREDICTED])
def test_nothing_waits_and_every_operator_takes_its_kernels(scenario: str, steps: Steps) -> None:
    found, *_ = steps(*TRAINED, *PREDICTED)[[*TRAINED, *PREDICTED].index(scenario) :]
    assert found["error"] is None
    block = "attention" if scenario == "train 32" else "parallel_block"
    assert found["operators"] == operators(block, scenario in TRAINED, "second" not in scenario)
    assert all(axis < 2**31 for grid in found["grids"] for axis in grid[:1])
    assert found["unlike"] == []
    variants = [Variant.from_json(text) for text in found["variants"]]
    for variant in variants:
        pointers = [name for name, kind in variant.signature if kind.startswith("*")]
        assert set(pointers) <= set(variant.aligned), variant.label
        assert "i64" not in dict(variant.signature).values(), variant.label
    if scenario in ("train bf16", "train tf32"):
        assert {variant.name for variant in variants} == KERNELS | OF_BLOCK


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("read", "DataDependentOutputException: aten._local_scalar_dense.default"),
        ("select", "DynamicOutputShapeException: aten.nonzero.default"),
        ("bring", "DevicesMix: aten._to_copy.default has tensors on cpu and cuda"),
        ("take", "DevicesMix: aten._to_copy.default has tensors on cpu and cuda"),
    ],
)
def test_what_waits_is_found(fault: str, error: str, steps: Steps) -> None:
    faults = [f"train bf16!{name}" for name in ("read", "select", "bring", "take", "fall_back")]
    found = dict(zip(faults, steps(*faults), strict=True))[f"train bf16!{fault}"]
    assert found["error"] == error


def test_a_block_that_falls_back_is_found(steps: Steps) -> None:
    (found,) = steps("train bf16!fall_back")
    assert found["operators"] != operators("parallel_block", True, True)
    assert found["operators"]["attention"] == BLOCKS


def variants_of(steps: Steps, scenarios: Sequence[str]) -> list[Variant]:
    """The specialisations of scenarios, each once."""
    texts = dict.fromkeys(text for found in steps(*scenarios) for text in found["variants"])
    return [Variant.from_json(text) for text in texts]


@pytest.mark.parametrize("arch", [80, 90, 100, 120])
@pytest.mark.parametrize("scenario", ["train bf16", "train tf32"])
def test_what_the_published_model_launches_compiles_and_fits(
    scenario: str, arch: int, steps: Steps, usage: Usages
) -> None:
    variants = variants_of(steps, [scenario])
    assert len({variant.label for variant in variants}) == len(variants)
    for found in usage(variants, (arch,)):
        check(found)


def test_what_other_steps_launch_compiles_and_fits(steps: Steps, usage: Usages) -> None:
    known = set(variants_of(steps, ["train bf16", "train tf32"]))
    others = variants_of(steps, ["second train bf16", "predict bf16", "train 32"])
    for found in usage([variant for variant in others if variant not in known], (80,)):
        check(found)


@pytest.mark.slow
@pytest.mark.parametrize("operator", ["attention", "parallel_block", "patch_embed", "readout"])
def test_every_size_that_operators_take_compiles_and_fits(operator: str, steps: Steps, usage: Usages) -> None:
    variants = variants_of(steps, [f"every {operator}"])
    assert len(variants) > 40
    for found in usage(variants, (80, 90)):
        check(found)


def check(usage: Usage) -> None:
    """Kernels for 80 run on 86 and 89 too, which have less shared memory, as 120 has."""
    if usage.arch >= 100 and usage.spilled <= 32:  # a few stores and loads outside of loops
        usage = replace(usage, spilled=0)
    assert not usage.faults, usage
    wide = usage.name.startswith("parallel_block") and "PRECISION=tf32" in usage.name and "DEPTH=256" in usage.name
    limit = parallel_block_memory(160, torch.float32) if wide else SHARED_MEMORY
    assert usage.arch not in (80, 120) or usage.shared <= limit, usage
    assert 0 < usage.registers <= 255, usage
