"""What the parallel block's implementations share: its weights and its settings.

An implementation has three functions:

    new_kept(x, weights, settings, keep) -> memory for what is kept for the backward, empty unless `keep`
    forward(x, weights, settings, seed, keep) -> y (S, L, D), and what is kept
    backward(grad, x, weights, settings, seed, kept) -> gradients of x and of every weight that is given, in order

`kept` is None where nothing was kept.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

Kept = tuple[Tensor, Tensor, Tensor]


class BlockWeights(NamedTuple):
    """Parameters of a block: inner = heads * d, hidden = mlp, or 2 * mlp for SwiGLU."""

    norm_weight: Tensor  # (D,)
    norm_bias: Tensor  # (D,)
    fused: Tensor  # (3 * inner + hidden, D): queries, keys, values, feed-forward
    attention_out: Tensor  # (D, inner)
    ff_out: Tensor  # (D, mlp)
    q_weight: Tensor | None = None  # (inner,) each, of the LayerNorm of queries and keys
    q_bias: Tensor | None = None
    k_weight: Tensor | None = None
    k_bias: Tensor | None = None

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

    @property
    def swiglu(self) -> bool:
        return self.widths[3] != self.mlp


class BlockSettings(NamedTuple):
    """Arguments of `parallel_block` by their names there."""

    heads: int
    scale: float
    attention_dropout: float = 0.0
    ff_dropout: float = 0.0
    drop_path: float = 0.0
    eps: float = 1e-5
    dtype: torch.dtype = torch.float32  # of the products

    @property
    def drops(self) -> bool:
        """Whether anything is dropped."""
        return bool(self.attention_dropout or self.ff_dropout or self.drop_path)
