"""The GPU kernels of attention against the definition in float64: result, log-sum-exp and every gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attention_cases import Case, errors, joined, make_case
from torch import Tensor

# Lengths around the blocks' sizes, head sizes of one to three parts.
CASES: list[dict[str, Any]] = [
    {"head_dim": 16, "length": 37},
    {"head_dim": 48, "length": 33, "layout": "wide", "causal": True, "dropout": 0.358},
    {"head_dim": 80, "length": 19, "layout": "frames", "norm": True},
    {"head_dim": 112, "length": 17, "layout": "odd", "dropout": 0.1},
    {"head_dim": 48, "length": 131, "sequences": 1, "heads": 1, "dtype": torch.float16, "dropout": 0.358},
    {"head_dim": 80, "length": 70, "sequences": 1, "dtype": torch.float16, "causal": True, "layout": "wide"},
    {"head_dim": 112, "length": 64, "sequences": 1, "heads": 1, "dtype": torch.float16, "causal": True},
    {"head_dim": 32, "length": 1, "dropout": 0.5},
    {"head_dim": 16, "length": 21, "sharpness": 8.0},
    {"head_dim": 80, "length": 57, "sequences": 1, "heads": 1, "rotary": True, "registers": 24, "layout": "wide"},
    {"head_dim": 16, "length": 34, "rotary": True, "causal": True, "layout": "frames", "dropout": 0.3},
    {"head_dim": 48, "length": 5, "rotary": True, "norm": True, "kind": "dyt", "causal": True},
    {"head_dim": 16, "length": 2, "rotary": True, "norm": True, "kind": "rmsnorm"},
    {"head_dim": 80, "length": 33, "rotary": True, "causal": True, "dtype": torch.float16, "sequences": 1},
]


def name(case: dict[str, Any]) -> str:
    return "-".join(f"{k}={str(v).removeprefix('torch.')}" for k, v in case.items())


def run(case: Case) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Result, log-sum-exp and gradients; the gradient's memory holds NaN before, and is part of a wider matrix."""
    from viv1t.kernels.attention import triton

    packed = case.packed
    out, lse = triton.forward(packed, case.settings)
    wider = torch.full((*packed.shape[:2], packed.shape[2] + 8), float("nan"), dtype=packed.dtype, device=packed.device)
    grad_packed = wider[..., : packed.shape[2]]
    weights = triton.backward(case.grad, packed, out, lse, case.settings, grad_packed)
    assert wider[..., packed.shape[2] :].isnan().all()
    return out, lse, joined([grad_packed, *weights])


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("options", CASES, ids=name)
def test_result_and_gradients_are_the_definition_s(kernel_device: torch.device, options: dict[str, Any]) -> None:
    case = make_case(**options)
    expected_out, expected_lse, expected_gradients = case.expected()
    out, lse, gradients = run(case.to(kernel_device))
    assert out.dtype == gradients[0].dtype == case.packed.dtype
    assert lse.dtype == torch.float32
    found = [out, lse, *gradients]
    assert max(errors(found, [expected_out, expected_lse, *expected_gradients])) < case.tolerance()


def test_dropout_keeps_what_the_definition_keeps(kernel_device: torch.device) -> None:
    case = make_case(head_dim=48, length=40, dropout=0.4)
    out = run(case.to(kernel_device))[0].cpu()
    assert torch.equal(out != 0, case.expected()[0] != 0)
    assert abs((out != 0).double().mean() - 0.6) < 6 * 0.5 / out.numel() ** 0.5


@pytest.mark.filterwarnings("ignore:(overflow|invalid value):RuntimeWarning")  # in padding, which is not stored
def test_very_negative_scores_do_not_overflow(kernel_device: torch.device) -> None:
    """Padding scores 0, which is far above rows whose scores are all very negative."""
    case = make_case(head_dim=16, length=21)
    case.packed[..., :32] = 4.0 + 0.1 * case.packed[..., :32]
    case.packed[..., 32:64] = -40.0 + 0.1 * case.packed[..., 32:64]
    expected_out, _, expected_gradients = case.expected()
    out, _, gradients = run(case.to(kernel_device))
    assert max(errors([out], [expected_out])) < 1e-3
    assert max(errors(gradients, expected_gradients)) < 1e-3


def test_no_sequences(kernel_device: torch.device) -> None:
    case = make_case(sequences=0, norm=True).to(kernel_device)
    out, _, gradients = run(case)
    assert out.shape == (0, 37, 32)
    assert not any(g.any() for g in gradients)


def test_head_sizes_that_do_not_fit_are_refused(kernel_device: torch.device) -> None:
    with pytest.raises(ValueError, match="multiples of 16 up to 128, not 24"):
        run(make_case(head_dim=24).to(kernel_device))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("head_dim", [16, 48, 80, 112, 128])
@pytest.mark.parametrize("length", [116, 276, 435, 576])
@pytest.mark.parametrize("causal", [False, True])
def test_full_lengths_on_a_gpu(length: int, head_dim: int, dtype: torch.dtype, causal: bool) -> None:
    case = make_case(3, length, 3, head_dim, dtype, causal=causal, dropout=0.358, layout="wide")
    expected_out, expected_lse, expected_gradients = case.expected()
    first = run(case.to(torch.device("cuda")))
    found = [first[0], first[1], *first[2]]
    assert max(errors(found, [expected_out, expected_lse, *expected_gradients])) < case.tolerance()
    second = run(case.to(torch.device("cuda")))
    for a, b in zip(found, [second[0], second[1], *second[2]], strict=True):
        assert torch.equal(a, b), "no two runs differ"
