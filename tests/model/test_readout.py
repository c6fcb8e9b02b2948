"""Readouts: sampling at a position per neuron, its noise, shift and state; the mask readout; the chance baseline."""

from __future__ import annotations

import math

import pytest
import torch
from small_models import small_config
from torch import Tensor

from viv1t.families.sensorium2023.build import build_readout
from viv1t.model.readout import FactorizedReadout, Gaussian2dReadout, RandomReadout, normalized_coordinates
from viv1t.model.twin import Neurons

SHAPE = (3, 4, 6)  # D, h, w
BATCH, NEURONS, FRAMES = 2, 5, 7


def sampled_by_loop(maps: Tensor, positions: Tensor, features: Tensor) -> Tensor:
    """Bilinear interpolation neuron by neuron; pixels outside the map are zero."""
    frames, _, height, width = maps.shape
    out = torch.zeros(frames, positions.shape[1], dtype=maps.dtype)
    for f in range(frames):
        for n in range(positions.shape[1]):
            x = (positions[f, n, 0] + 1) / 2 * (width - 1)
            y = (positions[f, n, 1] + 1) / 2 * (height - 1)
            left, top = math.floor(x.item()), math.floor(y.item())
            for column in (left, left + 1):
                for row in (top, top + 1):
                    if 0 <= column < width and 0 <= row < height:
                        weight = (1 - (x - column).abs()) * (1 - (y - row).abs())
                        out[f, n] = out[f, n] + weight * (maps[f, :, row, column] @ features[:, n])
    return out


def gaussian(**options: object) -> Gaussian2dReadout:
    config = small_config(**options).readout
    torch.manual_seed(0)
    neurons = Neurons(NEURONS, 100 * torch.rand(NEURONS, 3), torch.rand(NEURONS))
    module = build_readout(config, SHAPE, neurons).double()
    assert isinstance(module, Gaussian2dReadout)
    with torch.no_grad():
        module.features.normal_()
    return module


def inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """maps, state, shift, noise."""
    generator = torch.Generator().manual_seed(1)
    shapes = ((BATCH, 3, FRAMES, 4, 6), (BATCH, 4, FRAMES), (BATCH, FRAMES, 2), (BATCH, FRAMES, NEURONS, 2))
    maps, state, shift, noise = (torch.randn(*s, generator=generator, dtype=torch.float64) for s in shapes)
    return maps, state, 0.3 * shift, noise


def expected_output(module: Gaussian2dReadout, positions: Tensor) -> Tensor:
    """(B, N, t) from the (B, t, N, 2) positions of every frame; the state is added to what was sampled."""
    maps, state, _, _ = inputs()
    sampled = sampled_by_loop(maps.transpose(1, 2).flatten(0, 1), positions.flatten(0, 1), module.features[0])
    y = sampled.unflatten(0, (BATCH, FRAMES)) + module.state_encoder(state.transpose(1, 2)) @ module.features[0]
    return (y if module.bias is None else y + module.bias).transpose(1, 2)


@pytest.mark.parametrize("grid", [0, 1, 2])
@pytest.mark.parametrize("bias", [0, 1, 2])
def test_evaluation_samples_at_mu_plus_the_shift(grid: int, bias: int) -> None:
    module = gaussian(readout_grid_mode=grid, readout_bias_mode=bias).eval()
    maps, state, shift, _ = inputs()
    positions = module.positions().clamp(-1, 1).expand(BATCH, FRAMES, -1, -1)
    torch.testing.assert_close(module(maps, state, None), expected_output(module, positions))
    torch.testing.assert_close(module(maps, state, shift), expected_output(module, positions + shift[:, :, None]))


def test_noise_goes_through_sigma_and_the_clamp_comes_before_the_shift() -> None:
    module = gaussian()
    maps, state, shift, noise = inputs()
    positions = torch.empty(BATCH, FRAMES, NEURONS, 2, dtype=torch.float64)
    for n in range(NEURONS):
        jitter = noise[:, :, n] @ module.sigma[0, n].T
        positions[:, :, n] = (jitter + module.positions()[n]).clamp(-1, 1)
    assert (positions.abs() == 1).any(), "some are clamped"
    out = module(maps, state, shift, noise)
    torch.testing.assert_close(out, expected_output(module, positions + shift[:, :, None]))


def test_training_draws_noise_per_trial_frame_and_neuron() -> None:
    module = gaussian(readout_bias_mode=0).train()
    maps = torch.randn(1, 3, 1, 4, 6, dtype=torch.float64).expand(BATCH, -1, FRAMES, -1, -1)
    state = torch.zeros(BATCH, 4, FRAMES, dtype=torch.float64)
    torch.manual_seed(3)
    first = module(maps, state, None)
    assert len(first.flatten().unique()) > 0.9 * first.numel()
    torch.manual_seed(3)
    assert torch.equal(module(maps, state, None), first)


def test_free_positions_are_clamped_in_place_and_keep_their_gradient() -> None:
    module = gaussian(readout_grid_mode=0).eval()
    with torch.no_grad():
        module.mu[0, 0, 0] = torch.tensor([1.7, -0.5])
        module.mu[0, 1, 0] = torch.tensor([-1.2, 2.0])
    maps, state, _, _ = inputs()
    module(maps, state, None).sum().backward()
    assert torch.equal(module.mu[0, :2, 0].detach(), torch.tensor([[1, -0.5], [-1, 1]], dtype=torch.float64))
    assert module.mu.grad is not None
    assert module.mu.grad[0, 0, 0, 0] != 0
    assert (module.mu.grad[0, 1, 0] != 0).all()


def test_sigma_has_a_zero_gradient_in_evaluation() -> None:
    module = gaussian().eval()
    maps, state, _, _ = inputs()
    module(maps, state, None).sum().backward()
    assert module.sigma.grad is not None
    assert not module.sigma.grad.any()


def test_coordinates_keep_the_proportions_of_the_cortex() -> None:
    coordinates = torch.tensor([[0.0, 10, 100], [400, 30, 300], [200, 20, 230]])
    grid = normalized_coordinates(coordinates, 2)
    torch.testing.assert_close(grid, torch.tensor([[-1, -0.05], [1, 0.05], [0, 0]]))
    assert normalized_coordinates(coordinates, 3).shape == (3, 3)
    assert not normalized_coordinates(coordinates[:1], 2).any(), "a single neuron has no extent"


def test_initial_values() -> None:
    module = Gaussian2dReadout(SHAPE[0], NEURONS, torch.rand(NEURONS, 3), torch.rand(NEURONS), bias="zero")
    torch.testing.assert_close(module.features, torch.full((1, 3, NEURONS), 1 / 3))
    assert module.bias is not None
    assert not module.bias.any()
    assert gaussian(readout_bias_mode=0).bias is None


def test_factorized_readout_is_a_mask_and_features() -> None:
    module = FactorizedReadout(SHAPE, NEURONS).double()
    maps, state, shift, _ = inputs()
    expected = torch.einsum("bdthw,nhw,nd->bnt", maps, module.spatial, module.features)
    torch.testing.assert_close(module(maps, state, shift), expected)


def test_random_readout_is_uniform_noise() -> None:
    module = RandomReadout(2000)
    torch.manual_seed(0)
    maps, state, _, _ = inputs()
    out = module(maps, state, None)
    assert out.shape == (BATCH, 2000, FRAMES)
    assert out.dtype == maps.dtype
    assert 0 <= out.min() < 0.001 < 0.999 < out.max() < 1
    assert not torch.equal(out, module(maps, state, None))
