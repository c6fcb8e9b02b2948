"""The core `vivit`: tokens, then attention over patches, then attention over frames."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from viv1t.errors import ConfigError
from viv1t.model.layers.blocks import Activation
from viv1t.model.layers.state import state_windows
from viv1t.model.layers.tokenizer import Tokenizer
from viv1t.model.layers.transformer import Transformer
from viv1t.types import MAX_FRAMES


class Vivit(nn.Module):
    """Factorised video vision Transformer.

    Args:
        tokenizer: from movie and state to tokens.
        spatial, temporal: attend over patches, then over frames.
        depth: D.
        grid: (rows, columns) of the output's maps, of as many places as there are patches.
        state_channels: variables that join the video as channels: 0, 2 (behavior) or 4 (with pupil_center).
        encoded: variables whose encoding the blocks add: 0, 2 or 4.
        activation: of the output.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        spatial: Transformer,
        temporal: Transformer,
        *,
        depth: int,
        grid: tuple[int, int],
        state_channels: int = 0,
        encoded: int = 0,
        activation: str = "none",
    ) -> None:
        super().__init__()
        self.tokenizer, self.spatial, self.temporal = tokenizer, spatial, temporal
        self.depth, self.grid, self.channels, self.encoded = depth, grid, state_channels, encoded
        self.activation = Activation(activation)
        self.fewest_frames = tokenizer.fewest_frames  # frames in for one frame out
        self._window = tokenizer.size[0], tokenizer.stride[0]
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
    def causal(self) -> bool:
        """Whether a frame's output depends on that frame and earlier ones alone."""
        return self.temporal.causal

    @property
    def output_shape(self) -> tuple[int, int, int]:
        """(D, rows, columns) of the output's maps."""
        return (self.depth, *self.grid)

    def output_frames(self, frames: int) -> int:
        """Frames out for frames in."""
        return self.tokenizer.output_frames(frames)

    @property
    def most_frames(self) -> int | None:
        """Frames in that there are positions for; None for any number."""
        return None if self.tokenizer.max_frames is None else MAX_FRAMES

    def frame_positions(self, positions: Tensor) -> Tensor:
        """From positions (..., 2) on the output's maps to positions on the frame.

        Both are x, y with -1 and 1 at the centres of the outermost patches and pixels. Where the maps' rows and columns
        are not the patches' own, a position is that of the patch it is nearest to."""
        tokenizer = self.tokenizer
        if self.grid != tokenizer.grid:
            positions = self._of_nearest_patch(positions)
        height, width = tokenizer.frame_size
        first = [(tokenizer.size[1] - 1) / 2 - before for before in (tokenizer.padding.left, tokenizer.padding.top)]
        spans = [(n - 1) * tokenizer.stride[1] / 2 for n in (tokenizer.grid[1], tokenizer.grid[0])]
        half = positions.new_tensor([(width - 1) / 2, (height - 1) / 2])
        return (positions.new_tensor(first) + (positions + 1) * positions.new_tensor(spans)) / half - 1

    def _of_nearest_patch(self, positions: Tensor) -> Tensor:
        """From positions on the maps to positions on the patches' own grid, both x, y in [-1, 1]."""
        (rows, columns), (true_rows, true_columns) = self.grid, self.tokenizer.grid
        last = positions.new_tensor([columns - 1, rows - 1])
        column, row = ((positions.clamp(-1, 1) + 1) / 2 * last).round().unbind(-1)
        patch = row * columns + column
        true = torch.stack((patch % true_columns, patch.div(true_columns, rounding_mode="floor")), dim=-1)
        return true / positions.new_tensor([max(true_columns - 1, 1), max(true_rows - 1, 1)]) * 2 - 1

    def set_recompute(self, on: bool | None) -> None:
        """Whether blocks are recomputed in the backward instead of keeping their intermediates; None: on CUDA."""
        self.spatial.recompute = self.temporal.recompute = on

    def forward(self, video: Tensor, behavior: Tensor, pupil_center: Tensor, mouse: str) -> Tensor:
        """video (B, 1, T, H, W), behavior and pupil_center (B, 2, T) -> maps (B, D, t, rows, columns)."""
        if video.shape[2] < self.fewest_frames:
            raise ConfigError(f"{video.shape[2]} frames are fewer than the core's temporal extent")
        state = torch.cat((behavior, pupil_center), dim=1)
        x = self.tokenizer(video, state[:, : self.channels] if self.channels else None)
        windows = None
        if self.encoded:
            windows = state_windows(behavior, *self._window)
            if self.encoded == 4:
                windows = torch.cat((windows, state_windows(pupil_center, *self._window)), dim=-1)
        x = self.spatial(x, windows, mouse)
        x = self.temporal(x, windows, mouse)
        return self.activation(x.unflatten(2, self.grid).permute(0, 4, 1, 2, 3))


def following_core(core: nn.Module) -> Vivit:
    """A core that can follow a movie frame by frame; raises a ConfigError that says why one cannot."""
    if not isinstance(core, Vivit):
        raise ConfigError("a model with a convolutional core keeps no past: predict its movies in windows")
    if not core.causal or core.encoded:
        raise ConfigError(
            "the model is not causal (it was trained without --core_use_causal_attention): every response depends on "
            "frames to come, so that it cannot follow a movie; predict whole movies"
        )
    return core
