"""Transformer blocks, sequential and parallel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from viv1t.errors import ConfigError
from viv1t.kernels.attention import attention
from viv1t.kernels.parallel_block import BlockSettings, BlockWeights, parallel_block
from viv1t.model.layers.dropout import Dropout
from viv1t.model.layers.norms import build_norm
from viv1t.model.layers.positions import PositionGenerator, Rotation, rotate


@dataclass(frozen=True, kw_only=True)
class BlockShape:
    """Sizes and rates of a Transformer block.

    Attributes:
        depth: D.
        heads, head_dim: of the attention.
        hidden: units of the feed-forward path; `swiglu` makes them from twice as many.
        activation: of the feed-forward path; one of `ACTIVATIONS`.
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


ACTIVATIONS = ("none", "tanh", "elu", "relu", "gelu", "silu", "swiglu")


class Activation(nn.Module):
    """An activation by name: GELU is the exact one, SwiGLU takes (value, gate)."""

    def __init__(self, name: str) -> None:
        super().__init__()
        if name not in ACTIVATIONS:
            raise ConfigError(f"an activation is one of {', '.join(ACTIVATIONS)}, not {name!r}")
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        match self.name:
            case "none":
                return x
            case "tanh":
                return torch.tanh(x)
            case "elu":
                return F.elu(x)
            case "relu":
                return F.relu(x)
            case "gelu":
                return F.gelu(x)
            case "silu":
                return F.silu(x)
        value, gate = x.chunk(2, dim=-1)
        return F.silu(gate) * value


class DropPath(nn.Module):
    """Stochastic depth: drops a sequence's branch with probability `rate` and rescales the others. x (S, L, D)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        if self.rate == 1:
            return x * 0
        # At least float32: in bf16 the factor itself would be off by a part in a thousand, always the same way.
        dtype = torch.promote_types(x.dtype, torch.float32)
        keep = torch.empty(x.shape[0], 1, 1, dtype=dtype, device=x.device).bernoulli_(1 - self.rate)
        return x * (keep / (1 - self.rate))


def attend(
    q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float, causal: bool = False, rotation: Rotation | None = None
) -> Tensor:
    """Softmax attention within each sequence; q, k, v (S, L, heads * d) -> (S, L, heads * d).

    Args:
        q, k, v: queries, keys and values.
        heads: their number.
        scale: of the scores.
        causal: a token sees itself and what comes before.
        rotation: of queries and keys; tokens after those it knows are not turned.
    """
    q, k, v = (split_heads(x, heads) for x in (q, k, v))
    if rotation is not None:
        q, k = rotate(q, rotation), rotate(k, rotation)
    out = F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale)
    return out.transpose(1, 2).flatten(2)


class ParallelBlock(nn.Module):
    """y = x + DropPath(attention path) + DropPath(feed-forward path), both from one normalised, fused projection."""

    def __init__(self, shape: BlockShape) -> None:
        super().__init__()
        inner = shape.inner
        self.heads, self.causal = shape.heads, shape.causal
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
        self.attention_dropout = Dropout(shape.attention_dropout)
        self.ff_dropout = Dropout(shape.ff_dropout)
        self.drop_path = DropPath(shape.drop_path)

    def forward(self, x: Tensor, recompute: bool = False, rotation: Rotation | None = None) -> Tensor:
        """x (S, L, D) -> (S, L, D); `recompute` keeps x alone for the backward, `rotation` turns queries and keys."""
        if self._operator_takes(rotation):
            return self._operator(x, recompute)
        if recompute:
            y: Tensor = checkpoint(self._plain, x, rotation, use_reentrant=False)
            return y
        return self._plain(x, rotation)

    def _operator_takes(self, rotation: Rotation | None) -> bool:
        """Whether the operator of the whole block knows all that this one does."""
        norms = isinstance(self.norm, nn.LayerNorm) and self.rates[2] < 1
        return norms and self.activation.name in ("gelu", "swiglu") and rotation is None and not self.causal

    def _operator(self, x: Tensor, recompute: bool) -> Tensor:
        assert isinstance(self.norm, nn.LayerNorm)
        norms = [p for n in (self.norm_q, self.norm_k) if isinstance(n, nn.LayerNorm) for p in (n.weight, n.bias)]
        weights = BlockWeights(
            self.norm.weight, self.norm.bias, self.fused_linear.weight, self.attention_out.weight, self.ff_out.weight,
            *norms,
        )  # fmt: skip
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        rates = self.rates if self.training else (0.0, 0.0, 0.0)
        settings = BlockSettings(self.heads, self.scale, *rates, self.norm.eps, dtype, self.activation.name)
        return parallel_block(x, weights, settings, keep=torch.is_grad_enabled() and not recompute)

    def _plain(self, x: Tensor, rotation: Rotation | None) -> Tensor:
        """The block as plain operations of PyTorch."""
        q, k, v, hidden = self.fused_linear(self.norm(x)).split(self.widths, dim=-1)
        a = attend(self.norm_q(q), self.norm_k(k), v, self.heads, self.scale, self.causal, rotation)
        return self.join(x, a, hidden)

    def join(self, x: Tensor, a: Tensor, hidden: Tensor) -> Tensor:
        """The block's result from its input, its attention's result and its hidden units before the activation."""
        y = x + self.drop_path(self.attention_out(self.attention_dropout(a)))
        return y + self.drop_path(self.ff_out(self.ff_dropout(self.activation(hidden))))

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
