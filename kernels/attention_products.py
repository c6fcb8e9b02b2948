"""Attention of a few sequences as batched matrix products, for bfloat16 on a CPU.

Processors with bfloat16 arithmetic multiply it several times faster than float32, which PyTorch's attention on a CPU
does not use. Scores are bfloat16 and stay in cache; what is summed over a row is float32. Numbers per row enter the
products as two more columns, upper and lower half of a float32, so that they cost neither a pass nor precision.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .attention_settings import Settings

# Scores closer than this to what is taken off them have exponentials far from the end of bfloat16 and float32.
_SAFE_SCORE = 60.0
# Of so many keys one is looked at for the number to take off a row's scores.
_SAMPLED = 8


def _rows(x: Tensor, settings: Settings, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    """(s, L, inner) -> (s * heads, L, head_dim + 2), times `scale`; the two columns hold 1."""
    heads, d = settings.heads, settings.head_dim
    y = x.new_empty(len(x) * heads, x.shape[1], d + 2, dtype=dtype)
    y[..., :d].unflatten(0, (-1, heads)).copy_(x.unflatten(-1, (heads, d)).transpose(1, 2))
    if scale != 1:
        y[..., :d] *= scale
    y[..., d:] = 1
    return y


def _take_off(y: Tensor, per_row: Tensor) -> None:
    """Sets the two columns so that products with ones there are less by `per_row` (s * heads, L)."""
    y[..., -2] = -per_row
    y[..., -1] = -per_row - y[..., -2]


def _sequences(x: Tensor, settings: Settings) -> Tensor:
    """(s * heads, L, head_dim) -> (s, L, inner)."""
    return x.unflatten(0, (-1, settings.heads)).transpose(1, 2).flatten(2)


def _dtype(x: Tensor) -> torch.dtype:
    """Of the products; float16 could not hold the exponentials."""
    return x.dtype if x.dtype == torch.bfloat16 else torch.promote_types(x.dtype, torch.float32)


def forward(q: Tensor, k: Tensor, v: Tensor, settings: Settings) -> tuple[Tensor, Tensor]:
    """softmax(scale q k') v of (s, L, inner), and the scores' log-sum-exp (s, heads, L)."""
    dtype, d, wide = _dtype(q), settings.head_dim, torch.promote_types(q.dtype, torch.float32)
    q, k, v = _rows(q, settings, dtype, settings.scale), _rows(k, settings, dtype), _rows(v, settings, dtype)
    # Taken off before scores are rounded, so that those that weigh most, near it, are the most precise.
    top = torch.bmm(q[..., :d], k[:, ::_SAMPLED, :d].transpose(1, 2)).amax(dim=-1).to(wide)
    _take_off(q, top)
    scores = torch.bmm(q, k.transpose(1, 2))
    if settings.causal:
        scores += torch.full_like(scores[0], float("-inf")).triu_(1)
    longest = (torch.linalg.vector_norm(x[..., :d], dim=-1).max() for x in (q, k))
    if not 2 * math.prod(longest) < _SAFE_SCORE:
        more = scores.amax(dim=-1, keepdim=True)
        scores -= more
        top += more[..., 0]
    total = scores.exp_().sum(dim=-1, dtype=wide)
    out = torch.bmm(scores, v[..., :d]) / total[..., None]
    return _sequences(out, settings), (total.log_() + top).view(-1, settings.heads, q.shape[1])


def backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, settings: Settings
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k, v (s, L, inner) for those of the result."""
    dtype, d = _dtype(q), settings.head_dim
    delta = (grad.to(lse.dtype) * out).unflatten(-1, (settings.heads, d)).sum(-1).transpose(1, 2).flatten(0, 1)
    # Keys are rows, queries columns: three of the five products then have their large side as it lies in memory.
    q, k = _rows(q, settings, dtype, settings.scale), _rows(k, settings, dtype)
    v, g = _rows(v, settings, dtype), _rows(grad, settings, dtype)
    _take_off(q, lse.flatten(0, 1))
    _take_off(g, delta)
    p = torch.bmm(k, q.transpose(1, 2)).exp_()
    if settings.causal:
        p.triu_()
    ds = torch.bmm(v, g.transpose(1, 2)).mul_(p)
    dv = torch.bmm(p, g[..., :d])
    dk = torch.bmm(ds, q[..., :d])
    dq = torch.bmm(ds.transpose(1, 2), k[..., :d]).mul_(settings.scale)
    return _sequences(dq, settings), _sequences(dk, settings), _sequences(dv, settings)
