"""A Transformer block whose attention and feed-forward paths run side by side: the definition, in plain operations.

    q, k, v, f = LayerNorm(x) fused'
    y = x + path_a * (dropout(softmax(scale q k') v) attention_out') + path_f * (dropout(activation(f)) ff_out')

path_a and path_f, stochastic depth, are one number per sequence: 0, or 1 / (1 - drop_path).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..parallel_block_settings import BlockSettings, BlockWeights


class Kept(NamedTuple):
    """What dropout and stochastic depth keep."""

    attention: Tensor  # (S, L, inner) bool
    ff: Tensor  # (S, L, mlp) bool
    paths: Tensor  # (S, 2) bool: attention, feed-forward


def draw(x: Tensor, weights: BlockWeights, settings: BlockSettings) -> Kept | None:
    """Masks from PyTorch's generator of the device; None if there is nothing to drop."""
    if not settings.drops:
        return None
    shapes = (*x.shape[:2], weights.inner), (*x.shape[:2], weights.mlp), (len(x), 2)
    rates = settings.attention_dropout, settings.ff_dropout, settings.drop_path
    return Kept(*(torch.rand(s, device=x.device) >= rate for s, rate in zip(shapes, rates, strict=True)))


def _norm(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    return x if weight is None else F.layer_norm(x, weight.shape, weight, bias).to(x.dtype)


def _drop(x: Tensor, keep: Tensor | None, rate: float) -> Tensor:
    return x if keep is None or rate == 0 else torch.where(keep, x / (1 - rate), 0.0)


def parallel_block(x: Tensor, weights: BlockWeights, settings: BlockSettings, kept: Kept | None = None) -> Tensor:
    """x (S, L, D) -> (S, L, D) in the dtype of x; without `kept` nothing is dropped."""
    widths, low = weights.widths, settings.dtype
    normalised = F.layer_norm(x, x.shape[-1:], weights.norm_weight, weights.norm_bias, settings.eps).to(low)
    packed = F.linear(normalised, weights.fused.to(low))
    q, k, v, hidden = packed.split(widths, dim=-1)
    q, k = _norm(q, weights.q_weight, weights.q_bias), _norm(k, weights.k_weight, weights.k_bias)
    q, k, v = (y.unflatten(-1, (settings.heads, -1)).transpose(1, 2) for y in (q, k, v))
    attended = F.scaled_dot_product_attention(q, k, v, scale=settings.scale).transpose(1, 2).flatten(2)
    if weights.swiglu:
        value, gate = hidden.chunk(2, dim=-1)
        hidden = F.silu(gate) * value
    else:
        hidden = F.gelu(hidden)
    attended = _drop(attended, kept and kept.attention, settings.attention_dropout)
    hidden = _drop(hidden, kept and kept.ff, settings.ff_dropout)
    branches = [F.linear(attended, weights.attention_out.to(low)), F.linear(hidden, weights.ff_out.to(low))]
    for i, branch in enumerate(branches):
        keep = None if kept is None else kept.paths[:, i, None, None]
        x = x + _drop(branch.to(x.dtype), keep, settings.drop_path)
    return x
