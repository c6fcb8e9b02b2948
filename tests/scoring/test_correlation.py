"""Correlation: against NumPy, piece by piece, degenerate neurons."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from viv1t.scoring.correlation import CorrelationAccumulator


def _trials(lengths: list[int], neurons: int = 4, seed: int = 0) -> tuple[list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    responses = [torch.rand(neurons, t, generator=generator) for t in lengths]
    return [r + torch.rand(r.shape, generator=generator) for r in responses], responses


def _numpy_correlation(predictions: list[Tensor], responses: list[Tensor]) -> np.ndarray:
    p, r = (torch.cat(x, dim=1).double().numpy() for x in (predictions, responses))
    return np.array([np.corrcoef(a, b)[0, 1] for a, b in zip(p, r, strict=True)])


def _accumulated(predictions: list[Tensor], responses: list[Tensor]) -> CorrelationAccumulator:
    accumulator = CorrelationAccumulator()
    for prediction, response in zip(predictions, responses, strict=True):
        accumulator.update(prediction, response)
    return accumulator


def test_pieces_give_the_whole() -> None:
    predictions, responses = _trials([30, 1, 0, 17])
    accumulator = _accumulated(predictions, responses)
    assert accumulator.frames == 48
    np.testing.assert_allclose(accumulator.result(), _numpy_correlation(predictions, responses), rtol=1e-6)


def test_order_in_memory_changes_nothing() -> None:
    predictions, responses = _trials([37, 61], neurons=101)
    turned = [response.T.contiguous().T for response in responses]
    assert torch.equal(*(_accumulated(predictions, recorded).result() for recorded in (responses, turned)))


def test_pieces_do_not_cancel_far_from_zero() -> None:
    predictions, responses = _trials([30, 40])
    far = [[x.double() + 1e6 for x in xs] for xs in (predictions, responses)]
    near = _accumulated(predictions, responses).result().mean()
    assert float(_accumulated(*far).result().mean()) == pytest.approx(float(near), rel=1e-7)


def test_constant_neuron_is_zero_and_nan_stays() -> None:
    predictions, responses = _trials([30, 30])
    for response in responses:
        response[0] = 0.25
    predictions[1][1, 3] = torch.nan
    result = _accumulated(predictions, responses).result()
    assert result[0] == 0
    assert result.isnan().tolist() == [False, True, False, False]


def test_nothing_to_compare_is_refused() -> None:
    for empty in (_accumulated([], []), _accumulated(*_trials([0, 0]))):
        for value in (empty.result, empty.moments, empty.mean):
            with pytest.raises(ValueError, match="no frame"):
                value()
    with pytest.raises(ValueError, match="differ in shape"):
        CorrelationAccumulator().update(torch.zeros(3, 4), torch.zeros(3, 5))
