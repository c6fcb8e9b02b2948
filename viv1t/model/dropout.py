"""Dropout whose mask is cheap to draw on a CPU."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _MaskedScale(torch.autograd.Function):
    """x * mask * scale, keeping only the boolean mask for the backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(mask)
        ctx.scale = scale
        return torch.ops.aten.native_dropout_backward(x, mask, scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (mask,) = ctx.saved_tensors
        return torch.ops.aten.native_dropout_backward(grads[0], mask, ctx.scale), None, None


def keep_mask(shape: torch.Size, rate: float) -> Tensor:
    """A boolean CPU mask, True with probability 1 - rate to within 2**-17.

    PyTorch draws one Bernoulli number at a time on a CPU, about 10 ns each; four 16-bit numbers out of each 64 bits of
    the same generator are several times faster, and as reproducible.
    """
    count = shape.numel()
    bits = torch.empty((count + 3) // 4, dtype=torch.int64).random_(-(2**63), None)  # type: ignore[arg-type]
    threshold = round(rate * 65536) - 32768
    return (bits.view(torch.int16)[:count] >= threshold).view(shape)


class Dropout(nn.Module):
    """Zeroes elements with probability `rate` in training and divides the others by 1 - rate."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        if x.device.type != "cpu" or self.rate >= 1 or torch.compiler.is_compiling():
            return F.dropout(x, self.rate)
        y: Tensor = _MaskedScale.apply(x, keep_mask(x.shape, self.rate), 1 / (1 - self.rate))  # type: ignore[no-untyped-call]
        return y

    def extra_repr(self) -> str:
        return f"rate={self.rate}"
