"""The GPU's kernels of attention: one forward, two for the backward, without atomics on global memory.

A program owns a block of rows of one head of one sequence and walks over the other side in blocks. A head's columns are
taken in parts that are powers of two (48 = 32 + 16), so that nothing is padded to the next one. The first backward
kernel owns queries: it gives their gradient, sum(grad * out) per row, and the incoming gradient as the dropout leaves
it; the second owns keys and values. Both evaluate the weights again from the log-sum-exp.

D0, D1 and D2 are the sizes of a head's parts, 0 where there is none.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
from __future__ import annotations

import triton
import triton.language as tl

from ..common.philox import keep_tile

_LOG2E = tl.constexpr(1.4426950408889634)
_LN2 = tl.constexpr(0.6931471805599453)

# Integers that a kernel is not compiled again for.
_SIZES = [
    *("length", "sequence_stride", "row_stride", "grad_sequence_stride", "grad_row_stride"),
    *("dpacked_sequence_stride", "dpacked_row_stride", "threshold"),
]


@triton.jit
def _load(base, rows, stride, length, FIRST: tl.constexpr, D: tl.constexpr, MASKED: tl.constexpr):
    """Columns FIRST .. FIRST + D of rows of a (length, .) matrix; 0 beyond its end."""
    at = base + rows[:, None] * stride + (FIRST + tl.arange(0, D))[None, :]
    if MASKED:
        return tl.load(at, mask=(rows < length)[:, None], other=0.0)
    return tl.load(at)


@triton.jit
def _store(base, rows, stride, length, x, FIRST: tl.constexpr, D: tl.constexpr):
    at = base + rows[:, None] * stride + (FIRST + tl.arange(0, D))[None, :]
    tl.store(at, x.to(base.dtype.element_ty), mask=(rows < length)[:, None])


@triton.jit
def _store_parts(base, rows, stride, length, x0, x1, x2, D0: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr):
    _store(base, rows, stride, length, x0, 0, D0)
    if D1 > 0:
        _store(base, rows, stride, length, x1, D0, D1)
    if D2 > 0:
        _store(base, rows, stride, length, x2, D0 + D1, D2)


@triton.jit
def _load_parts(base, rows, stride, length, D0: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr, MASKED: tl.constexpr):
    """A head's columns in three parts; those that are not there repeat the first and are never used."""
    x0 = _load(base, rows, stride, length, 0, D0, MASKED)
    x1 = x0
    x2 = x0
    if D1 > 0:
        x1 = _load(base, rows, stride, length, D0, D1, MASKED)
    if D2 > 0:
        x2 = _load(base, rows, stride, length, D0 + D1, D2, MASKED)
    return x0, x1, x2


@triton.jit
def _product(a0, a1, a2, b0, b1, b2, D1: tl.constexpr, D2: tl.constexpr, PRECISION: tl.constexpr):
    """a b' over all parts."""
    c = tl.dot(a0, tl.trans(b0), input_precision=PRECISION)
    if D1 > 0:
        c = tl.dot(a1, tl.trans(b1), c, input_precision=PRECISION)
    if D2 > 0:
        c = tl.dot(a2, tl.trans(b2), c, input_precision=PRECISION)
    return c


@triton.jit
def _accumulate(c0, c1, c2, a, b0, b1, b2, D1: tl.constexpr, D2: tl.constexpr, PRECISION: tl.constexpr):
    """c + a b, part by part."""
    c0 = tl.dot(a, b0, c0, input_precision=PRECISION)
    if D1 > 0:
        c1 = tl.dot(a, b1, c1, input_precision=PRECISION)
    if D2 > 0:
        c2 = tl.dot(a, b2, c2, input_precision=PRECISION)
    return c0, c1, c2


@triton.jit
def _zeros(ROWS: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr):
    x0 = tl.zeros((ROWS, D0), tl.float32)
    x1 = x0
    x2 = x0
    if D1 > 0:
        x1 = tl.zeros((ROWS, D1), tl.float32)
    if D2 > 0:
        x2 = tl.zeros((ROWS, D2), tl.float32)
    return x0, x1, x2


