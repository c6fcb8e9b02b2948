"""Metrics: against NumPy, streaming, unequal lengths, degenerate neurons."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from viv1t.scoring.correlation import (
    CorrelationAccumulator,
    correlation_to_average,
    poisson_loss,
    single_trial_correlation,
    sse,
)


def _trials(lengths: list[int], neurons: int = 4, seed: int = 0) -> tuple[list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    responses = [torch.rand(neurons, t, generator=generator) for t in lengths]
    return [r + torch.rand(r.shape, generator=generator) for r in responses], responses


def _numpy_correlation(predictions: list[Tensor], responses: list[Tensor]) -> np.ndarray:
    p, r = (torch.cat(x, dim=1).double().numpy() for x in (predictions, responses))
    return np.array([np.corrcoef(a, b)[0, 1] for a, b in zip(p, r, strict=True)])


def test_pieces_give_the_whole() -> None:
    predictions, responses = _trials([30, 1, 0, 17])
    accumulator = CorrelationAccumulator()
    for prediction, response in zip(predictions, responses, strict=True):
        accumulator.update(prediction, response)
    assert accumulator.frames == 48
    np.testing.assert_allclose(accumulator.result(), _numpy_correlation(predictions, responses), rtol=1e-6)


def test_order_in_memory_changes_nothing() -> None:
    predictions, responses = _trials([37, 61], neurons=101)
    turned = [response.T.contiguous().T for response in responses]
    accumulators = CorrelationAccumulator(), CorrelationAccumulator()
    for accumulator, recorded in zip(accumulators, (responses, turned), strict=True):
        for prediction, response in zip(predictions, recorded, strict=True):
            accumulator.update(prediction, response)
    assert torch.equal(*(accumulator.result() for accumulator in accumulators))


def test_pieces_do_not_cancel_far_from_zero() -> None:
    predictions, responses = _trials([30, 40])
    far = [[x.double() + 1e6 for x in xs] for xs in (predictions, responses)]
    assert single_trial_correlation(*far) == pytest.approx(single_trial_correlation(predictions, responses), rel=1e-7)


def test_constant_neuron_is_zero_and_nan_stays() -> None:
    predictions, responses = _trials([30, 30])
    for response in responses:
        response[0] = 0.25
    predictions[1][1, 3] = torch.nan
    accumulator = CorrelationAccumulator()
    for prediction, response in zip(predictions, responses, strict=True):
        accumulator.update(prediction, response)
    result = accumulator.result()
    assert result[0] == 0
    assert result.isnan().tolist() == [False, True, False, False]
    assert math.isnan(single_trial_correlation(predictions, responses))


def test_every_trial_loses_its_own_first_frames() -> None:
    predictions, responses = _trials([70, 60, 40, 90])
    cut = [[x[:, 50:] for x in xs] for xs in (predictions, responses)]
    expected = _numpy_correlation(*cut).mean()
    assert single_trial_correlation(predictions, responses, skip=50) == pytest.approx(expected, rel=1e-6)


def test_shorter_predictions_are_aligned_at_the_end() -> None:
    predictions, responses = _trials([70, 60])
    shorter = [p[:, 24:] for p in predictions]
    for skip, reference in ((50, predictions), (10, shorter)):
        cut = [r[:, max(skip, 24) :] for r in responses]
        expected = _numpy_correlation([p[:, -c.shape[1] :] for p, c in zip(reference, cut, strict=True)], cut).mean()
        assert single_trial_correlation(shorter, responses, skip=skip) == pytest.approx(expected, rel=1e-6)


def test_frames_of_first_trial() -> None:
    predictions, responses = _trials([70, 60, 80])
    last = [[x[:, -20:] for x in xs] for xs in (predictions, responses)]
    found = single_trial_correlation(predictions, responses, skip=50, frames_of_first_trial=True)
    assert found == pytest.approx(_numpy_correlation(*last).mean(), rel=1e-6)


def test_nothing_left_is_refused() -> None:
    with pytest.raises(ValueError, match="no frame"):
        single_trial_correlation(*_trials([50, 40]), skip=50)
    with pytest.raises(ValueError, match="differ in shape"):
        CorrelationAccumulator().update(torch.zeros(3, 4), torch.zeros(3, 5))
    with pytest.raises(ValueError, match="shorter"):
        single_trial_correlation(_trials([5, 6])[0], _trials([5])[1])


def test_correlation_to_average() -> None:
    predictions, responses = _trials([20, 20, 18, 20])
    stimuli = ["a", "b", "a", "b"]
    means = [
        [(xs[0][:, :18] + xs[2]) / 2, (xs[1] + xs[3]) / 2] for xs in (predictions, responses)
    ]  # fmt: skip
    expected = _numpy_correlation(*means)
    np.testing.assert_allclose(correlation_to_average(predictions, responses, stimuli), expected, rtol=1e-6)


def test_losses() -> None:
    prediction, response = (torch.stack(x) for x in _trials([9, 9, 9]))
    p, r = prediction.double().numpy(), response.double().numpy()
    assert sse(prediction, response) == pytest.approx(((p - r) ** 2).sum() / 3)
    assert sse(prediction, response, "sum") == pytest.approx(((p - r) ** 2).sum())
    assert poisson_loss(prediction, response) == pytest.approx((p - r * np.log(p)).sum() / 3, rel=1e-6)
    with pytest.raises(ValueError, match="mean or sum"):
        sse(prediction, response, "median")
