"""Losses: the equations written out, scaling, micro batches, padding, degenerate neurons, compilation."""

import numpy as np
import pytest
import torch
from torch import Tensor

from viv1t.errors import ConfigError
from viv1t.scoring.criterion import CRITERIA, EPS, criterion

NAMES = list(CRITERIA)
SUMMED = ("poisson", "mean_poisson", "mse", "logMSE")  # whose micro batches add up to the batch


def _pair(
    trials: int = 4, neurons: int = 5, frames: int = 12, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    response = torch.randn(trials, neurons, frames, generator=generator, dtype=dtype).clamp_min(0)
    return response, torch.rand(trials, neurons, frames, generator=generator, dtype=dtype) + 0.1


def _loss(name: str, response: Tensor, prediction: Tensor, batch_size: int = 4, **options: object) -> Tensor:
    arguments = {"train_trials": 36, "batch_size": batch_size, "ds_scale": True, **options}
    return criterion(name, response, prediction, **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NAMES)
def test_equation(name: str) -> None:
    response, prediction = _pair()
    y, p = response.numpy(), prediction.numpy()
    corr = np.array([np.corrcoef(y[:, n].ravel(), p[:, n].ravel())[0, 1] for n in range(y.shape[1])])
    poisson = (p - (y + EPS) * np.log(p + EPS)).sum()
    expected = {
        "poisson": poisson,
        "correlation": -(corr + 1).sum(),
        "poisson_correlation": poisson + 1000 * (1 - corr).sum(),
        "mean_poisson": poisson / 4,
        "mse": ((y - p) ** 2).mean(),
        "logMSE": ((np.log(y + EPS) - np.log(p + EPS)) ** 2).mean(),
        "gamma": ((y + EPS) / (p + EPS) + np.log(p + EPS)).sum(),
    }[name]
    assert float(_loss(name, response, prediction, ds_scale=False)) == pytest.approx(expected, rel=1e-6)
    assert float(_loss(name, response, prediction)) == pytest.approx(3 * expected, rel=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_response_is_cut_to_the_last_predicted_frames(name: str) -> None:
    response, prediction = _pair()
    longer = torch.cat((torch.full((4, 5, 3), 9.0), response), dim=-1)
    assert torch.equal(_loss(name, longer, prediction), _loss(name, response, prediction))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("trials", [1, 2])
@pytest.mark.parametrize("neurons", [6, 300])
def test_order_in_memory_changes_neither_loss_nor_gradient(name: str, trials: int, neurons: int) -> None:
    response, prediction = _pair(trials, neurons, 116, torch.float32)
    found = []
    for recorded in (response, response.transpose(1, 2).contiguous().transpose(1, 2)):
        predicted = prediction[..., 3:].clone().requires_grad_()
        loss = _loss(name, recorded, predicted)
        loss.backward()
        found.append((loss, predicted.grad))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("name", SUMMED)
def test_micro_batches_add_up(name: str) -> None:
    response, prediction = _pair()
    parts = [_loss(name, response[part], prediction[part]) for part in (slice(0, 3), slice(3, 4))]
    torch.testing.assert_close(sum(parts), _loss(name, response, prediction))


@pytest.mark.parametrize("name", NAMES)
def test_full_mask_changes_nothing(name: str) -> None:
    response, prediction = _pair()
    mask = torch.ones(4, 12, dtype=torch.bool)
    torch.testing.assert_close(_loss(name, response, prediction, mask=mask), _loss(name, response, prediction))


@pytest.mark.parametrize("name", NAMES)
def test_padding_counts_nowhere(name: str) -> None:
    response, prediction = _pair(trials=1)
    padded_response = torch.cat((response, torch.full((1, 5, 4), 3.0)), dim=-1)
    padded = torch.cat((prediction, torch.full((1, 5, 4), torch.nan)), dim=-1).requires_grad_()
    plain = prediction.clone().requires_grad_()
    mask = torch.arange(16)[None] < 12
    expected = _loss(name, response, plain, batch_size=1)
    found = _loss(name, padded_response, padded, batch_size=1, mask=mask)
    torch.testing.assert_close(found, expected)
    expected.backward()
    found.backward()
    torch.testing.assert_close(padded.grad[..., :12], plain.grad)
    assert not padded.grad[..., 12:].any()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_silent_response_and_constant_prediction_have_finite_gradients(name: str, dtype: torch.dtype) -> None:
    response, prediction = _pair(dtype=dtype)
    response[:, 0] = 0
    prediction[:, 1] = 0.5
    prediction.requires_grad_()
    loss = _loss(name, response, prediction)
    loss.backward()
    assert loss.isfinite()
    assert prediction.grad.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_gradient(name: str) -> None:
    response, prediction = _pair(trials=2, neurons=3, frames=6)
    mask = torch.tensor([6, 4])[:, None] > torch.arange(6)
    assert torch.autograd.gradcheck(lambda p: _loss(name, response, p, mask=mask), prediction.requires_grad_())


def test_correlation_survives_a_large_offset() -> None:
    response, prediction = _pair(dtype=torch.float32)
    exact = _loss("correlation", response.double(), prediction.double())
    shifted = _loss("correlation", response + 100, prediction + 100)
    torch.testing.assert_close(shifted.double(), exact, rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_compiles_without_graph_breaks(name: str) -> None:
    response, prediction = _pair(dtype=torch.float32)
    mask = torch.ones(4, 12, dtype=torch.bool)
    mask[0, 8:] = False
    torch.compiler.reset()
    compiled = torch.compile(_loss, fullgraph=True, backend="aot_eager")
    for trials in (4, 3):  # the second batch size makes the sizes symbolic
        args = (name, response[:trials], prediction[:trials], trials)
        torch.testing.assert_close(compiled(*args, mask=mask[:trials]), _loss(*args, mask=mask[:trials]))
        torch.testing.assert_close(compiled(*args), _loss(*args))


def test_unknown_name_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"poisson, .*'huber'"):
        _loss("huber", *_pair())
