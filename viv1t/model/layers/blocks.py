"""Transformer blocks, sequential and parallel, and the stack that runs them over many short sequences."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from viv1t.config import VivitConfig
from viv1t.kernels.attention import attention
from viv1t.kernels.parallel_block import BlockSettings, BlockWeights, parallel_block
from viv1t.model.layers.dropout import Dropout

# Values of a block's widest intermediate that are in memory at a time off CUDA: sequences are independent, so a block
# takes them in groups that stay in cache.
_GROUP_VALUES = 6_000_000


def most_square_grid(patches: int) -> tuple[int, int]:
    """(rows, columns) with rows the largest divisor of `patches` that is at most ceil(sqrt(patches))."""
    rows = int(patches**0.5)
    rows += rows * rows < patches
    while patches % rows:
        rows -= 1
    return rows, patches // rows


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(S, L, h * d) -> (S, h, L, d)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


class Activation(nn.Module):
    """GELU (exact), or SwiGLU on (value, gate)."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        if self.name == "gelu":
            return F.gelu(x)
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
        # At least float32: in bf16 the factor itself would be off by a part in a thousand, always the same way.
        dtype = torch.promote_types(x.dtype, torch.float32)
        keep = torch.empty(x.shape[0], 1, 1, dtype=dtype, device=x.device).bernoulli_(1 - self.rate)
        return x * (keep / (1 - self.rate))


class ParallelBlock(nn.Module):
    """y = x + DropPath(attention path) + DropPath(feed-forward path), both from one normalised, fused projection."""

    def __init__(self, config: VivitConfig) -> None:
        super().__init__()
        inner = config.num_heads * config.head_dim
        hidden = config.mlp_dim * (2 if config.ff_activation == "swiglu" else 1)
        self.heads, self.scale = config.num_heads, config.head_dim**-0.5
        self.widths = (inner, inner, inner, hidden)
        self.rates = (config.mha_dropout, config.ff_dropout, config.drop_path)
        self.norm = nn.LayerNorm(config.emb_dim)
        self.fused_linear = nn.Linear(config.emb_dim, sum(self.widths), bias=False)
        self.norm_q = nn.LayerNorm(inner) if config.norm_qk else nn.Identity()
        self.norm_k = nn.LayerNorm(inner) if config.norm_qk else nn.Identity()
        self.attention_out = nn.Linear(inner, config.emb_dim, bias=False)
        self.activation = Activation(config.ff_activation)  # as the operator's, for those that take a block apart
        self.ff_out = nn.Linear(config.mlp_dim, config.emb_dim, bias=False)

    def forward(self, x: Tensor, recompute: bool = False) -> Tensor:
        """x (S, L, D) -> (S, L, D); `recompute` keeps x alone for the backward."""
        norms = [p for n in (self.norm_q, self.norm_k) if isinstance(n, nn.LayerNorm) for p in (n.weight, n.bias)]
        weights = BlockWeights(
            self.norm.weight, self.norm.bias, self.fused_linear.weight, self.attention_out.weight, self.ff_out.weight,
            *norms,
        )  # fmt: skip
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        rates = self.rates if self.training else (0.0, 0.0, 0.0)
        settings = BlockSettings(self.heads, self.scale, *rates, self.norm.eps, dtype)
        return parallel_block(x, weights, settings, keep=torch.is_grad_enabled() and not recompute)

    def extra_repr(self) -> str:
        return "attention dropout={}, feed-forward dropout={}, drop path={}".format(*self.rates)


class SequentialBlock(nn.Module):
    """x = x + DropPath(attention(x)); x = x + DropPath(ff(x)); optionally followed by generated positions."""

    def __init__(self, config: VivitConfig) -> None:
        super().__init__()
        inner, depth = config.num_heads * config.head_dim, config.emb_dim
        hidden = config.mlp_dim * (2 if config.ff_activation == "swiglu" else 1)
        self.heads, self.head_dim = config.num_heads, config.head_dim
        # The published sequential block scales by the embedding's size unless flash attention is on.
        self.scale = (config.head_dim if config.flash_attention else depth) ** -0.5
        self.attention_norm = nn.LayerNorm(depth)
        self.qkv = nn.Linear(depth, 3 * inner, bias=False)
        self.norm_q = nn.LayerNorm(inner) if config.norm_qk else nn.Identity()
        self.norm_k = nn.LayerNorm(inner) if config.norm_qk else nn.Identity()
        self.attention_dropout = Dropout(config.mha_dropout)
        self.attention_out = nn.Linear(inner, depth)
        self.ff_norm = nn.LayerNorm(depth)
        self.ff_in = nn.Linear(depth, hidden)
        self.activation = Activation(config.ff_activation)
        self.ff_dropout = Dropout(config.ff_dropout)
        self.ff_out = nn.Linear(config.mlp_dim, depth)
        self.drop_path = DropPath(config.drop_path)
        self.position_generator: PositionGenerator | None = None
        self.width = max(3 * inner, hidden)

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


