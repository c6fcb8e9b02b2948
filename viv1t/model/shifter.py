"""The shifter: how far gaze moves the readout positions of a mouse."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from viv1t.config import ShifterConfig


class Shifter(nn.Module):
    """A small tanh network from pupil_center, or from behavior and pupil_center, to a shift in (-1, 1)."""

    def __init__(self, config: ShifterConfig) -> None:
        super().__init__()
        self.first = 0 if config.mode == "state" else 2
        widths = [4 - self.first, *[config.size] * (config.layers - 1), 2]
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            layers += [nn.Linear(inputs, outputs), nn.Tanh()]
        self.mlp = nn.Sequential(*layers)

    def forward(self, state: Tensor) -> Tensor:
        """state (B, 4, t), behavior and pupil_center -> shift (B, t, 2) as x, y."""
        shift: Tensor = self.mlp(state[:, self.first :].transpose(1, 2))
        return shift
