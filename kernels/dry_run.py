"""Operators run on CUDA tensors without data: what a GPU would be given is written down, and no GPU is needed.

    with dry_run(Gpu("H100", (9, 0), 232_448)) as run:
        y = readout(torch.empty(6, 116, 15, 29, 112, device="cuda"), ...)
    run.launches

An operator's own code runs where fake tensors would only make its result up. What would make a GPU wait for the host,
or the host for the GPU, is an error: numbers that are read, tensors that are copied from one to the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch._library.custom_ops import CustomOpDef
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .attention import operator as attention
from .common import dispatch
from .common.dispatch import Gpu
from .common.launch import Launch, recorded
from .parallel_block import operator as parallel_block
from .patch_embed import operator as patch_embed
from .readout import operator as readout

_BODIES: dict[Any, Callable[..., Any]] = {
    definition._opoverload: definition._init_fn
    for module in (attention, parallel_block, patch_embed, readout)
    for definition in vars(module).values()
    if isinstance(definition, CustomOpDef)
}


class DevicesMix(Exception):
    """An operation's tensors are on the host and on the GPU."""


class DryRun(TorchDispatchMode):
    """What a dry run has seen.

    Attributes:
        launches: of kernels, in order.
        operators: name of each call of an operator, and how many kernels it launched; none if it ran its plain form.
        calls: those calls, their arguments, and their results.
    """

    def __init__(self, launches: list[Launch]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.launches = launches
        self.operators: list[tuple[str, int]] = []
        self.calls: list[tuple[str, tuple[Any, ...], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        body = _BODIES.get(func)
        if body is None:
            result = func(*args, **kwargs)
            _check_devices(func, (args, kwargs), result)
            return result
        before = len(self.launches)
        with self:
            result = body(*args, **kwargs)
        name = func.name().partition("::")[2]
        self.operators.append((name, len(self.launches) - before))
        self.calls.append((name, args, result))
        _check_results(name, result, func(*args, **kwargs))
        return result


def _tensors(values: Any) -> list[Tensor]:
    return [x for x in tree_leaves(values) if isinstance(x, Tensor)]


def _check_devices(func: Any, given: Any, made: Any) -> None:
    """Raises DevicesMix. A number on the host may be an operand, but not be copied to the GPU."""
    copies = func.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.copy_)
    devices = {x.device.type for x in _tensors(given) if x.ndim or x.is_cuda or copies}
    devices |= {x.device.type for x in _tensors(made)}
    if len(devices) > 1:
        raise DevicesMix(f"{func} has tensors on {' and '.join(sorted(devices))}")


def _check_results(name: str, found: Any, promised: Any) -> None:
    """What the compiler is told of an operator's results is what it gives."""
    for ours, theirs in zip(map(_layout, _tensors(found)), map(_layout, _tensors(promised)), strict=True):
        if ours != theirs:
            raise AssertionError(f"{name} gives {ours}, but promises {theirs}")


def _layout(x: Tensor) -> tuple[Any, ...]:
    strides = [stride for stride, size in zip(x.stride(), x.shape, strict=True) if size > 1]
    return x.shape, strides, x.dtype, x.device


@contextmanager
def without_data(gpu: Gpu) -> Iterator[None]:
    """While entered, tensors have no data, and kernels are chosen as for a GPU."""
    with (
        patch.object(dispatch, "gpu_of", lambda _: gpu),
        patch.object(dispatch, "has_triton", lambda: True),
        # What `torch.autocast` asks before it believes in a GPU.
        patch.object(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False),
        patch.object(torch.cuda, "is_bf16_supported", lambda *_, **__: True),
        FakeTensorMode(),
    ):
        yield


@contextmanager
def dry_run(gpu: Gpu) -> Iterator[DryRun]:
    """While entered, tensors have no data, and kernels are chosen as for a GPU and written down."""
    with without_data(gpu), recorded() as launches, DryRun(launches) as run:
        yield run
