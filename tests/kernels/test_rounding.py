"""Bounds of rounding, held against sums as they come out."""

from __future__ import annotations

import pytest
import torch
from rounding import allowed


@pytest.mark.parametrize("length", [2, 30, 1000])
def test_sums_one_term_after_another_stay_within_it_and_come_near(length: int) -> None:
    terms = torch.rand(500, length, generator=torch.Generator().manual_seed(length))
    found = torch.zeros(500)
    for column in terms.unbind(1):
        found = found + column
    exact = terms.double().sum(1)
    error = ((found.double() - exact).norm() / exact.norm()).item()
    assert allowed(torch.float32, length) / 40 < error < allowed(torch.float32, length)


def test_half_precision_rounds_each_sum_once() -> None:
    half, single = (torch.finfo(t).eps / 2 for t in (torch.bfloat16, torch.float32))
    assert allowed(torch.bfloat16, 100, 44) == pytest.approx(4 * (2**0.5 * half + 12 * single))
    assert allowed(torch.float32, 100, 44) == pytest.approx(4 * 12 * single)
