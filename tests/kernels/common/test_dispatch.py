"""One rule for all operators: which run the GPU's kernels, why others do not, and that it is said once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from viv1t.kernels.attention import operator as attention
from viv1t.kernels.common import dispatch
from viv1t.kernels.common.dispatch import Gpu, choose, takes_kernels
from viv1t.kernels.common.precision import allows_tf32, input_precision
from viv1t.kernels.parallel_block import BlockSettings
from viv1t.kernels.parallel_block import operator as block
from viv1t.kernels.patch_embed import operator as patches
from viv1t.kernels.readout import operator as readout

CUDA = torch.device("cuda", 0)
H100, T4 = Gpu("H100", (9, 0), 232_448), Gpu("T4", (7, 5), 65_536)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Pretends to have a GPU, and Triton or not."""

    def pretend(gpu: Gpu = H100, triton: bool = True) -> None:
        monkeypatch.setattr(dispatch, "gpu_of", lambda _: gpu)
        monkeypatch.setattr(dispatch, "has_triton", lambda: triton)

    monkeypatch.setattr(dispatch, "_said", set())
    pretend()
    return pretend


@pytest.fixture
def tf32_switches() -> Iterator[None]:
    matmul = torch.backends.cuda.matmul
    before = torch.backends.fp32_precision, matmul.fp32_precision
    yield
    torch.backends.fp32_precision, matmul.fp32_precision = before


def chosen(dtype: torch.dtype) -> dict[str, bool]:
    """Whether each operator takes its kernels for tensors of a type on the pretended GPU."""
    products = dtype if dtype.itemsize == 2 else torch.float32 if dtype == torch.float32 else torch.float64
    with FakeTensorMode():
        x = torch.empty(2, 3, 48, dtype=dtype, device=CUDA)
        found: dict[str, ModuleType] = {
            "attention": attention.implementation(x, 16),
            "patch_embed": patches._implementation(x, products, (2, 3, 3), (1, 2, 2)),
            "readout": readout._implementation(x, x.float() if dtype.itemsize == 2 else x),
        }
        taken = {name: module.__name__.endswith("triton") for name, module in found.items()}
        return taken | {"parallel_block": block._takes(x, BlockSettings(2, 0.5, dtype=products))}


OPERATORS = ("attention", "patch_embed", "readout", "parallel_block")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_all_operators_take_their_kernels_on_a_gpu_that_has_what_they_need(
    machine: Callable[..., None], dtype: torch.dtype
) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    assert chosen(dtype) == dict.fromkeys(OPERATORS, True)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"triton": False}, "Triton is not installed"),
        ({"gpu": T4}, "kernels need compute capability 8.0, T4 has 7.5"),
        ({"gpu": Gpu("small", (9, 0), 65_536)}, "kernels need 101,376 bytes of shared memory, small has 65,536"),
    ],
)
def test_no_operator_does_where_something_is_missing_and_each_says_so_once(
    machine: Callable[..., None], given: dict[str, Any], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    machine(**given)
    with caplog.at_level(logging.WARNING, "viv1t"):
        for _ in range(2):
            assert chosen(torch.bfloat16) == dict.fromkeys(OPERATORS, False)
    expected = {f"the operator {name} runs as plain PyTorch on the GPU, slower: {reason}" for name in OPERATORS}
    assert sorted(record.getMessage() for record in caplog.records) == sorted(expected)


def test_float64_falls_back(machine: Callable[..., None]) -> None:
    assert chosen(torch.float64) == dict.fromkeys(OPERATORS, False)
    assert choose(CUDA, torch.float64).reason == "kernels take float32 and half precision, not float64"


def test_a_cpu_says_nothing(machine: Callable[..., None], caplog: pytest.LogCaptureFixture) -> None:
    assert not takes_kernels("attention", torch.device("cpu"), torch.float32)
    assert not caplog.records
    assert choose(torch.device("meta"), torch.float32).reason == "kernels run on CUDA devices, not on meta"


def test_limits_of_sizes(machine: Callable[..., None], caplog: pytest.LogCaptureFixture) -> None:
    settings = BlockSettings(2, 0.5, dtype=torch.bfloat16)
    with FakeTensorMode(), caplog.at_level(logging.WARNING, "viv1t"):
        x = torch.empty(2, 3, 257, dtype=torch.bfloat16, device=CUDA)
        for found in (
            attention.implementation(x, 24),
            attention.implementation(x, 144),
            patches._implementation(x, x.dtype, (2, 3, 4), (1, 2, 2)),
            patches._implementation(x, x.dtype, (2, 3, 3), (1, 2, 1)),
        ):
            assert found.__name__.endswith("cpu")
        assert not block._takes(x, settings)
    assert [record.getMessage().split(": ")[1] for record in caplog.records] == [
        "kernels take head sizes that are multiples of 16 up to 128, not 24",
        "kernels take head sizes that are multiples of 16 up to 128, not 144",
        "kernels take square patches and strides, not (3, 4) and (2, 2)",
        "kernels take square patches and strides, not (3, 3) and (2, 1)",
        "kernels take up to 256 values a token, not 257",
    ]


def test_the_choice_does_not_break_a_compiled_graph(machine: Callable[..., None]) -> None:
    """It logs and asks the device, which no graph could hold."""

    def twice(x: Tensor) -> Tensor:
        return x * (3 if takes_kernels("readout", CUDA, x.dtype) else 2)

    machine(triton=False)
    compiled = torch.compile(twice, fullgraph=True, backend="eager")
    assert torch.equal(compiled(torch.ones(3)), torch.full((3,), 2.0))


def switch_newly(precision: str) -> None:
    torch.backends.cuda.matmul.fp32_precision = precision


@pytest.mark.usefixtures("tf32_switches")
def test_wide_blocks_in_float32_need_more_shared_memory_than_small_gpus_have(machine: Callable[..., None]) -> None:
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    with FakeTensorMode():
        for gpu, taken in ((Gpu("RTX 4090", (8, 9), 101_376), (True, False)), (H100, (True, True))):
            machine(gpu)
            for depth, expected in zip((128, 160), taken, strict=True):
                x = torch.empty(2, 3, depth, device=CUDA)
                assert block._takes(x, BlockSettings(2, 0.5)) == expected
                assert block._takes(x, BlockSettings(2, 0.5, dtype=torch.bfloat16))


@pytest.mark.usefixtures("tf32_switches")
def test_tf32_is_read_whichever_switch_was_used(machine: Callable[..., None]) -> None:
    half, exact = BlockSettings(2, 0.5, dtype=torch.bfloat16), BlockSettings(2, 0.5, dtype=torch.float32)
    with FakeTensorMode():
        x = torch.empty(2, 3, 112, device=CUDA)
        for use in (switch_newly, lambda p: setattr(torch.backends.cuda.matmul, "allow_tf32", p == "tf32")):
            for precision in ("tf32", "ieee"):
                use(precision)
                allowed = precision == "tf32"
                assert allows_tf32() == allowed
                assert input_precision(torch.float32) == ("tf32" if allowed else "tf32x3")
                assert block._takes(x, exact) == allowed
                assert block._takes(x, half)
        switch_newly("none")
        torch.backends.fp32_precision = "tf32"
        assert allows_tf32()
