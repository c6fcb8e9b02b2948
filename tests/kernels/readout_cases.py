"""Inputs of the readout operator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# (B, t, h, w, D, N): h or w of 1, odd sizes, D that is no power of two, one frame; edges fall on numbers of float32
CASES = [(2, 7, 4, 5, 3, 5), (1, 1, 1, 1, 2, 3), (2, 3, 1, 5, 4, 7), (1, 3, 5, 1, 4, 7), (1, 2, 2, 2, 112, 33)]


class Case(NamedTuple):
    differentiable: list[Tensor]  # maps, features, mu, sigma, and shift, code, bias where they are given
    noise: Tensor | None
    seed: Tensor | None = None

    def arguments(self, leaves: Sequence[Tensor] | None = None) -> tuple[Tensor | None, ...]:
        """In the operator's order, `leaves` in place of the differentiable ones."""
        given = list(leaves or self.differentiable)
        return (*given, *[None] * (7 - len(given)), self.noise, self.seed)


def drawn(
    shape: tuple[int, ...], *, optional: bool = True, edges: bool = True, dtype: torch.dtype = torch.float64
) -> Case:
    """Positions on the map, outside it and, with `edges`, exactly on its border, at -1 and 1 and a column beyond."""
    batch, frames, height, width, depth, neurons = shape
    generator = torch.Generator().manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=dtype)

    maps, features = normal(batch, frames, height, width, depth), normal(depth, neurons)
    mu, sigma = 0.8 * normal(neurons, 2), 0.5 * normal(neurons, 2, 2)
    shift, code, bias = 0.4 * normal(batch, frames, 2), normal(batch, frames, depth), normal(neurons)
    noise = normal(batch, frames, neurons, 2)
    if edges:
        mu[0], mu[1] = torch.tensor([1.0, -1]), torch.tensor([-1.0, 1])
        noise[:, :, :2] = 0
        shift[:, 0] = 0
        if frames > 1:
            shift[0, 1, 0] = 2 / max(width - 1, 1)
    given = [maps, features, mu, sigma, *([shift, code, bias] if optional else [])]
    return Case(given, noise if optional else None)
