"""Counter-based random numbers inside Triton kernels; `philox_reference.py` defines them.

One evaluation of Philox decides about eight neighbouring elements of a row, and nothing is ever stored: a mask is drawn
again wherever it is needed, from the seed, which a kernel loads from a one-element int64 tensor. So a new seed neither
waits for the device nor compiles anything.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
from __future__ import annotations

import triton
import triton.language as tl

from .philox_reference import ROUNDS

_ROUNDS = tl.constexpr(ROUNDS)


@triton.jit
def philox(seed, c0, c1, c2, c3):
    """Four blocks of random uint32 for counters of four 32-bit words, at least one of them a block."""
    return tl.philox(seed, c0, c1, c2, c3, n_rounds=_ROUNDS)


@triton.jit
def keep_tile(seed, rows, first_column, threshold, COLUMNS: tl.constexpr, STREAM: tl.constexpr):
    """What dropout keeps of a tile of a matrix: (len(rows), COLUMNS) bool.

    Args:
        seed: scalar int64.
        rows: block of row numbers.
        first_column: of the tile, a multiple of 8.
        threshold: round(65536 * rate), the number of 16-bit values that drop.
        COLUMNS: a power of two, at least 8.
        STREAM: masks of different streams are independent.
    """
    group = first_column // 8 + tl.arange(0, COLUMNS // 8)
    c0 = rows.to(tl.uint32)[:, None] + tl.zeros((1, COLUMNS // 8), tl.uint32)
    c1 = group.to(tl.uint32)[None, :] + tl.zeros_like(c0)
    w0, w1, w2, w3 = philox(seed, c0, c1, tl.zeros_like(c0) + STREAM, tl.zeros_like(c0))
    # The last joined dimension varies fastest: words in order, and in each the lower half first.
    words = tl.join(tl.join(w0, w2), tl.join(w1, w3))
    keep = tl.join((words & 0xFFFF).to(tl.int32) >= threshold, (words >> 16).to(tl.int32) >= threshold)
    return tl.reshape(keep, (rows.shape[0], COLUMNS))
