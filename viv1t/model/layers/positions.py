"""Positions of tokens: added to them, generated from their content, or rotated into queries and keys."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from viv1t.errors import ConfigError
from viv1t.kernels.attention.rotary import Rotary as RotaryTables
from viv1t.kernels.attention.rotary import rotary_tables


def most_square_grid(patches: int) -> tuple[int, int]:
    """(rows, columns) with rows the largest divisor of `patches` that is at most ceil(sqrt(patches))."""
    rows = int(patches**0.5)
    rows += rows * rows < patches
    while patches % rows:
        rows -= 1
    return rows, patches // rows


def sinusoidal_positions(length: int, depth: int) -> Tensor:
    """(length, depth) sines on even and cosines on odd channels of position * exp(-ln(10000) 2i / D)."""
    position = torch.arange(length, dtype=torch.float32)[:, None]
    frequency = torch.exp(torch.arange(0, depth, 2, dtype=torch.float32) * (-math.log(10000.0) / depth))
    table = torch.empty(length, depth)
    table[:, 0::2] = torch.sin(position * frequency)
    table[:, 1::2] = torch.cos(position * frequency)
    return table


def planar_positions(rows: int, columns: int, depth: int) -> Tensor:
    """(rows * columns, depth): [sin(x w), cos(x w), sin(y w), cos(y w)] of a patch in row y and column x.

    w are depth / 4 frequencies, 10000^(-4i / depth).

    Raises:
        ConfigError: `depth` cannot be divided by 4.
    """
    if depth % 4:
        raise ConfigError(f"--core_pos_encoding 7 needs a --core_emb_dim that 4 divides (two axes), not {depth}")
    frequency = 1 / 10000 ** (torch.arange(depth // 4, dtype=torch.float32) / (depth // 4))
    y, x = torch.meshgrid(torch.arange(rows).float(), torch.arange(columns).float(), indexing="ij")
    x, y = (axis.flatten()[:, None] * frequency for axis in (x, y))
    return torch.cat((x.sin(), x.cos(), y.sin(), y.cos()), dim=1)


class Rotary(nn.Module):
    """Rotary positions (Su et al. 2021) with a scale that queries and keys share.

    xPos (Sun et al. 2022) divides the keys by the scale; here both are multiplied, as the published weights learned it,
    so that attention depends on absolute positions: z_i^((m + n - 2c) / 512) for positions m and n.

    Args:
        head_dim: d, even.
        tokens: the longest sequence that is expected: c is half of it, whatever the sequence's length.

    Raises:
        ConfigError: `head_dim` is odd.
    """

    def __init__(self, head_dim: int, tokens: int) -> None:
        super().__init__()
        if head_dim % 2:
            raise ConfigError(f"rotary positions need an even --core_head_dim (pairs of channels), not {head_dim}")
        self.tokens = tokens
        channel = torch.arange(0, head_dim, 2, dtype=torch.float32)
        self.frequency: Tensor
        self.zeta: Tensor
        self.register_buffer("frequency", 1 / 10000 ** (channel / head_dim), persistent=False)
        self.register_buffer("zeta", (channel + 0.4 * head_dim) / (1.4 * head_dim), persistent=False)

    def forward(self, length: int, registers: int = 0, first: int = 0) -> RotaryTables:
        """Tables of positions `first` to `first + length` - 1, followed by registers that stay as they are.

        Nothing is remembered between calls.
        """
        positions = torch.arange(first, first + length, device=self.zeta.device)
        centre = max(self.tokens, first + length) // 2
        return rotary_tables(positions, self.frequency, self.zeta, centre=centre, registers=registers)


class PositionGenerator(nn.Module):
    """Positions generated from content: a depthwise convolution over the patch grid or over frames, added to x."""

    def __init__(self, depth: int, grid: tuple[int, ...]) -> None:
        super().__init__()
        self.grid = grid  # (rows, columns) of the patches, or () for frames
        conv = nn.Conv2d if grid else nn.Conv1d
        self.conv = conv(depth, depth, 3, padding=1, groups=depth)

    def forward(self, x: Tensor) -> Tensor:
        """x (S, L, D) -> (S, L, D)."""
        maps = x.transpose(1, 2)
        if self.grid:
            maps = maps.unflatten(2, self.grid)
        return x + self.conv(maps).flatten(2).transpose(1, 2)
