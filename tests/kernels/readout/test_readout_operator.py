"""The readout operator off CUDA: against its definition, its noise, and what it keeps."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from patches import largest_allocation
from readout_cases import CASES, Case, drawn
from torch import Tensor
from viv1t.kernels.readout import cpu, readout
from viv1t.kernels.readout.reference import normal_pairs
from viv1t.kernels.readout.reference import readout as definition


@pytest.fixture
def many_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few frames at a time."""
    monkeypatch.setattr(cpu, "_GROUP_POSITIONS", 40)
    monkeypatch.setattr(cpu, "_SAMPLED_VALUES", 60)


def gradients(function: Callable[..., Tensor], case: Case, weigh: Tensor) -> list[Tensor]:
    leaves = [x.detach().requires_grad_() for x in case.differentiable]
    y = function(*case.arguments(leaves))
    # Without noise, the definition does not use sigma.
    return list(torch.autograd.grad((y * weigh).sum(), leaves, allow_unused=True, materialize_grads=True))


def operator(*arguments: Any) -> Tensor:
    names = ("shift", "code", "bias", "noise", "seed")
    return readout(*arguments[:4], **dict(zip(names, arguments[4:], strict=True)))


@pytest.mark.parametrize("shape", CASES)
@pytest.mark.parametrize("optional", [True, False])
def test_operator_is_its_definition(shape: tuple[int, ...], optional: bool, many_groups: None) -> None:
    case = drawn(shape, optional=optional)
    y = operator(*case.arguments())
    torch.testing.assert_close(y, definition(*case.arguments()), rtol=1e-12, atol=1e-12)
    weigh = torch.randn_like(y)
    found, expected = (gradients(f, case, weigh) for f in (operator, definition))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_gradients_are_derivatives() -> None:
    case = drawn((2, 2, 3, 4, 3, 4), edges=False)
    leaves = [x.detach().requires_grad_() for x in case.differentiable]
    assert torch.autograd.gradcheck(lambda *x: operator(*case.arguments(x)), leaves)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_maps_of_half_precision_are_read_as_they_are(dtype: torch.dtype) -> None:
    case = drawn(CASES[0])
    maps, *rest = (x.float() for x in case.differentiable)
    half = maps.to(dtype)
    weigh = torch.randn(2, 5, 7)
    ours, theirs = (
        gradients(f, case._replace(differentiable=[m, *rest], noise=case.noise.float()), weigh)  # type: ignore[union-attr]
        for f, m in ((operator, half), (definition, half.float()))
    )
    assert ours[0].dtype == dtype
    torch.testing.assert_close(ours[0].float(), theirs[0], rtol=0.01, atol=0.01)
    for a, b in zip(ours[1:], theirs[1:], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_positions_that_are_not_numbers_reach_the_response() -> None:
    case = drawn(CASES[0])
    case.differentiable[2][1] = math.nan
    y = operator(*case.arguments())
    assert y[:, 1].isnan().all()
    assert not y[:, [0, 2, 3, 4]].isnan().any()


@pytest.mark.parametrize("transposed", [True, False])
def test_opcheck(transposed: bool) -> None:
    case = drawn((2, 3, 2, 3, 4, 5))
    arguments = list(case.arguments([x.detach().requires_grad_() for x in case.differentiable]))
    if transposed:  # channels before the map's rows, neurons before features
        arguments[0] = arguments[0].detach().permute(0, 4, 1, 2, 3).contiguous().permute(0, 2, 3, 4, 1).requires_grad_()
        arguments[1] = arguments[1].detach().T.contiguous().T.requires_grad_()
    torch.library.opcheck(torch.ops.viv1t.readout.default, tuple(arguments))
    seeded = (*arguments[:7], None, torch.tensor([3]))
    torch.library.opcheck(torch.ops.viv1t.readout.default, seeded)


def test_compiled_without_graph_breaks_and_once_for_all_numbers_of_neurons(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch._dynamo.reset()
    compiled = torch.compile(lambda *x: operator(*x).square().sum(), fullgraph=True, backend="aot_eager")
    counter = torch._dynamo.utils.counters
    counter.clear()
    for neurons in (5, 8, 11, 16):
        case = drawn((2, 3, 2, 3, 4, neurons))
        leaves = [x.detach().requires_grad_() for x in case.differentiable]
        found = torch.autograd.grad(compiled(*case.arguments(leaves)), leaves)
        expected = torch.autograd.grad(operator(*case.arguments(leaves)).square().sum(), leaves)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b)
    assert counter["stats"]["unique_graphs"] <= 2, "one for the first size, one for every other"


def seen_noise(seed: int, frames: int = 40, neurons: int = 500) -> Tensor:
    """The z of the operator on a CPU, (frames, neurons, 2): from the positions on a map of its own coordinates."""
    span = torch.linspace(-1, 1, 2, dtype=torch.float64)
    rows, columns = torch.meshgrid(span, span, indexing="ij")
    parts = []
    for axis in (columns, rows):
        maps = axis[None, None, :, :, None].expand(1, frames, -1, -1, -1)
        sigma = torch.eye(2, dtype=torch.float64).expand(neurons, 2, 2) / 10
        mu, ones = torch.zeros(neurons, 2, dtype=torch.float64), torch.ones(1, neurons, dtype=torch.float64)
        parts.append(readout(maps, ones, mu, sigma, seed=torch.tensor([seed]))[0].T * 10)
    return torch.stack(parts, dim=-1)


@pytest.mark.parametrize("draw", ["operator", "philox"])
def test_noise_is_standard_normal_and_independent(draw: str, many_groups: None) -> None:
    z = seen_noise(5) if draw == "operator" else normal_pairs(torch.tensor([5]), 40, 500).double()
    count = z.numel()
    assert abs(z.mean()) < 5 / count**0.5
    assert abs(z.var() - 1) < 5 * (2 / count) ** 0.5
    assert abs((z**4).mean() - 3) < 5 * (96 / count) ** 0.5
    for other in (z.roll(1, 0), z.roll(1, 1), z.roll(2, 1), z.flip(-1)):  # frames, neurons, x and y
        assert abs((z * other).mean()) < 5 / count**0.5
    assert len(z.unique()) > 0.99 * count


def test_seeds_differ_and_are_reproducible() -> None:
    assert torch.equal(seen_noise(5), seen_noise(5))
    assert abs((seen_noise(5) * seen_noise(6)).mean()) < 5 / 40000**0.5


def test_backward_draws_the_noise_of_the_forward(many_groups: None) -> None:
    """With the drawn z given as noise, value and gradients are the same."""
    frames, neurons = 11, 9
    case = drawn((1, frames, 3, 4, 2, neurons), edges=False)
    z = seen_noise(7, frames, neurons)[None]
    assert case.differentiable[2].shape[0] == neurons
    given, seeded = case._replace(noise=z), case._replace(noise=None, seed=torch.tensor([7]))
    torch.testing.assert_close(operator(*given.arguments()), operator(*seeded.arguments()))
    weigh = torch.randn(1, neurons, frames, dtype=torch.float64)
    for a, b in zip(*(gradients(operator, c, weigh) for c in (given, seeded)), strict=True):
        torch.testing.assert_close(a, b)


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    case = drawn((2, 70, 3, 5, 16, 400), dtype=torch.float32)._replace(noise=None, seed=torch.tensor([1]))
    weigh = torch.randn(2, 400, 70)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            found.append([operator(*case.arguments()), *gradients(operator, case, weigh)])
    finally:
        torch.set_num_threads(threads)
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


def test_neither_samples_nor_noise_are_kept() -> None:
    case = drawn((2, 60, 2, 3, 16, 90), dtype=torch.float32)._replace(noise=None, seed=torch.tensor([1]))
    leaves = [x.detach().requires_grad_() for x in case.differentiable]
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        y = operator(*case.arguments(leaves))
    assert sum(kept.values()) <= 4 * sum(x.numel() for x in leaves) + 8
    assert sum(kept.values()) < 4 * 16 * y.numel() / 8, "samples are 16 numbers for one of the result"


def test_samples_are_made_a_few_frames_at_a_time(many_groups: None) -> None:
    case = drawn((1, 40, 2, 3, 16, 40), dtype=torch.float32)
    leaves = [x.detach().requires_grad_() for x in case.differentiable]
    largest = largest_allocation(lambda: operator(*case.arguments(leaves)).sum().backward())
    samples = 40 * 40 * 16 * 4
    assert 0 < largest < samples / 3
