"""From movie and state to tokens: overlapping spatiotemporal patches, projected, with positions."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from viv1t.config import VivitConfig
from viv1t.errors import ConfigError
from viv1t.kernels.patch_embed import patch_embed
from viv1t.kernels.patch_embed.reference import patch_convolution
from viv1t.model.layers.dropout import Dropout
from viv1t.types import MAX_FRAMES


def patch_grid(size: int, patch: int, stride: int) -> int:
    """Number of patches along an axis of `size` pixels or frames."""
    return (size - patch) // stride + 1


def sinusoidal_positions(length: int, depth: int) -> Tensor:
    """(length, depth) sines on even and cosines on odd channels of position * exp(-ln(10000) 2i / D)."""
    position = torch.arange(length, dtype=torch.float32)[:, None]
    frequency = torch.exp(torch.arange(0, depth, 2, dtype=torch.float32) * (-math.log(10000.0) / depth))
    table = torch.empty(length, depth)
    table[:, 0::2] = torch.sin(position * frequency)
    table[:, 1::2] = torch.cos(position * frequency)
    return table


class Tokenizer(nn.Module):
    """Turns a movie into tokens.

    Args:
        config: the core's options.
        frame_size: (H, W) in pixels.
        state_channels: how many state channels join the video: 0, 2 or 4.

    Raises:
        ConfigError: a patch is larger than the frame.
    """

    def __init__(self, config: VivitConfig, frame_size: tuple[int, int], state_channels: int) -> None:
        super().__init__()
        pt, ps = config.temporal_patch_size, config.spatial_patch_size
        st, ss = config.temporal_patch_stride, config.spatial_patch_stride
        if ps > min(frame_size):
            size = " x ".join(map(str, frame_size))
            raise ConfigError(f"--core_spatial_patch_size {ps} is larger than the frame, {size} pixels")
        self.size, self.stride = (pt, ps, ps), (st, ss, ss)
        self.frame_size = frame_size
        self.grid = (patch_grid(frame_size[0], ps, ss), patch_grid(frame_size[1], ps, ss))
        patches, depth = self.grid[0] * self.grid[1], config.emb_dim
        channels = 1 + state_channels
        self.normalized = config.patch != "convolution"
        self.projection: nn.Linear | nn.Conv3d
        if self.normalized:
            self.patch_norm = nn.LayerNorm(channels * pt * ps * ps)
            self.projection = nn.Linear(channels * pt * ps * ps, depth)
        else:
            self.projection = nn.Conv3d(channels, depth, self.size, self.stride)
        self.norm = nn.LayerNorm(depth)
        self.dropout = Dropout(config.p_dropout)

        frames = patch_grid(MAX_FRAMES, pt, st)
        kind = config.pos_encoding
        self.max_frames: int | None = None if kind in ("none", "generated") else frames
        if kind == "learned_joint":
            self.position = nn.Parameter(torch.randn(1, frames, patches, depth))
        if kind in ("learned", "learned_sinusoidal"):
            self.spatial_position = nn.Parameter(torch.randn(1, 1, patches, depth))
        if kind == "learned":
            self.temporal_position = nn.Parameter(torch.randn(1, frames, 1, depth))
        self.spatial_sinusoid: Tensor | None
        self.temporal_sinusoid: Tensor | None
        space = sinusoidal_positions(patches, depth)[None, None] if kind == "sinusoidal" else None
        time = sinusoidal_positions(MAX_FRAMES, depth)[None, :, None] if "sinusoidal" in kind else None
        self.register_buffer("spatial_sinusoid", space, persistent=False)
        self.register_buffer("temporal_sinusoid", time, persistent=False)
        self.kind = kind

    def forward(self, video: Tensor, state: Tensor | None) -> Tensor:
        """video (B, 1, T, H, W) and state (B, S, T) -> tokens (B, t, P, D)."""
        weight = self.projection.weight.flatten(1)
        assert self.projection.bias is not None
        if self.normalized:
            norm = self.patch_norm
            x = patch_embed(
                video, state, norm.weight, norm.bias, weight, self.projection.bias, self.size, self.stride, norm.eps
            )
        else:
            x = patch_convolution(video, state, weight, self.projection.bias, self.size, self.stride)
        x = self.dropout(self.norm(x.flatten(2, 3)))
        return self.add_positions(x)

    def add_positions(self, x: Tensor) -> Tensor:
        frames = x.shape[1]
        if self.max_frames is not None and frames > self.max_frames:
            raise ConfigError(
                f"the model has positions for {MAX_FRAMES} input frames; predict longer movies in overlapping windows"
            )
        if self.kind == "learned_joint":
            return x + self.position[:, :frames]
        if self.kind in ("learned", "learned_sinusoidal"):
            x = x + self.spatial_position
        if self.kind == "learned":
            return x + self.temporal_position[:, :frames]
        if self.spatial_sinusoid is not None:
            x = self.dropout(x + self.spatial_sinusoid)
        if self.temporal_sinusoid is not None:
            x = self.dropout(x + self.temporal_sinusoid[:, :frames])
        return x
