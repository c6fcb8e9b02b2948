"""Modulators: how the animal's state and a neuron's own history change the readout's output before the activation.

All take r (B, N, t) and state (B, 4, t), behavior and pupil_center, and give (B, N, t).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from viv1t.config.run import (
    GruModulatorConfig,
    MlpModulatorConfig,
    MlpV2ModulatorConfig,
    MlpV3ModulatorConfig,
    ModulatorConfig,
)
from viv1t.kernels.recurrent import gru


def history(x: Tensor, size: int) -> Tensor:
    """The last `size` values up to and including each frame, oldest first, zero padded: (..., t, size)."""
    return F.pad(x, (size - 1, 0)).unfold(-1, size, 1)


class MlpModulator(nn.Module):
    """A gain from the values before the current frame, then an offset from the state."""

    def __init__(self, config: MlpModulatorConfig, neurons: int) -> None:
        super().__init__()
        size = config.history_size
        self.size = size
        self.state_first = {"none": 0, "behavior": 2, "state": 4}[config.behaviors]
        self.history_encoder = self.behavior_encoder = None
        if config.include_history:
            self.history_encoder = nn.Sequential(
                nn.Linear(size, size), nn.GELU(), nn.Dropout(config.history_dropout), nn.Linear(size, 1)
            )
        if width := self.state_first:
            self.behavior_encoder = nn.Sequential(
                nn.Linear(width, width), nn.GELU(), nn.Dropout(config.behaviors_dropout), nn.Linear(width, neurons)
            )

    def forward(self, r: Tensor, state: Tensor) -> Tensor:
        if self.history_encoder is not None:
            before = history(F.pad(r, (1, -1)), self.size)
            r = r * torch.sigmoid(self.history_encoder(before)[..., 0])
        if self.behavior_encoder is not None:
            offset = torch.tanh(self.behavior_encoder(state[:, : self.state_first].transpose(1, 2)))
            r = r + offset.transpose(1, 2)
        return r


class GruModulator(nn.Module):
    """An offset from a recurrent unit that sees r and the state, from a zero state; no Python loop over frames."""

    def __init__(self, config: GruModulatorConfig, neurons: int) -> None:
        super().__init__()
        self.state_encoder = nn.Sequential(nn.Linear(4, neurons), nn.Tanh(), nn.Dropout(config.dropout))
        self.gru = nn.GRU(neurons, config.hidden_dim, batch_first=True)
        self.decoder = nn.Linear(config.hidden_dim, neurons)

    def forward(self, r: Tensor, state: Tensor) -> Tensor:
        x = r.transpose(1, 2) + self.state_encoder(state.transpose(1, 2))
        return r + torch.tanh(self.decoder(gru(self.gru, x))).transpose(1, 2)


class MlpV2Modulator(nn.Module):
    """An offset from the recent values, the current one included, of r and of the four state variables."""

    def __init__(self, config: MlpV2ModulatorConfig) -> None:
        super().__init__()
        self.size = config.history_size + 1
        inputs = 5 * self.size
        self.encoder_in = nn.Linear(inputs, inputs // 2)
        self.dropout = nn.Dropout(config.history_dropout)
        self.encoder_out = nn.Linear(inputs // 2, 1)

    def forward(self, r: Tensor, state: Tensor) -> Tensor:
        # The state's part of the first product is the same for every neuron.
        of_r, of_state = self.encoder_in.weight.split((self.size, 4 * self.size), dim=1)
        past = history(state, self.size).transpose(1, 2).flatten(2)
        common = F.linear(past, of_state, self.encoder_in.bias)
        hidden = F.gelu(F.linear(history(r, self.size), of_r) + common[:, None])
        return r + torch.tanh(self.encoder_out(self.dropout(hidden))[..., 0])


class MlpV3Modulator(nn.Module):
    """An offset from the state of the same frame."""

    def __init__(self, config: MlpV3ModulatorConfig, neurons: int) -> None:
        super().__init__()
        activations = {"identity": nn.Identity(), "sigmoid": nn.Sigmoid(), "tanh": nn.Tanh()}
        self.linear = nn.Linear(4, neurons, bias=False)
        self.activation = activations[config.activation]
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, r: Tensor, state: Tensor) -> Tensor:
        return r + self.dropout(self.activation(self.linear(state.transpose(1, 2)))).transpose(1, 2)


def build_modulator(config: ModulatorConfig, neurons: int) -> nn.Module | None:
    """The modulator of one mouse, None for none."""
    match config:
        case MlpModulatorConfig():
            return MlpModulator(config, neurons)
        case GruModulatorConfig():
            return GruModulator(config, neurons)
        case MlpV2ModulatorConfig():
            return MlpV2Modulator(config)
        case MlpV3ModulatorConfig():
            return MlpV3Modulator(config, neurons)
    return None
