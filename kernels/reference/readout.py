"""Sampling a feature map at one position per neuron and weighing the features: the Gaussian readout's core."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# Values (samples of features, or products) that are kept for the backward; beyond that, frames are taken in chunks that
# stay in cache and are computed again in the backward.
_KEPT_VALUES = 16_000_000
_CHUNK_VALUES = 4_000_000
# On maps of few positions it is cheaper to weigh the features at every position and sample the products: one number per
# neuron and corner is gathered instead of D.
_FEW_POSITIONS = 64


def _corners(positions: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Indices into the flattened map and bilinear weights (0 outside) of the four corners: (F, N, 4) each."""
    x = (positions[..., 0] + 1) * ((width - 1) / 2)
    y = (positions[..., 1] + 1) * ((height - 1) / 2)
    left, top = x.detach().floor(), y.detach().floor()
    columns = left[..., None] + left.new_tensor([0, 1, 0, 1])
    rows = top[..., None] + top.new_tensor([0, 0, 1, 1])
    right, below = x - left, y - top
    across, down = torch.stack((1 - right, right), dim=-1), torch.stack((1 - below, below), dim=-1)
    weights = (down[..., :, None] * across[..., None, :]).flatten(-2)
    inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    index = rows.clamp(0, height - 1) * width + columns.clamp(0, width - 1)
    return index.long(), weights * inside


def _weigh_then_sample(maps: Tensor, positions: Tensor, features: Tensor) -> Tensor:
    index, weights = _corners(positions, *maps.shape[2:])
    neurons = features.shape[1]
    products = maps.flatten(2).transpose(1, 2) @ features
    at = (index * neurons + torch.arange(neurons, device=index.device)[:, None]).flatten(1)
    return torch.linalg.vecdot(products.flatten(1).gather(1, at).view_as(weights), weights)


def _sample_then_weigh(maps: Tensor, positions: Tensor, features: Tensor) -> Tensor:
    sampled = F.grid_sample(maps, positions[:, :, None], mode="bilinear", padding_mode="zeros", align_corners=True)
    return torch.linalg.vecdot(sampled[..., 0], features, dim=1)


def sample_readout(maps: Tensor, positions: Tensor, features: Tensor) -> Tensor:
    """Bilinear samples of each frame's map at each neuron's position, dotted with the neuron's features.

    Args:
        maps: (F, D, h, w), one map per frame.
        positions: (F, N, 2) as x, y with -1 and 1 at the centres of the outermost columns and rows; zero outside.
        features: (D, N).

    Returns:
        (F, N).
    """
    frames, depth, height, width = maps.shape
    few = height * width <= _FEW_POSITIONS
    sample = _weigh_then_sample if few else _sample_then_weigh
    values = (height * width if few else depth) * positions.shape[1]
    if frames * values <= _KEPT_VALUES:
        return sample(maps, positions, features)
    chunk = max(1, _CHUNK_VALUES // values)
    recompute = torch.is_grad_enabled() and (maps.requires_grad or positions.requires_grad or features.requires_grad)
    parts = []
    for start in range(0, frames, chunk):
        part = (maps[start : start + chunk], positions[start : start + chunk], features)
        if recompute:
            parts.append(checkpoint(sample, *part, use_reentrant=False, preserve_rng_state=False))
        else:
            parts.append(sample(*part))
    return torch.cat(parts)
