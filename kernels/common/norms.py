"""The norms of tokens, queries and keys: their definition, and a faster form with a backward of its own.

    layernorm   (x - mean) / sqrt(var + eps) * weight + bias
    rmsnorm     x / sqrt(mean(x^2) + eps) * weight
    dyt         tanh(alpha x) * weight + bias      (Zhu et al. 2025, "Transformers without normalization")

over the last dimension, computed in at least float32.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

NORMS = ("layernorm", "rmsnorm", "dyt")


class Norm(NamedTuple):
    """A norm's parameters, (width,) each, but alpha, (1,); and which one it is."""

    weight: Tensor
    bias: Tensor | None = None
    alpha: Tensor | None = None
    kind: str = "layernorm"
    eps: float = 1e-5

    @property
    def parameters(self) -> list[Tensor]:
        """Those that are given, in order."""
        return [p for p in self[:3] if p is not None]


def norm_of(weight: Tensor | None, bias: Tensor | None, alpha: Tensor | None, kind: str, eps: float) -> Norm | None:
    """The norm, None without a weight.

    Raises:
        ValueError: there is no such norm, or a parameter is missing or too much.
    """
    if weight is None:
        return None
    if kind not in NORMS:
        raise ValueError(f"a norm is one of {', '.join(NORMS)}, not {kind}")
    if (alpha is not None) != (kind == "dyt"):
        raise ValueError(f"{kind} has {'an' if kind == 'dyt' else 'no'} alpha")
    if kind == "rmsnorm" and bias is not None:
        raise ValueError("rmsnorm has no bias")
    return Norm(weight, bias, alpha, kind, eps)


def norm(x: Tensor, n: Norm | None) -> Tensor:
    """The definition; x (..., width), the result in its dtype."""
    if n is None:
        return x
    wide = torch.promote_types(x.dtype, torch.float32)
    weight, bias, alpha = (None if p is None else p.to(wide) for p in n[:3])
    y = x.to(wide)
    if n.kind == "layernorm":
        return F.layer_norm(y, n.weight.shape, weight, bias, n.eps).to(x.dtype)
    assert weight is not None
    if n.kind == "rmsnorm":
        y = y * (y.square().mean(-1, keepdim=True) + n.eps).rsqrt() * weight
    else:
        assert alpha is not None
        y = torch.tanh(alpha * y) * weight
    return (y if bias is None else y + bias).to(x.dtype)


class Normalised(NamedTuple):
    """What a norm gives, what it was given, and what its backward wants to know: of rows, or the tanh."""

    y: Tensor
    x: Tensor
    norm: Norm | None
    kept: tuple[Tensor, ...] = ()


def normalise(x: Tensor, n: Norm | None) -> Normalised:
    """As `norm`, and what `normalise_backward` needs."""
    if n is None:
        return Normalised(x, x, None)
    wide = torch.promote_types(x.dtype, torch.float32)
    weight, bias, alpha = (None if p is None else p.to(wide) for p in n[:3])
    rows = x.to(wide)
    if n.kind == "layernorm":
        y, mean, rstd = torch.native_layer_norm(rows, n.weight.shape, weight, bias, n.eps)
        return Normalised(y.to(x.dtype), x, n, (mean, rstd))
    assert weight is not None
    if n.kind == "rmsnorm":
        kept = rows.square().mean(-1, keepdim=True).add_(n.eps).rsqrt_()
        y = (rows * kept).mul_(weight)
    else:
        assert alpha is not None
        kept = torch.tanh(rows * alpha)
        y = kept * weight
    if bias is not None:
        y += bias
    return Normalised(y.to(x.dtype), x, n, (kept,))


def normalise_backward(grad: Tensor, n: Normalised) -> tuple[Tensor, list[Tensor]]:
    """Gradients of x, and of the norm's parameters in order, each in the dtype of what it belongs to."""
    if n.norm is None:
        return grad, []
    wide = torch.promote_types(n.x.dtype, torch.float32)
    weight, bias, alpha = (None if p is None else p.to(wide) for p in n.norm[:3])
    grad, x = grad.to(wide), n.x.to(wide)
    if n.norm.kind == "layernorm":
        dx, *found = torch.ops.aten.native_layer_norm_backward(
            grad, x, n.norm.weight.shape, *n.kept, weight, bias, [True, True, bias is not None]
        )
    else:
        assert weight is not None
        (kept,) = n.kept
        above = grad * weight
        width = grad.shape[-1]
        if n.norm.kind == "rmsnorm":
            standard = x * kept
            along = torch.linalg.vecdot(above, standard).unsqueeze(-1) / width
            dx = above.addcmul_(standard, along, value=-1).mul_(kept)
            found = [(grad * standard).reshape(-1, width).sum(0)]
        else:
            assert alpha is not None
            above.mul_(1 - kept.square())
            of_alpha = torch.linalg.vecdot(above.flatten(), x.flatten()).view(1)
            dx = above * alpha
            found = [(grad * kept).reshape(-1, width).sum(0), of_alpha]
        if bias is not None:
            found.insert(1, grad.reshape(-1, width).sum(0))
    found = [d for d in found if d is not None]
    return dx.to(n.x.dtype), [d.to(p.dtype) for d, p in zip(found, n.norm.parameters, strict=False)]
