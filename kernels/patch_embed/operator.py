"""The operator `viv1t::patch_embed`: overlapping patches -> LayerNorm -> Linear, the patches never written out.

It follows the identity in `reference.py`; what is left is one product with the video's patches, forward and
for the weight's gradient. GPUs run Triton kernels for it (`triton.py`), everything else `cpu.py`. Kept for the backward
are the arguments and one number per patch; where the video or the state has a gradient, the result too.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn.grad import conv1d_weight

from ..common.dispatch import takes_kernels
from . import cpu, reference
from .inputs import input_gradients


def _implementation(weight: Tensor, products: torch.dtype, size: Sequence[int], stride: Sequence[int]) -> ModuleType:
    """The module with `project` and `project_backward` (see `cpu.py`) for these inputs."""
    square = size[1] == size[2] and stride[1] == stride[2]
    limit = None if square else f"kernels take square patches and strides, not {size[1:]} and {stride[1:]}"
    dtype = torch.promote_types(weight.dtype, products)
    if takes_kernels("patch_embed", weight.device, dtype, limit):
        from . import triton

        return triton
    return cpu


def patch_embed(
    video: Tensor,
    state: Tensor | None,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight: Tensor,
    bias: Tensor,
    size: Sequence[int],
    stride: Sequence[int],
    eps: float = 1e-5,
) -> Tensor:
    """Normalised and projected patches. Products are taken in autocast's type where that is on.

    Args:
        video: (B, 1, T, H, W).
        state: (B, S, T) channels that are constant over a frame, or None.
        norm_weight, norm_bias: (K,) of the LayerNorm over a patch, K = (1 + S) * pt * ps * ps.
        weight, bias: (D, K) and (D,) of the projection.
        size, stride: (frames, rows, columns) of a patch, and between patches.
        eps: of the LayerNorm.

    Returns:
        (B, t, Ph, Pw, D) in the dtype of `weight`.
    """
    arguments = (video, state, norm_weight, norm_bias, weight, bias, list(size), list(stride), eps)
    device = video.device.type
    products = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    return _forward(*arguments, products)[0]


def _patches(video: Tensor, size: Sequence[int], stride: Sequence[int]) -> list[int]:
    """[B, t, Ph, Pw]."""
    return [len(video), *((n - s) // d + 1 for n, s, d in zip(video.shape[2:], size, stride, strict=True))]


@torch.library.custom_op("viv1t::patch_embed", mutates_args=())
def _forward(
    video: Tensor,
    state: Tensor | None,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight: Tensor,
    bias: Tensor,
    size: Sequence[int],
    stride: Sequence[int],
    eps: float,
    products: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """The result and 1 / sqrt(var + eps) of every patch, (B, t, Ph, Pw, 1)."""
    with torch.autocast(video.device.type, enabled=False):
        kernel, offset = reference.fold(norm_weight, norm_bias, weight, bias)
        kernel = kernel.unflatten(1, (-1, *size))
        video, state = reference.centred(video.to(weight.dtype), None if state is None else state.to(weight.dtype))
        rstd = reference.inverse_deviations(video, state, size, stride, eps).permute(0, 2, 3, 4, 1).contiguous()
        same = reference.state_term(state, kernel, stride)
        project = _implementation(weight, products, size, stride).project
        y = project(video.to(products), kernel[:, 0].to(products), stride, same, rstd, offset)
    return y, rstd


@_forward.register_fake
def _(
    video: Tensor,
    state: Tensor | None,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight: Tensor,
    bias: Tensor,
    size: Sequence[int],
    stride: Sequence[int],
    eps: float,
    products: torch.dtype,
) -> tuple[Tensor, Tensor]:
    patches = _patches(video, size, stride)
    return weight.new_empty(*patches, len(weight)), weight.new_empty(*patches, 1)


@torch.library.custom_op("viv1t::patch_embed_backward", mutates_args=())
def _backward(
    grad: Tensor,
    video: Tensor,
    state: Tensor | None,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight: Tensor,
    rstd: Tensor,
    size: Sequence[int],
    stride: Sequence[int],
    products: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of norm_weight, norm_bias, weight and bias."""
    with torch.autocast(video.device.type, enabled=False):
        video, state = reference.centred(video.to(weight.dtype), None if state is None else state.to(weight.dtype))
        of_kernel = weight.new_empty(len(weight), 1 if state is None else 1 + state.shape[1], *size)
        project_backward = _implementation(weight, products, size, stride).project_backward
        of_kernel[:, 0] = project_backward(grad, rstd, video.to(products), size, stride)
        if state is not None:
            same = torch.einsum("btyxd,btyxo->bdt", grad, rstd)  # of the state's term
            shape = torch.Size((len(weight), state.shape[1], size[0]))
            of_state = conv1d_weight(state, shape, same, stride=stride[0])
            of_kernel[:, 1:] = of_state[..., None, None]
        of_folded = of_kernel.flatten(1)
        of_folded -= of_folded.mean(dim=1, keepdim=True)
        of_offset = grad.sum((0, 1, 2, 3))
        of_weight = torch.outer(of_offset, norm_bias).addcmul_(of_folded, norm_weight)
        return (of_folded * weight).sum(0), of_offset @ weight, of_weight, of_offset


