"""Inputs, and the definition in float64, that attention's implementations are compared with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from rounding import allowed
from torch import Tensor
from viv1t.kernels.attention.reference import attention
from viv1t.kernels.attention.rotary import Rotary, rotary_tables, rotate
from viv1t.kernels.attention.settings import Settings
from viv1t.kernels.common.norms import Norm, norm


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
        return self.settings.norm_parameters

    def options(self, parameters: Sequence[Tensor]) -> dict[str, Any]:
        """Arguments of `attention` about norms, of these parameters, and positions."""
        names = [
            f"{side}_{name}"
            for side, n in (("q", self.settings.q_norm), ("k", self.settings.k_norm))
            for name in ("weight", "bias", "alpha")
            if n is not None and getattr(n, name) is not None
        ]
        given: dict[str, Any] = dict(zip(names, parameters, strict=True))
        if self.settings.q_norm is not None:
            given |= {"norm_kind": self.settings.q_norm.kind, "norm_eps": self.settings.q_norm.eps}
        return given | {"rotary": self.settings.rotary}

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
        options = dict(causal=s.causal, dropout=s.dropout, seed=s.seed, **self.options(parameters))
        out = attention(packed, s.heads, s.head_dim, s.scale, **options)
        gradients = torch.autograd.grad(out, [packed, *parameters], self.grad.double())
        return out.detach(), self._lse(), joined(gradients)

    def _lse(self) -> Tensor:
        s = self.settings
        q, k = self.packed.double().split(s.inner, dim=-1)[:2]
        q, k = (rotate(norm(x, n), s.rotary, s.heads) for x, n in ((q, s.q_norm), (k, s.k_norm)))
        q, k = (x.unflatten(-1, (s.heads, s.head_dim)).transpose(1, 2) for x in (q, k))
        scores = s.scale * q @ k.transpose(-1, -2)
        if s.causal:
            scores = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), float("-inf"))
        return scores.logsumexp(-1)

    def to(self, device: torch.device) -> Case:
        s = self.settings
        q_norm, k_norm = (
            None if n is None else Norm(*(None if p is None else p.to(device) for p in n[:3]), *n[3:])  # type: ignore[arg-type]
            for n in (s.q_norm, s.k_norm)
        )
        seed = None if s.seed is None else s.seed.to(device)
        rotary = None if s.rotary is None else Rotary(*(table.to(device) for table in s.rotary))
        settings = s._replace(q_norm=q_norm, k_norm=k_norm, seed=seed, rotary=rotary)
        return replace(self, packed=self.packed.to(device), grad=self.grad.to(device), settings=settings)


def drawn_tables(length: int, head_dim: int, registers: int, dtype: torch.dtype) -> Rotary:
    """The published positions, with a scale that is felt in short sequences too."""
    i = torch.arange(head_dim // 2, dtype=torch.float64)
    inv_freq, scale = 10000 ** (-2 * i / head_dim), (2 * i + 0.4 * head_dim) / (1.4 * head_dim)
    positions = 3 * torch.arange(length - registers)
    tables = rotary_tables(positions, inv_freq, scale, centre=length // 2, registers=registers)
    wide = torch.promote_types(dtype, torch.float32)
    return Rotary(*(table.to(wide) for table in tables))


def make_case(
    sequences: int = 2,
    length: int = 37,
    heads: int = 2,
    head_dim: int = 16,
    dtype: torch.dtype = torch.float32,
    causal: bool = False,
    dropout: float = 0.0,
    norm: bool = False,
    kind: str = "layernorm",
    rotary: bool = False,
    registers: int = 0,
    layout: str = "plain",
    sharpness: float = 1.0,
) -> Case:
    """A case drawn from a fixed seed.

    Args:
        kind: of the norm.
        rotary, registers: whether there are positions, and how many of the last tokens have none.
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
        q_norm, k_norm = (
            Norm(
                weight, None if kind == "rmsnorm" else bias,
                torch.tensor([0.7], dtype=dtype) if kind == "dyt" else None, kind, 1e-3,
            )
            for weight, bias in (
                (1 + 0.3 * torch.randn(2, inner, generator=generator)).to(dtype) for _ in "qk"
            )
        )  # fmt: skip
    seed = torch.tensor([2**40 + length]) if dropout else None
    tables = drawn_tables(length, head_dim, registers, dtype) if rotary else None
    settings = Settings(heads, head_dim, sharpness * head_dim**-0.5, causal, dropout, seed, q_norm, k_norm, tables)
    return Case(packed, grad, settings)


def errors(found: Sequence[Tensor], expected: Sequence[Tensor]) -> list[float]:
    """Relative error of each, sqrt(sum (a - b)**2 / sum b**2); infinite for NaN."""
    differences = [((a.double().cpu() - b).norm() / b.norm()).item() for a, b in zip(found, expected, strict=True)]
    return [float("inf") if math.isnan(d) else d for d in differences]
