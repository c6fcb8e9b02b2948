"""A Transformer block whose attention and feed-forward paths run side by side: the definition, in plain operations.

    q, k, v, f = LayerNorm(x) fused'
    y = x + path_a * (dropout(softmax(scale q k') v) attention_out') + path_f * (dropout(activation(f)) ff_out')

path_a and path_f, stochastic depth, are one number per sequence: 0, or 1 / (1 - drop_path).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..common.dropout import keep_scale
from .settings import BlockSettings, BlockWeights


class Kept(NamedTuple):
    """What dropout and stochastic depth keep."""

    attention: Tensor | None  # (S, L, inner) bool
    ff: Tensor  # (S, L, mlp) bool
    paths: Tensor  # (S, 2) bool: attention, feed-forward


def draw(x: Tensor, weights: BlockWeights, settings: BlockSettings, attention: bool) -> Kept | None:
    """Masks from PyTorch's generator of the device, the attention's if asked for; None if there is nothing to drop."""
    if not settings.drops:
        return None

    def keep(*shape: int, rate: float) -> Tensor:
        return torch.rand(shape, device=x.device) >= rate

    return Kept(
        keep(*x.shape[:2], weights.inner, rate=settings.attention_dropout) if attention else None,
        keep(*x.shape[:2], weights.mlp, rate=settings.ff_dropout),
        keep(len(x), 2, rate=settings.drop_path),
    )


def _norm(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    return x if weight is None else F.layer_norm(x, weight.shape, weight, bias).to(x.dtype)


def _drop(x: Tensor, keep: Tensor | None, rate: float) -> Tensor:
    return x if keep is None or rate == 0 else torch.where(keep, x * keep_scale(rate), 0.0)


def parallel_block(
    x: Tensor,
    weights: BlockWeights,
    settings: BlockSettings,
    kept: Kept | None = None,
    attend: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """x (S, L, D) -> (S, L, D) in the dtype of x; without `kept` nothing is dropped.

    `attend` takes the fused projection (S, L, widths) to the attention (S, L, inner) instead, dropout included.
    """
    widths, low = weights.widths, settings.dtype
    normalised = F.layer_norm(x, x.shape[-1:], weights.norm_weight, weights.norm_bias, settings.eps).to(low)
    packed = F.linear(normalised, weights.fused.to(low))
    if attend is None:
        q, k, v, _ = packed.split(widths, dim=-1)
        q, k = _norm(q, weights.q_weight, weights.q_bias), _norm(k, weights.k_weight, weights.k_bias)
        q, k, v = (y.unflatten(-1, (settings.heads, -1)).transpose(1, 2) for y in (q, k, v))
        attended = F.scaled_dot_product_attention(q, k, v, scale=settings.scale).transpose(1, 2).flatten(2)
        attended = _drop(attended, kept and kept.attention, settings.attention_dropout)
    else:
        attended = attend(packed)
    hidden = packed[..., -widths[3] :]
    if weights.swiglu:
        value, gate = hidden.chunk(2, dim=-1)
        hidden = F.silu(gate) * value
    else:
        hidden = F.gelu(hidden)
    hidden = _drop(hidden, kept and kept.ff, settings.ff_dropout)
    branches = [F.linear(attended, weights.attention_out.to(low)), F.linear(hidden, weights.ff_out.to(low))]
    for i, branch in enumerate(branches):
        keep = None if kept is None else kept.paths[:, i, None, None]
        x = x + _drop(branch.to(x.dtype), keep, settings.drop_path)
    return x
