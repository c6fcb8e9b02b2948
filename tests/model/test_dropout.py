"""Dropout with masks that are cheap to draw."""

from __future__ import annotations

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from viv1t.model.layers.dropout import Dropout


@pytest.mark.parametrize("rate", [0.0592, 0.358, 0.9])
def test_kept_values_are_rescaled_and_gradients_follow(rate: float) -> None:
    torch.manual_seed(0)
    x = (torch.rand(301, 333) + 0.5).requires_grad_()
    y = Dropout(rate)(x)
    kept = y != 0
    assert abs(kept.double().mean() - (1 - rate)) < 6 * (rate * (1 - rate) / x.numel()) ** 0.5
    torch.testing.assert_close(y, kept * x / (1 - rate))
    weigh = torch.randn_like(x)
    torch.testing.assert_close(torch.autograd.grad(y, x, weigh)[0], kept * weigh / (1 - rate))


def test_neighbours_are_independent() -> None:
    torch.manual_seed(0)
    kept = (Dropout(0.5)(torch.ones(100_003)) != 0).double()
    for lag in (1, 2, 3, 4, 8):
        agreement = (kept[lag:] == kept[:-lag]).double().mean()
        assert abs(agreement - 0.5) < 6 * 0.5 / len(kept) ** 0.5


def test_off_in_evaluation_and_at_rate_0_all_zero_at_rate_1() -> None:
    x = torch.randn(7, 5)
    assert torch.equal(Dropout(0.5).eval()(x), x)
    assert torch.equal(Dropout(0.0)(x), x)
    assert not Dropout(1.0)(x).any()


def test_the_seed_decides_and_recomputation_draws_the_same() -> None:
    drop, x = Dropout(0.4), torch.randn(50, 20, requires_grad=True)

    def gradient(recompute: bool, seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        y = checkpoint(drop, x, use_reentrant=False) if recompute else drop(x)
        return torch.autograd.grad(y.square().sum(), x)[0]

    assert torch.equal(gradient(False, 3), gradient(True, 3))
    assert not torch.equal(gradient(False, 3), gradient(False, 4))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_keeps_the_type(dtype: torch.dtype) -> None:
    assert Dropout(0.3)(torch.ones(11, dtype=dtype)).dtype == dtype
