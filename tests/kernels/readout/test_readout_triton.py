"""The readout's GPU kernels, in Triton's interpreter where there is no GPU: against the definition in float64."""

from __future__ import annotations

import pytest
import torch
from poison import poisoned_memory
from readout_cases import CASES, Case, drawn
from torch import Tensor
from viv1t.kernels.readout import cpu, operator, readout
from viv1t.kernels.readout.reference import normal_pairs
from viv1t.kernels.readout.reference import readout as definition
from viv1t.kernels.readout.settings import Places


def on(device: torch.device, case: Case, dtype: torch.dtype) -> tuple[Tensor, Tensor, Places]:
    """maps in `dtype`, features, places, everything else float32."""
    maps, features, mu, sigma, *rest = (x.to(device, torch.float32) for x in case.differentiable)
    noise = None if case.noise is None else case.noise.to(device, torch.float32)
    seed = None if case.seed is None else case.seed.to(device)
    return maps.to(dtype), features, Places(mu, sigma, rest[0] if rest else None, noise, seed)


def exact(maps: Tensor, features: Tensor, places: Places, grad: Tensor) -> list[Tensor]:
    """The result (B, t, N) and the gradients of maps, features, mu, sigma and shift, in float64."""
    noise = places.noise
    if noise is None and places.seed is not None:
        noise = normal_pairs(places.seed, maps.shape[0] * maps.shape[1], features.shape[1]).view(*maps.shape[:2], -1, 2)
    given = [maps, features, places.mu, places.sigma, *([] if places.shift is None else [places.shift])]
    leaves = [x.detach().double().requires_grad_() for x in given]
    shift = None if places.shift is None else leaves[4]
    y = definition(*leaves[:4], shift, None, None, None if noise is None else noise.double(), None).transpose(1, 2)
    found = torch.autograd.grad((y * grad.double()).sum(), leaves, allow_unused=True, materialize_grads=True)
    return [y.detach(), *found]


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("given", torch.float32), ("given", torch.float16), ("drawn", torch.float32), ("still", torch.float32)],
)
@pytest.mark.parametrize("shape", CASES)
def test_kernels_are_the_definition(
    shape: tuple[int, ...], kind: str, dtype: torch.dtype, kernel_device: torch.device
) -> None:
    from viv1t.kernels.readout import triton

    # Rounded as kernels get them, edges stay where they are.
    case = drawn(shape, optional=kind != "still", dtype=torch.float32)
    if kind == "drawn":
        case = case._replace(noise=None, seed=torch.tensor([2**40 + 17]))
    maps, features, places = on(kernel_device, case, dtype)
    grad = torch.randn(*maps.shape[:2], features.shape[1], device=kernel_device)
    expected = exact(maps, features, places, grad)
    with poisoned_memory():
        y = triton.sample(maps, features, places)
        found = triton.sample_backward(grad, maps, features, places)
    assert found.maps.dtype == dtype
    for name, a, b in zip(("y", *found._fields), (y, *found), expected, strict=False):
        tolerance = 3e-3 if dtype == torch.float16 and name == "maps" else 2e-5
        assert a.isfinite().all(), name
        assert (a.double() - b).norm() <= tolerance * b.norm() + 1e-6, name


def test_results_repeat_bit_for_bit(kernel_device: torch.device) -> None:
    from viv1t.kernels.readout import triton

    case = drawn(CASES[0])._replace(noise=None, seed=torch.tensor([3]))
    maps, features, places = on(kernel_device, case, torch.float32)
    grad = torch.randn(*maps.shape[:2], features.shape[1], device=kernel_device)
    first, second = (triton.sample_backward(grad, maps, features, places) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_positions_that_are_not_numbers_reach_the_response(kernel_device: torch.device) -> None:
    from viv1t.kernels.readout import triton

    case = drawn(CASES[0])
    case.differentiable[2][1] = float("nan")
    y = triton.sample(*on(kernel_device, case, torch.float32))
    assert y[..., 1].isnan().all()
    assert not y[..., [0, 2, 3, 4]].isnan().any()


def test_the_operator_runs_the_kernels(kernel_device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """State, bias and layouts as off CUDA; `permute` as the core gives maps."""
    from viv1t.kernels.readout import triton

    case = drawn(CASES[0], dtype=torch.float32)
    given = [x.to(kernel_device) for x in case.differentiable]
    given[0] = given[0].permute(0, 4, 1, 2, 3).contiguous().permute(0, 2, 3, 4, 1)
    assert case.noise is not None
    weigh = torch.randn(2, 5, 7).to(kernel_device)

    def results() -> list[Tensor]:
        maps, features, mu, sigma, shift, code, bias = leaves = [x.detach().requires_grad_() for x in given]
        noise = case.noise.to(kernel_device)  # type: ignore[union-attr]
        y = readout(maps, features, mu, sigma, shift=shift, code=code, bias=bias, noise=noise)
        return [y.detach(), *torch.autograd.grad((y * weigh).sum(), leaves)]

    found = []
    for implementation in (triton, cpu):
        monkeypatch.setattr(operator, "_implementation", lambda *_, chosen=implementation: chosen)
        found.append(results())
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
        assert a.stride() == b.stride()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_full_size_on_a_gpu(dtype: torch.dtype, kernel_device: torch.device) -> None:
    from viv1t.kernels.readout import triton

    case = drawn((1, 12, 15, 29, 112, 8000), dtype=torch.float32)._replace(noise=None, seed=torch.tensor([11]))
    maps, features, places = on(kernel_device, case, dtype)
    grad = torch.randn(*maps.shape[:2], features.shape[1], device=kernel_device)
    found = [triton.sample(maps, features, places)]
    found += triton.sample_backward(grad, maps, features, places)
    for a, b in zip(found, exact(maps, features, places, grad), strict=True):
        assert (a.double() - b).norm() <= (1e-2 if dtype == torch.bfloat16 else 1e-4) * b.norm()
