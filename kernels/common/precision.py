"""How GPU kernels take products."""

from __future__ import annotations

import torch

HALF = (torch.bfloat16, torch.float16)


def input_precision(dtype: torch.dtype) -> str:
    """Of `tl.dot` for operands of a type: float32 is split in three unless PyTorch is allowed TF32."""
    if dtype in HALF:
        return "ieee"
    return "tf32" if torch.backends.cuda.matmul.allow_tf32 else "tf32x3"
