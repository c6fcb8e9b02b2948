"""The readout off CUDA: bilinear samples are weighted sums of four rows of a table, an embedding bag.

Frames are taken a group at a time. Their neurons' four corners and weights are made once; samples are made for as many
frames as stay in cache, and dotted with the features at once. The gradient of the features is a bag too, of all of a
neuron's corners in the group. So is the map's, of all neurons between the same four positions: neurons are sorted by
these, and every corner's gradient is shifted to its place. Nothing is scattered, and sums are taken in one order
whatever the number of threads.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .settings import Gradients, Places

# Positions of a group, frames times neurons: sorting takes PyTorch's fast way from 32,768 on.
_GROUP_POSITIONS = 131_072
# Values of a group's maps; their gradient is made in one piece.
_GROUP_VALUES = 4_000_000
# Values of samples at a time.
_SAMPLED_VALUES = 1_000_000


class _Axis(NamedTuple):
    """Bilinear interpolation along columns or rows: (f, N) each."""

    base: Tensor  # the lower of two neighbouring columns or rows, both on the map
    side: Tensor  # -1 below the base, 0 from there to its neighbour, 1 from there on; further numbers further out
    weights: tuple[Tensor, Tensor]  # of the two, 0 where they are a whole step away or more

    def slopes(self) -> tuple[Tensor, Tensor]:
        """Derivatives of the weights, from above where they have a kink."""
        before, between, beyond = (self.side.eq(i).to(self.side.dtype) for i in (-1, 0, 1))
        return before.sub_(between), between.sub_(beyond)


class _Group(NamedTuple):
    """A group of frames."""

    frames: slice
    noise: Tensor | None  # (2, f, N)
    free: Tensor  # (2, f, N) bool, where the clamp lets gradients through
    axes: tuple[_Axis, _Axis]  # columns, rows
    cell: Tensor  # (f, N) int32, the upper left corner's row in the group's table
    table: Tensor  # (f * h * w, D)


def _axis(position: Tensor, size: int) -> _Axis:
    """position (f, N), 0 at the first and size - 1 at the last column or row."""
    floor = position.floor()
    # A position that is not a number makes a weight that is none, at some place that exists.
    base = floor.clamp(0, max(size - 2, 0)).nan_to_num_(0)
    near = position - base
    far = near - 1
    weights = (1 - near.abs_()).clamp_(min=0), (1 - far.abs_()).clamp_(min=0)
    return _Axis(base, floor.sub_(base), weights)


def _corner_steps(height: int, width: int) -> tuple[int, int, int, int]:
    """From the upper left corner's row in a table of positions to each corner's."""
    right, below = min(1, width - 1), min(1, height - 1) * width
    return 0, right, below, below + right


def _outer(down: tuple[Tensor, Tensor], across: tuple[Tensor, Tensor]) -> Tensor:
    """(f, N, 4) products in the order of `_corner_steps`."""
    out = down[0].new_empty(*down[0].shape, 4)
    for i, (d, a) in enumerate(product(down, across)):
        torch.mul(d, a, out=out[..., i])
    return out


def _groups(maps: Tensor, places: Places) -> Iterator[_Group]:
    batch, frames, height, width, _ = maps.shape
    mu, sigma, shift, noise, seed = places
    dtype, neurons = mu.dtype, len(mu)
    generator = None if seed is None or noise is not None else torch.Generator().manual_seed(int(seed))
    mean, root = mu.T[:, None], sigma.permute(1, 2, 0)[:, :, None]
    flat = maps.flatten(0, 1)
    step = max(1, min(_GROUP_POSITIONS // max(1, neurons), _GROUP_VALUES // max(1, maps.shape[2:].numel())))
    for start in range(0, batch * frames, step):
        here = slice(start, min(start + step, batch * frames))
        count = here.stop - start
        z = None
        if noise is not None:
            z = noise.flatten(0, 1)[here].permute(2, 0, 1)
        elif generator is not None:
            z = torch.randn(2, count, neurons, generator=generator, dtype=dtype).to(mu.device)
        position = mean.expand(2, count, neurons)
        if z is not None:
            position = position.addcmul(root[:, 0], z[0]).addcmul_(root[:, 1], z[1])
        free = (position >= -1) & (position <= 1)
        position = position.clamp(-1, 1)
        if shift is not None:
            position += shift.flatten(0, 1)[here].T[:, :, None]
        position += 1
        x, y = (_axis(p.mul_((size - 1) / 2), size) for p, size in zip(position, (width, height), strict=True))
        cell = y.base.mul(width).add_(x.base).to(torch.int32)
        cell += torch.arange(0, count * height * width, height * width, dtype=torch.int32, device=cell.device)[:, None]
        table = flat[here].to(dtype).reshape(count * height * width, -1)
        yield _Group(here, z, free, (x, y), cell, table)


def _bag(index: Tensor, table: Tensor, weights: Tensor, offsets: Tensor | None = None) -> Tensor:
    return F.embedding_bag(index, table, offsets, per_sample_weights=weights, mode="sum")


def _sampled(table: Tensor, corners: Tensor, weights: Tensor, by_neuron: Tensor) -> Tensor:
    """Weighted sums of corners (f, N, 4) of the table, dotted with the features by_neuron (N, D) -> (f, N)."""
    count, neurons, _ = corners.shape
    out = by_neuron.new_empty(count, neurons)
    step = max(1, _SAMPLED_VALUES // max(1, by_neuron.numel()))
    for start in range(0, count, step):
        some = slice(start, start + step)
        rows = _bag(corners[some].flatten(0, 1), table, weights[some].flatten(0, 1))
        out[some] = rows.view(-1, *by_neuron.shape).mul_(by_neuron).sum(-1)
    return out


def sample(maps: Tensor, features: Tensor, places: Places) -> Tensor:
    out = features.new_empty(*maps.shape[:2], features.shape[1])
    by_neuron, steps = features.T.contiguous(), _corner_steps(*maps.shape[2:4])
    for group in _groups(maps, places):
        x, y = group.axes
        corners = group.cell[..., None] + group.cell.new_tensor(steps)
        weights = _outer(y.weights, x.weights)
        out.flatten(0, 1)[group.frames] = _sampled(group.table, corners, weights, by_neuron)
    return out


def sample_backward(grad: Tensor, maps: Tensor, features: Tensor, places: Places) -> Gradients:
    height, width, depth = maps.shape[2:]
    by_neuron, steps = features.T.contiguous(), _corner_steps(height, width)
    grad = grad.flatten(0, 1)
    grad_maps = torch.empty(grad.shape[0], height * width, depth, dtype=maps.dtype, device=maps.device)
    grad_features = torch.zeros_like(by_neuron)
    grad_mu, grad_sigma = (p.new_zeros(p.shape) for p in (places.mu, places.sigma))
    grad_shift = features.new_empty(grad.shape[0], 2)
    for group in _groups(maps, places):
        x, y = group.axes
        corners = group.cell[..., None] + group.cell.new_tensor(steps)
        g = grad[group.frames]
        along = (
            _sampled(group.table, corners, _outer(y.weights, x.slopes()), by_neuron).mul_((width - 1) / 2),
            _sampled(group.table, corners, _outer(y.slopes(), x.weights), by_neuron).mul_((height - 1) / 2),
        )
        grad_position = torch.stack(along).mul_(g)
        grad_shift[group.frames] = grad_position.sum(-1).T
        grad_position *= group.free
        grad_mu += grad_position.sum(1).T
        if group.noise is not None:
            for i, z in enumerate(group.noise):
                grad_sigma[:, :, i] += (grad_position * z).sum(1).T

        weights = _outer(y.weights, x.weights).mul_(g[..., None])
        of_neuron, their_weights = (x.transpose(0, 1).flatten(1) for x in (corners, weights))
        grad_features += _bag(of_neuron, group.table, their_weights)
        grad_maps[group.frames] = _map_gradient(group, weights, by_neuron, steps).view_as(grad_maps[group.frames])
    return Gradients(
        grad_maps.view(maps.shape),
        grad_features.T.contiguous(),
        grad_mu,
        grad_sigma,
        grad_shift.view(*maps.shape[:2], 2),
    )


def _map_gradient(group: _Group, weights: Tensor, by_neuron: Tensor, steps: tuple[int, ...]) -> Tensor:
    """Sums of the features of the neurons around each of the table's rows, by weights (f, N, 4)."""
    rows, neurons = len(group.table), len(by_neuron)
    cells, order = group.cell.flatten().sort(stable=True)
    first = torch.searchsorted(cells, torch.arange(rows, dtype=cells.dtype, device=cells.device))
    neuron = order % neurons
    sorted_weights = weights.flatten(0, 1)[order].T.contiguous()
    out = torch.zeros_like(group.table)
    for step, weight in zip(steps, sorted_weights, strict=True):
        # No cell's corners lie on another frame, so what is cut off is zero.
        out[step:] += _bag(neuron, by_neuron, weight, first)[: rows - step]
    return out
