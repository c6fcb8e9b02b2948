"""Kernels compiled without a GPU: what they need fits the devices. In another process, without the interpreter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from viv1t.kernels.common.tiles import SHARED_MEMORY, parallel_block_memory
from viv1t.kernels.common.variant import Usage

pytest.importorskip("triton", reason="Triton is not installed")


def compiled(operator: str, match: str = "") -> list[dict[str, Any]]:
    """What the command reports for sm_80 and sm_90."""
    command = [sys.executable, "-m", "viv1t.kernels.ahead_of_time", operator, "--json", "--match", match]
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def check(usages: list[dict[str, Any]]) -> None:
    for usage in usages:
        assert not usage["faults"], usage
        if usage["arch"] == 80:  # and 86, 89, 120, which have less
            words = usage["name"].split()
            wide = words[0] == "parallel_block" and words[2] == "tf32" and int(words[3]) > 128
            assert usage["shared"] <= (parallel_block_memory(160, torch.float32) if wide else SHARED_MEMORY), usage
        assert 0 < usage["registers"] <= 255


def test_attention_of_the_published_model() -> None:
    usages = compiled("attention", r"bfloat16 48 .*(?<!causal)( dropout)$|backward_kv bfloat16 48 \w+$")
    names = {(usage["name"].split()[0], usage["arch"]) for usage in usages}
    assert names == {(kernel, arch) for kernel in ("forward", "backward_q", "backward_kv") for arch in (80, 90)}
    check(usages)


def test_causal_attention_of_the_second_family() -> None:
    usages = compiled("attention", r"rotate bfloat16 80 32$|bfloat16 80 (64x\d+ causal dropout|32x64 causal)$")
    names = {(usage["name"].split()[0], usage["arch"]) for usage in usages}
    kernels = ("rotate", "forward", "backward_q", "backward_kv")
    assert names == {(kernel, arch) for kernel in kernels for arch in (80, 90)}
    check(usages)


@pytest.mark.slow
def test_every_variant_of_attention() -> None:
    usages = compiled("attention")
    assert len({(usage["name"], usage["arch"]) for usage in usages}) == len(usages) > 500
    check(usages)


@pytest.mark.parametrize(
    ("operator", "match", "kernels"),
    [
        ("readout", "bfloat16 112 drawn", {"sample", "neurons", "map"}),
        ("patch_embed", "bfloat16 112 (128x32 state|32x128)", {"project", "weight"}),
        (
            "parallel_block",
            " (project|weight) bfloat16 112$|bfloat16 112 drops$",
            {"project", "output", "rows", "input", "weight", "ff_weight"},
        ),
        (
            "parallel_block",
            "(output|weight|project) bfloat16 112 relu$|bfloat16 112 relu drops$",
            {"project", "output", "rows", "input", "weight", "ff_weight"},
        ),
    ],
)
def test_other_operators_of_the_published_models(operator: str, match: str, kernels: set[str]) -> None:
    usages = compiled(operator, match)
    assert {(u["name"].split()[1], u["arch"]) for u in usages} == {
        (kernel, arch) for kernel in kernels for arch in (80, 90)
    }
    check(usages)


@pytest.mark.slow
@pytest.mark.parametrize("operator", ["readout", "patch_embed", "parallel_block"])
def test_every_variant_of_other_operators(operator: str) -> None:
    usages = compiled(operator)
    assert len({(u["name"], u["arch"]) for u in usages}) == len(usages) > 80
    check(usages)


def test_what_does_not_fit_is_a_fault() -> None:
    assert not Usage("fits", 90, 168, 0, 200_000, 8).faults
    assert Usage("spills", 90, 255, 16, 1024, 8).faults == ["16 bytes of registers spilled"]
    assert Usage("too large", 80, 128, 0, 200_000, 8).faults == ["200000 bytes of shared memory, above 166912"]


@pytest.mark.parametrize(
    ("registers", "shared", "warps", "resident"),
    [(64, 0, 4, 32), (128, 36_864, 8, 16), (32, 0, 4, 64), (64, 100_000, 4, 8), (255, 1024, 8, 8)],
)
def test_resident_warps_are_bound_by_registers_shared_memory_and_slots(
    registers: int, shared: int, warps: int, resident: int
) -> None:
    assert Usage("", 90, registers, 0, shared, warps).resident_warps == resident
