"""The critic: tells from a core output which mouse it belongs to."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from viv1t.config import CriticConfig
from viv1t.errors import ConfigError


class Critic(nn.Module):
    """Two convolutions, then a classifier over mice.

    Args:
        config: its options.
        depth: D of the core's maps.
        mice: number of mice.
    """

    def __init__(self, config: CriticConfig, depth: int, mice: int) -> None:
        super().__init__()
        hidden = config.hidden_dim
        self.conv1 = nn.Conv3d(depth, hidden, 3)
        self.batch_norm1 = nn.BatchNorm3d(hidden)
        self.conv2 = nn.Conv3d(hidden, hidden, 3)
        self.batch_norm2 = nn.BatchNorm3d(hidden)
        self.linear1 = nn.Linear(hidden, mice)
        self.linear2 = nn.Linear(mice, mice)
        self.rate = config.dropout

    def forward(self, maps: Tensor) -> Tensor:
        """maps (B, D, t, h, w) -> logits (B, mice); t, h and w are at least 10."""
        if min(maps.shape[2:]) < 10:
            found = " x ".join(map(str, maps.shape[2:]))  # frames, rows, columns
            raise ConfigError(f"--critic_mode 1 needs core outputs of 10 x 10 x 10 at least, not {found}")
        x = maps
        for conv, norm in ((self.conv1, self.batch_norm1), (self.conv2, self.batch_norm2)):
            x = norm(F.max_pool3d(F.gelu(conv(x)), 2))
            x = F.dropout3d(x, self.rate, self.training)
        x = F.gelu(self.linear1(x.mean(dim=(2, 3, 4))))
        logits: Tensor = self.linear2(F.dropout(x, self.rate, self.training))
        return logits
