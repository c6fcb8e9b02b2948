"""Readout, shifter and the whole model."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.baseline.core import Vivit
from viv1t.families.sensorium2023.options import VivitConfig
from viv1t.families.sensorium2023.run import RunConfig


class Gaussian2d(nn.Module):
    """Samples the maps of every (batch, frame) at every neuron's position, then weighs the samples."""

    def __init__(self, depth: int, neurons: int) -> None:
        super().__init__()
        self.register_buffer("reg_scale", torch.tensor(0.0))
        self.register_buffer("source_grid", torch.zeros(neurons, 2))
        self.mu_transform = nn.Sequential(nn.Linear(2, 30), nn.ELU(), nn.Linear(30, 2), nn.Tanh())
        self.sigma = nn.Parameter(torch.empty(1, neurons, 2, 2).uniform_(-1, 1))
        self.features = nn.Parameter(torch.full((1, depth, neurons), 1 / depth))
        self.bias = nn.Parameter(torch.zeros(neurons))
        self.state_encoder = nn.Sequential(
            nn.Linear(4, depth), nn.LayerNorm(depth), nn.GELU(), nn.Dropout(0.0), nn.Linear(depth, depth), nn.Tanh()
        )

    def forward(self, maps: Tensor, state: Tensor, shift: Tensor, noise: Tensor | None) -> Tensor:
        """maps (B, D, t, h, w), state (B, 4, t), shift (B, t, 2), noise (B * t, N, 1, 2) -> (B, N, t)."""
        batch, _, frames = maps.shape[:3]
        grid = self.mu_transform(self.source_grid)[None, :, None].expand(batch * frames, -1, -1, -1)
        if noise is None and self.training:
            noise = torch.randn_like(grid)
        if noise is not None:
            grid = torch.einsum("nij,bnkj->bnki", self.sigma[0], noise) + grid
        grid = torch.where(grid.abs() <= 1, grid, grid.detach().clamp(-1, 1))  # as `clamp` up to PyTorch 2.13
        grid = grid + shift.flatten(0, 1)[:, None, None]
        samples = F.grid_sample(maps.transpose(1, 2).flatten(0, 1), grid, align_corners=True).squeeze(-1)
        samples = samples + self.state_encoder(state.transpose(1, 2)).flatten(0, 1)[..., None]
        response = (samples * self.features).sum(1) + self.bias
        return response.unflatten(0, (batch, frames)).transpose(1, 2)


class Shifter(nn.Module):
    def __init__(self, layers: int, size: int) -> None:
        super().__init__()
        self.register_buffer("reg_scale", torch.tensor(0.0))
        widths = [2] + [size] * (layers - 1) + [2]
        steps = [m for i in range(layers) for m in (nn.Linear(widths[i], widths[i + 1]), nn.Tanh())]
        self.mlp = nn.Sequential(*steps)

    def forward(self, pupil_center: Tensor) -> Tensor:
        """(B, 2, t) -> shift (B, t, 2)."""
        return self.mlp(pupil_center.transpose(1, 2))


class PlainViV1T(nn.Module):
    """The published model: vivit core, gaussian2d readouts on cortical positions, shifters on gaze, exp.

    Args:
        config: core and shifter are read from it.
        neurons: N of each mouse.
        frame_size: (H, W).
    """

    bf16 = False  # the core under autocast

    def __init__(self, config: RunConfig, neurons: Mapping[str, int], frame_size: tuple[int, int]) -> None:
        super().__init__()
        assert isinstance(config.core, VivitConfig)
        self.core = nn.ModuleDict({"vivit": Vivit(config.core, frame_size)})
        shifter = config.shifter
        self.shifters = nn.ModuleDict({m: Shifter(shifter.layers, shifter.size) for m in neurons})
        self.readouts = nn.ModuleDict({m: Gaussian2d(config.core.emb_dim, n) for m, n in neurons.items()})

    def forward(
        self, video: Tensor, mouse_id: str, behavior: Tensor, pupil_center: Tensor, noise: Tensor | None = None
    ) -> Tensor:
        """video (B, 1, T, H, W), behavior and pupil_center (B, 2, T) -> (B, N, t)."""
        state = torch.cat((behavior, pupil_center), dim=1)
        with torch.autocast(video.device.type, torch.bfloat16, enabled=self.bf16):
            maps = self.core["vivit"](video, state).to(video.dtype)
        state = state[..., -maps.shape[2] :]
        return torch.exp(self.readouts[mouse_id](maps, state, self.shifters[mouse_id](state[:, 2:]), noise))
