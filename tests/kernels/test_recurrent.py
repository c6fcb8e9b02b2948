"""The recurrent operator, which compiled models run, against PyTorch's module."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from viv1t.kernels.recurrent import gru


def unit(inputs: int = 5, size: int = 3, dtype: torch.dtype = torch.float64) -> nn.GRU:
    torch.manual_seed(0)
    return nn.GRU(inputs, size, batch_first=True, dtype=dtype)


def results(run: object, module: nn.GRU, x: Tensor) -> list[Tensor]:
    x = x.detach().requires_grad_()
    y = run(module, x)  # type: ignore[operator]
    weigh = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    return [y, *torch.autograd.grad((y * weigh).sum(), [x, *module.parameters()])]


@pytest.mark.parametrize("shape", [(2, 9, 5), (1, 1, 5), (3, 2, 5)])
def test_compiled_equals_the_module(shape: tuple[int, int, int]) -> None:
    torch._dynamo.reset()
    module = unit()
    x = torch.randn(shape, dtype=torch.float64).transpose(0, 1).contiguous().transpose(0, 1)
    with torch._dynamo.config.patch(allow_rnn=True):
        compiled = results(torch.compile(gru, fullgraph=True, backend="aot_eager"), module, x)
    expected = results(lambda module, x: module(x)[0], module, x)
    for ours, theirs in zip(compiled, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_uncompiled_is_the_module() -> None:
    module, x = unit(dtype=torch.float32), torch.randn(2, 4, 5)
    assert torch.equal(gru(module, x), module(x)[0])


def test_opcheck() -> None:
    module = unit()
    x = torch.randn(2, 4, 5, dtype=torch.float64, requires_grad=True)
    torch.library.opcheck(torch.ops.viv1t.gru.default, (x, *module.parameters()))
    torch.library.opcheck(torch.ops.viv1t.gru.default, (x.transpose(0, 1), *module.parameters()))
