"""Readouts: from the core's maps to the neurons of one mouse."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from viv1t.kernels.common.dropout import new_seed
from viv1t.kernels.readout import readout


def normalized_coordinates(coordinates: Tensor, axes: int) -> Tensor:
    """Cortical coordinates (N, 3) centred per axis, the first `axes` divided by their largest absolute value."""
    grid = coordinates[:, :axes]
    grid = grid - grid.mean(dim=0, keepdim=True)
    # One divisor for all axes keeps the cortex's proportions; a single neuron has no extent.
    return grid / grid.abs().max().clamp_min(torch.finfo(grid.dtype).tiny)


class Gaussian2dReadout(nn.Module):
    """Each neuron samples the core's maps at a position, jittered by a learned Gaussian in training.

    Args:
        depth: D of the core's maps.
        neurons: N.
        coordinates: (N, 3) cortical positions in micrometres; not needed for free positions.
        mean_response: (N,) start of the bias; zeros when None.
        grid: positions are `free`, or made of the cortical `xy` or `xyz`.
        bias: `none`, starts from `zero` or from the `mean_response`.
        encode_state: whether an encoding of the animal's state is added to what is sampled.
        dropout: of that encoding.
    """

    def __init__(
        self,
        depth: int,
        neurons: int,
        coordinates: Tensor | None = None,
        mean_response: Tensor | None = None,
        *,
        grid: str = "xy",
        bias: str = "mean_response",
        encode_state: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.free = grid == "free"
        axes = 3 if grid == "xyz" else 2
        if self.free:
            self.mu = nn.Parameter(torch.empty(1, neurons, 1, 2).uniform_(-0.2, 0.2))
        else:
            start = torch.zeros(neurons, 3) if coordinates is None else coordinates
            self.register_buffer("source_grid", normalized_coordinates(start, axes))
            self.mu_transform = nn.Sequential(nn.Linear(axes, 30), nn.ELU(), nn.Linear(30, 2), nn.Tanh())
        self.sigma = nn.Parameter(torch.empty(1, neurons, 2, 2).uniform_(-1, 1))
        self.features = nn.Parameter(torch.full((1, depth, neurons), 1 / depth))
        offset = None
        if bias != "none":
            start = torch.zeros(neurons) if bias == "zero" or mean_response is None else mean_response
            offset = nn.Parameter(start.to(torch.float32).clone())
        self.register_parameter("bias", offset)
        self.state_encoder: nn.Sequential | None = None
        if encode_state:
            self.state_encoder = nn.Sequential(
                nn.Linear(4, depth),
                nn.LayerNorm(depth),
                nn.GELU(),
                nn.Dropout(dropout),
                nn.Linear(depth, depth),
                nn.Tanh(),
            )

    def positions(self) -> Tensor:
        """(N, 2) positions on the map as x, y in [-1, 1]."""
        if self.free:
            with torch.no_grad():
                self.mu.clamp_(-1, 1)
            return self.mu[0, :, 0].clone()  # clamped again before the backward if trials have several lengths
        mu: Tensor = self.mu_transform(self.source_grid)
        return mu

    def forward(self, maps: Tensor, state: Tensor, shift: Tensor | None, noise: Tensor | None = None) -> Tensor:
        """Responses before the output activation.

        Args:
            maps: (B, D, t, h, w).
            state: (B, 4, t), behavior and pupil_center of the predicted frames.
            shift: (B, t, 2) added to every position, or None.
            noise: (B, t, N, 2) standard normal; None draws it in training and takes zero in evaluation.

        Returns:
            (B, N, t).
        """
        return readout(
            maps.permute(0, 2, 3, 4, 1),
            self.features[0],
            self.positions(),
            self.sigma[0],
            shift=shift,
            code=None if self.state_encoder is None else self.state_encoder(state.transpose(1, 2)),
            bias=self.bias,
            noise=noise,
            seed=new_seed(maps.device) if self.training and noise is None else None,
        )


class FactorizedReadout(nn.Module):
    """A spatial mask and a feature vector per neuron. It has no bias, no state encoder and ignores the shift."""

    def __init__(self, shape: tuple[int, int, int], neurons: int, dropout: float = 0.0) -> None:
        super().__init__()
        depth, *size = shape
        self.spatial = nn.Parameter(torch.empty(neurons, *size).normal_(std=0.001))
        self.features = nn.Parameter(torch.empty(neurons, depth).normal_(std=0.001))
        self.dropout = nn.Dropout(dropout)

    def forward(self, maps: Tensor, state: Tensor, shift: Tensor | None, noise: Tensor | None = None) -> Tensor:
        """maps (B, D, t, h, w) -> (B, N, t)."""
        masked = torch.einsum("bdthw,nhw->bntd", maps, self.spatial)
        return torch.linalg.vecdot(self.dropout(masked), self.features[:, None])


class RandomReadout(nn.Module):
    """Uniform noise in [0, 1): the chance baseline."""

    def __init__(self, neurons: int) -> None:
        super().__init__()
        self.neurons = neurons
        self.weight = nn.Parameter(torch.rand(1))

    def forward(self, maps: Tensor, state: Tensor, shift: Tensor | None, noise: Tensor | None = None) -> Tensor:
        """maps (B, D, t, h, w) -> (B, N, t)."""
        return torch.rand(len(maps), self.neurons, maps.shape[2], device=maps.device, dtype=maps.dtype)
