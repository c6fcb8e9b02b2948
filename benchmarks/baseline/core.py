"""Core `vivit`: every patch is written out, every frame's and every patch's sequence goes through at once."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from viv1t.families.sensorium2023.options import VivitConfig
from viv1t.types import MAX_FRAMES


class Unfold(nn.Module):
    """Writes out the patches: (B, C, T, H, W) -> (B, t * P, C * pt * ps * ps)."""

    def __init__(self, size: tuple[int, int, int], stride: tuple[int, int, int]) -> None:
        super().__init__()
        self.size, self.stride = size, stride

    def forward(self, x: Tensor) -> Tensor:
        for axis, (size, stride) in enumerate(zip(self.size, self.stride, strict=True), start=2):
            x = x.unfold(axis, size, stride)
        return x.permute(0, 2, 3, 4, 1, 5, 6, 7).flatten(4).flatten(1, 3)


class Tokenizer(nn.Module):
    def __init__(self, config: VivitConfig, frame_size: tuple[int, int]) -> None:
        super().__init__()
        size = (config.temporal_patch_size, config.spatial_patch_size, config.spatial_patch_size)
        stride = (config.temporal_patch_stride, config.spatial_patch_stride, config.spatial_patch_stride)
        self.patches = math.prod((n - size[1]) // stride[1] + 1 for n in frame_size)
        frames = (MAX_FRAMES - size[0]) // stride[0] + 1
        inputs, depth = 5 * size[0] * size[1] * size[2], config.emb_dim
        self.tokenizer = nn.Sequential(
            Unfold(size, stride), nn.LayerNorm(inputs), nn.Linear(inputs, depth), nn.LayerNorm(depth)
        )
        self.dropout = nn.Dropout(config.p_dropout)
        self.spatial_pos_embedding = nn.Parameter(torch.randn(1, 1, self.patches, depth))
        self.temporal_pos_embedding = nn.Parameter(torch.randn(1, frames, 1, depth))

    def forward(self, video: Tensor, state: Tensor) -> Tensor:
        """video (B, 1, T, H, W), state (B, 4, T) -> tokens (B, t, P, D)."""
        state = state[..., None, None].expand(-1, -1, -1, *video.shape[-2:])
        x = self.dropout(self.tokenizer(torch.cat((video, state), dim=1)))
        x = x.unflatten(1, (-1, self.patches))
        return x + self.spatial_pos_embedding + self.temporal_pos_embedding[:, : x.shape[1]]


class DropPath(nn.Module):
    """Stochastic depth per sequence; the probability lives on the device and is read on the host."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.register_buffer("keep_prob", torch.tensor(1 - rate))

    def forward(self, x: Tensor) -> Tensor:
        keep = self.keep_prob.item()
        if not self.training or keep == 1:
            return x
        return x * x.new_empty(x.shape[0], 1, 1).bernoulli_(keep) / keep


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, scale: Tensor, flash: bool) -> Tensor:
    """(S, L, h * d) each -> (S, L, h * d)."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    if flash:
        out = F.scaled_dot_product_attention(q, k, v)
    else:
        out = torch.softmax(q @ k.transpose(-1, -2) * scale, dim=-1) @ v
    return out.transpose(1, 2).flatten(2)


class ParallelBlock(nn.Module):
    def __init__(self, config: VivitConfig) -> None:
        super().__init__()
        inner, depth = config.num_heads * config.head_dim, config.emb_dim
        self.heads, self.flash = config.num_heads, config.flash_attention
        self.widths = (inner, inner, inner, config.mlp_dim)
        self.register_buffer("scale", torch.tensor(config.head_dim**-0.5))
        self.norm = nn.LayerNorm(depth)
        self.fused_linear = nn.Linear(depth, sum(self.widths), bias=False)
        self.attn_dropout = nn.Dropout(config.mha_dropout)
        self.attn_out = nn.Linear(inner, depth, bias=False)
        self.ff_out = nn.Sequential(
            nn.GELU(), nn.Dropout(config.ff_dropout), nn.Linear(config.mlp_dim, depth, bias=False)
        )
        self.drop_path1, self.drop_path2 = DropPath(config.drop_path), DropPath(config.drop_path)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v, f = self.fused_linear(self.norm(x)).split(self.widths, dim=-1)
        a = self.attn_dropout(attend(q, k, v, self.heads, self.scale, self.flash))
        return x + self.drop_path1(self.attn_out(a)) + self.drop_path2(self.ff_out(f))


class Attention(nn.Module):
    def __init__(self, config: VivitConfig) -> None:
        super().__init__()
        inner, depth = config.num_heads * config.head_dim, config.emb_dim
        self.heads, self.flash = config.num_heads, config.flash_attention
        self.register_buffer("scale", torch.tensor(depth**-0.5))
        self.norm = nn.LayerNorm(depth)
        self.to_qkv = nn.Linear(depth, 3 * inner, bias=False)
        self.dropout = nn.Dropout(config.mha_dropout)
        self.attn_out = nn.Sequential(nn.Linear(inner, depth), nn.Dropout(config.mha_dropout))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.to_qkv(self.norm(x)).chunk(3, dim=-1)
        return self.attn_out(self.dropout(attend(q, k, v, self.heads, self.scale, self.flash)))


class SequentialBlock(nn.Module):
    def __init__(self, config: VivitConfig) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.ff = nn.Sequential(
            nn.LayerNorm(config.emb_dim),
            nn.Linear(config.emb_dim, config.mlp_dim),
            nn.GELU(),
            nn.Dropout(config.ff_dropout),
            nn.Linear(config.mlp_dim, config.emb_dim),
            nn.Dropout(config.ff_dropout),
        )
        self.drop_path1, self.drop_path2 = DropPath(config.drop_path), DropPath(config.drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path1(self.attention(x))
        return x + self.drop_path2(self.ff(x))


class Transformer(nn.Module):
    def __init__(self, config: VivitConfig, depth: int) -> None:
        super().__init__()
        block = ParallelBlock if config.parallel_attention else SequentialBlock
        self.blocks = nn.ModuleList(block(config) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        """x (S, L, D) -> (S, L, D)."""
        for block in self.blocks:
            x = block(x)
        return x


class Vivit(nn.Module):
    def __init__(self, config: VivitConfig, frame_size: tuple[int, int]) -> None:
        super().__init__()
        self.register_buffer("reg_scale", torch.tensor(0.0))
        self.tokenizer = Tokenizer(config, frame_size)
        self.spatial_transformer = Transformer(config, config.spatial_depth)
        self.temporal_transformer = Transformer(config, config.temporal_depth)

    def forward(self, video: Tensor, state: Tensor) -> Tensor:
        """video (B, 1, T, H, W), state (B, 4, T) -> maps (B, D, t, h, w)."""
        x = self.tokenizer(video, state)
        batch, frames, patches, _ = x.shape
        x = self.spatial_transformer(x.flatten(0, 1)).unflatten(0, (batch, frames))
        x = self.temporal_transformer(x.transpose(1, 2).flatten(0, 1)).unflatten(0, (batch, patches))
        # The published code takes the most square grid, whatever the true one was.
        rows = next(n for n in range(math.ceil(math.sqrt(patches)), 0, -1) if patches % n == 0)
        return x.permute(0, 3, 2, 1).unflatten(3, (rows, -1))
