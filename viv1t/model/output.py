"""Output activations: from what a readout gives to responses."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def elu1(x: Tensor) -> Tensor:
    """ELU(x) + 1, positive."""
    return F.elu(x) + 1


class Elementwise(nn.Module):
    """A function without parameters."""

    def __init__(self, name: str, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.name, self.function = name, function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)

    def extra_repr(self) -> str:
        return self.name


class LearnableSoftplus(nn.Module):
    """log(1 + exp(b x)) / b with b = exp(log_beta), and x itself where b x is 20 or more."""

    THRESHOLD = 20

    def __init__(self) -> None:
        super().__init__()
        self.log_beta = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        beta = self.log_beta.exp()
        steep = x * beta
        # Cut before the exponential, whose gradient would not be finite where the branch is not taken.
        return torch.where(steep < self.THRESHOLD, F.softplus(steep.clamp_max(self.THRESHOLD)) / beta, x)


_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": torch.Tensor.clone, "elu": elu1, "exp": torch.exp, "softplus": F.softplus, "sigmoid": torch.sigmoid,
}  # fmt: skip


def build_output(name: str) -> nn.Module:
    """The activation `identity`, `elu` (plus 1), `exp`, `softplus`, `learnable_softplus` or `sigmoid`."""
    return LearnableSoftplus() if name == "learnable_softplus" else Elementwise(name, _FUNCTIONS[name])
