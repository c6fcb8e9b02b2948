"""The one place that chooses between an operator's GPU kernels and its plain form, and says why.

Kernels run for tensors on a CUDA device of capability 8.0 or newer with enough shared memory, in float32 or half
precision, where Triton is installed and the operator's own limits allow it. Everything else runs the plain form, in the
tensors' own type; where that happens on a GPU, it is said once.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
from typing import NamedTuple

import torch

from .precision import HALF
from .tiles import SHARED_MEMORY

_OLDEST = (8, 0)
_TYPES = (*HALF, torch.float32)

_said: set[str] = set()


class Gpu(NamedTuple):
    """What matters about a device: its name, compute capability, and bytes of shared memory that a program may use."""

    name: str
    capability: tuple[int, int]
    shared: int


class Choice(NamedTuple):
    """Whether the kernels run, and why or why not."""

    kernels: bool
    reason: str


@functools.cache
def has_triton() -> bool:
    """Whether Triton can be imported."""
    return importlib.util.find_spec("triton") is not None


def gpu_of(device: torch.device) -> Gpu:
    """The device, asked once.

    Raises:
        RuntimeError: there is no such device.
    """
    return _gpu_of(torch.cuda.current_device() if device.index is None else device.index)


@functools.cache
def _gpu_of(index: int) -> Gpu:
    found = torch.cuda.get_device_properties(index)
    return Gpu(found.name, (found.major, found.minor), getattr(found, "shared_memory_per_block_optin", 0))


def choose(device: torch.device, dtype: torch.dtype, limit: str | None = None, shared: int = SHARED_MEMORY) -> Choice:
    """Which implementation of an operator runs.

    Args:
        device: of its tensors.
        dtype: the widest of its tensors and products.
        limit: why the operator's kernels do not take these tensors whatever the device, None if they do.
        shared: bytes of shared memory that its kernels need.
    """
    if device.type != "cuda":
        return Choice(False, f"kernels run on CUDA devices, not on {device.type}")
    if dtype not in _TYPES:
        return Choice(False, f"kernels take float32 and half precision, not {str(dtype).removeprefix('torch.')}")
    if limit is not None:
        return Choice(False, limit)
    if not has_triton():
        return Choice(False, "Triton is not installed")
    gpu = gpu_of(device)
    if gpu.capability < _OLDEST:
        found, oldest = (".".join(map(str, c)) for c in (gpu.capability, _OLDEST))
        return Choice(False, f"kernels need compute capability {oldest}, {gpu.name} has {found}")
    if gpu.shared < shared:
        return Choice(False, f"kernels need {shared:,} bytes of shared memory, {gpu.name} has {gpu.shared:,}")
    return Choice(True, f"kernels on {gpu.name}")


def takes_kernels(
    operator: str, device: torch.device, dtype: torch.dtype, limit: str | None = None, shared: int = SHARED_MEMORY
) -> bool:
    """Whether an operator's kernels run, see `choose`; a warning, once, where a GPU's tensors run without them."""
    choice = choose(device, dtype, limit, shared)
    if not choice.kernels and device.type == "cuda":
        warning = f"the operator {operator} runs as plain PyTorch on the GPU, slower: {choice.reason}"
        if warning not in _said:
            _said.add(warning)
            logging.getLogger("viv1t").warning(warning)
    return choice.kernels


# Compilers take the answer for a constant: it cannot change for a device and a type. This is all that
# `torch.compiler.assume_constant_result` does, which would import the compiler here.
takes_kernels._dynamo_marked_constant = True  # type: ignore[attr-defined]
