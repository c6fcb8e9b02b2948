"""Inputs, and the definition in float64, that attention's implementations are compared with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from rounding import allowed
from torch import Tensor
from viv1t.kernels.attention.reference import attention
from viv1t.kernels.attention.settings import Norm, Settings


def joined(gradients: Sequence[Tensor]) -> list[Tensor]:
    """The gradient of packed, and those of all the norms' parameters as one vector, if there are any.

    That of the keys' bias is 0 and has no relative error of its own.
    """
    packed, *parameters = gradients
    return [packed, *([torch.cat(parameters)] if parameters else [])]


@dataclass
class Case:
    """packed (S, L, 3 * inner) of any strides, the gradient of the result, and what attention is given besides."""

    packed: Tensor
    grad: Tensor
    settings: Settings

    def norm_parameters(self) -> list[Tensor]:
        norms = (self.settings.q_norm, self.settings.k_norm)
        return [p for norm in norms if norm is not None for p in norm if p is not None]

    def tolerance(self) -> float:
        """What rounding may change in result, log-sum-exp and gradients, relative to their norms."""
        s, length = self.settings, self.packed.shape[1]
        norms = (s.inner, s.inner) if s.q_norm is not None else ()
        return allowed(self.packed.dtype, *2 * (*norms, s.head_dim, length, length))  # forward and backward

    def expected(self) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Result, log-sum-exp and gradients (see `joined`), by the definition in float64."""
        s = self.settings
        packed = self.packed.double().requires_grad_()
        parameters = [p.double().requires_grad_() for p in self.norm_parameters()]
        q_norm, k_norm = (Norm(*parameters[:2]), Norm(*parameters[2:])) if parameters else (None, None)
        names: dict[str, Tensor | None] = {}
        if q_norm and k_norm:
            names = {"q_weight": q_norm.weight, "q_bias": q_norm.bias, "k_weight": k_norm.weight, "k_bias": k_norm.bias}
        options = dict(causal=s.causal, dropout=s.dropout, seed=s.seed, **names)
        out = attention(packed, s.heads, s.head_dim, s.scale, **options)  # type: ignore[arg-type]
        gradients = torch.autograd.grad(out, [packed, *parameters], self.grad.double())
        return out.detach(), self._lse(), joined(gradients)

    def _lse(self) -> Tensor:
        s = self.settings
        q, k = self.packed.double().split(s.inner, dim=-1)[:2]
        if s.q_norm and s.k_norm:
            q, k = (torch.nn.functional.layer_norm(x, (s.inner,), *(p.double() for p in norm if p is not None))
                    for x, norm in ((q, s.q_norm), (k, s.k_norm)))  # fmt: skip
        q, k = (x.unflatten(-1, (s.heads, s.head_dim)).transpose(1, 2) for x in (q, k))
        scores = s.scale * q @ k.transpose(-1, -2)
        if s.causal:
            scores = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), float("-inf"))
        return scores.logsumexp(-1)

    def to(self, device: torch.device) -> Case:
        s = self.settings
        q_norm, k_norm = (None if n is None else Norm(*(p.to(device) for p in n)) for n in (s.q_norm, s.k_norm))  # type: ignore[union-attr]
        seed = None if s.seed is None else s.seed.to(device)
        settings = s._replace(q_norm=q_norm, k_norm=k_norm, seed=seed)
        return replace(self, packed=self.packed.to(device), grad=self.grad.to(device), settings=settings)


def make_case(
    sequences: int = 2,
    length: int = 37,
    heads: int = 2,
    head_dim: int = 16,
    dtype: torch.dtype = torch.float32,
    causal: bool = False,
    dropout: float = 0.0,
    norm: bool = False,
    layout: str = "plain",
    sharpness: float = 1.0,
) -> Case:
    """A case drawn from a fixed seed.

    Args:
        layout: `plain`, `wide` (first columns of a wider matrix, as in a parallel block), `frames` (sequences are the
            inner axis of memory), or `odd` (a width that nothing divides).
        sharpness: factor of the scores.
    """
    generator = torch.Generator().manual_seed(length * head_dim + causal)
    inner = heads * head_dim
    more = {"plain": 0, "wide": 24, "frames": 8, "odd": 5}[layout]
    shape = (length, sequences) if layout == "frames" else (sequences, length)
    packed = torch.randn(*shape, 3 * inner + more, generator=generator)
    packed = (packed.transpose(0, 1) if layout == "frames" else packed).to(dtype)[..., : 3 * inner]
    grad = torch.randn(sequences, length, inner, generator=generator).to(dtype)
    q_norm, k_norm = None, None
    if norm:
        q_norm, k_norm = (Norm(*(1 + 0.3 * torch.randn(2, inner, generator=generator)).to(dtype)) for _ in "qk")
    seed = torch.tensor([2**40 + length]) if dropout else None
    settings = Settings(heads, head_dim, sharpness * head_dim**-0.5, causal, dropout, seed, q_norm, k_norm)
    return Case(packed, grad, settings)


def errors(found: Sequence[Tensor], expected: Sequence[Tensor]) -> list[float]:
    """Relative error of each, sqrt(sum (a - b)**2 / sum b**2); infinite for NaN."""
    differences = [((a.double().cpu() - b).norm() / b.norm()).item() for a, b in zip(found, expected, strict=True)]
    return [float("inf") if math.isnan(d) else d for d in differences]
