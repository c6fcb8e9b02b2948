"""Normalisations of tokens, queries and keys, by name."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from viv1t.errors import ConfigError


class DynamicTanh(nn.Module):
    """tanh(alpha x) * weight + bias instead of a norm (Zhu et al. 2025, arXiv 2503.10622). x (..., size)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.full((1,), 0.5))
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.alpha * x) * self.weight + self.bias


def norm_eps(norm: nn.Module, x: Tensor) -> float:
    """What `norm` adds to a variance or a mean square of x."""
    eps = getattr(norm, "eps", 0.0)
    return torch.finfo(x.dtype).eps if eps is None else float(eps)


Norm = nn.LayerNorm | nn.RMSNorm | DynamicTanh


def build_norm(kind: str, size: int) -> Norm:
    """`layernorm` (eps 1e-5), `rmsnorm` (eps the machine epsilon of what it is given) or `dyt`, over `size` values.

    Raises:
        ConfigError: another kind.
    """
    match kind:
        case "layernorm":
            return nn.LayerNorm(size)
        case "rmsnorm":
            return nn.RMSNorm(size)
        case "dyt":
            return DynamicTanh(size)
    raise ConfigError(f"--core_norm must be one of layernorm, rmsnorm, dyt, not {kind!r}")
