"""The parallel block's GPU kernels; `triton.py` launches them around the attention's.

Every matrix but the attention's has D columns: the input and its gradient with a row per token, and the weights, the
outer ones transposed, with a row per hidden value. A program holds a block of tokens' rows whole, padded to DEPTH, a
power of two, and walks over weights. So normalising costs no pass of its own forward, and the hidden values of the
feed-forward path are never written, neither forward nor backward: they are computed again where they are needed.
Backward, where rows enter several products, they are written once in the products' type.

Streams of the seed: 0 drops what attention gives, 1 the hidden values, 2 paths.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
from __future__ import annotations

import triton
import triton.language as tl

from ..common.philox import keep_tile, philox

_FF, _PATHS = tl.constexpr(1), tl.constexpr(2)  # streams
_ROOT_HALF, _DENSITY_AT_0 = tl.constexpr(0.7071067811865476), tl.constexpr(0.3989422804014327)

# Integers that a kernel is not compiled again for.
_SIZES = ["tokens", "length", "span", "ff_threshold", "path_threshold"]


@triton.jit
def _tile(base, first_row, rows, first_column, COLUMNS: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """Places of a block of a (rows, COLUMNS) matrix, and which of them exist."""
    row = tl.arange(0, BLOCK_R)
    column = first_column + tl.arange(0, BLOCK_C)
    at = base + tl.cast(first_row, tl.int64) * COLUMNS + row[:, None] * COLUMNS + column[None, :]
    return at, (row < rows - first_row)[:, None] & (column < COLUMNS)[None, :]


@triton.jit
def _load(base, first_row, rows, first_column, COLUMNS: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """A block of a (rows, COLUMNS) matrix; 0 beyond its ends."""
    at, inside = _tile(base, first_row, rows, first_column, COLUMNS, BLOCK_R, BLOCK_C)
    return tl.load(at, mask=inside, other=0.0)


@triton.jit
def _store(base, x, first_row, rows, first_column, COLUMNS: tl.constexpr):
    at, inside = _tile(base, first_row, rows, first_column, COLUMNS, x.shape[0], x.shape[1])
    tl.store(at, x.to(base.dtype.element_ty), mask=inside)


@triton.jit
def _vector(base, D: tl.constexpr, DEPTH: tl.constexpr):
    """(1, DEPTH) float32."""
    column = tl.arange(0, DEPTH)
    return tl.load(base + column, mask=column < D, other=0.0).to(tl.float32)[None, :]


@triton.jit
def _tanh(x):
    return 2 * tl.sigmoid(2 * x) - 1


@triton.jit
def _standardised(
    x, alpha, first, tokens, eps, D: tl.constexpr, NORM: tl.constexpr, BLOCK_M: tl.constexpr, DEPTH: tl.constexpr
):
    """Rows of x as the norm's weight meets them, 0 beyond D; what LayerNorm and RMSNorm multiplied them with."""
    rows = _load(x, first, tokens, 0, D, BLOCK_M, DEPTH).to(tl.float32)
    if NORM == "dyt":
        standard = _tanh(rows * tl.load(alpha).to(tl.float32))
        rstd = tl.zeros((BLOCK_M,), tl.float32)
    else:
        if NORM == "layernorm":
            rows = tl.where((tl.arange(0, DEPTH) < D)[None, :], rows - (tl.sum(rows, 1) / D)[:, None], 0.0)
        rstd = tl.rsqrt(tl.sum(rows * rows, 1) / D + eps)
        standard = rows * rstd[:, None]
    return standard, rstd


