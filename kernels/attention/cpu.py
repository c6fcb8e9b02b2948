"""Attention off CUDA: a few sequences at a time, each on one thread, so that what lies between stays in cache."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..common.dropout import keep_rows, keep_scale, lane_generator
from ..common.lanes import lane_slices, run_lanes
from .settings import Settings, prepare, prepare_backward
from .softmax_cpu import HeadAttention

# Values of queries, keys and values that are taken at a time.
_GROUP_VALUES = 1_000_000

Drop = Callable[[Tensor], Tensor]


def _products_dtype(dtype: torch.dtype) -> torch.dtype:
    """Of the products; float16 could not hold the exponentials."""
    return dtype if dtype == torch.bfloat16 else torch.promote_types(dtype, torch.float32)


def _lanes(packed: Tensor) -> list[list[slice]]:
    sequences, length, width = packed.shape
    lanes = lane_slices(sequences, max(1, _GROUP_VALUES // max(1, length * width)))
    # Elsewhere a thread would have a stream of its own.
    return lanes if packed.device.type == "cpu" else [[group for lane in lanes for group in lane]]


def _run(packed: Tensor, settings: Settings, work: Callable[[int, slice, HeadAttention, Drop | None], None]) -> None:
    """Calls work(lane, group, attention, dropout) for every group of sequences."""
    lanes = _lanes(packed)
    seed = None if settings.seed is None else int(settings.seed)

    def run(index: int) -> None:
        s, dtype = settings, _products_dtype(packed.dtype)
        attention = HeadAttention(packed.shape[1], s.heads, s.head_dim, s.scale, dtype, s.causal, packed.device)
        generator = None if seed is None else lane_generator(seed, index)

        def drop(x: Tensor) -> Tensor:
            mask = keep_rows(len(x), x[0].numel(), s.dropout, generator, x.dtype).view(x.shape).to(x.device)
            return mask.mul_(x).mul_(keep_scale(s.dropout))

        for group in lanes[index]:
            work(index, group, attention, None if generator is None else drop)

    run_lanes(run, len(lanes))


def forward(packed: Tensor, settings: Settings) -> tuple[Tensor, Tensor]:
    """See `settings.py`."""
    sequences, length, _ = packed.shape
    out = packed.new_empty(sequences, length, settings.inner)
    wide = torch.promote_types(packed.dtype, torch.float32)
    sums = packed.new_empty(sequences, settings.heads, length, dtype=wide)

    def work(_: int, group: slice, attention: HeadAttention, drop: Drop | None) -> None:
        q, k, v = packed[group].split(settings.inner, dim=-1)
        q, k = prepare(q, settings.q_norm, settings).y, prepare(k, settings.k_norm, settings).y
        attention.forward(q, k, v, out[group], sums[group])
        if drop is not None:
            out[group] = drop(out[group])

    _run(packed, settings, work)
    return out, sums


def backward(
    grad: Tensor, packed: Tensor, out: Tensor, sums: Tensor, settings: Settings, grad_packed: Tensor
) -> list[Tensor]:
    """See `settings.py`."""
    totals = [[torch.zeros_like(p) for p in settings.norm_parameters] for _ in range(max(1, len(_lanes(packed))))]

    def work(lane: int, group: slice, attention: HeadAttention, drop: Drop | None) -> None:
        q, k, v = packed[group].split(settings.inner, dim=-1)
        dq, dk, dv = grad_packed[group].split(settings.inner, dim=-1)
        g, y = grad[group], out[group]
        if drop is not None:
            g = drop(g)
            y = y * (1 - settings.dropout)  # zero where g is: as good as the result before the dropout
        queries, keys = prepare(q, settings.q_norm, settings), prepare(k, settings.k_norm, settings)
        attention.backward(g, queries.y, keys.y, v, y, sums[group], True, (dq, dk, dv))
        of_weights = []
        for d, prepared in ((dq, queries), (dk, keys)):
            dx, parts = prepare_backward(d, prepared, settings)
            if dx is not d:
                d.copy_(dx)
            of_weights += parts
        for total, part in zip(totals[lane], of_weights, strict=True):
            total += part

    _run(packed, settings, work)
    return [torch.stack(parts).sum(dim=0) for parts in zip(*totals, strict=True)]
