"""The critic: tells from a core output which mouse it belongs to."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from viv1t.errors import ConfigError


def check_size(frames: int, rows: int, columns: int) -> None:
    """Raises a ConfigError for a core output that two unpadded convolutions and two poolings leave nothing of."""
    if min(frames, rows, columns) < 10:
        raise ConfigError(
            f"--critic_mode 1 needs core outputs of 10 x 10 x 10 at least, not {frames} x {rows} x {columns}"
        )


class Critic(nn.Module):
    """Two convolutions, then a classifier over mice.

    Args:
        hidden: channels.
        dropout: rate, of whole channels and of the classifier's hidden units.
        depth: D of the core's maps.
        mice: number of mice.
    """

    def __init__(self, hidden: int, dropout: float, depth: int, mice: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(depth, hidden, 3)
        self.batch_norm1 = nn.BatchNorm3d(hidden)
        self.conv2 = nn.Conv3d(hidden, hidden, 3)
        self.batch_norm2 = nn.BatchNorm3d(hidden)
        self.linear1 = nn.Linear(hidden, mice)
        self.linear2 = nn.Linear(mice, mice)
        self.rate = dropout

    def forward(self, maps: Tensor) -> Tensor:
        """maps (B, D, t, h, w) -> logits (B, mice); t, h and w are at least 10."""
        check_size(*maps.shape[2:])
        x = maps
        for conv, norm in ((self.conv1, self.batch_norm1), (self.conv2, self.batch_norm2)):
            x = norm(F.max_pool3d(F.gelu(conv(x)), 2))
            x = F.dropout3d(x, self.rate, self.training)
        x = F.gelu(self.linear1(x.mean(dim=(2, 3, 4))))
        logits: Tensor = self.linear2(F.dropout(x, self.rate, self.training))
        return logits