class PositionGenerator(nn.Module):
    """Positions generated from content: a depthwise convolution over the patch grid or over frames, added to x."""

    def __init__(self, depth: int, grid: tuple[int, ...]) -> None:
        super().__init__()
        self.grid = grid  # (rows, columns) of the patches, or () for frames
        conv = nn.Conv2d if grid else nn.Conv1d
        self.conv = conv(depth, depth, 3, padding=1, groups=depth)

    def forward(self, x: Tensor) -> Tensor:
        """x (S, L, D) -> (S, L, D)."""
        maps = x.transpose(1, 2)
        if self.grid:
            maps = maps.unflatten(2, self.grid)
        return x + self.conv(maps).flatten(2).transpose(1, 2)


class StateEncoder(nn.Module):
    """Encodes a window of behavior and pupil_center: Linear, tanh, Linear, tanh; one for all mice or one per mouse."""

    def __init__(self, inputs: int, depth: int, mice: Sequence[str] | None) -> None:
        super().__init__()
        self.shared = mice is None
        names = ["share"] if mice is None else list(mice)
        self.models = nn.ModuleDict(
            {
                n: nn.Sequential(nn.Linear(inputs, depth // 2), nn.Tanh(), nn.Linear(depth // 2, depth), nn.Tanh())
                for n in names
            }
        )

    def forward(self, windows: Tensor, mouse: str) -> Tensor:
        """windows (B, t, inputs) -> (B, t, D)."""
        encoded: Tensor = self.models["share" if self.shared else mouse](windows)
        return encoded


class Transformer(nn.Module):
    """Blocks over sequences of patches (`axis` 2) or of frames (`axis` 1) of a token grid (B, t, P, D).

    Args:
        config: the core's options.
        axis: 1 attends over frames, 2 over patches.
        depth: number of blocks.
        patches: P.
        state_inputs: size of a state window for blocks that add its encoding, 0 for none.
        state_mice: mice with an encoder of their own; None shares one.
    """

    def __init__(
        self,
        config: VivitConfig,
        axis: int,
        depth: int,
        patches: int,
        state_inputs: int,
        state_mice: Sequence[str] | None,
    ) -> None:
        super().__init__()
        self.axis = axis
        self.recompute: bool | None = None  # None: on CUDA
        block_class = ParallelBlock if config.parallel_attention else SequentialBlock
        blocks = [block_class(config) for _ in range(depth)]
        self.blocks = nn.ModuleList(blocks)
        # Parallel blocks ignore generated positions, as the published ones do.
        if config.pos_encoding == "generated" and not config.parallel_attention and depth:
            grid = most_square_grid(patches) if axis == 2 else ()
            self.blocks[0].position_generator = PositionGenerator(config.emb_dim, grid)
        self.state_encoders = nn.ModuleList(
            StateEncoder(state_inputs, config.emb_dim, state_mice) for _ in range(depth if state_inputs else 0)
        )

    def forward(self, x: Tensor, windows: Tensor | None, mouse: str) -> Tensor:
        """x (B, t, P, D), windows (B, t, inputs) -> (B, t, P, D); the result may be a transposed view."""
        if self.axis == 1:
            x = x.transpose(1, 2)
        shape = x.shape
        x = x.reshape(-1, *shape[2:])
        for i, block in enumerate(self.blocks):
            if windows is not None:
                code = self.state_encoders[i](windows, mouse).unsqueeze(self.axis)
                x = (x.view(shape) + code).view(x.shape)
            x = self._run(block, x)
        x = x.view(shape)
        return x.transpose(1, 2) if self.axis == 1 else x

    def _run(self, block: nn.Module, x: Tensor) -> Tensor:
        recompute = torch.is_grad_enabled() and (x.is_cuda if self.recompute is None else self.recompute)
        if isinstance(block, ParallelBlock):  # takes groups, and recomputes, by itself
            parallel: Tensor = block(x, recompute)
            return parallel
        group = len(x)
        if x.device.type == "cpu" and isinstance(block, SequentialBlock):
            group = min(group, max(1, _GROUP_VALUES // (x.shape[1] * block.width)))
        if group == len(x) and not recompute:
            y: Tensor = block(x)
            return y
        parts = [checkpoint(block, part, use_reentrant=False) if recompute else block(part) for part in x.split(group)]
        return torch.cat(parts)
