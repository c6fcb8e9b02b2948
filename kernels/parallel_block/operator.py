"""The operator `viv1t::parallel_block`: a Transformer block with attention and feed-forward side by side, whole.

In training it keeps its input, and, where memory is to buy time, the fused projection and the attention's result. Masks
are drawn again from the seed. GPUs run the Triton kernels of `triton.py`, CPUs `cpu.py`.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..attention.operator import attention, check_rotary
from ..attention.rotary import Rotary
from ..common.activations import ACTIVATIONS
from ..common.dispatch import takes_kernels
from ..common.dropout import new_seed
from ..common.exporting import is_exporting
from ..common.precision import allows_tf32
from ..common.tiles import parallel_block_memory
from . import cpu, reference
from .settings import BlockSettings, BlockWeights, norms_of

__all__ = ["BlockSettings", "BlockWeights", "parallel_block"]

_WEIGHTS = len(BlockWeights._fields)
# A program of a GPU holds rows of D values whole.
_LARGEST_DEPTH = 256


def parallel_block(
    x: Tensor,
    weights: BlockWeights,
    settings: BlockSettings,
    *,
    rotary: Rotary | None = None,
    keep: bool = False,
    seed: Tensor | None = None,
) -> Tensor:
    """The block's result for x (S, L, D), in its dtype; `reference.py` defines it.

    The GPU's kernels take half precision, and float32 where PyTorch may multiply it as TF32, for D up to 256. Others,
    bound by arithmetic there, run as the definition around the operator `viv1t::attention`; where the model is
    exported, the definition runs as it stands.

    Args:
        x: (S, L, D) of any strides.
        weights: of the block.
        settings: of the block; rates of 0 drop nothing.
        rotary: (L, d / 2) tables of positions (`attention/rotary.py`); no gradient flows into them.
        keep: keep the fused projection and the attention's result for the backward rather than compute them again.
        seed: (1,) int64 on the same device that decides what the operator drops; drawn here if None and needed. The
            same seed drops other elements on a GPU than on a CPU.

    Raises:
        ValueError: weights, tables and settings do not fit each other.
    """
    check_rotary(rotary, x.shape[1], weights.inner // settings.heads)
    _check(weights, settings)
    if is_exporting():
        masks = reference.draw(x, weights, settings, True)
        return reference.parallel_block(x, weights, settings, masks, rotary=rotary)
    if not _takes(x, settings):
        if keep or not torch.is_grad_enabled():
            return around_attention(x, weights, settings, rotary)
        y: Tensor = checkpoint(around_attention, x, weights, settings, rotary, use_reentrant=False)
        return y
    if seed is None and settings.drops:
        seed = new_seed(x.device)
    return _forward(x, *weights, *(rotary or (None, None)), seed, *settings, keep)[0]


def _check(weights: BlockWeights, settings: BlockSettings) -> None:
    if settings.activation not in ACTIVATIONS:
        raise ValueError(f"an activation is one of {', '.join(ACTIVATIONS)}, not {settings.activation}")
    hidden = weights.mlp * (2 if settings.swiglu else 1)
    if weights.widths[3] != hidden:
        found, width = len(weights.fused), 3 * weights.inner + hidden
        raise ValueError(f"with {settings.activation}, the fused weight has {width} rows, not {found}")
    norms_of(weights, settings)


def _takes(x: Tensor, settings: BlockSettings) -> bool:
    """Whether the operator takes these inputs."""
    if x.device.type == "cpu":
        return True
    if settings.dtype == torch.float32 and not allows_tf32():
        return False  # a product without tensor cores is no slower on its own
    depth = x.shape[2]
    limit = None if depth <= _LARGEST_DEPTH else f"kernels take up to {_LARGEST_DEPTH} values a token, not {depth}"
    dtype = torch.promote_types(x.dtype, settings.dtype)
    return takes_kernels("parallel_block", x.device, dtype, limit, parallel_block_memory(depth, settings.dtype))


def _implementation(device: torch.device) -> ModuleType:
    """The module with what `settings.py` lists."""
    if device.type == "cpu":
        return cpu
    from . import triton

    return triton


def around_attention(x: Tensor, weights: BlockWeights, settings: BlockSettings, rotary: Rotary | None = None) -> Tensor:
    """The block as plain operations around the attention's operator, which keeps neither scores nor masks."""

    def attend(packed: Tensor) -> Tensor:
        return attention(
            packed, settings.heads, weights.inner // settings.heads, settings.scale, rotary=rotary,
            causal=settings.causal, dropout=settings.attention_dropout, **reference.attention_norms(weights, settings),
        )  # fmt: skip

    return reference.parallel_block(x, weights, settings, reference.draw(x, weights, settings, False), attend)


