"""The animal's state as blocks take it: windows of behavior and pupil_center, encoded."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


def state_windows(x: Tensor, size: int, stride: int) -> Tensor:
    """Windows of (B, V, T), flattened as (frame, variable) -> (B, t, size * V)."""
    return x.unfold(2, size, stride).permute(0, 2, 3, 1).flatten(2)


class StateEncoder(nn.Module):
    """Encodes a window of behavior and pupil_center: Linear, tanh, Linear, tanh; one for all mice or one per mouse."""

    def __init__(self, inputs: int, depth: int, mice: Sequence[str] | None) -> None:
        super().__init__()
        self.shared = mice is None
        names = ["share"] if mice is None else list(mice)
        self.models = nn.ModuleDict(
            {
                n: nn.Sequential(nn.Linear(inputs, depth // 2), nn.Tanh(), nn.Linear(depth // 2, depth), nn.Tanh())
                for n in names
            }
        )

    def forward(self, windows: Tensor, mouse: str) -> Tensor:
        """windows (B, t, inputs) -> (B, t, D)."""
        encoded: Tensor = self.models["share" if self.shared else mouse](windows)
        return encoded
