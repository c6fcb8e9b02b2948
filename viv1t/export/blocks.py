"""Transformer blocks in the form in which they are exported: called like those of `viv1t.model`, equal in evaluation.

Queries, keys, values and hidden units come from a product each, so that no packed result has to be taken apart.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn
from viv1t.kernels.attention.rotary import Rotary, rotate

from viv1t.model.layers.blocks import ParallelBlock, SequentialBlock, split_heads


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float, causal: bool = False) -> Tensor:
    """Softmax attention within each sequence; q, k, v (S, L, heads * d) -> (S, L, heads * d)."""
    q, k, v = (split_heads(x, heads) for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, scale=scale, is_causal=causal)
    return out.transpose(1, 2).flatten(2)


class GraphParallelBlock(nn.Module):
    """x + attention path + feed-forward path."""

    def __init__(self, block: ParallelBlock) -> None:
        super().__init__()
        self.block = block
        parts = block.fused_linear.weight.detach().split(block.widths)
        self.weights = nn.ParameterList(nn.Parameter(part.clone(), False) for part in parts)

    def forward(self, x: Tensor, rotary: Rotary | None = None) -> Tensor:
        """x (S, L, D) -> (S, L, D); `rotary` turns queries and keys."""
        q, k, v, hidden = self.projections(x, rotary)
        a = attention(q, k, v, self.block.heads, self.block.scale, self.block.causal)
        return self.block.join(x, a, hidden)

    def projections(self, x: Tensor, rotary: Rotary | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Queries, keys and values (S, L, heads * d) and hidden units of x (S, L, D)."""
        block, y = self.block, self.block.norm(x)
        q, k, v, hidden = (F.linear(y, weight) for weight in self.weights)
        q, k = rotate(block.norm_q(q), rotary, block.heads), rotate(block.norm_k(k), rotary, block.heads)
        return q, k, v, hidden


class GraphSequentialBlock(nn.Module):
    """x = x + attention(x); x = x + ff(x); optionally followed by generated positions."""

    def __init__(self, block: SequentialBlock) -> None:
        super().__init__()
        self.block = block
        parts = block.qkv.weight.detach().chunk(3)
        self.weights = nn.ParameterList(nn.Parameter(part.clone(), False) for part in parts)

    def forward(self, x: Tensor) -> Tensor:
        """x (S, L, D) -> (S, L, D)."""
        block, y = self.block, self.block.attention_norm(x)
        q, k, v = (F.linear(y, weight) for weight in self.weights)
        a = attention(block.norm_q(q), block.norm_k(k), v, block.heads, block.scale)
        x = x + block.attention_out(a)
        x = x + block.ff_out(block.activation(block.ff_in(block.ff_norm(x))))
        return x if block.position_generator is None else block.position_generator(x)