@torch.library.custom_op("viv1t::parallel_block", mutates_args=())
def _forward(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor | None,
    fused: Tensor,
    attention_out: Tensor,
    ff_out: Tensor,
    q_weight: Tensor | None,
    q_bias: Tensor | None,
    k_weight: Tensor | None,
    k_bias: Tensor | None,
    norm_alpha: Tensor | None,
    q_alpha: Tensor | None,
    k_alpha: Tensor | None,
    cos: Tensor | None,
    sin: Tensor | None,
    seed: Tensor | None,
    heads: int,
    scale: float,
    attention_dropout: float,
    ff_dropout: float,
    drop_path: float,
    eps: float,
    dtype: torch.dtype,
    activation: str,
    norm: str,
    causal: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The result, and three that the backward needs, empty unless `keep`."""
    weights = BlockWeights(
        norm_weight, norm_bias, fused, attention_out, ff_out, q_weight, q_bias, k_weight, k_bias,
        norm_alpha, q_alpha, k_alpha,
    )  # fmt: skip
    settings = BlockSettings(
        heads, scale, attention_dropout, ff_dropout, drop_path, eps, dtype, activation, norm, causal
    )
    rotary = None if cos is None or sin is None else Rotary(cos, sin)
    y, kept = _implementation(x.device).forward(x, weights, settings, rotary, seed, keep)
    return y, *kept


@_forward.register_fake
def _(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    weights, settings, keep = BlockWeights(*rest[:_WEIGHTS]), BlockSettings(*rest[_WEIGHTS + 3 : -1]), rest[-1]
    return x.new_empty(x.shape), *_implementation(x.device).new_kept(x, weights, settings, keep)


@torch.library.custom_op("viv1t::parallel_block_backward", mutates_args=())
def _backward(
    grad: Tensor,
    packed: Tensor,
    attended: Tensor,
    lse: Tensor,
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor | None,
    fused: Tensor,
    attention_out: Tensor,
    ff_out: Tensor,
    q_weight: Tensor | None,
    q_bias: Tensor | None,
    k_weight: Tensor | None,
    k_bias: Tensor | None,
    norm_alpha: Tensor | None,
    q_alpha: Tensor | None,
    k_alpha: Tensor | None,
    cos: Tensor | None,
    sin: Tensor | None,
    seed: Tensor | None,
    heads: int,
    scale: float,
    attention_dropout: float,
    ff_dropout: float,
    drop_path: float,
    eps: float,
    dtype: torch.dtype,
    activation: str,
    norm: str,
    causal: bool,
    keep: bool,
) -> list[Tensor]:
    """Gradients of x and of each weight that is given, in order."""
    weights = BlockWeights(
        norm_weight, norm_bias, fused, attention_out, ff_out, q_weight, q_bias, k_weight, k_bias,
        norm_alpha, q_alpha, k_alpha,
    )  # fmt: skip
    settings = BlockSettings(
        heads, scale, attention_dropout, ff_dropout, drop_path, eps, dtype, activation, norm, causal
    )
    rotary = None if cos is None or sin is None else Rotary(cos, sin)
    kept = (packed, attended, lse) if keep else None
    return _implementation(x.device).backward(grad, x, weights, settings, rotary, seed, kept)


@_backward.register_fake
def _(grad: Tensor, packed: Tensor, attended: Tensor, lse: Tensor, x: Tensor, *rest: Any) -> list[Tensor]:
    return [x.new_empty(x.shape), *(torch.empty_like(w) for w in rest[:_WEIGHTS] if w is not None)]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    tensors = 1 + _WEIGHTS + 3  # x, weights, tables, seed
    ctx.save_for_backward(*output[1:], *inputs[:tensors])
    ctx.settings = inputs[tensors:]
    ctx.set_materialize_grads(False)


def _autograd(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    weights = ctx.saved_tensors[4 : 4 + _WEIGHTS]
    nothing = (None,) * (3 + len(ctx.settings))  # tables, seed, settings
    if grad is None:
        return (None,) * (1 + _WEIGHTS) + nothing
    grad_x, *others = _backward(grad, *ctx.saved_tensors, *ctx.settings)
    return grad_x, *(None if w is None else others.pop(0) for w in weights), *nothing


_forward.register_autograd(_autograd, setup_context=_setup_context)
