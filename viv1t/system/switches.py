"""PyTorch's global switches, set while training needs them and put back as they were."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_CUBLAS = "CUBLAS_WORKSPACE_CONFIG"


@contextmanager
def deterministic(on: bool, *, warn_only: bool) -> Iterator[None]:
    """While entered, and if `on`, PyTorch computes the same bits again.

    Args:
        on: whether to; else nothing is changed.
        warn_only: not everything has a deterministic form on a GPU: PyTorch then warns and names it.
    """
    if not on:
        yield
        return
    filled: Any = torch.utils.deterministic  # type: ignore[attr-defined]
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        filled.fill_uninitialized_memory,
        os.environ.get(_CUBLAS),
    )
    os.environ.setdefault(_CUBLAS, ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=warn_only)
    filled.fill_uninitialized_memory = False  # every kernel writes all that is read
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        filled.fill_uninitialized_memory = before[2]
        if before[3] is None:
            os.environ.pop(_CUBLAS, None)


@contextmanager
def tensor_cores(on: bool) -> Iterator[None]:
    """While entered, and if `on`, float32 is multiplied on tensor cores, rounded to 10 bits (TF32)."""
    if not on:
        yield
        return
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:  # the switch is known by two names, and the older one is refused once the newer was used
        matmul = torch.backends.cuda.matmul
        newer = matmul.fp32_precision
        matmul.fp32_precision = "tf32"
        try:
            yield
        finally:
            matmul.fp32_precision = newer
        return
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
