"""The patch embedding's product on a GPU: a kernel forward, one for the weight's gradient, without atomics.

With time contiguous, what a patch's position sees over all output frames is a matrix of overlapping rows, whose values
lie at a row's start plus a column's offset: the kernels read it from the video and never write it out. A program of the
forward owns a block of output frames at one position and scales and offsets its sums before they are stored. One of the
backward owns a block of the weight's values and walks over a part of the positions; parts are added in a fixed order.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common import tiles
from ..common.launch import launch
from ..common.precision import input_precision


@triton.jit
def _offsets(k, frames, WIDTH: tl.constexpr, PT: tl.constexpr, PS: tl.constexpr):
    """From a patch's first value to its values k, numbered (row, column, frame), in a video (H, W, T)."""
    pixel = k // PT
    return (pixel // PS * WIDTH + pixel % PS) * frames + k % PT


@triton.jit
def _start(video, sequence, frames, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, STRIDE: tl.constexpr,
           ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    """The first value at a position: sequence = (trial * ROWS + row) * COLUMNS + column of patches."""
    trial = sequence // (ROWS * COLUMNS)
    row = sequence // COLUMNS % ROWS
    pixel = row * STRIDE * WIDTH + sequence % COLUMNS * STRIDE
    return video + tl.cast(trial, tl.int64) * (HEIGHT * WIDTH) * frames + pixel * frames


@triton.jit
def _tokens(sequence, steps, length, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Numbers of a position's tokens at output frames `steps` among (B, t, ROWS * COLUMNS)."""
    patches: tl.constexpr = ROWS * COLUMNS
    trial = tl.cast(sequence // patches, tl.int64)
    return (trial * length + steps) * patches + sequence % patches


@triton.jit
def project_kernel(
    video, weight, same, rstd, offset, out, frames, length, time_stride,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STRIDE: tl.constexpr,
    PT: tl.constexpr, PS: tl.constexpr, D: tl.constexpr, SAME: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """out (B, t, P, D) = (patches of video (B, H, W, T) . weight (K, D) + same (B, t, D)) * rstd (B, t, P) + offset."""
    values: tl.constexpr = PT * PS * PS
    blocks = tl.cdiv(length, BLOCK_M)
    sequence = tl.program_id(0) // blocks
    steps = tl.program_id(0) % blocks * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    at = _start(video, sequence, frames, HEIGHT, WIDTH, STRIDE, ROWS, COLUMNS)
    total = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for first in range(0, values, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        places = (steps * time_stride)[:, None] + _offsets(k, frames, WIDTH, PT, PS)[None, :]
        patch = tl.load(at + places, mask=(steps < length)[:, None] & (k < values)[None, :], other=0.0)
        inside = (k < values)[:, None] & (columns < D)[None, :]
        w = tl.load(weight + k[:, None] * D + columns[None, :], mask=inside, other=0.0)
        total = tl.dot(patch, w, total, input_precision=PRECISION)
    tokens = _tokens(sequence, steps, length, ROWS, COLUMNS)
    inside = (steps < length)[:, None] & (columns < D)[None, :]
    if SAME:
        frame = tl.cast(sequence // (ROWS * COLUMNS), tl.int64) * length + steps
        total += tl.load(same + frame[:, None] * D + columns[None, :], mask=inside, other=0.0).to(tl.float32)
    total *= tl.load(rstd + tokens, mask=steps < length, other=0.0).to(tl.float32)[:, None]
    total += tl.load(offset + columns, mask=columns < D, other=0.0).to(tl.float32)[None, :]
    tl.store(out + tokens[:, None] * D + columns[None, :], total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def weight_kernel(
    grad, rstd, video, of_weight, frames, length, time_stride, sequences, span,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STRIDE: tl.constexpr,
    PT: tl.constexpr, PS: tl.constexpr, D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """of_weight (splits, K, D): patches' . (grad * rstd) of `span` positions each; grad (B, t, P, D)."""
    values: tl.constexpr = PT * PS * PS
    k = tl.program_id(0) * BLOCK_K + tl.arange(0, BLOCK_K)
    split = tl.program_id(1)
    columns = tl.program_id(2) * BLOCK_D + tl.arange(0, BLOCK_D)
    offsets = _offsets(k, frames, WIDTH, PT, PS)
    blocks = tl.cdiv(length, BLOCK_M)
    total = tl.zeros((BLOCK_K, BLOCK_D), tl.float32)
    for i in range(split * span * blocks, tl.minimum(split * span + span, sequences) * blocks):
        sequence = i // blocks
        steps = i % blocks * BLOCK_M + tl.arange(0, BLOCK_M)
        at = _start(video, sequence, frames, HEIGHT, WIDTH, STRIDE, ROWS, COLUMNS)
        places = offsets[:, None] + (steps * time_stride)[None, :]
        patch = tl.load(at + places, mask=(k < values)[:, None] & (steps < length)[None, :], other=0.0)
        tokens = _tokens(sequence, steps, length, ROWS, COLUMNS)
        inside = (steps < length)[:, None] & (columns < D)[None, :]
        g = tl.load(grad + tokens[:, None] * D + columns[None, :], mask=inside, other=0.0).to(tl.float32)
        g *= tl.load(rstd + tokens, mask=steps < length, other=0.0).to(tl.float32)[:, None]
        total = tl.dot(patch, g.to(patch.dtype), total, input_precision=PRECISION)
    at = of_weight + (tl.cast(split, tl.int64) * values + k)[:, None] * D + columns[None, :]
    tl.store(at, total, mask=(k < values)[:, None] & (columns < D)[None, :])


# Parts that the positions are cut into in the backward; the weight's gradient exists once for each.
_SPLITS = 16


def _geometry(video: Tensor, patches: Sequence[int], stride: Sequence[int], size: Sequence[int]) -> tuple[int, ...]:
    """HEIGHT, WIDTH, ROWS, COLUMNS, STRIDE, PT and PS."""
    if size[1] != size[2] or stride[1] != stride[2]:
        raise ValueError(f"the GPU's patch embedding takes square patches and strides, not {size[1:]}, {stride[1:]}")
    return *video.shape[3:], *patches[1:], stride[1], *size[:2]


def _time_last(video: Tensor) -> Tensor:
    return video[:, 0].permute(0, 2, 3, 1).contiguous()


def project(
    video: Tensor, kernel: Tensor, stride: Sequence[int], same: Tensor | None, rstd: Tensor, offset: Tensor
) -> Tensor:
    """See `cpu.py`."""
    batch, length, *grid, _ = rstd.shape
    depth, *size = kernel.shape
    out = offset.new_empty(batch, length, *grid, depth)
    tile = tiles.patch_embed("project", depth, length, video.dtype)
    weight = kernel.permute(2, 3, 1, 0).contiguous()
    if same is not None:
        same = same.transpose(1, 2).contiguous()
    programs = batch * grid[0] * grid[1] * triton.cdiv(length, tile.rows), triton.cdiv(depth, tile.columns)
    launch(
        project_kernel, programs, tile,
        _time_last(video), weight, same, rstd, offset, out, video.shape[2], length, stride[0],
        *_geometry(video, [length, *grid], stride, size), depth, same is not None,
        tile.rows, tile.inner, tile.columns, input_precision(video.dtype),
    )  # fmt: skip
    return out


def project_backward(grad: Tensor, rstd: Tensor, video: Tensor, size: Sequence[int], stride: Sequence[int]) -> Tensor:
    """See `cpu.py`."""
    batch, length, *grid, depth = grad.shape
    values, sequences = size[0] * size[1] * size[2], batch * grid[0] * grid[1]
    tile, span = tiles.patch_embed("weight", depth, length, video.dtype), triton.cdiv(sequences, _SPLITS)
    splits = triton.cdiv(sequences, span)
    of_weight = torch.empty((splits, values, depth), dtype=torch.float32, device=grad.device)
    launch(
        weight_kernel, (triton.cdiv(values, tile.inner), splits, triton.cdiv(depth, tile.columns)), tile,
        grad.contiguous(), rstd, _time_last(video), of_weight, video.shape[2], length, stride[0], sequences, span,
        *_geometry(video, [length, *grid], stride, size), depth,
        tile.rows, tile.inner, tile.columns, input_precision(video.dtype),
    )  # fmt: skip
    return of_weight.sum(0).view(*size[1:], size[0], depth).permute(3, 2, 0, 1)