@_backward.register_fake
def _(
    grad: Tensor,
    video: Tensor,
    state: Tensor | None,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight: Tensor,
    rstd: Tensor,
    size: Sequence[int],
    stride: Sequence[int],
    products: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    depth, values = weight.shape
    return weight.new_empty(values), weight.new_empty(values), weight.new_empty(depth, values), weight.new_empty(depth)


@torch.library.custom_op("viv1t::patch_embed_input_backward", mutates_args=())
def _input_backward(
    grad: Tensor,
    y: Tensor,
    video: Tensor,
    state: Tensor | None,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight: Tensor,
    bias: Tensor,
    rstd: Tensor,
    size: Sequence[int],
    stride: Sequence[int],
    products: torch.dtype,
) -> list[Tensor]:
    """Gradients of the video, and of the state if there is one."""
    with torch.autocast(video.device.type, enabled=False):
        kernel, offset = reference.fold(norm_weight, norm_bias, weight, bias)
        kernel = kernel.unflatten(1, (-1, *size))
        wide = weight.dtype
        given = reference.centred(video.to(wide), None if state is None else state.to(wide))
        of_video, of_state = input_gradients(grad, y, *given, kernel, offset, rstd, size, stride, products)
        found = [of_video.to(video.dtype).contiguous()]
        return found if state is None or of_state is None else [*found, of_state.to(state.dtype).contiguous()]


@_input_backward.register_fake
def _(grad: Tensor, y: Tensor, video: Tensor, state: Tensor | None, *rest: Any) -> list[Tensor]:
    return [x.new_empty(x.shape) for x in (video, state) if x is not None]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    video, state, norm_weight, norm_bias, weight, bias, *ctx.geometry, _, ctx.products = inputs
    y = output[0] if any(ctx.needs_input_grad[:2]) else None
    ctx.save_for_backward(video, state, norm_weight, norm_bias, weight, bias, output[1], y)
    ctx.mark_non_differentiable(output[1])


def _autograd(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    *arguments, bias, rstd, y = ctx.saved_tensors
    of_inputs: list[Tensor | None] = [None, None]
    of_parameters: tuple[Tensor | None, ...] = (None,) * 4
    if y is not None:
        found = _input_backward(grad, y, *arguments, bias, rstd, *ctx.geometry, ctx.products)
        of_inputs[: len(found)] = found
    if any(ctx.needs_input_grad[2:6]):
        of_parameters = _backward(grad, *arguments, rstd, *ctx.geometry, ctx.products)
    return *of_inputs, *of_parameters, *(None,) * 4


_forward.register_autograd(_autograd, setup_context=_setup_context)
