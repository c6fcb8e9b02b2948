"""What the parallel block's implementations share: its weights and its settings.

An implementation has three functions:

    new_kept(x, weights, settings, keep) -> memory for what is kept for the backward, empty unless `keep`
    forward(x, weights, settings, rotary, seed, keep) -> y (S, L, D), and what is kept
    backward(grad, x, weights, settings, rotary, seed, kept) -> gradients of x and of every weight that is given, in
        order

`kept` is None where nothing was kept.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..common.norms import Norm, norm_of

Kept = tuple[Tensor, Tensor, Tensor]


class BlockWeights(NamedTuple):
    """Parameters of a block: inner = heads * d, hidden = mlp, or 2 * mlp for SwiGLU."""

    norm_weight: Tensor  # (D,)
    norm_bias: Tensor | None  # (D,); None for RMSNorm
    fused: Tensor  # (3 * inner + hidden, D): queries, keys, values, feed-forward
    attention_out: Tensor  # (D, inner)
    ff_out: Tensor  # (D, mlp)
    q_weight: Tensor | None = None  # (inner,) each, of the norm of queries and keys
    q_bias: Tensor | None = None
    k_weight: Tensor | None = None
    k_bias: Tensor | None = None
    norm_alpha: Tensor | None = None  # (1,) each, of DyT
    q_alpha: Tensor | None = None
    k_alpha: Tensor | None = None

    @property
    def inner(self) -> int:
        return self.attention_out.shape[1]

    @property
    def mlp(self) -> int:
        return self.ff_out.shape[1]

    @property
    def widths(self) -> tuple[int, int, int, int]:
        """Of queries, keys, values and the feed-forward part in the fused projection."""
        return (*(3 * (self.inner,)), self.fused.shape[0] - 3 * self.inner)  # type: ignore[return-value]


class BlockSettings(NamedTuple):
    """Arguments of `parallel_block` by their names there."""

    heads: int
    scale: float
    attention_dropout: float = 0.0
    ff_dropout: float = 0.0
    drop_path: float = 0.0
    eps: float = 1e-5
    dtype: torch.dtype = torch.float32  # of the products
    activation: str = "gelu"  # of `common/activations.py`
    norm: str = "layernorm"  # of `common/norms.py`; of queries and keys too
    causal: bool = False  # a token sees itself and what comes before

    @property
    def drops(self) -> bool:
        """Whether anything is dropped."""
        return bool(self.attention_dropout or self.ff_dropout or self.drop_path)

    @property
    def swiglu(self) -> bool:
        return self.activation == "swiglu"


def norms_of(weights: BlockWeights, settings: BlockSettings) -> tuple[Norm, Norm | None, Norm | None]:
    """Of the block's input, of queries, and of keys."""
    w, kind, eps = weights, settings.norm, settings.eps
    first = norm_of(w.norm_weight, w.norm_bias, w.norm_alpha, kind, eps)
    assert first is not None
    q_norm = norm_of(w.q_weight, w.q_bias, w.q_alpha, kind, eps)
    return first, q_norm, norm_of(w.k_weight, w.k_bias, w.k_alpha, kind, eps)
