"""A Transformer block whose attention and feed-forward paths run side by side: the definition, in plain operations.

    q, k, v, f = norm(x) fused'
    y = x + path_a * (dropout(softmax(scale q k') v) attention_out') + path_f * (dropout(activation(f)) ff_out')

path_a and path_f, stochastic depth, are one number per sequence: 0, or 1 / (1 - drop_path). q and k are normalised and
turned by their positions where that is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attention.reference import attention
from ..attention.rotary import Rotary
from ..common.activations import activate
from ..common.dropout import keep_scale
from ..common.norms import norm
from .settings import BlockSettings, BlockWeights, norms_of


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


def _drop(x: Tensor, keep: Tensor | None, rate: float) -> Tensor:
    return x if keep is None or rate == 0 else torch.where(keep, x * keep_scale(rate), 0.0)


def parallel_block(
    x: Tensor,
    weights: BlockWeights,
    settings: BlockSettings,
    kept: Kept | None = None,
    attend: Callable[[Tensor], Tensor] | None = None,
    rotary: Rotary | None = None,
) -> Tensor:
    """x (S, L, D) -> (S, L, D) in the dtype of x; without `kept` nothing is dropped.

    `attend` takes the fused projection (S, L, widths) to the attention (S, L, inner) instead, dropout included.
    """
    low = settings.dtype
    packed = F.linear(norm(x, norms_of(weights, settings)[0]).to(low), weights.fused.to(low))
    if attend is None:
        attended = attention(
            packed, settings.heads, weights.inner // settings.heads, settings.scale, rotary=rotary,
            causal=settings.causal, **attention_norms(weights, settings),
        )  # fmt: skip
        attended = _drop(attended, kept and kept.attention, settings.attention_dropout)
    else:
        attended = attend(packed)
    hidden = activate(packed[..., 3 * weights.inner :], settings.activation)
    hidden = _drop(hidden, kept and kept.ff, settings.ff_dropout)
    branches = [F.linear(attended, weights.attention_out.to(low)), F.linear(hidden, weights.ff_out.to(low))]
    for i, branch in enumerate(branches):
        keep = None if kept is None else kept.paths[:, i, None, None]
        x = x + _drop(branch.to(x.dtype), keep, settings.drop_path)
    return x


def attention_norms(weights: BlockWeights, settings: BlockSettings) -> dict[str, Any]:
    """Arguments of `attention` about its norms."""
    names = ("q_weight", "q_bias", "q_alpha", "k_weight", "k_bias", "k_alpha")
    return {name: getattr(weights, name) for name in names} | {"norm_kind": settings.norm, "norm_eps": settings.eps}
