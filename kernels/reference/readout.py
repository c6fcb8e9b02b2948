"""Sampling a feature map at one position per neuron and weighing the features: the Gaussian readout's core."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# Samples (frames, D, N) that are kept for the backward; beyond that, frames are taken in chunks that stay in cache and
# are sampled again in the backward.
_KEPT_VALUES = 16_000_000
_CHUNK_VALUES = 4_000_000


def _sample(maps: Tensor, positions: Tensor, features: Tensor) -> Tensor:
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
    frames, depth = maps.shape[:2]
    values = depth * positions.shape[1]
    if frames * values <= _KEPT_VALUES:
        return _sample(maps, positions, features)
    chunk = max(1, _CHUNK_VALUES // values)
    recompute = torch.is_grad_enabled() and (maps.requires_grad or positions.requires_grad or features.requires_grad)
    parts = []
    for start in range(0, frames, chunk):
        part = (maps[start : start + chunk], positions[start : start + chunk], features)
        if recompute:
            parts.append(checkpoint(_sample, *part, use_reentrant=False, preserve_rng_state=False))
        else:
            parts.append(_sample(*part))
    return torch.cat(parts)