@triton.jit
def _place(length, HEADS: tl.constexpr, BLOCK: tl.constexpr):
    """This program's sequence (int64), head, and first row; blocks of one head are neighbours and share its keys."""
    blocks = tl.cdiv(length, BLOCK)
    program = tl.program_id(0)
    block = program % blocks
    head = (program // blocks) % HEADS
    return (program // blocks // HEADS).to(tl.int64), head, block * BLOCK


@triton.jit
def _dropped(x, seed, rows, first_column, threshold, scale, D: tl.constexpr):
    return tl.where(keep_tile(seed, rows, first_column, threshold, D, 0), x * scale, 0.0)


@triton.jit
def _forward_step(
    q0, q1, q2, acc0, acc1, acc2, top, total, k_base, v_base, row_stride, rows, start, length, scale,
    D0: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr, BLOCK_N: tl.constexpr, CAUSAL: tl.constexpr,
    MASKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Takes one block of keys and values into the running maximum, sum and weighted sum."""
    columns = start + tl.arange(0, BLOCK_N)
    k0, k1, k2 = _load_parts(k_base, columns, row_stride, length, D0, D1, D2, MASKED)
    s = _product(q0, q1, q2, k0, k1, k2, D1, D2, PRECISION) * scale
    if MASKED:
        seen = (columns < length)[None, :]
        if CAUSAL:
            seen = seen & (rows[:, None] >= columns[None, :])
        s = tl.where(seen, s, float("-inf"))
    higher = tl.maximum(top, tl.max(s, 1))
    p = tl.exp2(s - higher[:, None])
    shrink = tl.exp2(top - higher)
    total = total * shrink + tl.sum(p, 1)
    acc0 = acc0 * shrink[:, None]
    if D1 > 0:
        acc1 = acc1 * shrink[:, None]
    if D2 > 0:
        acc2 = acc2 * shrink[:, None]
    v0, v1, v2 = _load_parts(v_base, columns, row_stride, length, D0, D1, D2, MASKED)
    acc0, acc1, acc2 = _accumulate(acc0, acc1, acc2, p.to(v0.dtype), v0, v1, v2, D1, D2, PRECISION)
    return acc0, acc1, acc2, higher, total


@triton.jit(do_not_specialize=_SIZES)
def forward_kernel(
    packed, out, lse, seed, sequence_stride, row_stride, length, scale, threshold, dropout_scale,
    HEADS: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr, UNIT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, CAUSAL: tl.constexpr, DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """out (S, L, inner) and lse (S, heads, L), both contiguous; strides of `packed` count UNIT values; scale is in
    units of log2."""
    HEAD_DIM: tl.constexpr = D0 + D1 + D2
    INNER: tl.constexpr = HEADS * HEAD_DIM
    sequence, head, first_row = _place(length, HEADS, BLOCK_M)
    row_stride = row_stride * UNIT
    q_base = packed + sequence * sequence_stride * UNIT + head * HEAD_DIM
    k_base = q_base + INNER
    v_base = k_base + INNER
    rows = first_row + tl.arange(0, BLOCK_M)
    q0, q1, q2 = _load_parts(q_base, rows, row_stride, length, D0, D1, D2, True)
    top = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    acc0, acc1, acc2 = _zeros(BLOCK_M, D0, D1, D2)
    full = length // BLOCK_N * BLOCK_N
    end = length
    if CAUSAL:
        full = tl.minimum(full, first_row // BLOCK_N * BLOCK_N)
        end = tl.minimum(length, first_row + BLOCK_M)
    for start in range(0, full, BLOCK_N):
        acc0, acc1, acc2, top, total = _forward_step(
            q0, q1, q2, acc0, acc1, acc2, top, total, k_base, v_base, row_stride, rows, start, length, scale,
            D0, D1, D2, BLOCK_N, CAUSAL, False, PRECISION,
        )  # fmt: skip
    for start in range(full, end, BLOCK_N):
        acc0, acc1, acc2, top, total = _forward_step(
            q0, q1, q2, acc0, acc1, acc2, top, total, k_base, v_base, row_stride, rows, start, length, scale,
            D0, D1, D2, BLOCK_N, CAUSAL, True, PRECISION,
        )  # fmt: skip
    lse_rows = lse + (sequence * HEADS + head) * length + rows
    tl.store(lse_rows, (top + tl.log2(total)) * _LN2, mask=rows < length)
    share = 1 / total
    acc0 = acc0 * share[:, None]
    acc1 = acc1 * share[:, None]
    acc2 = acc2 * share[:, None]
    if DROPOUT:
        key = tl.load(seed)
        tokens = sequence * length + rows
        first = head * HEAD_DIM
        acc0 = _dropped(acc0, key, tokens, first, threshold, dropout_scale, D0)
        if D1 > 0:
            acc1 = _dropped(acc1, key, tokens, first + D0, threshold, dropout_scale, D1)
        if D2 > 0:
            acc2 = _dropped(acc2, key, tokens, first + D0 + D1, threshold, dropout_scale, D2)
    out_base = out + sequence * length * INNER + head * HEAD_DIM
    _store_parts(out_base, rows, INNER, length, acc0, acc1, acc2, D0, D1, D2)


@triton.jit(do_not_specialize=_SIZES)
def backward_q_kernel(
    packed, grad, out, lse, seed, grad_packed, delta, dropped,
    sequence_stride, row_stride, grad_sequence_stride, grad_row_stride, dpacked_sequence_stride, dpacked_row_stride,
    length, scale, log2_scale, threshold, dropout_scale,
    HEADS: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr, UNIT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, CAUSAL: tl.constexpr, DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """The queries' gradient; delta (S, heads, L); `dropped` (S, L, inner), the gradient before the dropout."""
    HEAD_DIM: tl.constexpr = D0 + D1 + D2
    INNER: tl.constexpr = HEADS * HEAD_DIM
    sequence, head, first_row = _place(length, HEADS, BLOCK_M)
    row_stride = row_stride * UNIT
    q_base = packed + sequence * sequence_stride * UNIT + head * HEAD_DIM
    k_base = q_base + INNER
    v_base = k_base + INNER
    g_base = grad + sequence * grad_sequence_stride * UNIT + head * HEAD_DIM
    out_base = out + sequence * length * INNER + head * HEAD_DIM
    rows = first_row + tl.arange(0, BLOCK_M)
    g0, g1, g2 = _load_parts(g_base, rows, grad_row_stride * UNIT, length, D0, D1, D2, True)
    # sum(g * out) is the same before and after the dropout.
    y0, y1, y2 = _load_parts(out_base, rows, INNER, length, D0, D1, D2, True)
    d = tl.sum(g0.to(tl.float32) * y0.to(tl.float32), 1)
    if D1 > 0:
        d += tl.sum(g1.to(tl.float32) * y1.to(tl.float32), 1)
    if D2 > 0:
        d += tl.sum(g2.to(tl.float32) * y2.to(tl.float32), 1)
    per_row = (sequence * HEADS + head) * length + rows
    tl.store(delta + per_row, d, mask=rows < length)
    if DROPOUT:
        key = tl.load(seed)
        tokens = sequence * length + rows
        first = head * HEAD_DIM
        dtype = g0.dtype
        g0 = _dropped(g0.to(tl.float32), key, tokens, first, threshold, dropout_scale, D0).to(dtype)
        if D1 > 0:
            g1 = _dropped(g1.to(tl.float32), key, tokens, first + D0, threshold, dropout_scale, D1).to(dtype)
        if D2 > 0:
            g2 = _dropped(g2.to(tl.float32), key, tokens, first + D0 + D1, threshold, dropout_scale, D2).to(dtype)
        dropped_base = dropped + sequence * length * INNER + head * HEAD_DIM
        _store_parts(dropped_base, rows, INNER, length, g0, g1, g2, D0, D1, D2)
    top = tl.load(lse + per_row, mask=rows < length, other=float("inf")) * _LOG2E
    q0, q1, q2 = _load_parts(q_base, rows, row_stride, length, D0, D1, D2, True)
    dq0, dq1, dq2 = _zeros(BLOCK_M, D0, D1, D2)
    full = length // BLOCK_N * BLOCK_N
    end = length
    if CAUSAL:
        full = tl.minimum(full, first_row // BLOCK_N * BLOCK_N)
        end = tl.minimum(length, first_row + BLOCK_M)
    for start in range(0, full, BLOCK_N):
        dq0, dq1, dq2 = _backward_q_step(
            q0, q1, q2, g0, g1, g2, dq0, dq1, dq2, top, d, k_base, v_base, row_stride, rows, start, length,
            log2_scale, D0, D1, D2, BLOCK_N, CAUSAL, False, PRECISION,
        )  # fmt: skip
    for start in range(full, end, BLOCK_N):
        dq0, dq1, dq2 = _backward_q_step(
            q0, q1, q2, g0, g1, g2, dq0, dq1, dq2, top, d, k_base, v_base, row_stride, rows, start, length,
            log2_scale, D0, D1, D2, BLOCK_N, CAUSAL, True, PRECISION,
        )  # fmt: skip
    dq_base = grad_packed + sequence * dpacked_sequence_stride * UNIT + head * HEAD_DIM
    _store_parts(
        dq_base, rows, dpacked_row_stride * UNIT, length, dq0 * scale, dq1 * scale, dq2 * scale, D0, D1, D2
    )  # fmt: skip


@triton.jit
def _backward_q_step(
    q0, q1, q2, g0, g1, g2, dq0, dq1, dq2, top, d, k_base, v_base, row_stride, rows, start, length, log2_scale,
    D0: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr, BLOCK_N: tl.constexpr, CAUSAL: tl.constexpr,
    MASKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    columns = start + tl.arange(0, BLOCK_N)
    k0, k1, k2 = _load_parts(k_base, columns, row_stride, length, D0, D1, D2, MASKED)
    v0, v1, v2 = _load_parts(v_base, columns, row_stride, length, D0, D1, D2, MASKED)
    p = tl.exp2(_product(q0, q1, q2, k0, k1, k2, D1, D2, PRECISION) * log2_scale - top[:, None])
    if MASKED:
        seen = (columns < length)[None, :]
        if CAUSAL:
            seen = seen & (rows[:, None] >= columns[None, :])
        p = tl.where(seen, p, 0.0)
    ds = p * (_product(g0, g1, g2, v0, v1, v2, D1, D2, PRECISION) - d[:, None])
    return _accumulate(dq0, dq1, dq2, ds.to(k0.dtype), k0, k1, k2, D1, D2, PRECISION)


@triton.jit(do_not_specialize=_SIZES)
def backward_kv_kernel(
    packed, grad, lse, delta, grad_packed,
    sequence_stride, row_stride, grad_sequence_stride, grad_row_stride, dpacked_sequence_stride, dpacked_row_stride,
    length, scale, log2_scale,
    HEADS: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr, UNIT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, CAUSAL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of BLOCK_N keys and values, over queries in blocks of BLOCK_M; `grad` is before the dropout."""
    HEAD_DIM: tl.constexpr = D0 + D1 + D2
    INNER: tl.constexpr = HEADS * HEAD_DIM
    sequence, head, first_column = _place(length, HEADS, BLOCK_N)
    row_stride = row_stride * UNIT
    grad_row_stride = grad_row_stride * UNIT
    q_base = packed + sequence * sequence_stride * UNIT + head * HEAD_DIM
    k_base = q_base + INNER
    v_base = k_base + INNER
    g_base = grad + sequence * grad_sequence_stride * UNIT + head * HEAD_DIM
    per_head = (sequence * HEADS + head) * length
    columns = first_column + tl.arange(0, BLOCK_N)
    k0, k1, k2 = _load_parts(k_base, columns, row_stride, length, D0, D1, D2, True)
    v0, v1, v2 = _load_parts(v_base, columns, row_stride, length, D0, D1, D2, True)
    dk0, dk1, dk2 = _zeros(BLOCK_N, D0, D1, D2)
    dv0, dv1, dv2 = _zeros(BLOCK_N, D0, D1, D2)
    full = length // BLOCK_M * BLOCK_M
    first = first_column * 0
    if CAUSAL:
        # Queries from the first that sees a key of this block; from `below` on each sees all of them.
        first = first_column // BLOCK_M * BLOCK_M
        below = tl.minimum(tl.cdiv(first_column + BLOCK_N, BLOCK_M) * BLOCK_M, length)
        for start in range(first, below, BLOCK_M):
            dk0, dk1, dk2, dv0, dv1, dv2 = _backward_kv_step(
                k0, k1, k2, v0, v1, v2, dk0, dk1, dk2, dv0, dv1, dv2, lse + per_head, delta + per_head,
                q_base, g_base, row_stride, grad_row_stride, columns, start, length, log2_scale,
                D0, D1, D2, BLOCK_M, True, True, PRECISION,
            )  # fmt: skip
        first = below
    for start in range(first, full, BLOCK_M):
        dk0, dk1, dk2, dv0, dv1, dv2 = _backward_kv_step(
            k0, k1, k2, v0, v1, v2, dk0, dk1, dk2, dv0, dv1, dv2, lse + per_head, delta + per_head,
            q_base, g_base, row_stride, grad_row_stride, columns, start, length, log2_scale,
            D0, D1, D2, BLOCK_M, False, False, PRECISION,
        )  # fmt: skip
    for start in range(tl.maximum(first, full), length, BLOCK_M):
        dk0, dk1, dk2, dv0, dv1, dv2 = _backward_kv_step(
            k0, k1, k2, v0, v1, v2, dk0, dk1, dk2, dv0, dv1, dv2, lse + per_head, delta + per_head,
            q_base, g_base, row_stride, grad_row_stride, columns, start, length, log2_scale,
            D0, D1, D2, BLOCK_M, False, True, PRECISION,
        )  # fmt: skip
    dk_base = grad_packed + sequence * dpacked_sequence_stride * UNIT + head * HEAD_DIM + INNER
    dpacked_row_stride = dpacked_row_stride * UNIT
    _store_parts(dk_base, columns, dpacked_row_stride, length, dk0 * scale, dk1 * scale, dk2 * scale, D0, D1, D2)
    _store_parts(dk_base + INNER, columns, dpacked_row_stride, length, dv0, dv1, dv2, D0, D1, D2)


@triton.jit
def _backward_kv_step(
    k0, k1, k2, v0, v1, v2, dk0, dk1, dk2, dv0, dv1, dv2, lse, delta, q_base, g_base, row_stride, grad_row_stride,
    columns, start, length, log2_scale,
    D0: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr, BLOCK_M: tl.constexpr, DIAGONAL: tl.constexpr,
    MASKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    rows = start + tl.arange(0, BLOCK_M)
    q0, q1, q2 = _load_parts(q_base, rows, row_stride, length, D0, D1, D2, MASKED)
    g0, g1, g2 = _load_parts(g_base, rows, grad_row_stride, length, D0, D1, D2, MASKED)
    if MASKED:
        # Rows beyond the end weigh 0.
        top = tl.load(lse + rows, mask=rows < length, other=float("inf")) * _LOG2E
        d = tl.load(delta + rows, mask=rows < length, other=0.0)
    else:
        top = tl.load(lse + rows) * _LOG2E
        d = tl.load(delta + rows)
    p = tl.exp2(_product(k0, k1, k2, q0, q1, q2, D1, D2, PRECISION) * log2_scale - top[None, :])
    if DIAGONAL:
        p = tl.where(rows[None, :] >= columns[:, None], p, 0.0)
    dv0, dv1, dv2 = _accumulate(dv0, dv1, dv2, p.to(g0.dtype), g0, g1, g2, D1, D2, PRECISION)
    ds = p * (_product(v0, v1, v2, g0, g1, g2, D1, D2, PRECISION) - d[None, :])
    dk0, dk1, dk2 = _accumulate(dk0, dk1, dk2, ds.to(q0.dtype), q0, q1, q2, D1, D2, PRECISION)
    return dk0, dk1, dk2, dv0, dv1, dv2


@triton.jit(do_not_specialize=_SIZES)
def rotate_kernel(
    packed, cos, sin, sequence_stride, row_stride, length,
    PARTS: tl.constexpr, HALF: tl.constexpr, UNIT: tl.constexpr, BLOCK_M: tl.constexpr, COLUMNS: tl.constexpr,
    BACKWARD: tl.constexpr,
):  # fmt: skip
    """Turns the first PARTS heads of rows of `packed`, queries and keys, in place; cos and sin (L, HALF)."""
    blocks = tl.cdiv(length, BLOCK_M)
    sequence = (tl.program_id(0) // blocks).to(tl.int64)
    rows = tl.program_id(0) % blocks * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.arange(0, COLUMNS)
    inside = (rows < length)[:, None] & (columns < HALF)[None, :]
    table = rows[:, None] * HALF + columns[None, :]
    c = tl.load(cos + table, mask=inside, other=0.0).to(tl.float32)
    s = tl.load(sin + table, mask=inside, other=0.0).to(tl.float32)
    if BACKWARD:
        s = -s
    at = packed + (sequence * sequence_stride + rows * row_stride)[:, None] * UNIT + columns[None, :]
    for _ in range(PARTS):
        first = tl.load(at, mask=inside, other=0.0).to(tl.float32)
        second = tl.load(at + HALF, mask=inside, other=0.0).to(tl.float32)
        tl.debug_barrier()  # where threads hold the same values, all have read them before one writes
        tl.store(at, (first * c - second * s).to(packed.dtype.element_ty), mask=inside)
        tl.store(at + HALF, (second * c + first * s).to(packed.dtype.element_ty), mask=inside)
        at += 2 * HALF
