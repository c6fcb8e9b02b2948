"""The operator `viv1t::gru`: a gated recurrent unit that a compiler takes as it is, instead of frame by frame.

Uncompiled, PyTorch's own runs. The operator calls the same and keeps its arguments alone: the backward runs the unit
again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .common.exporting import is_exporting

_NAMES = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")


def gru(module: nn.GRU, x: Tensor) -> Tensor:
    """States (B, t, H) of a unit of one layer for x (B, t, C), from zero states."""
    if not torch.compiler.is_compiling() or is_exporting():
        states: Tensor = module(x)[0]
        return states
    return _forward(x, *(getattr(module, name) for name in _NAMES))


def _states(x: Tensor, *weights: Tensor) -> Tensor:
    start = x.new_zeros(1, len(x), weights[1].shape[1])
    return torch.gru(x, start, weights, True, 1, 0.0, True, False, True)[0]


@torch.library.custom_op("viv1t::gru", mutates_args=())
def _forward(x: Tensor, w_in: Tensor, w_state: Tensor, b_in: Tensor, b_state: Tensor) -> Tensor:
    return _states(x, w_in, w_state, b_in, b_state).contiguous()


@_forward.register_fake
def _(x: Tensor, w_in: Tensor, w_state: Tensor, b_in: Tensor, b_state: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:2], w_state.shape[1])


@torch.library.custom_op("viv1t::gru_backward", mutates_args=())
def _backward(grad: Tensor, x: Tensor, w_in: Tensor, w_state: Tensor, b_in: Tensor, b_state: Tensor) -> list[Tensor]:
    """Gradients of all arguments of the operator."""
    pull_back = torch.func.vjp(_states, x, w_in, w_state, b_in, b_state)[1]
    return [found.contiguous() for found in pull_back(grad)]


@_backward.register_fake
def _(grad: Tensor, *arguments: Tensor) -> list[Tensor]:
    return [x.new_empty(x.shape) for x in arguments]


def _setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _autograd(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
    return tuple(_backward(grad, *ctx.saved_tensors))


_forward.register_autograd(_autograd, setup_context=_setup_context)
