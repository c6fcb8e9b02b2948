"""Modulators: how the animal's state and a neuron's own history change the readout's output before the activation.

All take r (B, N, t) and state (B, 4, t), behavior and pupil_center, and give (B, N, t).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from viv1t.kernels.recurrent import gru


def history(x: Tensor, size: int) -> Tensor:
    """The last `size` values up to and including each frame, oldest first, zero padded: (..., t, size)."""
    return F.pad(x, (size - 1, 0)).unfold(-1, size, 1)


class MlpModulator(nn.Module):
    """A gain from the values before the current frame, then an offset from the state.

    Args:
        neurons: N.
        history: frames of r that the gain sees; 0 for no gain.
        state: how many of the four state variables the offset sees; 0 for no offset.
        history_dropout, state_dropout: rates of dropout in the gain's, and in the offset's, hidden units.
    """

    def __init__(
        self, neurons: int, history: int, state: int, history_dropout: float = 0.0, state_dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.size, self.state_first = history, state
        self.history_encoder = self.behavior_encoder = None
        if history:
            self.history_encoder = nn.Sequential(
                nn.Linear(history, history), nn.GELU(), nn.Dropout(history_dropout), nn.Linear(history, 1)
            )
        if state:
            self.behavior_encoder = nn.Sequential(
                nn.Linear(state, state), nn.GELU(), nn.Dropout(state_dropout), nn.Linear(state, neurons)
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
    """An offset from a recurrent unit that sees r and the state, from a zero state; no Python loop over frames.

    Args:
        neurons: N.
        hidden_dim: units of the recurrence.
        dropout: rate, of the state's encoding.
    """

    def __init__(self, neurons: int, hidden_dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.state_encoder = nn.Sequential(nn.Linear(4, neurons), nn.Tanh(), nn.Dropout(dropout))
        self.gru = nn.GRU(neurons, hidden_dim, batch_first=True)
        self.decoder = nn.Linear(hidden_dim, neurons)

    def forward(self, r: Tensor, state: Tensor) -> Tensor:
        x = r.transpose(1, 2) + self.state_encoder(state.transpose(1, 2))
        return r + torch.tanh(self.decoder(gru(self.gru, x))).transpose(1, 2)


class MlpV2Modulator(nn.Module):
    """An offset from the recent values, the current one included, of r and of the four state variables.

    Args:
        history: frames before the current one.
        dropout: rate, of the hidden units.
    """

    def __init__(self, history: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.size = history + 1
        inputs = 5 * self.size
        self.encoder_in = nn.Linear(inputs, inputs // 2)
        self.dropout = nn.Dropout(dropout)
        self.encoder_out = nn.Linear(inputs // 2, 1)

    def forward(self, r: Tensor, state: Tensor) -> Tensor:
        # The state's part of the first product is the same for every neuron.
        of_r, of_state = self.encoder_in.weight.split((self.size, 4 * self.size), dim=1)
        past = history(state, self.size).transpose(1, 2).flatten(2)
        common = F.linear(past, of_state, self.encoder_in.bias)
        hidden = F.gelu(F.linear(history(r, self.size), of_r) + common[:, None])
        return r + torch.tanh(self.encoder_out(self.dropout(hidden))[..., 0])


class MlpV3Modulator(nn.Module):
    """An offset from the state of the same frame.

    Args:
        neurons: N.
        activation: of the offset: identity, sigmoid or tanh.
        dropout: rate, of the offset.
    """

    def __init__(self, neurons: int, activation: str, dropout: float = 0.0) -> None:
        super().__init__()
        activations = {"identity": nn.Identity(), "sigmoid": nn.Sigmoid(), "tanh": nn.Tanh()}
        self.linear = nn.Linear(4, neurons, bias=False)
        self.activation = activations[activation]
        self.dropout = nn.Dropout(dropout)

    def forward(self, r: Tensor, state: Tensor) -> Tensor:
        return r + self.dropout(self.activation(self.linear(state.transpose(1, 2)))).transpose(1, 2)
