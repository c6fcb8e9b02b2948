"""The parallel block's GPU kernels, in Triton's interpreter where there is no GPU: against float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attention_cases import drawn_tables, errors
from test_parallel_block import SEED, converted, given, joined, make, results, tolerance
from torch import Tensor
from viv1t.kernels.attention.rotary import Rotary
from viv1t.kernels.common.philox_reference import keep_mask
from viv1t.kernels.parallel_block import BlockSettings, BlockWeights, operator, parallel_block
from viv1t.kernels.parallel_block.reference import Kept
from viv1t.kernels.parallel_block.reference import parallel_block as definition

DROPS = {"attention_dropout": 0.3, "ff_dropout": 0.2, "drop_path": 0.4}

# shape: S, L, D, heads, d, mlp; tokens, D and mlp that no block's size divides
CASES: dict[str, dict[str, Any]] = {
    "all": {"shape": (3, 13, 24, 2, 16, 19), "swiglu": True, "norm_qk": True, "drops": True},
    "gelu": {"shape": (3, 23, 24, 2, 16, 19), "drops": True, "splits": 2},
    "published sizes": {"shape": (2, 9, 112, 1, 48, 136), "drops": True, "keep": True},
    "wide": {"shape": (1, 17, 160, 1, 80, 21), "swiglu": True},
    "smallest": {"shape": (1, 1, 3, 1, 16, 1)},
    "float16": {"shape": (3, 25, 112, 2, 16, 40), "dtype": torch.float16, "drops": True, "norm_qk": True, "splits": 1},
    "float16 kept": {"shape": (5, 14, 20, 1, 48, 24), "dtype": torch.float16, "swiglu": True, "keep": True},
}


@pytest.fixture
def on_kernels(monkeypatch: pytest.MonkeyPatch, kernel_device: torch.device) -> torch.device:
    """The operator runs the kernels, on the device that is returned."""
    from viv1t.kernels.attention import triton as attention_triton
    from viv1t.kernels.parallel_block import triton

    monkeypatch.setattr(operator, "_takes", lambda *_: True)
    monkeypatch.setattr(operator, "_implementation", lambda _: triton)
    monkeypatch.setattr(triton, "implementation", lambda *_: attention_triton)
    return kernel_device


def kept(x: Tensor, weights: BlockWeights, settings: BlockSettings) -> Kept:
    """What the kernels keep for SEED."""
    sequences, length = x.shape[:2]
    tokens = sequences * length
    return Kept(
        keep_mask(SEED, tokens, weights.inner, settings.attention_dropout, 0).view(sequences, length, -1),
        keep_mask(SEED, tokens, weights.mlp, settings.ff_dropout, 1).view(sequences, length, -1),
        keep_mask(SEED, sequences, 2, settings.drop_path, 2),
    )


def on(device: torch.device, x: Tensor, weights: BlockWeights, dtype: torch.dtype) -> tuple[Tensor, BlockWeights]:
    """Leaves of their own on a device."""
    weights = BlockWeights(*(None if w is None else w.detach().to(device) for w in weights))
    return x.detach().to(device, dtype).requires_grad_(), converted(weights, dtype)


def assert_close(found: list[Tensor], expected: list[Tensor], norm_qk: bool, bound: float) -> None:
    if norm_qk:  # the gradient of the keys' bias, the last, is zero but for rounding
        assert found[-1].norm() <= bound * expected[-2].norm()
        found, expected = found[:-1], expected[:-1]
    assert max(errors(found, expected)) < bound


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("name", CASES)
def test_result_and_gradients_are_the_definition_s(
    name: str, on_kernels: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    from viv1t.kernels.parallel_block import triton

    case = {"swiglu": False, "norm_qk": False, "drops": False, "dtype": torch.float32, "keep": False, **CASES[name]}
    if "splits" in case:
        monkeypatch.setattr(triton, "_SPLITS", case["splits"])
    x, weights, settings = make(case["shape"], case["swiglu"], case["norm_qk"])
    settings = settings._replace(**DROPS if case["drops"] else {})
    masks = kept(x, weights, settings) if case["drops"] else None
    expected = results(definition(x, weights, settings, masks), x, weights)
    a, w = on(on_kernels, x, weights, torch.float32)  # half precision is that of the products
    y = parallel_block(a, w, settings._replace(dtype=case["dtype"]), keep=case["keep"], seed=SEED.to(on_kernels))
    found = results(y, a, w)
    assert {t.dtype for t in found} == {torch.float32}
    assert_close(found, expected, case["norm_qk"], tolerance(case["shape"], case["dtype"]))


# As `CASES`, with what the second family needs.
FAMILY: dict[str, dict[str, Any]] = {
    "temporal": {"shape": (2, 35, 24, 1, 16, 14), "activation": "relu", "causal": True, "registers": 0, "keep": True},
    "one frame": {"shape": (3, 1, 24, 1, 16, 14), "activation": "relu", "causal": True, "registers": 0},
    "spatial": {"shape": (1, 21, 12, 1, 16, 9), "activation": "elu", "norm": "rmsnorm", "norm_qk": True,
                "registers": 5},
    "dyt": {"shape": (2, 7, 12, 1, 16, 7), "swiglu": True, "norm": "dyt", "norm_qk": True, "registers": 2,
            "drops": True},
    "dyt alone": {"shape": (2, 7, 12, 1, 16, 7), "activation": "silu", "norm": "dyt", "causal": True, "drops": True},
    "rmsnorm": {"shape": (2, 7, 12, 1, 16, 7), "activation": "tanh", "norm": "rmsnorm", "causal": True},
    "nothing": {"shape": (2, 2, 12, 1, 16, 7), "activation": "none", "registers": 1},
    "head of 80": {
        "shape": (1, 17, 112, 2, 80, 40), "activation": "relu", "causal": True, "registers": 0, "dtype": torch.float16,
        "keep": True,
    },
}  # fmt: skip


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("name", FAMILY)
def test_result_and_gradients_are_the_definition_s_with_what_the_second_family_needs(
    name: str, on_kernels: torch.device
) -> None:
    case = dict(FAMILY[name])
    shape, dtype, keep = case.pop("shape"), case.pop("dtype", torch.float32), case.pop("keep", False)
    registers, drops = case.pop("registers", None), case.pop("drops", False)
    x, weights, settings = make(shape, **case)
    settings = settings._replace(**DROPS if drops else {})
    tables = None if registers is None else drawn_tables(shape[1], shape[4], registers, torch.float32)
    masks = kept(x, weights, settings) if drops else None
    expected = joined(results(definition(x, weights, settings, masks, rotary=tables), x, weights), weights)
    a, w = on(on_kernels, x, weights, torch.float32)
    rotary = None if tables is None else Rotary(*(table.to(on_kernels) for table in tables))
    found = []
    for _ in range(2):
        y = parallel_block(
            a, w, settings._replace(dtype=dtype), rotary=rotary, keep=keep, seed=SEED.to(on_kernels)
        )  # fmt: skip
        found.append(joined(results(y, a, w), w))
    assert max(errors(found[0], expected)) < tolerance(shape, dtype)
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True)), "no two runs differ"


def test_input_in_half_precision_and_of_other_strides(on_kernels: torch.device) -> None:
    x, weights, settings = make((3, 7, 16, 1, 16, 12))
    x = x.detach().half().double().requires_grad_()
    weights = converted(converted(weights, torch.float16), torch.float64)
    expected = results(definition(x, weights, settings), x, weights)
    a, w = on(on_kernels, x, weights, torch.float16)
    turned = a.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    found = results(parallel_block(turned, w, settings._replace(dtype=torch.float16)), turned, w)
    assert {t.dtype for t in found} == {torch.float16}
    assert_close(found, expected, False, tolerance((3, 7, 16, 1, 16, 12), torch.float16))


def test_masks_are_the_definition_s_and_have_their_rates(on_kernels: torch.device) -> None:
    """Values that are all alike before the dropout show what is kept."""
    sequences, length, depth = 24, 3, 16
    x, weights, _ = make((sequences, length, depth, 1, 16, depth))
    fused = torch.zeros(4 * depth, depth, dtype=torch.float64)
    fused[3 * depth :] = torch.eye(depth)
    weights = BlockWeights(
        torch.zeros(depth), torch.full((depth,), 2.0), fused, torch.zeros(depth, depth), torch.eye(depth)
    )
    a, w = on(on_kernels, torch.zeros_like(x), weights, torch.float32)
    settings = BlockSettings(1, 0.25, 0.0, 0.3, 0.4)
    with torch.no_grad():
        whole = parallel_block(a, w, settings._replace(ff_dropout=0.0, drop_path=0.0))
        y, again = (parallel_block(a, w, settings, seed=SEED.to(on_kernels)) for _ in range(2))
        other = parallel_block(a, w, settings, seed=SEED.to(on_kernels) + 1)
    assert torch.equal(y, again)
    assert not torch.equal(y != 0, other != 0)
    masks = kept(x, weights, settings)
    keep = (masks.ff & masks.paths[:, 1, None, None]).to(on_kernels)
    torch.testing.assert_close(y, torch.where(keep, whole / 0.7 / 0.6, 0.0))
    paths, elements = y.flatten(1).any(1), y[masks.paths[:, 1].to(on_kernels)]
    assert abs(paths.double().mean() - 0.6) < 4 * (0.24 / sequences) ** 0.5
    assert abs((elements != 0).double().mean() - 0.7) < 4 * (0.21 / elements.numel()) ** 0.5


def test_opcheck(on_kernels: torch.device) -> None:
    x, weights, settings = make((2, 3, 8, 1, 16, 6), norm_qk=True)
    a, w = on(on_kernels, x, weights, torch.float32)
    settings = settings._replace(dtype=torch.float32, **DROPS)
    arguments = (a, *w, None, None, SEED.to(on_kernels), *settings, True)
    torch.library.opcheck(torch.ops.viv1t.parallel_block.default, arguments)


def test_no_sequences(on_kernels: torch.device) -> None:
    x, weights, settings = make((0, 3, 8, 1, 16, 6))
    a, w = on(on_kernels, x, weights, torch.float32)
    y, _, *others = results(parallel_block(a, w, settings._replace(dtype=torch.float32), keep=True), a, w)
    assert y.shape == (0, 3, 8)
    assert not any(g.any() for g in others)


@pytest.mark.parametrize("keep", [False, True])
def test_what_they_do_not_take_keeps_as_little(keep: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operator, "_takes", lambda *_: False)
    x, weights, settings = make((4, 5, 8, 2, 16, 6), swiglu=True)
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):  # type: ignore[func-returns-value]
        y = parallel_block(x, weights, settings, keep=keep)
    assert keep == (sum(t.numel() for t in saved) > x.numel() + sum(w.numel() for w in given(weights)))
    expected = results(definition(x, weights, settings), x, weights)
    assert max(errors(results(y, x, weights), expected)) < 1e-12


@pytest.mark.gpu
@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("swiglu", [False, True])
@pytest.mark.parametrize("depth", [64, 112, 160])
def test_full_size_on_a_gpu(depth: int, swiglu: bool, dtype: torch.dtype, keep: bool) -> None:
    shape = (12, 435, depth, 11, 48, 136)
    x, weights, settings = make(shape, swiglu, norm_qk=True)
    settings = settings._replace(**DROPS)
    expected = results(definition(x, weights, settings, kept(x, weights, settings)), x, weights)
    a, w = on(torch.device("cuda"), x, weights, torch.float32)
    runs = [parallel_block(a, w, settings._replace(dtype=dtype), keep=keep, seed=SEED.cuda()) for _ in range(2)]
    first, second = (results(y, a, w) for y in runs)
    assert_close([t.cpu() for t in first], expected, True, tolerance(shape, dtype))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True)), "no two runs differ"
