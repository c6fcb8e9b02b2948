"""The Gaussian readout in plain PyTorch: its definition, and the noise that GPU kernels draw."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..common.philox_reference import philox


def normal_pairs(seed: Tensor, frames: int, neurons: int) -> Tensor:
    """Two standard normal numbers per frame and neuron by Box and Muller's method: (frames, neurons, 2) float32.

    They are made of the first two words at the counter (frame, neuron, 0, 0), of 24 bits each. seed: one int64 element.
    """
    frame = torch.arange(frames, device=seed.device)[:, None]
    words = philox(seed, frame, torch.arange(neurons, device=seed.device))
    u = ((words[..., :2] >> 8).float() + 0.5) * 2.0**-24
    radius, angle = (-2 * u[..., 0].log()).sqrt(), 2 * math.pi * u[..., 1]
    return radius[..., None] * torch.stack((angle.cos(), angle.sin()), dim=-1)


def readout(
    maps: Tensor,
    features: Tensor,
    mu: Tensor,
    sigma: Tensor,
    shift: Tensor | None,
    code: Tensor | None,
    bias: Tensor | None,
    noise: Tensor | None,
    seed: Tensor | None,
) -> Tensor:
    """features . (bilinear sample of the frame's map at clamp(sigma z + mu, -1, 1) + shift, plus code) + bias.

    Arguments and result as in `operator.py`; every sample is written out.
    """
    batch, frames = maps.shape[:2]
    if noise is None and seed is not None:
        noise = normal_pairs(seed, batch * frames, len(mu)).unflatten(0, (batch, frames)).to(mu.dtype)
    positions = mu.expand(batch, frames, -1, -1)
    if noise is not None:
        positions = positions + torch.einsum("ncd,btnd->btnc", sigma, noise)
    # As `clamp`, whose gradient passes at exactly -1 and 1 only up to PyTorch 2.13.
    positions = torch.where(positions.abs() <= 1, positions, positions.detach().clamp(-1, 1))
    if shift is not None:
        positions = positions + shift[:, :, None]
    frames_first = maps.to(features.dtype).flatten(0, 1).permute(0, 3, 1, 2)
    grid = positions.flatten(0, 1)[:, :, None]
    sampled = F.grid_sample(frames_first, grid, mode="bilinear", padding_mode="zeros", align_corners=True)[..., 0]
    y = (sampled * features).sum(1).unflatten(0, (batch, frames))
    # The state is added after sampling: bilinear weights sum to less than 1 outside the map.
    if code is not None:
        y = y + code @ features
    if bias is not None:
        y = y + bias
    return y.transpose(1, 2)
