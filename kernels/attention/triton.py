"""Attention on a GPU: the launches of its kernels, and what comes before and after them."""

from __future__ import annotations

import math

import torch
import triton
from torch import Tensor

from ..common import tiles
from ..common.dropout import drop_threshold, keep_scale
from ..common.launch import launch
from ..common.norms import Normalised, normalise, normalise_backward
from ..common.precision import allows_tf32
from .rotary import Rotary
from .settings import Settings
from .triton_kernels import backward_kv_kernel, backward_q_kernel, forward_kernel, rotate_kernel

_LOG2E = math.log2(math.e)
_LARGEST_TF32 = 80  # head size


def parts_of(head_dim: int) -> tuple[int, int, int]:
    """A head's columns as powers of two from 16, largest first: 112 -> (64, 32, 16), 48 -> (32, 16, 0).

    Raises:
        ValueError: not a multiple of 16 up to 128.
    """
    if head_dim % 16 or not 16 <= head_dim <= 128:
        raise ValueError(f"the GPU's attention takes head sizes that are multiples of 16 up to 128, not {head_dim}")
    parts = [size for size in (128, 64, 32, 16) if head_dim & size]
    first, second, third = (*parts, 0, 0)[:3]
    return first, second, third


def _precision(dtype: torch.dtype, head_dim: int) -> str:
    """How float32 is multiplied: as PyTorch is set, but exactly where TF32 would spill registers."""
    tf32 = dtype == torch.float32 and head_dim <= _LARGEST_TF32 and allows_tf32()
    return "tf32" if tf32 else "ieee"


def _strides(*tensors: Tensor) -> tuple[int, list[int]]:
    """A number of values that divides all strides, so that the compiler knows alignment; strides in that unit."""
    strides = [stride for t in tensors for stride in t.stride()[:2]]
    unit = next(u for u in (16, 8, 1) if all(stride % u == 0 for stride in strides))
    return unit, [stride // unit for stride in strides]


def _contiguous_rows(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def turn(packed: Tensor, rotary: Rotary, settings: Settings, backward: bool = False) -> None:
    """Turns queries and keys of `packed` (S, L, 3 * inner), or their gradients back, in place."""
    sequences, length, _ = packed.shape
    if not packed.numel():
        return
    tile, half = tiles.rotation(), settings.head_dim // 2
    unit, strides = _strides(packed)
    launch(
        rotate_kernel, (sequences * triton.cdiv(length, tile.rows),), tile,
        packed, rotary.cos.contiguous(), rotary.sin.contiguous(), *strides, length,
        2 * settings.heads, half, unit, tile.rows, tiles.next_power_of_2(half), backward,
    )  # fmt: skip


def _prepared(packed: Tensor, settings: Settings) -> tuple[Tensor, Normalised, Normalised]:
    """`packed` as the kernels take it, and its queries and keys before they are turned."""
    q, k, v = packed.split(settings.inner, dim=-1)
    queries, keys = normalise(q, settings.q_norm), normalise(k, settings.k_norm)
    if settings.q_norm is not None or settings.k_norm is not None:
        packed = torch.cat((queries.y, keys.y, v), dim=-1)
    elif settings.rotary is not None:
        packed = packed.clone(memory_format=torch.contiguous_format)
    if settings.rotary is not None:
        turn(packed, settings.rotary, settings)
    return _contiguous_rows(packed), queries, keys


def forward(packed: Tensor, settings: Settings) -> tuple[Tensor, Tensor]:
    """See `settings.py`."""
    packed, _, _ = _prepared(packed, settings)
    sequences, length, _ = packed.shape
    out = packed.new_empty(sequences, length, settings.inner)
    lse = packed.new_empty(sequences, settings.heads, length, dtype=torch.float32)
    if not out.numel():
        return out, lse
    precision = _precision(packed.dtype, settings.head_dim)
    tile = tiles.attention("forward", settings.head_dim, precision, packed.dtype, length)
    unit, strides = _strides(packed)
    programs = sequences * settings.heads * triton.cdiv(length, tile.rows)
    launch(
        forward_kernel, (programs,), tile,
        packed, out, lse, settings.seed, *strides, length, settings.scale * _LOG2E,
        drop_threshold(settings.dropout), keep_scale(settings.dropout),
        settings.heads, *parts_of(settings.head_dim), unit, tile.rows, tile.columns, settings.causal,
        settings.seed is not None, precision,
    )  # fmt: skip
    return out, lse


def _launch_backward(
    grad: Tensor, packed: Tensor, out: Tensor, lse: Tensor, settings: Settings, grad_packed: Tensor
) -> None:
    sequences, length, _ = packed.shape
    programs, head_dim, dtype = sequences * settings.heads, settings.head_dim, packed.dtype
    dropout, precision = settings.seed is not None, _precision(dtype, head_dim)
    delta = torch.empty_like(lse)
    dropped = torch.empty_like(out) if dropout else grad
    sizes = (length, settings.scale, settings.scale * _LOG2E)
    constants = (settings.heads, *parts_of(head_dim))
    tile = tiles.attention("backward_q", head_dim, precision, dtype, length)
    unit, strides = _strides(packed, grad, grad_packed)
    launch(
        backward_q_kernel, (programs * triton.cdiv(length, tile.rows),), tile,
        packed, grad, out, lse, settings.seed, grad_packed, delta, dropped, *strides, *sizes,
        drop_threshold(settings.dropout), keep_scale(settings.dropout),
        *constants, unit, tile.rows, tile.columns, settings.causal, dropout, precision,
    )  # fmt: skip
    tile = tiles.attention("backward_kv", head_dim, precision, dtype, length)
    unit, strides = _strides(packed, dropped, grad_packed)
    launch(
        backward_kv_kernel, (programs * triton.cdiv(length, tile.columns),), tile,
        packed, dropped, lse, delta, grad_packed, *strides, *sizes,
        *constants, unit, tile.rows, tile.columns, settings.causal, precision,
    )  # fmt: skip


def backward(
    grad: Tensor, packed: Tensor, out: Tensor, lse: Tensor, settings: Settings, grad_packed: Tensor
) -> list[Tensor]:
    """See `settings.py`."""
    packed, queries, keys = _prepared(packed, settings)
    grad, out = _contiguous_rows(grad), out.contiguous()
    if out.numel():
        _launch_backward(grad, packed, out, lse, settings, grad_packed)
        if settings.rotary is not None:
            turn(grad_packed, settings.rotary, settings, backward=True)
    weights: list[Tensor] = []
    for part, normalised in zip(grad_packed.split(settings.inner, dim=-1)[:2], (queries, keys), strict=True):
        dx, parts = normalise_backward(part, normalised)
        if dx is not part:
            part.copy_(dx)
        weights += parts
    return weights
