"""The core `vivit`: tokens, then attention over patches, then attention over frames."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from viv1t.config import VivitConfig
from viv1t.errors import ConfigError
from viv1t.model.layers.blocks import Transformer, most_square_grid
from viv1t.model.layers.tokenizer import Tokenizer
from viv1t.types import MAX_FRAMES

# behavior mode -> (channels joined to the video, variables encoded in blocks)
_STATE_USE = {
    "none": (0, 0),
    "behavior_channels": (2, 0),
    "state_channels": (4, 0),
    "behavior_encoding": (0, 2),
    "state_encoding": (0, 4),
    "state_encoding_per_mouse": (0, 4),
}


def state_windows(x: Tensor, size: int, stride: int) -> Tensor:
    """Windows of (B, V, T), flattened as (frame, variable) -> (B, t, size * V)."""
    return x.unfold(2, size, stride).permute(0, 2, 3, 1).flatten(2)


class Vivit(nn.Module):
    """Factorised video vision Transformer.

    Args:
        config: its options.
        frame_size: (H, W) of the video in pixels.
        mice: ids of the mice, for the mode with a state encoder per mouse.
    """

    def __init__(self, config: VivitConfig, frame_size: tuple[int, int], mice: Sequence[str]) -> None:
        super().__init__()
        self.config = config
        self.channels, self.encoded = _STATE_USE[config.behavior]
        self.tokenizer = Tokenizer(config, frame_size, self.channels)
        patches = self.tokenizer.grid[0] * self.tokenizer.grid[1]
        self.grid = most_square_grid(patches)
        inputs = self.encoded * config.temporal_patch_size
        owners = mice if config.behavior == "state_encoding_per_mouse" else None
        self.spatial = Transformer(config, 2, config.spatial_depth, patches, inputs, owners)
        self.temporal = Transformer(config, 1, config.temporal_depth, patches, inputs, owners)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Block weights normal with std 0.02, cut at an absolute 2; biases 0. The rest keeps PyTorch's defaults."""
        for transformer in (self.spatial, self.temporal):
            for module in transformer.modules():
                if isinstance(module, nn.Linear):
                    nn.init.trunc_normal_(module.weight, std=0.02, a=-2, b=2)
                    if module.bias is not None:
                        nn.init.zeros_(module.bias)

    @property
    def output_shape(self) -> tuple[int, int, int]:
        """(D, rows, columns) of the output's maps."""
        return (self.config.emb_dim, *self.grid)

    def output_frames(self, frames: int) -> int:
        """Frames out for frames in."""
        return self.config.output_frames(frames)

    @property
    def fewest_frames(self) -> int:
        """Frames in for one frame out."""
        return self.config.temporal_patch_size

    @property
    def most_frames(self) -> int | None:
        """Frames in that there are positions for; None for any number."""
        return None if self.tokenizer.max_frames is None else MAX_FRAMES

    def frame_positions(self, positions: Tensor) -> Tensor:
        """From positions (..., 2) on the output's maps to positions on the frame.

        Both are x, y with -1 and 1 at the centres of the outermost patches and pixels: the patches' lie inside."""
        config, (height, width) = self.config, self.tokenizer.frame_size
        first = (config.spatial_patch_size - 1) / 2
        spans = [(n - 1) * config.spatial_patch_stride / 2 for n in (self.tokenizer.grid[1], self.tokenizer.grid[0])]
        half = positions.new_tensor([(width - 1) / 2, (height - 1) / 2])
        return (first + (positions + 1) * positions.new_tensor(spans)) / half - 1

    def set_recompute(self, on: bool | None) -> None:
        """Whether blocks are recomputed in the backward instead of keeping their intermediates; None: on CUDA."""
        self.spatial.recompute = self.temporal.recompute = on

    def forward(self, video: Tensor, behavior: Tensor, pupil_center: Tensor, mouse: str) -> Tensor:
        """video (B, 1, T, H, W), behavior and pupil_center (B, 2, T) -> maps (B, D, t, rows, columns)."""
        if video.shape[2] < self.config.temporal_patch_size:
            raise ConfigError(f"{video.shape[2]} frames are fewer than the core's temporal extent")
        state = torch.cat((behavior, pupil_center), dim=1)
        x = self.tokenizer(video, state[:, : self.channels] if self.channels else None)
        windows = None
        if self.encoded:
            cut = self.config.temporal_patch_size, self.config.temporal_patch_stride
            windows = state_windows(behavior, *cut)
            if self.encoded == 4:
                windows = torch.cat((windows, state_windows(pupil_center, *cut)), dim=-1)
        x = self.spatial(x, windows, mouse)
        x = self.temporal(x, windows, mouse)
        return x.unflatten(2, self.grid).permute(0, 4, 1, 2, 3)
