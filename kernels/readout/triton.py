"""The readout on a GPU: a kernel forward, two backward, without atomics.

A program of the first two owns a block of neurons, keeps their features in registers and walks over frames; the four
rows around each position come from the frame's map, which stays in the cache. Backward, it sums the gradients of its
neurons' features, mu and sigma over its frames, and the shift's over its neurons; what programs find is added up in a
fixed order. The map's gradient is a product: positions by neurons, bilinear weights made in registers out of two hats,
times neurons by features. Every kernel draws the noise again.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common import tiles
from ..common.launch import launch
from ..common.philox import philox
from ..common.precision import HALF, input_precision
from ..common.tiles import padded_depth
from .settings import Gradients, Places

# Where z comes from.
_NONE, _GIVEN, _DRAWN = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


@triton.jit
def _uniform(word):
    """(0, 1) out of the upper 24 bits."""
    return ((word >> 8).to(tl.int32).to(tl.float32) + 0.5) * 5.9604644775390625e-08


@triton.jit
def _noise(noise, seed, frame, rows, neurons, SOURCE: tl.constexpr):
    """z of a frame for a block of neurons; `normal_pairs` defines what is drawn."""
    z0 = tl.zeros(rows.shape, tl.float32)
    z1 = z0
    if SOURCE == _GIVEN:
        at = noise + (tl.cast(frame, tl.int64) * neurons + rows) * 2
        z0 = tl.load(at, mask=rows < neurons, other=0.0).to(tl.float32)
        z1 = tl.load(at + 1, mask=rows < neurons, other=0.0).to(tl.float32)
    if SOURCE == _DRAWN:
        c1 = rows.to(tl.uint32)
        zero = tl.zeros_like(c1)
        w0, w1, _, _ = philox(tl.load(seed), zero + tl.cast(frame, tl.uint32), c1, zero, zero)
        radius = tl.sqrt(-2 * tl.log(_uniform(w0)))
        angle = 6.283185307179586 * _uniform(w1)
        z0 = radius * tl.cos(angle)
        z1 = radius * tl.sin(angle)
    return z0, z1


@triton.jit
def _root(mu, sigma, rows, neurons):
    """mu and sigma of a block of neurons."""
    inside = rows < neurons
    m0 = tl.load(mu + rows * 2, mask=inside, other=0.0).to(tl.float32)
    m1 = tl.load(mu + rows * 2 + 1, mask=inside, other=0.0).to(tl.float32)
    s00 = tl.load(sigma + rows * 4, mask=inside, other=0.0).to(tl.float32)
    s01 = tl.load(sigma + rows * 4 + 1, mask=inside, other=0.0).to(tl.float32)
    s10 = tl.load(sigma + rows * 4 + 2, mask=inside, other=0.0).to(tl.float32)
    s11 = tl.load(sigma + rows * 4 + 3, mask=inside, other=0.0).to(tl.float32)
    return m0, m1, s00, s01, s10, s11


@triton.jit
def _clamp(x):
    """To [-1, 1]; what is not a number stays so."""
    return tl.where(x < -1, -1.0, tl.where(x > 1, 1.0, x))


@triton.jit
def _shifted(x, shift, at, SIZE: tl.constexpr, SHIFTED: tl.constexpr):
    """From a clamped coordinate to columns or rows: 0 at the first, SIZE - 1 at the last."""
    if SHIFTED:
        x += tl.load(shift + at).to(tl.float32)
    return (x + 1) * ((SIZE - 1) * 0.5)


@triton.jit
def _hat(distance):
    """Bilinear weight; the comparison lets what is not a number through."""
    d = tl.abs(distance)
    return tl.where(d >= 1, 0.0, 1 - d)


@triton.jit
def _axis(x, SIZE: tl.constexpr):
    """The lower of two neighbouring columns or rows on the map, and how far x lies beyond."""
    lower = tl.floor(x)
    # What is not a number makes a weight that is none, at some place that exists.
    base = tl.where(lower >= 0, tl.minimum(lower, max(SIZE - 2, 0) * 1.0), 0.0)
    return base, x - base


@triton.jit
def _slopes(x, base):
    """Derivatives of the two weights, from above where they have a kink."""
    side = tl.floor(x) - base
    before = tl.where(side == -1, 1.0, 0.0)
    between = tl.where(side == 0, 1.0, 0.0)
    beyond = tl.where(side == 1, 1.0, 0.0)
    return before - between, between - beyond


@triton.jit
def _corners(
    maps, frame, base_x, base_y, columns, inside, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr
):  # fmt: skip
    """The four rows of a frame's map around the positions: upper left and right, lower left and right."""
    cell = base_y.to(tl.int32) * WIDTH + base_x.to(tl.int32)
    at = cell[:, None] * D + columns[None, :]
    base = maps + tl.cast(frame, tl.int64) * (HEIGHT * WIDTH * D)
    right: tl.constexpr = min(WIDTH - 1, 1) * D
    below: tl.constexpr = min(HEIGHT - 1, 1) * WIDTH * D
    c00 = tl.load(base + at, mask=inside, other=0.0).to(tl.float32)
    c01 = tl.load(base + right + at, mask=inside, other=0.0).to(tl.float32)
    c10 = tl.load(base + below + at, mask=inside, other=0.0).to(tl.float32)
    c11 = tl.load(base + below + right + at, mask=inside, other=0.0).to(tl.float32)
    return c00, c01, c10, c11


