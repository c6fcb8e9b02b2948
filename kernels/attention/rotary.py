"""Rotary positions with a scale, as the published model of 2025 has them.

A head's columns i and i + d/2 are turned together by the angle m w_i at position m, and both are multiplied with
z_i ** ((m - centre) / 512), in queries and keys alike. That is not xPos (Sun et al. 2022), which divides the keys: here
attention depends on absolute positions too. Tables are made for each call and never remembered.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_SCALE_BASE = 512


class Rotary(NamedTuple):
    """What is turned by how much: (L, d/2) each, scale * cosine and scale * sine. Rows of 1 and 0 change nothing."""

    cos: Tensor
    sin: Tensor


def rotary_tables(
    positions: Tensor, inv_freq: Tensor, scale: Tensor | None = None, *, centre: int = 0, registers: int = 0
) -> Rotary:
    """Tables for tokens at `positions`, followed by registers, which are neither turned nor scaled.

    Args:
        positions: (L - registers,) m, integers.
        inv_freq: (d/2,) w.
        scale: (d/2,) z; None for no scale.
        centre: the position whose scale is 1; floor(n/2) for a block made for n tokens.
        registers: how many of the last positions stay as they are.

    Returns:
        (L, d/2) each, in the dtype of `inv_freq`.
    """
    m = positions.to(inv_freq)
    angles = m[:, None] * inv_freq
    cos, sin = angles.cos(), angles.sin()
    if scale is not None:
        factor = scale ** ((m - centre) / _SCALE_BASE)[:, None]
        cos, sin = cos * factor, sin * factor
    if registers:
        cos = torch.cat((cos, cos.new_ones(registers, cos.shape[1])))
        sin = torch.cat((sin, sin.new_zeros(registers, sin.shape[1])))
    return Rotary(cos, sin)


def rotate(x: Tensor, rotary: Rotary | None, heads: int, backward: bool = False) -> Tensor:
    """x (..., L, heads * d) as queries or keys are turned, in its dtype; `backward`: its gradient from the result's."""
    if rotary is None:
        return x
    wide = torch.promote_types(x.dtype, torch.float32)
    cos, sin = (table.to(wide)[:, None] for table in rotary)
    first, second = x.to(wide).unflatten(-1, (heads, 2, -1)).unbind(-2)
    if backward:
        sin = -sin
    return torch.stack((first * cos - second * sin, second * cos + first * sin), dim=-2).flatten(-3).to(x.dtype)
