"""Seeds, thresholds and CPU masks of the operators' dropout.

A mask is a function of a seed, so that a backward draws it again instead of keeping it. GPU kernels draw from Philox
(`philox.py`); a CPU draws faster from its own generator, and other masks for the same seed.
"""

from __future__ import annotations

import torch
from torch import Tensor


def new_seed(device: torch.device) -> Tensor:
    """A seed from PyTorch's generator of that device: (1,) int64, drawn without waiting for the device."""
    return torch.randint(0, 2**63 - 1, (1,), dtype=torch.int64, device=device)


def drop_threshold(rate: float) -> int:
    """How many of the 65536 values of 16 random bits drop an element."""
    return round(rate * 65536)


def keep_scale(rate: float) -> float:
    """What kept elements are multiplied by."""
    return 1 / (1 - rate) if rate < 1 else 0.0


def lane_generator(seed: int, lane: int) -> torch.Generator:
    """Draws a lane's CPU masks, of one group after the other."""
    # A CPU's generator looks at 32 bits.
    return torch.Generator().manual_seed((seed ^ (seed >> 32)) + 0x9E3779B9 * lane & 0xFFFFFFFF)


def keep_rows(
    rows: int,
    columns: int,
    rate: float,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.bool,
) -> Tensor:
    """A CPU mask (rows, columns), True with probability 1 - rate to within 2**-17; as numbers, ready to multiply with.

    PyTorch draws one Bernoulli number at a time on a CPU, about 10 ns each; four 16-bit numbers out of each 64 bits of
    the same generator are several times faster, and as reproducible. Rows are drawn one after the other: many at once
    give the same as a few at a time.
    """
    if drop_threshold(rate) == 65536:  # beyond what 16 signed bits compare with
        return torch.zeros(rows, columns, dtype=dtype)
    bits = torch.empty(rows, (columns + 3) // 4, dtype=torch.int64)
    bits.random_(-(2**63), None, generator=generator)  # type: ignore[call-overload]
    halves = bits.view(torch.int16)[:, :columns]
    return torch.ge(halves, drop_threshold(rate) - 32768, out=torch.empty(rows, columns, dtype=dtype))
