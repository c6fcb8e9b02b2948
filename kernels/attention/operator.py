"""The operator `viv1t::attention`: softmax attention over packed queries, keys and values, with output dropout.

`packed` is read in place by its strides, so it may be the first columns of a wider projection, or transposed. Kept for
the backward are `packed`, the result and one number per row and head; scores, weights, masks and normalised queries and
keys are computed again. GPUs run the Triton kernels of `triton.py`, everything else, and what those do not
take, runs `cpu.py`.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..common.dispatch import takes_kernels
from ..common.dropout import new_seed
from ..common.exporting import is_exporting
from ..common.norms import norm_of
from . import cpu, reference
from .rotary import Rotary
from .settings import Settings


def attention(
    packed: Tensor,
    heads: int,
    head_dim: int,
    scale: float,
    *,
    q_weight: Tensor | None = None,
    q_bias: Tensor | None = None,
    q_alpha: Tensor | None = None,
    k_weight: Tensor | None = None,
    k_bias: Tensor | None = None,
    k_alpha: Tensor | None = None,
    norm_kind: str = "layernorm",
    norm_eps: float = 1e-5,
    rotary: Rotary | None = None,
    causal: bool = False,
    dropout: float = 0.0,
    seed: Tensor | None = None,
) -> Tensor:
    """softmax(scale q k') v of each sequence and head, then dropout.

    Args:
        packed: (S, L, W) with queries, keys and values in its first 3 * heads * head_dim columns, each (heads,
            head_dim).
        heads, head_dim: head sizes that are multiples of 16 up to 128 are fast on a GPU.
        scale: of the scores.
        q_weight, q_bias, k_weight, k_bias: (heads * head_dim,) of a norm of all heads' queries and keys together, or
            None.
        q_alpha, k_alpha: (1,) of `dyt`.
        norm_kind, norm_eps: which norm (`common/norms.py`).
        rotary: (L, head_dim / 2) tables that turn queries and keys after the norm; no gradient flows into them.
        causal: a row sees itself and what comes before; nothing above the diagonal is computed.
        dropout: probability of an element of the result being 0; the others are divided by 1 - dropout.
        seed: (1,) int64 on the same device that decides which; drawn here if None.

    Returns:
        (S, L, heads * head_dim) in the dtype of `packed`.

    Raises:
        ValueError: `packed` is too narrow, a table has another shape, or a norm another parameter.
    """
    width = 3 * heads * head_dim
    if packed.ndim != 3 or packed.shape[2] < width:
        raise ValueError(f"packed must be (S, L, {width} or more), not {tuple(packed.shape)}")
    check_rotary(rotary, packed.shape[1], head_dim)
    if is_exporting():
        return reference.attention(
            packed, heads, head_dim, scale, q_weight=q_weight, q_bias=q_bias, q_alpha=q_alpha, k_weight=k_weight,
            k_bias=k_bias, k_alpha=k_alpha, norm_kind=norm_kind, norm_eps=norm_eps, rotary=rotary, causal=causal,
            dropout=dropout, seed=seed,
        )  # fmt: skip
    if dropout and seed is None:
        seed = new_seed(packed.device)
    out, _ = _forward(
        packed[..., :width], q_weight, q_bias, q_alpha, k_weight, k_bias, k_alpha, *(rotary or (None, None)),
        seed if dropout else None, heads, head_dim, scale, causal, dropout, norm_kind, norm_eps,
    )  # fmt: skip
    return out


def check_rotary(rotary: Rotary | None, length: int, head_dim: int) -> None:
    """Raises ValueError where tables do not fit."""
    if rotary is None:
        return
    if head_dim % 2:
        raise ValueError(f"rotary positions turn pairs of a head's columns: its size must be even, not {head_dim}")
    if {tuple(table.shape) for table in rotary} != {(length, head_dim // 2)}:
        shapes = " and ".join(str(tuple(table.shape)) for table in rotary)
        raise ValueError(f"rotary tables must be (L, d / 2) = {(length, head_dim // 2)}, not {shapes}")


def implementation(packed: Tensor, head_dim: int) -> ModuleType:
    """The module with `forward` and `backward` (see `settings.py`) for these inputs."""
    fits = head_dim % 16 == 0 and head_dim <= 128
    limit = None if fits else f"kernels take head sizes that are multiples of 16 up to 128, not {head_dim}"
    if takes_kernels("attention", packed.device, packed.dtype, limit):
        from . import triton

        return triton
    return cpu


def _settings(
    norms: tuple[Tensor | None, ...], cos: Tensor | None, sin: Tensor | None, seed: Tensor | None, heads: int,
    head_dim: int, scale: float, causal: bool, dropout: float, norm_kind: str, norm_eps: float,
) -> Settings:  # fmt: skip
    """The operator's arguments as implementations take them."""
    q_weight, q_bias, q_alpha, k_weight, k_bias, k_alpha = norms
    q_norm = norm_of(q_weight, q_bias, q_alpha, norm_kind, norm_eps)
    k_norm = norm_of(k_weight, k_bias, k_alpha, norm_kind, norm_eps)
    rotary = None if cos is None or sin is None else Rotary(cos, sin)
    return Settings(heads, head_dim, scale, causal, dropout, seed, q_norm, k_norm, rotary)


@torch.library.custom_op("viv1t::attention", mutates_args=())
def _forward(
    packed: Tensor,
    q_weight: Tensor | None,
    q_bias: Tensor | None,
    q_alpha: Tensor | None,
    k_weight: Tensor | None,
    k_bias: Tensor | None,
    k_alpha: Tensor | None,
    cos: Tensor | None,
    sin: Tensor | None,
    seed: Tensor | None,
    heads: int,
    head_dim: int,
    scale: float,
    causal: bool,
    dropout: float,
    norm_kind: str,
    norm_eps: float,
) -> tuple[Tensor, Tensor]:
    """The result, and the sums of its rows (S, heads, L); see `settings.py`."""
    norms = (q_weight, q_bias, q_alpha, k_weight, k_bias, k_alpha)
    settings = _settings(norms, cos, sin, seed, heads, head_dim, scale, causal, dropout, norm_kind, norm_eps)
    return implementation(packed, head_dim).forward(packed, settings)


@_forward.register_fake
def _(packed: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    sequences, length = packed.shape[:2]
    heads, head_dim = rest[9:11]
    wide = torch.promote_types(packed.dtype, torch.float32)
    out = packed.new_empty(sequences, length, heads * head_dim)
    return out, packed.new_empty(sequences, heads, length, dtype=wide)


@torch.library.custom_op("viv1t::attention_backward", mutates_args=())
def _backward(
    grad: Tensor,
    packed: Tensor,
    out: Tensor,
    sums: Tensor,
    q_weight: Tensor | None,
    q_bias: Tensor | None,
    q_alpha: Tensor | None,
    k_weight: Tensor | None,
    k_bias: Tensor | None,
    k_alpha: Tensor | None,
    cos: Tensor | None,
    sin: Tensor | None,
    seed: Tensor | None,
    heads: int,
    head_dim: int,
    scale: float,
    causal: bool,
    dropout: float,
    norm_kind: str,
    norm_eps: float,
) -> list[Tensor]:
    """Gradients of `packed` (S, L, 3 * heads * head_dim) and of each parameter of a norm that is given, in order."""
    norms = (q_weight, q_bias, q_alpha, k_weight, k_bias, k_alpha)
    settings = _settings(norms, cos, sin, seed, heads, head_dim, scale, causal, dropout, norm_kind, norm_eps)
    grad_packed = packed.new_empty(packed.shape)
    backward = implementation(packed, head_dim).backward
    return [grad_packed, *backward(grad, packed, out, sums, settings, grad_packed)]


@_backward.register_fake
def _(grad: Tensor, packed: Tensor, out: Tensor, sums: Tensor, *rest: Any) -> list[Tensor]:
    return [packed.new_empty(packed.shape), *(torch.empty_like(p) for p in rest[:6] if p is not None)]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    packed, *others = inputs[:10]  # norms, tables, seed
    ctx.save_for_backward(packed, *output, *others)
    ctx.settings = inputs[10:]
    ctx.set_materialize_grads(False)


def _autograd(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    nothing = (None,) * (3 + len(ctx.settings))  # tables, seed, settings
    if grad is None:
        return (None,) * 7 + nothing
    packed, out, sums, *others = ctx.saved_tensors
    grad_packed, *found = _backward(grad, packed, out, sums, *others, *ctx.settings)
    return grad_packed, *(None if p is None else found.pop(0) for p in others[:6]), *nothing


_forward.register_autograd(_autograd, setup_context=_setup_context)
