"""Patches written out, and how much memory an operator takes at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

Size3 = tuple[int, int, int]


def written_out(video: Tensor, state: Tensor | None, size: Size3, stride: Size3) -> Tensor:
    """Every patch as a row: (B, t, Ph, Pw, C * pt * ph * pw), in the order (channel, frame, row, column)."""
    x = video
    if state is not None:
        x = torch.cat((video, state[..., None, None].expand(-1, -1, -1, *video.shape[3:])), dim=1)
    for dim, (n, step) in enumerate(zip(size, stride, strict=True), start=2):
        x = x.unfold(dim, n, step)
    return x.permute(0, 2, 3, 4, 1, 5, 6, 7).flatten(4)


def embedded(
    video: Tensor,
    state: Tensor | None,
    gamma: Tensor,
    beta: Tensor,
    weight: Tensor,
    bias: Tensor,
    size: Size3,
    stride: Size3,
) -> Tensor:
    """LayerNorm and Linear of written-out patches."""
    patches = written_out(video, state, size, stride)
    return F.linear(F.layer_norm(patches, patches.shape[-1:], gamma, beta), weight, bias)


def largest_allocation(work: Callable[[], object]) -> int:
    """Bytes of the largest allocation on the CPU by any single operator, those inside custom operators included."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        work()
    return max(event.self_cpu_memory_usage for event in found.events())
