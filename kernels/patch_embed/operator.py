"""The operator `viv1t::patch_embed`: overlapping patches -> LayerNorm -> Linear, the patches never written out.

It follows the identity in `reference.py`; what is left is one product with the video's patches, forward and
for the weight's gradient. GPUs run Triton kernels for it (`triton.py`), everything else a 3-D
convolution. Kept for the backward are the arguments and one number per patch.
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
    if torch.is_grad_enabled() and (video.requires_grad or (state is not None and state.requires_grad)):
        return reference.patch_embed(*arguments)
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


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    video, state, norm_weight, norm_bias, weight, _, *ctx.geometry, _, ctx.products = inputs
    ctx.save_for_backward(video, state, norm_weight, norm_bias, weight, output[1])
    ctx.mark_non_differentiable(output[1])


def _autograd(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if any(ctx.needs_input_grad[:2]):
        raise RuntimeError("viv1t::patch_embed has no gradient of its inputs; call `patch_embed`, which chooses")
    return None, None, *_backward(grad, *ctx.saved_tensors, *ctx.geometry, ctx.products), *(None,) * 4


_forward.register_autograd(_autograd, setup_context=_setup_context)
