"""What the attention's implementations share: their arguments, and the normalisation of queries and keys.

An implementation has two functions. Both read `packed` (S, L, 3 * inner) by its strides, inner = heads * head_dim:

    forward(packed, settings) -> out (S, L, inner), sums (S, heads, L)
    backward(grad, packed, out, sums, settings, grad_packed) -> gradients of the norms' weights and biases

`out` is after the dropout, `sums`, at least float32, what the backward wants to know of a row's weights: their natural
log-sum-exp on a GPU, their sum off it. `grad_packed` (S, L, 3 * inner), with last stride 1 and otherwise strided as it
likes, is written.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

EPS = 1e-5


class Norm(NamedTuple):
    """LayerNorm of all heads' queries, or keys, together: (inner,) each."""

    weight: Tensor
    bias: Tensor | None


class Settings(NamedTuple):
    """Arguments of `attention` by their names there."""

    heads: int
    head_dim: int
    scale: float
    causal: bool = False
    dropout: float = 0.0
    seed: Tensor | None = None
    q_norm: Norm | None = None
    k_norm: Norm | None = None

    @property
    def inner(self) -> int:
        return self.heads * self.head_dim


class Normalised(NamedTuple):
    """Queries or keys as attention takes them; how they were normalised, if they were."""

    y: Tensor
    x: Tensor
    norm: Norm | None
    mean: Tensor | None = None
    rstd: Tensor | None = None


def normalise(x: Tensor, norm: Norm | None) -> Normalised:
    """LayerNorm of the last dimension in at least float32, the result in the dtype of x."""
    if norm is None:
        return Normalised(x, x, None)
    wide = torch.promote_types(x.dtype, torch.float32)
    weight, bias = norm.weight.to(wide), None if norm.bias is None else norm.bias.to(wide)
    y, mean, rstd = torch.native_layer_norm(x.to(wide), weight.shape, weight, bias, EPS)
    return Normalised(y.to(x.dtype), x, norm, mean, rstd)


def normalise_backward(grad: Tensor, n: Normalised) -> tuple[Tensor, list[Tensor]]:
    """Gradients of x, and of the weight and the bias where there are, each in the dtype of what it belongs to."""
    if n.norm is None:
        return grad, []
    wide = torch.promote_types(n.x.dtype, torch.float32)
    weight, bias = n.norm.weight, n.norm.bias
    dx, dw, db = torch.ops.aten.native_layer_norm_backward(
        grad.to(wide), n.x.to(wide), weight.shape, n.mean, n.rstd, weight.to(wide),
        None if bias is None else bias.to(wide), [True, True, bias is not None],
    )  # fmt: skip
    return dx.to(n.x.dtype), [dw.to(weight.dtype)] + ([] if bias is None else [db.to(bias.dtype)])
