"""The shifter: how far gaze moves the readout positions of a mouse."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn


class Shifter(nn.Module):
    """A small tanh network from pupil_center, or from behavior and pupil_center, to a shift in (-1, 1).

    Args:
        mode: `pupil_center`, or `state` for both.
        layers: their number.
        size: hidden units.
    """

    def __init__(self, mode: str, layers: int, size: int) -> None:
        super().__init__()
        self.first = 0 if mode == "state" else 2
        widths = [4 - self.first, *[size] * (layers - 1), 2]
        parts: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            parts += [nn.Linear(inputs, outputs), nn.Tanh()]
        self.mlp = nn.Sequential(*parts)

    def forward(self, state: Tensor) -> Tensor:
        """state (B, 4, t), behavior and pupil_center -> shift (B, t, 2) as x, y."""
        shift: Tensor = self.mlp(state[:, self.first :].transpose(1, 2))
        return shift
