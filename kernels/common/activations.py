"""The feed-forward path's activations, and their backward without autograd. `swiglu` takes (value, gate) side by side.

Off CUDA these are PyTorch's own; `parallel_block/triton_kernels.py` has the GPU's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

ACTIVATIONS = ("none", "tanh", "elu", "relu", "gelu", "silu", "swiglu")


def activate(x: Tensor, kind: str) -> Tensor:
    """The definition; x (..., width), or (..., 2 * width) for `swiglu`."""
    match kind:
        case "none":
            return x
        case "tanh":
            return torch.tanh(x)
        case "elu":
            return F.elu(x)
        case "relu":
            return F.relu(x)
        case "gelu":
            return F.gelu(x)
        case "silu":
            return F.silu(x)
        case "swiglu":
            value, gate = x.chunk(2, dim=-1)
            return F.silu(gate) * value
    raise ValueError(f"an activation is one of {', '.join(ACTIVATIONS)}, not {kind}")


def activate_backward(grad: Tensor, x: Tensor, kind: str, out: Tensor) -> None:
    """Writes the gradient of x, of the shape of x, to `out`."""
    aten = torch.ops.aten
    match kind:
        case "none":
            out.copy_(grad)
        case "tanh":
            aten.tanh_backward.grad_input(grad, torch.tanh(x), grad_input=out)
        case "elu":
            aten.elu_backward.grad_input(grad, 1.0, 1.0, 1.0, False, x, grad_input=out)
        case "relu":
            aten.threshold_backward.grad_input(grad, x, 0, grad_input=out)
        case "gelu":
            aten.gelu_backward.grad_input(grad, x, grad_input=out)
        case "silu":
            aten.silu_backward.grad_input(grad, x, grad_input=out)
        case "swiglu":
            value, gate = x.chunk(2, dim=-1)
            for_value, for_gate = out.chunk(2, dim=-1)
            torch.mul(grad, F.silu(gate), out=for_value)
            aten.silu_backward.grad_input(grad * value, gate, grad_input=for_gate)
        case _:
            raise ValueError(f"an activation is one of {', '.join(ACTIVATIONS)}, not {kind}")
