"""Attention off CUDA, a few sequences at a time so that what is computed between stays in cache."""

from __future__ import annotations

import torch
from torch import Tensor

from . import attention_products
from .attention_settings import Settings, normalise, normalise_backward
from .dropout import keep_rows, keep_scale

# Values of queries, keys and values, and scores as products, that are taken at a time.
_GROUP_VALUES, _GROUP_SCORES = 1_500_000, 2_000_000


def _as_products(packed: Tensor) -> bool:
    """Whether PyTorch's own kernel is slower, or there is none."""
    return packed.dtype == torch.bfloat16 or packed.device.type != "cpu"


def _groups(packed: Tensor, settings: Settings) -> list[slice]:
    sequences, length, width = packed.shape
    if _as_products(packed):
        step = _GROUP_SCORES // max(1, settings.heads * length * length)
    else:
        step = _GROUP_VALUES // max(1, length * width)
    step = max(1, step)
    return [slice(start, min(start + step, sequences)) for start in range(0, sequences, step)]


def _heads(x: Tensor, settings: Settings) -> Tensor:
    """(s, L, inner) -> (s, heads, L, head_dim)."""
    return x.unflatten(-1, (settings.heads, settings.head_dim)).transpose(1, 2)


def _generator(settings: Settings) -> torch.Generator | None:
    """Draws the masks of one group after the other."""
    return None if settings.seed is None else torch.Generator().manual_seed(int(settings.seed))


def _drop(x: Tensor, settings: Settings, generator: torch.Generator) -> Tensor:
    sequences, length, inner = x.shape
    mask = keep_rows(sequences, length * inner, settings.dropout, generator, x.dtype).view(x.shape).to(x.device)
    return mask.mul_(x).mul_(keep_scale(settings.dropout))


def _attend(q: Tensor, k: Tensor, v: Tensor, settings: Settings) -> tuple[Tensor, Tensor]:
    """As `attention_products.forward`."""
    if _as_products(q):
        return attention_products.forward(q, k, v, settings)
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        *(_heads(x, settings) for x in (q, k, v)), 0.0, settings.causal, scale=settings.scale
    )
    return out.transpose(1, 2).flatten(2), lse


def _attend_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, settings: Settings
) -> tuple[Tensor, ...]:
    """As `attention_products.backward`."""
    if _as_products(q):
        return attention_products.backward(grad, q, k, v, out, lse, settings)
    grads = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        *(_heads(x, settings) for x in (grad, q, k, v, out)), lse, 0.0, settings.causal, scale=settings.scale
    )
    return tuple(x.transpose(1, 2).flatten(2) for x in grads)


def forward(packed: Tensor, settings: Settings) -> tuple[Tensor, Tensor]:
    """See `attention_settings.py`."""
    sequences, length, _ = packed.shape
    out = packed.new_empty(sequences, length, settings.inner)
    wide = torch.promote_types(packed.dtype, torch.float32)
    lse = packed.new_empty(sequences, settings.heads, length, dtype=wide)
    generator = _generator(settings)
    for group in _groups(packed, settings):
        q, k, v = packed[group].split(settings.inner, dim=-1)
        q, k = normalise(q, settings.q_norm).y, normalise(k, settings.k_norm).y
        y, lse[group] = _attend(q, k, v, settings)
        out[group] = y if generator is None else _drop(y, settings, generator)
    return out, lse


def backward(
    grad: Tensor, packed: Tensor, out: Tensor, lse: Tensor, settings: Settings, grad_packed: Tensor
) -> list[Tensor]:
    """See `attention_settings.py`."""
    generator = _generator(settings)
    norms = (settings.q_norm, settings.k_norm)
    totals = [torch.zeros_like(p) for norm in norms if norm is not None for p in norm if p is not None]
    for group in _groups(packed, settings):
        q, k, v = packed[group].split(settings.inner, dim=-1)
        g, y = grad[group], out[group]
        if generator is not None:
            g = _drop(g, settings, generator)
            y = y * (1 - settings.dropout)  # zero where g is: as good as the result before the dropout
        q_norm, k_norm = normalise(q, settings.q_norm), normalise(k, settings.k_norm)
        dq, dk, dv = _attend_backward(g, q_norm.y, k_norm.y, v, y, lse[group], settings)
        dq, q_weights = normalise_backward(dq, q_norm)
        dk, k_weights = normalise_backward(dk, k_norm)
        torch.cat((dq, dk, dv), dim=-1, out=grad_packed[group])
        for total, part in zip(totals, q_weights + k_weights, strict=True):
            total += part
    return totals
