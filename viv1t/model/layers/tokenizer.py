"""From movie and state to tokens: overlapping spatiotemporal patches, projected, with positions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from viv1t.errors import ConfigError
from viv1t.model.layers.dropout import Dropout
from viv1t.model.layers.norms import build_norm
from viv1t.model.layers.patches import Padding, embed_patches, patch_count
from viv1t.model.layers.positions import planar_positions, sinusoidal_positions
from viv1t.types import MAX_FRAMES

# What is added in space, and in time; `joint` is one parameter for both.
POSITIONS = {
    "none": ("none", "none"),
    "learned_joint": ("joint", "joint"),
    "learned": ("learned", "learned"),
    "learned_sinusoidal": ("learned", "sinusoidal"),
    "sinusoidal": ("sinusoidal", "sinusoidal"),
    "learned_spatial": ("learned", "none"),
    "planar": ("planar", "none"),
}


class Tokenizer(nn.Module):
    """Turns a movie into tokens.

    Args:
        frame_size: (H, W) in pixels.
        state_channels: how many state channels join the video: 0, 2 or 4.
        depth: D.
        size, stride: (frames, rows, columns) of a patch, and between patches.
        padded: zeros around the frame and before a 300-frame trial, so that a patch starts at every stride.
        normalized: whether patches are normalised and projected; otherwise a convolution takes them.
        norm: layernorm, rmsnorm or dyt, of patches and of tokens.
        positions: what is added, one of `POSITIONS`.
        dropout: of whole tokens' values before learned positions are added, and after sinusoidal ones are.
        whole_tokens: whether `dropout` drops whole tokens before positions rather than single values.

    Raises:
        ConfigError: a patch is larger than the frame.
    """

    def __init__(
        self,
        frame_size: tuple[int, int],
        state_channels: int,
        depth: int,
        size: tuple[int, int, int],
        stride: tuple[int, int, int],
        *,
        padded: bool = False,
        normalized: bool = True,
        norm: str = "layernorm",
        positions: str = "none",
        dropout: float = 0.0,
        whole_tokens: bool = False,
    ) -> None:
        super().__init__()
        self.size, self.stride = size, stride
        self.frame_size = frame_size
        self.padding = Padding.covering(MAX_FRAMES, frame_size, size, stride) if padded else Padding()
        front, top, bottom, left, right = self.padding
        padded_size = (frame_size[0] + top + bottom, frame_size[1] + left + right)
        if size[1] > min(padded_size):
            pixels = " x ".join(map(str, frame_size))
            raise ConfigError(f"--core_spatial_patch_size {size[1]} is larger than the frame, {pixels} pixels")
        self.grid = (patch_count(padded_size[0], size[1], stride[1]), patch_count(padded_size[1], size[2], stride[2]))
        patches, channels = self.grid[0] * self.grid[1], 1 + state_channels
        values = channels * size[0] * size[1] * size[2]
        self.normalized = normalized
        self.projection: nn.Linear | nn.Conv3d
        if normalized:
            self.patch_norm = build_norm(norm, values)
            self.projection = nn.Linear(values, depth)
        else:
            self.projection = nn.Conv3d(channels, depth, size, stride)
        self.norm = build_norm(norm, depth)
        self.dropout = Dropout(dropout)
        self.whole_tokens = whole_tokens

        self.frames = patch_count(MAX_FRAMES + front, size[0], stride[0])  # tokens of a 300-frame trial in time
        space, time = POSITIONS[positions]
        self.max_frames: int | None = None if time == "none" else self.frames
        if space == "joint":
            self.position = nn.Parameter(torch.randn(1, self.frames, patches, depth))
        if space == "learned":
            self.spatial_position = nn.Parameter(torch.randn(1, 1, patches, depth))
        if time == "learned":
            self.temporal_position = nn.Parameter(torch.randn(1, self.frames, 1, depth))
        self.spatial_sinusoid: Tensor | None
        self.temporal_sinusoid: Tensor | None
        self.plane: Tensor | None
        in_space = sinusoidal_positions(patches, depth)[None, None] if space == "sinusoidal" else None
        in_time = sinusoidal_positions(MAX_FRAMES, depth)[None, :, None] if time == "sinusoidal" else None
        plane = planar_positions(*self.grid, depth) if space == "planar" else None
        self.register_buffer("spatial_sinusoid", in_space, persistent=False)
        self.register_buffer("temporal_sinusoid", in_time, persistent=False)
        self.register_buffer("plane", plane, persistent=False)
        self.positions = (space, time)

    def output_frames(self, frames: int) -> int:
        """Tokens in time for a movie of `frames` frames."""
        return patch_count(frames + self.padding.front, self.size[0], self.stride[0])

    @property
    def fewest_frames(self) -> int:
        """Frames for one token in time."""
        return max(1, self.size[0] - self.padding.front)

    def forward(self, video: Tensor, state: Tensor | None) -> Tensor:
        """video (B, 1, T, H, W) and state (B, S, T) -> tokens (B, t, P, D)."""
        weight, bias = self.projection.weight.flatten(1), self.projection.bias
        assert bias is not None
        norm = self.patch_norm if self.normalized else None
        x = embed_patches(video, state, norm, weight, bias, self.size, self.stride, self.padding)
        x = self.norm(x.flatten(2, 3))
        if self.whole_tokens:
            x = x * self.dropout(torch.ones_like(x[..., :1])) if self.training and self.dropout.rate else x
        else:
            x = self.dropout(x)
        return self.add_positions(x)

    def add_positions(self, x: Tensor, first: int = 0) -> Tensor:
        """Tokens (B, t, P, D) with positions, the first frame's being `first`.

        Raises:
            ConfigError: the model has no positions that late.
        """
        frames = slice(first, first + x.shape[1])
        if self.max_frames is not None and frames.stop > self.max_frames:
            raise ConfigError(
                f"the model has positions for {MAX_FRAMES} input frames; predict longer movies in overlapping windows"
            )
        space, time = self.positions
        if space == "joint":
            return x + self.position[:, frames]
        if space == "learned":
            x = x + self.spatial_position
        if time == "learned":
            x = x + self.temporal_position[:, frames]
        if self.spatial_sinusoid is not None:
            x = self.dropout(x + self.spatial_sinusoid)
        if self.temporal_sinusoid is not None:
            x = self.dropout(x + self.temporal_sinusoid[:, frames])
        return x if self.plane is None else x + self.plane
