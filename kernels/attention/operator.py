"""The operator `viv1t::attention`: softmax attention over packed queries, keys and values, with output dropout.

`packed` is read in place by its strides, so it may be the first columns of a wider projection, or transposed. Kept for
the backward are `packed`, the result and one number per row and head; scores, weights, masks and normalised queries and
keys are computed again. GPUs run the Triton kernels of `triton.py`, everything else, and what those do not
take, runs `cpu.py`.
"""

from __future__ import annotations

import importlib.util
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..common.dropout import new_seed
from ..common.exporting import is_exporting
from . import cpu, reference
from .settings import Norm, Settings


def attention(
    packed: Tensor,
    heads: int,
    head_dim: int,
    scale: float,
    *,
    q_weight: Tensor | None = None,
    q_bias: Tensor | None = None,
    k_weight: Tensor | None = None,
    k_bias: Tensor | None = None,
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
        q_weight, q_bias, k_weight, k_bias: (heads * head_dim,) of a LayerNorm (eps 1e-5) of all heads' queries and
            keys together, or None.
        causal: a row sees itself and what comes before.
        dropout: probability of an element of the result being 0; the others are divided by 1 - dropout.
        seed: (1,) int64 on the same device that decides which; drawn here if None.

    Returns:
        (S, L, heads * head_dim) in the dtype of `packed`.

    Raises:
        ValueError: `packed` is too narrow.
    """
    width = 3 * heads * head_dim
    if packed.ndim != 3 or packed.shape[2] < width:
        raise ValueError(f"packed must be (S, L, {width} or more), not {tuple(packed.shape)}")
    if is_exporting():
        norms: dict[str, Any] = {"q_weight": q_weight, "q_bias": q_bias, "k_weight": k_weight, "k_bias": k_bias}
        return reference.attention(packed, heads, head_dim, scale, causal=causal, dropout=dropout, seed=seed, **norms)
    if dropout and seed is None:
        seed = new_seed(packed.device)
    out, _ = _forward(
        packed[..., :width], q_weight, q_bias, k_weight, k_bias, seed if dropout else None,
        heads, head_dim, scale, causal, dropout,
    )  # fmt: skip
    return out


def _norm(weight: Tensor | None, bias: Tensor | None) -> Norm | None:
    return None if weight is None else Norm(weight, bias)


def implementation(packed: Tensor, head_dim: int) -> ModuleType:
    """The module with `forward` and `backward` (see `settings.py`) for these inputs."""
    kernels = packed.is_cuda and packed.dtype != torch.float64 and head_dim % 16 == 0 and head_dim <= 128
    if kernels and importlib.util.find_spec("triton") is not None:
        from . import triton

        return triton
    return cpu


@torch.library.custom_op("viv1t::attention", mutates_args=())
def _forward(
    packed: Tensor,
    q_weight: Tensor | None,
    q_bias: Tensor | None,
    k_weight: Tensor | None,
    k_bias: Tensor | None,
    seed: Tensor | None,
    heads: int,
    head_dim: int,
    scale: float,
    causal: bool,
    dropout: float,
) -> tuple[Tensor, Tensor]:
    """The result, and the sums of its rows (S, heads, L); see `settings.py`."""
    norms = _norm(q_weight, q_bias), _norm(k_weight, k_bias)
    settings = Settings(heads, head_dim, scale, causal, dropout, seed, *norms)
    return implementation(packed, head_dim).forward(packed, settings)


@_forward.register_fake
def _(
    packed: Tensor,
    q_weight: Any,
    q_bias: Any,
    k_weight: Any,
    k_bias: Any,
    seed: Any,
    heads: int,
    head_dim: int,
    *_: Any,
) -> tuple[Tensor, Tensor]:
    sequences, length = packed.shape[:2]
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
    k_weight: Tensor | None,
    k_bias: Tensor | None,
    seed: Tensor | None,
    heads: int,
    head_dim: int,
    scale: float,
    causal: bool,
    dropout: float,
) -> list[Tensor]:
    """Gradients of `packed` (S, L, 3 * heads * head_dim) and of each weight and bias that is given, in order."""
    norms = _norm(q_weight, q_bias), _norm(k_weight, k_bias)
    settings = Settings(heads, head_dim, scale, causal, dropout, seed, *norms)
    grad_packed = packed.new_empty(packed.shape)
    backward = implementation(packed, head_dim).backward
    return [grad_packed, *backward(grad, packed, out, sums, settings, grad_packed)]


@_backward.register_fake
def _(
    grad: Tensor, packed: Tensor, out: Tensor, sums: Tensor, q_weight: Any, q_bias: Any, k_weight: Any, k_bias: Any,
    *_: Any,
) -> list[Tensor]:  # fmt: skip
    given = [p for p in (q_weight, q_bias, k_weight, k_bias) if p is not None]
    return [packed.new_empty(packed.shape), *(torch.empty_like(p) for p in given)]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    packed, *weights_and_seed = inputs[:6]
    ctx.save_for_backward(packed, *output, *weights_and_seed)
    ctx.settings = inputs[6:]
    ctx.set_materialize_grads(False)


def _autograd(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 11
    packed, out, sums, *weights_and_seed = ctx.saved_tensors
    grad_packed, *others = _backward(grad, packed, out, sums, *weights_and_seed, *ctx.settings)
    weights = [None if p is None else others.pop(0) for p in weights_and_seed[:4]]
    return grad_packed, *weights, *(None,) * 6


_forward.register_autograd(_autograd, setup_context=_setup_context)