@triton.jit
def _normalised(
    x, norm_weight, norm_bias, alpha, first, tokens, eps,
    D: tl.constexpr, NORM: tl.constexpr, BLOCK_M: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Rows of x after the norm, float32."""
    rows, _ = _standardised(x, alpha, first, tokens, eps, D, NORM, BLOCK_M, DEPTH)
    rows *= _vector(norm_weight, D, DEPTH)
    if norm_bias is not None:
        rows += _vector(norm_bias, D, DEPTH)
    return rows


@triton.jit
def _path(seed, first, length, threshold, scale, PATH: tl.constexpr, BLOCK_M: tl.constexpr):
    """What stochastic depth multiplies tokens of the attention's path, 0, or the feed-forward's, 1, with."""
    sequence = ((first + tl.arange(0, BLOCK_M)) // length).to(tl.uint32)
    zero = tl.zeros_like(sequence)
    word, _, _, _ = philox(tl.load(seed), sequence, zero, zero + _PATHS, zero)
    bits = (word >> 16 * PATH) & 0xFFFF
    return tl.where(bits.to(tl.int32) >= threshold, scale, 0.0)


@triton.jit
def _dropped(x, seed, first, column, threshold, scale):
    keep = keep_tile(tl.load(seed), first + tl.arange(0, x.shape[0]), column, threshold, x.shape[1], _FF)
    return tl.where(keep, x * scale, 0.0)


@triton.jit
def _product(a, weight, first_row, rows, D: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr):
    """a (tokens, DEPTH) times rows of a weight (rows, D), transposed."""
    w = _load(weight, first_row, rows, 0, D, BLOCK, a.shape[1])
    return tl.dot(a, tl.trans(w), input_precision=PRECISION)


@triton.jit(do_not_specialize=_SIZES)
def project_kernel(
    x, norm_weight, norm_bias, alpha, weight, out, tokens, eps,
    D: tl.constexpr, WIDTH: tl.constexpr, NORM: tl.constexpr, NORMALISED: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, DEPTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """out (tokens, WIDTH) = rows weight', weight (WIDTH, D); rows are those of x, or normalised."""
    first = tl.program_id(0) * BLOCK_M
    if NORMALISED:
        rows = _normalised(x, norm_weight, norm_bias, alpha, first, tokens, eps, D, NORM, BLOCK_M, DEPTH).to(
            weight.dtype.element_ty
        )
    else:
        rows = _load(x, first, tokens, 0, D, BLOCK_M, DEPTH)
    for start in range(0, WIDTH, BLOCK_N):
        _store(out, _product(rows, weight, start, WIDTH, D, BLOCK_N, PRECISION), first, tokens, start, WIDTH)


@triton.jit(do_not_specialize=_SIZES)
def rows_kernel(
    grad, x, norm_weight, norm_bias, alpha, seed, rows, of_attention, of_ff, tokens, length, eps,
    path_threshold, path_scale,
    D: tl.constexpr, NORM: tl.constexpr, PATHS: tl.constexpr, BLOCK_M: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Normalised x, and the gradients of both paths' results out of that of the block's; (tokens, D) each."""
    first = tl.program_id(0) * BLOCK_M
    _store(
        rows,
        _normalised(x, norm_weight, norm_bias, alpha, first, tokens, eps, D, NORM, BLOCK_M, DEPTH),
        first,
        tokens,
        0,
        D,
    )
    g = _load(grad, first, tokens, 0, D, BLOCK_M, DEPTH).to(tl.float32)
    if PATHS:
        path = _path(seed, first, length, path_threshold, path_scale, 0, BLOCK_M)
        _store(of_attention, g * path[:, None], first, tokens, 0, D)
        path = _path(seed, first, length, path_threshold, path_scale, 1, BLOCK_M)
        g *= path[:, None]
    _store(of_ff, g, first, tokens, 0, D)


@triton.jit(do_not_specialize=_SIZES)
def output_kernel(
    x, norm_weight, norm_bias, alpha, ff_in, ff_out, attended, attention_out, seed, y, tokens, length, eps,
    ff_threshold, ff_scale, path_threshold, path_scale,
    D: tl.constexpr, INNER: tl.constexpr, MLP: tl.constexpr, NORM: tl.constexpr, ACTIVATION: tl.constexpr,
    DROPOUT: tl.constexpr, PATHS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr,
    DEPTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """y (tokens, D) out of x and what attention gave (tokens, INNER), the feed-forward path on the way.

    ff_in (MLP or 2 MLP, D); attention_out (INNER, D) and ff_out (MLP, D).
    """
    first = tl.program_id(0) * BLOCK_M
    rows = _normalised(x, norm_weight, norm_bias, alpha, first, tokens, eps, D, NORM, BLOCK_M, DEPTH).to(
        ff_in.dtype.element_ty
    )
    total = tl.zeros((BLOCK_M, DEPTH), tl.float32)
    for start in range(0, INNER, BLOCK_K):
        a = _load(attended, first, tokens, start, INNER, BLOCK_M, BLOCK_K)
        w = _load(attention_out, start, INNER, 0, D, BLOCK_K, DEPTH)
        total = tl.dot(a, w, total, input_precision=PRECISION)
    if PATHS:
        total *= _path(seed, first, length, path_threshold, path_scale, 0, BLOCK_M)[:, None]
        path = _path(seed, first, length, path_threshold, path_scale, 1, BLOCK_M)[:, None]
    for start in range(0, MLP, BLOCK_C):
        active = _product(rows, ff_in, start, MLP, D, BLOCK_C, PRECISION)
        if ACTIVATION == "swiglu":
            gate = _product(rows, ff_in, MLP + start, 2 * MLP, D, BLOCK_C, PRECISION)
            active *= gate * tl.sigmoid(gate)
        else:
            active, _ = _activated(active, ACTIVATION)
        if DROPOUT:
            active = _dropped(active, seed, first, start, ff_threshold, ff_scale)
        if PATHS:
            active *= path
        w = _load(ff_out, start, MLP, 0, D, BLOCK_C, DEPTH)
        total = tl.dot(active.to(w.dtype), w, total, input_precision=PRECISION)
    total += _load(x, first, tokens, 0, D, BLOCK_M, DEPTH).to(tl.float32)
    _store(y, total, first, tokens, 0, D)


@triton.jit
def _normal(x):
    """The normal distribution's function."""
    return 0.5 + 0.5 * tl.erf(x * _ROOT_HALF)


@triton.jit
def _activated(x, ACTIVATION: tl.constexpr):
    """An activation's value and slope; what is not a number stays so."""
    if ACTIVATION == "gelu":
        share = _normal(x)
        y = x * share
        slope = share + x * _DENSITY_AT_0 * tl.exp(-0.5 * x * x)
    elif ACTIVATION == "relu":
        y = tl.where(x <= 0, 0.0, x)
        slope = tl.where(x <= 0, 0.0, 1.0)
    elif ACTIVATION == "silu":
        share = tl.sigmoid(x)
        y = x * share
        slope = share * (1 + x * (1 - share))
    elif ACTIVATION == "elu":
        power = tl.exp(tl.where(x > 0, 0.0, x))
        y = tl.where(x > 0, x, power - 1)
        slope = power
    elif ACTIVATION == "tanh":
        y = _tanh(x)
        slope = 1 - y * y
    else:
        tl.static_assert(ACTIVATION == "none")
        y = x
        slope = tl.full(x.shape, 1.0, tl.float32)
    return y, slope


@triton.jit
def _feed_forward(
    rows, branch, ff_in, ff_out, seed, first, start, threshold, scale,
    D: tl.constexpr, MLP: tl.constexpr, ACTIVATION: tl.constexpr, DROPOUT: tl.constexpr, BLOCK_C: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Hidden values as they enter the outer product, and gradients of those, and of gates, before the activation."""
    value = _product(rows, ff_in, start, MLP, D, BLOCK_C, PRECISION)
    grad = _product(branch, ff_out, start, MLP, D, BLOCK_C, PRECISION)
    if DROPOUT:
        grad = _dropped(grad, seed, first, start, threshold, scale)
    if ACTIVATION == "swiglu":
        gate = _product(rows, ff_in, MLP + start, 2 * MLP, D, BLOCK_C, PRECISION)
        share = tl.sigmoid(gate)
        active = value * gate * share
        of_gate = grad * value * share * (1 + gate * (1 - share))
        of_value = grad * gate * share
    else:
        active, slope = _activated(value, ACTIVATION)
        of_value = grad * slope
        of_gate = of_value
    if DROPOUT:
        active = _dropped(active, seed, first, start, threshold, scale)
    dtype = rows.dtype
    return active.to(dtype), of_value.to(dtype), of_gate.to(dtype)


@triton.jit(do_not_specialize=_SIZES)
def input_kernel(
    grad, x, norm_weight, alpha, rows, of_ff, ff_in, ff_out, grad_packed, packed_in, seed, grad_x, of_norm,
    tokens, eps, ff_threshold, ff_scale,
    D: tl.constexpr, PACKED: tl.constexpr, MLP: tl.constexpr, NORM: tl.constexpr, ACTIVATION: tl.constexpr,
    DROPOUT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr, DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """grad_x (tokens, D); of_norm (programs, 3, D), gradients of the norm's weight, bias and, by columns, alpha.

    rows and of_ff as of `rows_kernel`; grad_packed (tokens, PACKED), of queries, keys and values; packed_in (PACKED,
    D), their projection.
    """
    first = tl.program_id(0) * BLOCK_M
    normalised = _load(rows, first, tokens, 0, D, BLOCK_M, DEPTH)
    branch = _load(of_ff, first, tokens, 0, D, BLOCK_M, DEPTH)
    total = tl.zeros((BLOCK_M, DEPTH), tl.float32)  # gradient of the normalised rows
    for start in range(0, MLP, BLOCK_C):
        _, of_value, of_gate = _feed_forward(
            normalised, branch, ff_in, ff_out, seed, first, start, ff_threshold, ff_scale,
            D, MLP, ACTIVATION, DROPOUT, BLOCK_C, PRECISION,
        )  # fmt: skip
        w = _load(ff_in, start, MLP, 0, D, BLOCK_C, DEPTH)
        total = tl.dot(of_value, w, total, input_precision=PRECISION)
        if ACTIVATION == "swiglu":
            w = _load(ff_in, MLP + start, 2 * MLP, 0, D, BLOCK_C, DEPTH)
            total = tl.dot(of_gate, w, total, input_precision=PRECISION)
    for start in range(0, PACKED, BLOCK_K):
        g = _load(grad_packed, first, tokens, start, PACKED, BLOCK_M, BLOCK_K)
        w = _load(packed_in, start, PACKED, 0, D, BLOCK_K, DEPTH)
        total = tl.dot(g, w, total, input_precision=PRECISION)
    standard, rstd = _standardised(x, alpha, first, tokens, eps, D, NORM, BLOCK_M, DEPTH)
    column = tl.arange(0, DEPTH)
    at = of_norm + tl.cast(tl.program_id(0), tl.int64) * (3 * D) + column
    tl.store(at, tl.sum(total * standard, 0), mask=column < D)
    tl.store(at + D, tl.sum(total, 0), mask=column < D)
    total *= _vector(norm_weight, D, DEPTH)
    if NORM == "dyt":
        total *= 1 - standard * standard
        along = tl.sum(total * _load(x, first, tokens, 0, D, BLOCK_M, DEPTH).to(tl.float32), 0)
        tl.store(at + 2 * D, along, mask=column < D)
        total *= tl.load(alpha).to(tl.float32)
    else:
        along = tl.sum(total * standard, 1) / D
        if NORM == "layernorm":
            total -= (tl.sum(total, 1) / D)[:, None]
        total = (total - standard * along[:, None]) * rstd[:, None]
    total += _load(grad, first, tokens, 0, D, BLOCK_M, DEPTH).to(tl.float32)
    _store(grad_x, total, first, tokens, 0, D)


@triton.jit(do_not_specialize=_SIZES)
def weight_kernel(
    columns, rows, of_weight, tokens, span,
    D: tl.constexpr, WIDTH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """of_weight (splits, WIDTH, D) = columns' rows over `span` tokens each; columns (tokens, WIDTH)."""
    column = tl.program_id(0) * BLOCK_N
    split = tl.program_id(1)
    total = tl.zeros((BLOCK_N, DEPTH), tl.float32)
    for first in range(split * span, tl.minimum(split * span + span, tokens), BLOCK_M):
        c = _load(columns, first, tokens, column, WIDTH, BLOCK_M, BLOCK_N)
        r = _load(rows, first, tokens, 0, D, BLOCK_M, DEPTH)
        total = tl.dot(tl.trans(c), r, total, input_precision=PRECISION)
    _store(of_weight + tl.cast(split, tl.int64) * (WIDTH * D), total, column, WIDTH, 0, D)


@triton.jit(do_not_specialize=_SIZES)
def ff_weight_kernel(
    rows, of_ff, ff_in, ff_out, seed, of_in, of_out, tokens, span, ff_threshold, ff_scale,
    D: tl.constexpr, MLP: tl.constexpr, ACTIVATION: tl.constexpr, DROPOUT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, DEPTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """of_in (splits, MLP or 2 MLP, D) and of_out (splits, MLP, D) over `span` tokens each."""
    SWIGLU: tl.constexpr = ACTIVATION == "swiglu"
    HIDDEN: tl.constexpr = 2 * MLP if SWIGLU else MLP
    start = tl.program_id(0) * BLOCK_C
    split = tl.program_id(1)
    total_value = tl.zeros((BLOCK_C, DEPTH), tl.float32)
    total_gate = total_value
    total_out = total_value
    for first in range(split * span, tl.minimum(split * span + span, tokens), BLOCK_M):
        normalised = _load(rows, first, tokens, 0, D, BLOCK_M, DEPTH)
        branch = _load(of_ff, first, tokens, 0, D, BLOCK_M, DEPTH)
        active, of_value, of_gate = _feed_forward(
            normalised, branch, ff_in, ff_out, seed, first, start, ff_threshold, ff_scale,
            D, MLP, ACTIVATION, DROPOUT, BLOCK_C, PRECISION,
        )  # fmt: skip
        total_out = tl.dot(tl.trans(active), branch, total_out, input_precision=PRECISION)
        total_value = tl.dot(tl.trans(of_value), normalised, total_value, input_precision=PRECISION)
        if SWIGLU:
            total_gate = tl.dot(tl.trans(of_gate), normalised, total_gate, input_precision=PRECISION)
    base = of_in + tl.cast(split, tl.int64) * (HIDDEN * D)
    _store(base, total_value, start, MLP, 0, D)
    if SWIGLU:
        _store(base + MLP * D, total_gate, start, MLP, 0, D)
    _store(of_out + tl.cast(split, tl.int64) * (MLP * D), total_out, start, MLP, 0, D)
