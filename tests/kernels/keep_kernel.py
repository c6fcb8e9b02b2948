"""A kernel that writes a tile of a dropout mask."""

from __future__ import annotations

import triton
import triton.language as tl
from viv1t.kernels.common.philox import keep_tile


@triton.jit
def keep_kernel(seed, out, first_row, first_column, threshold, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    rows = first_row + tl.arange(0, ROWS)
    keep = keep_tile(tl.load(seed), rows, first_column, threshold, COLUMNS, 3)
    tl.store(out + tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :], keep)
