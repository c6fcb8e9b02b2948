"""Readouts in the form in which they are exported: called like those of `viv1t.model`, equal in evaluation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from viv1t.export.loops import loop
from viv1t.model.readout import FactorizedReadout, Gaussian2dReadout


class GraphGaussian2d(nn.Module):
    """Gathers the four corners around each neuron's position, frame by frame.

    Positions on the cortex are fixed by now; only the gaze moves them. ONNX Runtime's GridSample takes six times as
    long on a CPU.
    """

    def __init__(self, readout: Gaussian2dReadout) -> None:
        super().__init__()
        self.positions = nn.Buffer(readout.positions().detach().clamp(-1, 1))
        self.features = nn.Buffer(readout.features[0].T.detach().contiguous())
        self.state_encoder, self.bias = readout.state_encoder, readout.bias

    def forward(self, maps: Tensor, state: Tensor, shift: Tensor | None, noise: Tensor | None = None) -> Tensor:
        """maps (B, D, t, h, w), state (B, 4, t), shift (B, t, 2) -> (B, N, t)."""
        batch, _, frames, height, width = maps.shape

        def read(rows: Tensor, shift: Tensor | None = None) -> Tensor:
            """rows (h * w, D), shift (2,) -> (N,)."""
            index, weights = self._corners(height, width, shift)
            return ((weights[:, None] @ rows[index])[:, 0] * self.features).sum(-1)

        of_frames = maps.permute(0, 2, 3, 4, 1).flatten(2, 3).flatten(0, 1)
        y = loop(read, of_frames) if shift is None else loop(read, of_frames, shift.flatten(0, 1))
        y = y.unflatten(0, (batch, frames))
        if self.state_encoder is not None:
            y = y + self.state_encoder(state.transpose(1, 2)) @ self.features.T
        if self.bias is not None:
            y = y + self.bias
        return y.transpose(1, 2)

    def _corners(self, height: int, width: int, shift: Tensor | None) -> tuple[Tensor, Tensor]:
        """Which four map positions each neuron reads and their bilinear weights, 0 outside the map: (N, 4) each."""
        positions = self.positions if shift is None else self.positions + shift
        x, y = (positions[:, 0] + 1) * ((width - 1) / 2), (positions[:, 1] + 1) * ((height - 1) / 2)
        left, top = x.floor(), y.floor()
        right, below = x - left, y - top
        columns = torch.stack((left, left + 1, left, left + 1), dim=-1)
        rows = torch.stack((top, top, top + 1, top + 1), dim=-1)
        weights = torch.stack(
            ((1 - below) * (1 - right), (1 - below) * right, below * (1 - right), below * right), dim=-1
        )
        inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
        index = rows.clamp(0, height - 1) * width + columns.clamp(0, width - 1)
        return index.long(), weights * inside


class GraphFactorizedReadout(nn.Module):
    """Masks and features, frame by frame."""

    def __init__(self, readout: FactorizedReadout) -> None:
        super().__init__()
        self.spatial = nn.Buffer(readout.spatial.detach().flatten(1))
        self.features = readout.features

    def forward(self, maps: Tensor, state: Tensor, shift: Tensor | None, noise: Tensor | None = None) -> Tensor:
        """maps (B, D, t, h, w) -> (B, N, t)."""

        def read(rows: Tensor) -> Tensor:
            """rows (h * w, D) -> (N,)."""
            return ((self.spatial @ rows) * self.features).sum(-1)

        y = loop(read, maps.permute(0, 2, 3, 4, 1).flatten(2, 3).flatten(0, 1))
        return y.unflatten(0, (maps.shape[0], maps.shape[2])).transpose(1, 2)
