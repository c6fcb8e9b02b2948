"""The operator `viv1t::readout`: every neuron samples each frame's map at its position and weighs the features.

Samples are never written out, and noise is drawn again from its seed in the backward. GPUs run Triton kernels
(`triton.py`), everything else `cpu.py`.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..common.dispatch import takes_kernels
from . import cpu
from .settings import Places


def _implementation(maps: Tensor, features: Tensor) -> ModuleType:
    """The module with what `settings.py` lists for these inputs."""
    if takes_kernels("readout", maps.device, torch.promote_types(maps.dtype, features.dtype)):
        from . import triton

        return triton
    return cpu


def readout(
    maps: Tensor,
    features: Tensor,
    mu: Tensor,
    sigma: Tensor,
    *,
    shift: Tensor | None = None,
    code: Tensor | None = None,
    bias: Tensor | None = None,
    noise: Tensor | None = None,
    seed: Tensor | None = None,
) -> Tensor:
    """features . (bilinear sample of the frame's map at clamp(sigma z + mu, -1, 1) + shift, plus code) + bias.

    Args:
        maps: (B, t, h, w, D); read in place where a frame's map is contiguous.
        features: (D, N).
        mu: (N, 2) positions as x, y, with -1 and 1 at the centres of the outermost columns and rows; zero outside.
        sigma: (N, 2, 2) what the noise is multiplied by.
        shift: (B, t, 2) of a frame's positions, after the clamp; None for none.
        code: (B, t, D) encoded state, added to what is sampled; None for none.
        bias: (N,); None for none.
        noise: (B, t, N, 2) z.
        seed: (1,) int64 on the same device; draws z from a standard normal distribution where there is no `noise`. With
            neither, z is 0. The same seed draws other numbers on a GPU than elsewhere.

    Returns:
        (B, N, t) in the dtype of `features`, neurons contiguous.
    """
    return _forward(maps, features, mu, sigma, shift, code, bias, noise, seed)


@torch.library.custom_op("viv1t::readout", mutates_args=())
def _forward(
    maps: Tensor,
    features: Tensor,
    mu: Tensor,
    sigma: Tensor,
    shift: Tensor | None,
    code: Tensor | None,
    bias: Tensor | None,
    noise: Tensor | None,
    seed: Tensor | None,
) -> Tensor:
    y = _implementation(maps, features).sample(maps, features, Places(mu, sigma, shift, noise, seed))
    # The state is added after sampling: bilinear weights sum to less than 1 outside the map.
    if code is not None:
        y += code @ features
    if bias is not None:
        y += bias
    return y.transpose(1, 2)


@_forward.register_fake
def _(
    maps: Tensor,
    features: Tensor,
    mu: Tensor,
    sigma: Tensor,
    shift: Tensor | None,
    code: Tensor | None,
    bias: Tensor | None,
    noise: Tensor | None,
    seed: Tensor | None,
) -> Tensor:
    return features.new_empty(*maps.shape[:2], features.shape[1]).transpose(1, 2)


@torch.library.custom_op("viv1t::readout_backward", mutates_args=())
def _backward(
    grad: Tensor,
    maps: Tensor,
    features: Tensor,
    mu: Tensor,
    sigma: Tensor,
    shift: Tensor | None,
    code: Tensor | None,
    noise: Tensor | None,
    seed: Tensor | None,
) -> list[Tensor]:
    """Gradients of maps, features, mu, sigma, shift, and of code if there is one."""
    grad = grad.transpose(1, 2).contiguous()
    found = _implementation(maps, features).sample_backward(grad, maps, features, Places(mu, sigma, shift, noise, seed))
    if code is None:
        return list(found)
    found.features.addmm_(code.flatten(0, 1).T, grad.flatten(0, 1))
    return [*found, grad @ features.T]


@_backward.register_fake
def _(
    grad: Tensor,
    maps: Tensor,
    features: Tensor,
    mu: Tensor,
    sigma: Tensor,
    shift: Tensor | None,
    code: Tensor | None,
    noise: Tensor | None,
    seed: Tensor | None,
) -> list[Tensor]:
    found = [x.new_empty(x.shape) for x in (maps, features, mu, sigma)]
    found.append(features.new_empty(*maps.shape[:2], 2))
    return found if code is None else [*found, code.new_empty(code.shape)]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    maps, features, mu, sigma, shift, code, _, noise, seed = inputs
    ctx.save_for_backward(maps, features, mu, sigma, shift, code, noise, seed)


def _autograd(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    maps, features, mu, sigma, shift, code, noise, seed = ctx.saved_tensors
    found = _backward(grad, maps, features, mu, sigma, shift, code, noise, seed)
    of_code = None if code is None else found.pop()
    of_shift = found.pop()
    of_bias = grad.sum((0, 2)) if ctx.needs_input_grad[6] else None
    return *found, None if shift is None else of_shift, of_code, of_bias, None, None


_forward.register_autograd(_autograd, setup_context=_setup_context)