@triton.jit
def sample_kernel(
    maps, features, mu, sigma, shift, noise, seed, out, frames, span, neurons,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr, SOURCE: tl.constexpr, SHIFTED: tl.constexpr,
    BLOCK_N: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """out (F, N) for a block of neurons and `span` frames; features (N, D)."""
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    columns = tl.arange(0, DEPTH)
    inside = (rows < neurons)[:, None] & (columns < D)[None, :]
    weigh = tl.load(features + rows[:, None] * D + columns[None, :], mask=inside, other=0.0).to(tl.float32)
    m0, m1, s00, s01, s10, s11 = _root(mu, sigma, rows, neurons)
    first = tl.program_id(1) * span
    for frame in range(first, tl.minimum(first + span, frames)):
        z0, z1 = _noise(noise, seed, frame, rows, neurons, SOURCE)
        x = _shifted(_clamp(m0 + s00 * z0 + s01 * z1), shift, frame * 2, WIDTH, SHIFTED)
        y = _shifted(_clamp(m1 + s10 * z0 + s11 * z1), shift, frame * 2 + 1, HEIGHT, SHIFTED)
        base_x, near_x = _axis(x, WIDTH)
        base_y, near_y = _axis(y, HEIGHT)
        c00, c01, c10, c11 = _corners(maps, frame, base_x, base_y, columns, inside, HEIGHT, WIDTH, D)
        left, right = _hat(near_x)[:, None], _hat(near_x - 1)[:, None]
        sampled = (c00 * left + c01 * right) * _hat(near_y)[:, None]
        sampled += (c10 * left + c11 * right) * _hat(near_y - 1)[:, None]
        at = out + tl.cast(frame, tl.int64) * neurons + rows
        tl.store(at, tl.sum(sampled * weigh, 1).to(out.dtype.element_ty), mask=rows < neurons)


@triton.jit
def neurons_kernel(
    grad, maps, features, mu, sigma, shift, noise, seed, of_features, of_places, of_shift,
    frames, span, neurons,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr, SOURCE: tl.constexpr, SHIFTED: tl.constexpr,
    BLOCK_N: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Gradients of a block of neurons over `span` frames.

    grad (F, N); of_features (splits, N, D); of_places (splits, N, 6), mu's and sigma's; of_shift (F, blocks, 2).
    """
    block = tl.program_id(0)
    split = tl.program_id(1)
    rows = block * BLOCK_N + tl.arange(0, BLOCK_N)
    columns = tl.arange(0, DEPTH)
    inside = (rows < neurons)[:, None] & (columns < D)[None, :]
    weigh = tl.load(features + rows[:, None] * D + columns[None, :], mask=inside, other=0.0).to(tl.float32)
    m0, m1, s00, s01, s10, s11 = _root(mu, sigma, rows, neurons)
    total = tl.zeros((BLOCK_N, DEPTH), tl.float32)
    d0 = tl.zeros((BLOCK_N,), tl.float32)
    d1 = d0
    d00 = d0
    d01 = d0
    d10 = d0
    d11 = d0
    for frame in range(split * span, tl.minimum(split * span + span, frames)):
        g = tl.load(grad + tl.cast(frame, tl.int64) * neurons + rows, mask=rows < neurons, other=0.0).to(tl.float32)
        z0, z1 = _noise(noise, seed, frame, rows, neurons, SOURCE)
        raw_x = m0 + s00 * z0 + s01 * z1
        raw_y = m1 + s10 * z0 + s11 * z1
        x = _shifted(_clamp(raw_x), shift, frame * 2, WIDTH, SHIFTED)
        y = _shifted(_clamp(raw_y), shift, frame * 2 + 1, HEIGHT, SHIFTED)
        base_x, near_x = _axis(x, WIDTH)
        base_y, near_y = _axis(y, HEIGHT)
        c00, c01, c10, c11 = _corners(maps, frame, base_x, base_y, columns, inside, HEIGHT, WIDTH, D)
        above, below = _hat(near_y)[:, None], _hat(near_y - 1)[:, None]
        left = c00 * above + c10 * below
        right = c01 * above + c11 * below
        wx0, wx1 = _hat(near_x)[:, None], _hat(near_x - 1)[:, None]
        total += (left * wx0 + right * wx1) * g[:, None]
        slope0, slope1 = _slopes(x, base_x)
        along_x = tl.sum((left * slope0[:, None] + right * slope1[:, None]) * weigh, 1)
        slope0, slope1 = _slopes(y, base_y)
        upper = c00 * wx0 + c01 * wx1
        lower = c10 * wx0 + c11 * wx1
        along_y = tl.sum((upper * slope0[:, None] + lower * slope1[:, None]) * weigh, 1)
        gx = g * along_x * ((WIDTH - 1) * 0.5)
        gy = g * along_y * ((HEIGHT - 1) * 0.5)
        if SHIFTED:
            at = of_shift + (tl.cast(frame, tl.int64) * tl.num_programs(0) + block) * 2
            tl.store(at, tl.sum(gx, 0))
            tl.store(at + 1, tl.sum(gy, 0))
        gx = tl.where((raw_x >= -1) & (raw_x <= 1), gx, 0.0)
        gy = tl.where((raw_y >= -1) & (raw_y <= 1), gy, 0.0)
        d0 += gx
        d1 += gy
        d00 += gx * z0
        d01 += gx * z1
        d10 += gy * z0
        d11 += gy * z1
    row = tl.cast(split, tl.int64) * neurons + rows
    tl.store(of_features + row[:, None] * D + columns[None, :], total, mask=inside)
    place = of_places + row * 6
    tl.store(place, d0, mask=rows < neurons)
    tl.store(place + 1, d1, mask=rows < neurons)
    tl.store(place + 2, d00, mask=rows < neurons)
    tl.store(place + 3, d01, mask=rows < neurons)
    tl.store(place + 4, d10, mask=rows < neurons)
    tl.store(place + 5, d11, mask=rows < neurons)


@triton.jit
def map_kernel(
    grad, features, mu, sigma, shift, noise, seed, of_maps, neurons,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr, SOURCE: tl.constexpr, SHIFTED: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """of_maps (F, h * w, D) for a block of one frame's positions; features (N, D) in the type of products."""
    frame = tl.program_id(0)
    places = tl.program_id(1) * BLOCK_P + tl.arange(0, BLOCK_P)
    place_x = (places % WIDTH).to(tl.float32)
    place_y = (places // WIDTH).to(tl.float32)
    columns = tl.program_id(2) * BLOCK_D + tl.arange(0, BLOCK_D)
    total = tl.zeros((BLOCK_P, BLOCK_D), tl.float32)
    for start in range(0, neurons, BLOCK_N):
        rows = start + tl.arange(0, BLOCK_N)
        g = tl.load(grad + tl.cast(frame, tl.int64) * neurons + rows, mask=rows < neurons, other=0.0).to(tl.float32)
        m0, m1, s00, s01, s10, s11 = _root(mu, sigma, rows, neurons)
        z0, z1 = _noise(noise, seed, frame, rows, neurons, SOURCE)
        x = _shifted(_clamp(m0 + s00 * z0 + s01 * z1), shift, frame * 2, WIDTH, SHIFTED)
        y = _shifted(_clamp(m1 + s10 * z0 + s11 * z1), shift, frame * 2 + 1, HEIGHT, SHIFTED)
        hats = _hat(place_x[:, None] - x[None, :]) * (_hat(place_y[:, None] - y[None, :]) * g[None, :])
        inside = (rows < neurons)[:, None] & (columns < D)[None, :]
        weigh = tl.load(features + rows[:, None] * D + columns[None, :], mask=inside, other=0.0)
        total = tl.dot(hats.to(weigh.dtype), weigh, total, input_precision=PRECISION)
    at = of_maps + (tl.cast(frame, tl.int64) * HEIGHT * WIDTH + places)[:, None] * D + columns[None, :]
    inside = (places < HEIGHT * WIDTH)[:, None] & (columns < D)[None, :]
    tl.store(at, total.to(of_maps.dtype.element_ty), mask=inside)


# Parts that the frames are cut into, for as many programs; the gradients of the features exist once for each.
_SPLITS = 4


def _choices(places: Places) -> tuple[int, bool]:
    drawn = _NONE if places.seed is None else _DRAWN
    return (drawn if places.noise is None else _GIVEN).value, places.shift is not None


def _pointers(places: Places) -> tuple[Any, ...]:
    """mu, sigma, shift, noise and seed as the kernels take them."""
    mu, sigma, shift, noise, seed = (None if x is None else x.contiguous() for x in places)
    return mu, sigma, shift, noise, None if noise is not None else seed


def sample(maps: Tensor, features: Tensor, places: Places) -> Tensor:
    """See `settings.py`."""
    batch, length, *shape = maps.shape
    frames, neurons, depth = batch * length, features.shape[1], shape[-1]
    out = features.new_empty(batch, length, neurons)
    tile, span = tiles.readout("sample", depth, maps.dtype), triton.cdiv(frames, _SPLITS)
    if out.numel():
        launch(
            sample_kernel, (triton.cdiv(neurons, tile.rows), triton.cdiv(frames, span)), tile,
            maps.contiguous(), features.T.contiguous(), *_pointers(places), out, frames, span, neurons, *shape,
            *_choices(places), tile.rows, padded_depth(depth),
        )  # fmt: skip
    return out


def sample_backward(grad: Tensor, maps: Tensor, features: Tensor, places: Places) -> Gradients:
    """See `settings.py`."""
    batch, length, *shape = maps.shape
    frames, neurons, depth = batch * length, features.shape[1], shape[-1]
    by_neuron, pointers, choices = features.T.contiguous(), _pointers(places), _choices(places)
    tile, span = tiles.readout("neurons", depth, maps.dtype), triton.cdiv(frames, _SPLITS)
    blocks, splits = triton.cdiv(neurons, tile.rows), triton.cdiv(frames, span)

    def new(*size: int) -> Tensor:
        return torch.empty(size, dtype=torch.float32, device=maps.device)

    of_features, of_places, of_shift = new(splits, neurons, depth), new(splits, neurons, 6), new(frames, blocks, 2)
    launch(
        neurons_kernel, (blocks, splits), tile,
        grad, maps.contiguous(), by_neuron, *pointers, of_features, of_places, of_shift, frames, span, neurons, *shape,
        *choices, tile.rows, padded_depth(depth),
    )  # fmt: skip
    of_maps = torch.empty(maps.shape, dtype=maps.dtype, device=maps.device)
    tile, products = tiles.readout("map", depth, maps.dtype), maps.dtype if maps.dtype in HALF else torch.float32
    columns = min(128, padded_depth(depth))
    # Frames along the first axis, which alone takes more than 65,535 programs.
    launch(
        map_kernel, (frames, triton.cdiv(shape[0] * shape[1], tile.columns), triton.cdiv(depth, columns)), tile,
        grad, by_neuron.to(products), *pointers, of_maps, neurons, *shape, *choices,
        tile.columns, tile.rows, columns, input_precision(products),
    )  # fmt: skip
    of_mu, of_sigma = of_places.sum(0).split((2, 4), dim=1)
    return Gradients(
        of_maps,
        of_features.sum(0).T.to(features.dtype).contiguous(),
        of_mu.to(places.mu.dtype).contiguous(),
        of_sigma.to(places.sigma.dtype).contiguous().view(-1, 2, 2),
        of_shift.sum(1).to(features.dtype).contiguous().view(batch, length, 2),
    )
