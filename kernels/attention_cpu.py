"""Attention off CUDA, a few sequences at a time so that what is computed between stays in cache."""

from __future__ import annotations

import torch
from torch import Tensor

from .attention_settings import Settings, normalise, normalise_backward
from .dropout import keep_rows, keep_scale

# Values of queries, keys and values that are taken at a time.
_GROUP_VALUES = 400_000


def _groups(packed: Tensor) -> list[slice]:
    sequences, length, width = packed.shape
    step = max(1, _GROUP_VALUES // max(1, length * width))
    return [slice(start, min(start + step, sequences)) for start in range(0, sequences, step)]


def _heads(x: Tensor, settings: Settings) -> Tensor:
    """(s, L, inner) -> (s, heads, L, head_dim)."""
    return x.unflatten(-1, (settings.heads, settings.head_dim)).transpose(1, 2)


def _generator(settings: Settings) -> torch.Generator | None:
    """Draws the masks of one group after the other."""
    return None if settings.seed is None else torch.Generator().manual_seed(int(settings.seed))


def _drop(x: Tensor, settings: Settings, generator: torch.Generator) -> Tensor:
    sequences, length, inner = x.shape
    mask = keep_rows(sequences, length * inner, settings.dropout, generator).view(x.shape).to(x.device)
    return torch.ops.aten.native_dropout_backward(x, mask, keep_scale(settings.dropout))


def forward(packed: Tensor, settings: Settings) -> tuple[Tensor, Tensor]:
    sequences, length, _ = packed.shape
    out = packed.new_empty(sequences, length, settings.inner)
    wide = torch.promote_types(packed.dtype, torch.float32)
    lse = packed.new_empty(sequences, settings.heads, length, dtype=wide)
    generator = _generator(settings)
    for group in _groups(packed):
        q, k, v = packed[group].split(settings.inner, dim=-1)
        q, k = normalise(q, settings.q_norm).y, normalise(k, settings.k_norm).y
        y, lse[group] = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            *(_heads(x, settings) for x in (q, k, v)), 0.0, settings.causal, scale=settings.scale
        )
        y = y.transpose(1, 2).flatten(2)
        out[group] = y if generator is None else _drop(y, settings, generator)
    return out, lse


def backward(
    grad: Tensor, packed: Tensor, out: Tensor, lse: Tensor, settings: Settings, grad_packed: Tensor
) -> list[Tensor]:
    generator = _generator(settings)
    totals: list[Tensor] = []
    for group in _groups(packed):
        q, k, v = packed[group].split(settings.inner, dim=-1)
        g, y = grad[group], out[group]
        if generator is not None:
            g = _drop(g, settings, generator)
            y = y * (1 - settings.dropout)  # zero where g is: as good as the result before the dropout
        norm_q, norm_k = normalise(q, settings.q_norm), normalise(k, settings.k_norm)
        given = (_heads(x, settings) for x in (g, norm_q.y, norm_k.y, v, y))
        grads = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            *given, lse[group], 0.0, settings.causal, scale=settings.scale
        )
        dq, dk, dv = (x.transpose(1, 2).flatten(2) for x in grads)
        dq, weights_q = normalise_backward(dq, norm_q)
        dk, weights_k = normalise_backward(dk, norm_k)
        torch.cat((dq, dk, dv), dim=-1, out=grad_packed[group])
        weights = weights_q + weights_k
        totals = [a + b for a, b in zip(totals, weights, strict=True)] if totals else weights
    return totals
