"""The patch embedding's GPU kernels, in Triton's interpreter where there is no GPU: against float64."""

from __future__ import annotations

from math import prod
from types import ModuleType

import pytest
import torch
from patches import Size3
from poison import poisoned_memory
from rounding import allowed
from torch import Tensor
from viv1t.kernels.patch_embed import cpu, operator, patch_embed

# (B, T, H, W), size, stride, D
GEOMETRIES: dict[str, tuple[tuple[int, ...], Size3, Size3, int]] = {
    "published": ((1, 7, 9, 9), (5, 7, 7), (1, 2, 2), 24),
    "uneven": ((2, 9, 7, 6), (4, 3, 3), (3, 2, 2), 6),
    "one patch": ((1, 3, 4, 4), (3, 4, 4), (1, 1, 1), 112),
    "pixels": ((2, 3, 2, 3), (1, 1, 1), (1, 1, 1), 130),
}


def drawn(geometry: str, state: bool, device: torch.device) -> tuple[dict[str, Tensor], Size3, Size3]:
    """Arguments of `project`, and a gradient of its result, in float32."""
    (batch, *video), size, stride, depth = GEOMETRIES[geometry]
    patches = [(n - s) // d + 1 for n, s, d in zip(video, size, stride, strict=True)]
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    tensors: dict[str, Tensor] = {
        "video": draw(batch, 1, *video), "kernel": draw(depth, *size),
        **({"same": draw(batch, depth, patches[0])} if state else {}), "rstd": draw(batch, *patches, 1).abs(),
        "offset": draw(depth), "grad": draw(batch, *patches, depth),
    }  # fmt: skip
    return tensors, size, stride


@pytest.mark.parametrize(
    ("geometry", "state", "dtype"),
    [(g, g != "pixels", torch.float32) for g in GEOMETRIES]
    + [("published", False, torch.float32), ("uneven", True, torch.float16)],
)
def test_kernels_are_the_convolution(
    geometry: str, state: bool, dtype: torch.dtype, kernel_device: torch.device
) -> None:
    from viv1t.kernels.patch_embed import triton

    found, size, stride = drawn(geometry, state, kernel_device)
    found["video"], found["kernel"] = found["video"].to(dtype), found["kernel"].to(dtype)
    wide = {name: x.double() for name, x in found.items()}

    def project(implementation: ModuleType, given: dict[str, Tensor]) -> Tensor:
        last = given.get("same"), given["rstd"], given["offset"]
        return implementation.project(given["video"], given["kernel"], stride, *last)

    def project_backward(implementation: ModuleType, given: dict[str, Tensor]) -> Tensor:
        return implementation.project_backward(given["grad"], given["rstd"], given["video"], size, stride)

    expected = [f(cpu, wide) for f in (project, project_backward)]
    with poisoned_memory():
        ours = [f(triton, found) for f in (project, project_backward)]
    patches = ours[0][..., 0].numel()
    tolerance = allowed(dtype, max(prod(size), patches))  # the patch's values, or the patches of the kernel's gradient
    for a, b in zip(ours, expected, strict=True):
        assert a.shape == b.shape
        assert a.isfinite().all()
        assert (a.double() - b).norm() <= tolerance * b.norm()


def test_the_operator_runs_the_kernels(kernel_device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    from viv1t.kernels.patch_embed import triton

    torch.manual_seed(0)
    video, state = torch.randn(1, 1, 6, 5, 7), torch.randn(1, 2, 6)
    parameters = [torch.randn(54), torch.randn(54), torch.randn(5, 54), torch.randn(5)]
    video, state, *parameters = (x.to(kernel_device) for x in (video, state, *parameters))
    grad = torch.randn(1, 3, 2, 3, 5).to(kernel_device)
    found = []
    for implementation in (triton, cpu):
        monkeypatch.setattr(operator, "_implementation", lambda *_, chosen=implementation: chosen)
        leaves = [p.detach().requires_grad_() for p in parameters]
        y = patch_embed(video, state, *leaves, (2, 3, 3), (2, 2, 2))
        found.append([y.detach(), *torch.autograd.grad((y * grad).sum(), leaves)])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_patches_that_are_not_square_are_refused(kernel_device: torch.device) -> None:
    from viv1t.kernels.patch_embed import triton

    found, size, _ = drawn("uneven", False, kernel_device)
    with pytest.raises(ValueError, match="square patches"):
        triton.project_backward(found["grad"], found["rstd"], found["video"], size, (3, 2, 1))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_full_size_on_a_gpu(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    video, state = torch.randn(2, 1, 140, 36, 64), torch.randn(2, 4, 140)
    parameters = [torch.randn(6125), torch.randn(6125), torch.randn(112, 6125) / 78, torch.randn(112)]
    size, stride = (25, 7, 7), (1, 2, 2)
    grad = torch.randn(2, 116, 15, 29, 112)

    def gradients(device: str, wide: torch.dtype) -> list[Tensor]:
        leaves = [p.to(device, wide).requires_grad_() for p in parameters]
        with torch.autocast(device, dtype, enabled=device == "cuda" and dtype != torch.float32):
            y = patch_embed(video.to(device, wide), state.to(device, wide), *leaves, size, stride)
        found = torch.autograd.grad((y * grad.to(device, wide)).sum(), leaves)
        return [x.detach().cpu().double() for x in (y, *found)]

    for a, b in zip(gradients("cuda", torch.float32), gradients("cpu", torch.float64), strict=True):
        assert (a - b).norm() <= (1e-2 if dtype == torch.bfloat16 else 1e-4) * b.norm()
