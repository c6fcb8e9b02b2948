"""Transformer blocks, sequential and parallel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from viv1t.errors import ConfigError
from viv1t.kernels.attention import attention
from viv1t.kernels.attention.rotary import Rotary
from viv1t.kernels.common.activations import ACTIVATIONS, activate
from viv1t.kernels.parallel_block import BlockSettings, BlockWeights, parallel_block
from viv1t.model.layers.dropout import Dropout
from viv1t.model.layers.norms import build_norm, norm_eps
from viv1t.model.layers.positions import PositionGenerator


@dataclass(frozen=True, kw_only=True)
class BlockShape:
    """Sizes and rates of a Transformer block.

    Attributes:
        depth: D.
        heads, head_dim: of the attention.
        hidden: units of the feed-forward path; `swiglu` makes them from twice as many.
        activation: of the feed-forward path; one of `kernels/common/activations.py`.
        norm: layernorm, rmsnorm or dyt.
        norm_qk: whether queries and keys have a norm of all heads together.
        scale: of the attention's scores; None for 1 / sqrt(head_dim).
        causal: whether a token sees itself and what comes before, instead of the whole sequence.
        attention_dropout: of the attention's result.
        ff_dropout: of the hidden units.
        drop_path: stochastic depth's rate.
    """

    depth: int
    heads: int
    head_dim: int
    hidden: int
    activation: str = "gelu"
    norm: str = "layernorm"
    norm_qk: bool = False
    scale: float | None = None
    causal: bool = False
    attention_dropout: float = 0.0
    ff_dropout: float = 0.0
    drop_path: float = 0.0

    @property
    def inner(self) -> int:
        """Columns of all heads' queries."""
        return self.heads * self.head_dim

    @property
    def projected(self) -> int:
        """Columns of the feed-forward path before its activation."""
        return self.hidden * (2 if self.activation == "swiglu" else 1)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(S, L, h * d) -> (S, h, L, d)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


class Activation(nn.Module):
    """An activation by name: GELU is the exact one, SwiGLU takes (value, gate)."""

    def __init__(self, name: str) -> None:
        super().__init__()
        if name not in ACTIVATIONS:
            raise ConfigError(f"an activation is one of {', '.join(ACTIVATIONS)}, not {name!r}")
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        return activate(x, self.name)


class DropPath(nn.Module):
    """Stochastic depth: drops a sequence's branch with probability `rate` and rescales the others. x (S, L, D)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        # At least float32: in bf16 the factor itself would be off by a part in a thousand, always the same way.
        dtype = torch.promote_types(x.dtype, torch.float32)
        keep = torch.empty(x.shape[0], 1, 1, dtype=dtype, device=x.device).bernoulli_(1 - self.rate)
        return x * (keep / (1 - self.rate))


class ParallelBlock(nn.Module):
    """y = x + DropPath(attention path) + DropPath(feed-forward path), both from one normalised, fused projection."""

    def __init__(self, shape: BlockShape) -> None:
        super().__init__()
        inner = shape.inner
        self.heads, self.causal, self.norm_kind = shape.heads, shape.causal, shape.norm
        self.scale = shape.head_dim**-0.5 if shape.scale is None else shape.scale
        self.widths = (inner, inner, inner, shape.projected)
        self.rates = (shape.attention_dropout, shape.ff_dropout, shape.drop_path)
        self.norm = build_norm(shape.norm, shape.depth)
        self.fused_linear = nn.Linear(shape.depth, sum(self.widths), bias=False)
        self.norm_q = build_norm(shape.norm, inner) if shape.norm_qk else nn.Identity()
        self.norm_k = build_norm(shape.norm, inner) if shape.norm_qk else nn.Identity()
        self.attention_out = nn.Linear(inner, shape.depth, bias=False)
        self.activation = Activation(shape.activation)
        self.ff_out = nn.Linear(shape.hidden, shape.depth, bias=False)

    def forward(self, x: Tensor, recompute: bool = False, rotary: Rotary | None = None) -> Tensor:
        """x (S, L, D) -> (S, L, D); `recompute` keeps x alone for the backward, `rotary` turns queries and keys."""
        rates = self.rates if self.training else (0.0, 0.0, 0.0)
        if rates[2] == 1:  # every path is dropped
            return x
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        eps = norm_eps(self.norm, x)
        settings = BlockSettings(
            self.heads, self.scale, *rates, eps, dtype, self.activation.name, self.norm_kind, self.causal
        )
        keep = torch.is_grad_enabled() and not recompute
        return parallel_block(x, self.weights(), settings, rotary=rotary, keep=keep)

    def weights(self) -> BlockWeights:
        """The block's parameters as the operator takes them."""
        named = {
            f"{prefix}_{name}": parameter
            for prefix, norm in (("norm", self.norm), ("q", self.norm_q), ("k", self.norm_k))
            for name, parameter in norm.named_parameters()
        }
        return BlockWeights(
            fused=self.fused_linear.weight, attention_out=self.attention_out.weight, ff_out=self.ff_out.weight,
            **{"norm_bias": None} | named,
        )  # fmt: skip

    def join(self, x: Tensor, a: Tensor, hidden: Tensor) -> Tensor:
        """The block's result in evaluation, from its attention's result and its hidden units before the activation."""
        return x + self.attention_out(a) + self.ff_out(self.activation(hidden))

    def extra_repr(self) -> str:
        return "attention dropout={}, feed-forward dropout={}, drop path={}".format(*self.rates)


class SequentialBlock(nn.Module):
    """x = x + DropPath(attention(x)); x = x + DropPath(ff(x)); optionally followed by generated positions."""

    def __init__(self, shape: BlockShape) -> None:
        super().__init__()
        inner, depth = shape.inner, shape.depth
        self.heads, self.head_dim = shape.heads, shape.head_dim
        self.scale = shape.head_dim**-0.5 if shape.scale is None else shape.scale
        self.attention_norm = nn.LayerNorm(depth)
        self.qkv = nn.Linear(depth, 3 * inner, bias=False)
        self.norm_q = nn.LayerNorm(inner) if shape.norm_qk else nn.Identity()
        self.norm_k = nn.LayerNorm(inner) if shape.norm_qk else nn.Identity()
        self.attention_dropout = Dropout(shape.attention_dropout)
        self.attention_out = nn.Linear(inner, depth)
        self.ff_norm = nn.LayerNorm(depth)
        self.ff_in = nn.Linear(depth, shape.projected)
        self.activation = Activation(shape.activation)
        self.ff_dropout = Dropout(shape.ff_dropout)
        self.ff_out = nn.Linear(shape.hidden, depth)
        self.drop_path = DropPath(shape.drop_path)
        self.position_generator: PositionGenerator | None = None
        self.width = max(3 * inner, shape.projected)

    def forward(self, x: Tensor) -> Tensor:
        """x (S, L, D) -> (S, L, D)."""
        norms = {
            f"{name}_{kind}": parameter
            for name, norm in (("q", self.norm_q), ("k", self.norm_k))
            for kind, parameter in norm.named_parameters()
        }
        rate = self.attention_dropout.rate if self.training else 0.0
        qkv = self.qkv(self.attention_norm(x))
        a = attention(qkv, self.heads, self.head_dim, self.scale, dropout=rate, **norms)
        x = x + self.drop_path(self.attention_dropout(self.attention_out(a)))
        f = self.ff_dropout(self.activation(self.ff_in(self.ff_norm(x))))
        x = x + self.drop_path(self.ff_dropout(self.ff_out(f)))
        return x if self.position_generator is None else self.position_generator(x)
