"""The core `factorized_baseline`: spatial, then temporal 3-D convolutions, layer by layer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from viv1t.errors import ConfigError
from viv1t.kernels.recurrent import gru
from viv1t.types import FRAME_RATE

STATE_CHANNELS = {
    "none": 0,
    "behavior_channels": 2,
    "state_channels": 4,
    "state_differences": 8,
    "state_position": 4,
    "state_gru": 4,
    "state_gru_position": 4,
}


def with_differences(x: Tensor) -> Tensor:
    """Appends first differences in time, divided by the frame rate, 0 at the first frame: (B, V, T) -> (B, 2V, T)."""
    difference = F.pad(x[..., 1:] - x[..., :-1], (1, 0)) / FRAME_RATE
    return torch.cat((x, difference), dim=1)


def pixel_positions(frame_size: tuple[int, int]) -> Tensor:
    """(2, H, W): vertical, then horizontal position, each from -1 to 1."""
    height, width = frame_size
    rows = torch.linspace(-1, 1, height)[:, None].expand(height, width)
    columns = torch.linspace(-1, 1, width)[None].expand(height, width)
    return torch.stack((rows, columns))


class FactorizedLayer(nn.Module):
    """Spatial convolution, temporal convolution, batch norm, ELU (neither where `linear`) and channel dropout."""

    def __init__(
        self, inputs: int, outputs: int, spatial: int, temporal: int, dropout: float, linear: bool = False
    ) -> None:
        super().__init__()
        self.spatial = nn.Conv3d(inputs, outputs, (1, spatial, spatial), padding=(0, spatial // 2, spatial // 2))
        self.temporal = nn.Conv3d(outputs, outputs, (temporal, 1, 1))
        self.norm = None if linear else nn.BatchNorm3d(outputs, momentum=0.7)
        self.dropout = nn.Dropout3d(dropout)
        for conv in (self.spatial, self.temporal):
            nn.init.xavier_normal_(conv.weight)
            assert conv.bias is not None
            nn.init.zeros_(conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, T, H, W) -> (B, C', T', H, W)."""
        y: Tensor = self.temporal(self.spatial(x))
        if self.norm is not None:
            y = F.elu(self.norm(y))
        return self.dropout(y)


class FactorizedBaseline(nn.Module):
    """Factorised 3-D convolutional core.

    Args:
        frame_size: (H, W) of the video in pixels.
        behavior: which channels join the video; a key of `STATE_CHANNELS`.
        input_kernels: (pixels, frames) of the first layer's kernels.
        hidden_kernels: of the others'.
        num_layers: their number.
        hidden_dim: channels of the first, doubled at each.
        dropout: of whole channels, but for the last layer's.
        linear: without batch norm and ELU.
        reg_spatial, reg_temporal: weights of the first kernels' roughness.
    """

    def __init__(
        self,
        frame_size: tuple[int, int],
        behavior: str,
        *,
        input_kernels: tuple[int, int],
        hidden_kernels: tuple[int, int],
        num_layers: int,
        hidden_dim: int,
        dropout: float = 0.0,
        linear: bool = False,
        reg_spatial: float = 0.0,
        reg_temporal: float = 0.0,
    ) -> None:
        super().__init__()
        self.frame_size, self.behavior = frame_size, behavior
        self.penalties = reg_spatial, reg_temporal
        self.temporal_extent = input_kernels[1] + (num_layers - 1) * (hidden_kernels[1] - 1)
        inputs = 1 + STATE_CHANNELS[behavior]
        self.gru = nn.GRU(4, 4, batch_first=True) if "gru" in behavior else None
        positions = pixel_positions(frame_size) if "position" in behavior else None
        self.positions: Tensor | None
        self.register_buffer("positions", positions, persistent=False)
        inputs += 2 if positions is not None else 0
        widths = [hidden_dim * 2**i for i in range(num_layers)]
        self.depth = widths[-1]
        self.layers = nn.ModuleList()
        for i, width in enumerate(widths):
            kernels = hidden_kernels if i else input_kernels
            rate = dropout if i < num_layers - 1 else 0.0
            self.layers.append(FactorizedLayer(widths[i - 1] if i else inputs, width, *kernels, rate, linear))

    @property
    def output_shape(self) -> tuple[int, int, int]:
        """(D, H, W) of the output's maps."""
        return (self.depth, *self.frame_size)

    def output_frames(self, frames: int) -> int:
        """Frames out for frames in."""
        return frames - self.temporal_extent + 1

    @property
    def fewest_frames(self) -> int:
        """Frames in for one frame out."""
        return self.temporal_extent

    most_frames: int | None = None  # any number
    causal = False  # a frame's output is that of a window it ends, but nothing is cached

    def frame_positions(self, positions: Tensor) -> Tensor:
        """From positions on the output's maps to positions on the frame: they are the same."""
        return positions

    def set_recompute(self, on: bool | None) -> None:
        """This core keeps its intermediates."""

    def regularizer(self) -> Tensor | None:
        """Roughness of the first kernels: squared Laplacian over squared weights, times the options' weights.

        None where these are 0, as in the published training.
        """
        spatial, temporal = self.penalties
        if not spatial and not temporal:
            return None
        first = self.layers[0]
        assert isinstance(first, FactorizedLayer)
        total = first.spatial.weight.new_zeros(())
        if spatial:
            kernel = first.spatial.weight[:, :, 0].flatten(0, 1)[:, None]
            laplacian = kernel.new_tensor([[0.0, -1.0, 0.0], [-1.0, 4.0, -1.0], [0.0, -1.0, 0.0]])[None, None]
            total = total + spatial * F.conv2d(kernel, laplacian).square().sum() / kernel.square().sum()
        if temporal:
            line = first.temporal.weight.flatten(2).flatten(0, 1)[:, None]
            second = line.new_tensor([-1.0, 4.0, -1.0])[None, None]
            total = total + temporal * F.conv1d(line, second).square().sum() / line.square().sum()
        return total

    def _channels(self, behavior: Tensor, pupil_center: Tensor) -> Tensor | None:
        mode = self.behavior
        if mode == "none":
            return None
        if mode == "behavior_channels":
            return behavior
        if mode == "state_differences":
            return torch.cat((with_differences(behavior), with_differences(pupil_center)), dim=1)
        state = torch.cat((behavior, pupil_center), dim=1)
        if self.gru is not None:
            state = gru(self.gru, state.transpose(1, 2)).transpose(1, 2)
        return state

    def forward(self, video: Tensor, behavior: Tensor, pupil_center: Tensor, mouse: str) -> Tensor:
        """video (B, 1, T, H, W), behavior and pupil_center (B, 2, T) -> maps (B, D, t, H, W)."""
        if self.output_frames(video.shape[2]) < 1:
            raise ConfigError(f"{video.shape[2]} frames are fewer than the core's temporal extent")
        parts = [video]
        state = self._channels(behavior, pupil_center)
        if state is not None:
            parts.append(state[..., None, None].expand(-1, -1, -1, *self.frame_size))
        if self.positions is not None:
            parts.append(self.positions[None, :, None].expand(video.shape[0], -1, video.shape[2], -1, -1))
        x = torch.cat(parts, dim=1)
        for layer in self.layers:
            x = layer(x)
        return x
