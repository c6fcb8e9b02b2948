"""The one table of how GPU kernels are cut; chosen by registers, shared memory and padding, not yet by timings.

A tile changes the order of sums, so a run keeps its tiles; nothing is timed while it goes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from .precision import HALF

# Bytes of shared memory that every device from capability 8.0 on gives a program; kernels do with them, but for those
# that `parallel_block_memory` knows. (On 9.0 and 10.0 they take more, and there is more.)
SHARED_MEMORY = 101_376


class Tile(NamedTuple):
    """How a kernel is cut; what it has no use for is 0.

    Attributes:
        rows: of a block: queries (attention), tokens (parallel block, rotation), output frames (patches), neurons
            (readout).
        columns: of a block: keys, columns of a product, depth of the embedding, positions on the map.
        inner: hidden values, or values of a patch.
        warps, stages: as launched.
    """

    rows: int
    columns: int
    inner: int
    warps: int
    stages: int


def next_power_of_2(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()


def padded_depth(depth: int) -> int:
    """Columns of a block that holds rows of `depth` values whole."""
    return max(16, next_power_of_2(depth))


def attention(kernel: str, head_dim: int, precision: str, dtype: torch.dtype, length: int) -> Tile:
    """Of `forward`, `backward_q` or `backward_kv`, such that no registers spill."""
    if dtype == torch.float32 and precision == "ieee":  # without tensor cores operands are in registers
        if kernel == "backward_kv":
            return Tile(16, 32, 0, 8, 1)
        if kernel == "forward" and head_dim in (80, 96):
            return Tile(32, 32, 0, 8, 2)
        if kernel == "backward_q" and head_dim == 128:
            return Tile(16, 16, 0, 8, 2)
        one_stage = (48, 112) if kernel == "forward" else (112,)
        return Tile(32, 16, 0, 8, 1 if head_dim in one_stage else 2)
    if dtype == torch.float32:
        if kernel == "backward_kv":
            return Tile(16, 32, 0, 4, 2)
        return Tile(64, 32 if kernel == "backward_q" or head_dim > 48 else 16, 0, 4, 2)
    if kernel == "forward":
        if head_dim > 96:
            return Tile(128, 32, 0, 8, 2)
        # A larger block reads keys and values less often, but may be padded more.
        rows = 128 if _padded(length, 128) <= 1.15 * _padded(length, 64) else 64
        return Tile(rows, 64, 0, rows // 16, 2)
    if kernel == "backward_q":
        return Tile(64, 32, 0, 4 if head_dim <= 80 else 8, 2)
    return Tile(32 if head_dim <= 80 else 16, 64, 0, 4, 2)


def _padded(length: int, block: int) -> int:
    return -(-length // block) * block


def rotation() -> Tile:
    """Of the kernel that turns queries and keys by their positions."""
    return Tile(32, 0, 0, 4, 1)


def parallel_block(kernel: str, depth: int, dtype: torch.dtype, activation: str) -> Tile:
    """Of `project`, `rows`, `output`, `input`, `weight` or `ff_weight`."""
    wide, swiglu = padded_depth(depth) > 128, activation == "swiglu"
    if kernel == "output" and not wide and activation not in ("gelu", "swiglu"):  # their tiles would spill
        return Tile(64, 64, 32, 8, 2) if dtype in HALF else Tile(64, 32, 16, 8, 2)
    if kernel == "rows":
        return Tile(16 if wide else 32, 0, 0, 4, 1)
    if dtype in HALF:
        return {
            "project": Tile(64 if wide else 128, 64, 0, 8, 2),
            "output": Tile(32, 64, 32, 8, 2) if wide else Tile(64, 64, 32, 4, 2),
            "input": Tile(32 if wide else 64, 64, 32, 8, 2),
            "weight": Tile(64, 64 if wide else 128, 0, 8, 3),
            "ff_weight": Tile(32, 0, 16 if wide or swiglu else 32, 8, 2),
        }[kernel]
    return {
        "project": Tile(32 if wide else 64, 32 if wide else 64, 0, 8, 2),
        "output": Tile(32, 32, 16, 4, 2) if wide else Tile(64, 64, 16, 8, 2),
        "input": Tile(16, 32, 32, 8, 2) if wide else Tile(32, 32, 16, 8, 2),
        "weight": Tile(32, 32 if wide else 64, 0, 8, 3),
        "ff_weight": Tile(16, 0, 16, 4, 2) if wide and not swiglu else Tile(16, 0, 16, 8, 1 if wide else 2),
    }[kernel]


def parallel_block_memory(depth: int, dtype: torch.dtype) -> int:
    """Bytes of shared memory that a program must be given."""
    return 131_072 if dtype == torch.float32 and padded_depth(depth) > 128 else SHARED_MEMORY


def patch_embed(kernel: str, depth: int, length: int, dtype: torch.dtype) -> Tile:
    """Of `project` or `weight`."""
    columns = min(128, padded_depth(depth))
    if dtype == torch.float32:
        return Tile(64, columns, 32, 8, 2) if kernel == "project" else Tile(32, columns, 64, 8, 2)
    if kernel == "project":
        return Tile(128 if -length % 128 <= -length % 64 + 16 else 64, columns, 32, 8, 3)
    return Tile(32, columns, 128, 8, 3)


def readout(kernel: str, depth: int, dtype: torch.dtype) -> Tile:
    """Of `sample`, `neurons` or `map`."""
    columns = padded_depth(depth)
    if kernel == "map":
        wide = min(128, columns) == 128
        return Tile(32, 128 if wide else 64, 0, 8, 2) if dtype in HALF else Tile(16, 64 if wide else 32, 0, 4, 2)
    if kernel == "sample":
        return Tile(max(1, 2048 // columns), 0, 0, 4, 1)
    return Tile(max(1, 1024 // columns), 0, 0, 4 if dtype in HALF else 8, 1)
