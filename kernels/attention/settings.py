"""What the attention's implementations share: their arguments, and how queries and keys are made ready.

An implementation has two functions. Both read `packed` (S, L, 3 * inner) by its strides, inner = heads * head_dim:

    forward(packed, settings) -> out (S, L, inner), sums (S, heads, L)
    backward(grad, packed, out, sums, settings, grad_packed) -> gradients of the norms' parameters

`out` is after the dropout, `sums`, at least float32, what the backward wants to know of a row's weights: their natural
log-sum-exp on a GPU, their sum off it. `grad_packed` (S, L, 3 * inner), with last stride 1 and otherwise strided as it
likes, is written.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ..common.norms import Norm, Normalised, normalise, normalise_backward
from .rotary import Rotary, rotate


class Settings(NamedTuple):
    """Arguments of `attention` by their names there."""

    heads: int
    head_dim: int
    scale: float
    causal: bool = False
    dropout: float = 0.0
    seed: Tensor | None = None
    q_norm: Norm | None = None  # of all heads' queries together
    k_norm: Norm | None = None
    rotary: Rotary | None = None

    @property
    def inner(self) -> int:
        return self.heads * self.head_dim

    @property
    def norm_parameters(self) -> list[Tensor]:
        """Of both norms, in order."""
        return [p for n in (self.q_norm, self.k_norm) if n is not None for p in n.parameters]


class Prepared(NamedTuple):
    """Queries or keys as attention takes them: normalised, then turned by their positions."""

    y: Tensor
    normalised: Normalised


def prepare(x: Tensor, norm: Norm | None, settings: Settings) -> Prepared:
    """x (s, L, inner) of any strides."""
    normalised = normalise(x, norm)
    return Prepared(rotate(normalised.y, settings.rotary, settings.heads), normalised)


def prepare_backward(grad: Tensor, prepared: Prepared, settings: Settings) -> tuple[Tensor, list[Tensor]]:
    """Gradients of x and of the norm's parameters; `grad` itself where nothing was done."""
    return normalise_backward(rotate(grad, settings.rotary, settings.heads, backward=True), prepared.normalised)
