"""The patch embedding operator against LayerNorm and Linear of patches that are written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from patches import Size3, embedded, largest_allocation, written_out
from torch import Tensor
from viv1t.kernels.patch_embed import cpu, patch_embed
from viv1t.kernels.patch_embed.reference import patch_convolution
from viv1t.kernels.patch_embed.reference import patch_embed as definition

GEOMETRIES = {
    "published": ((1, 7, 13, 17), (5, 7, 7), (1, 2, 2)),
    "strides": ((2, 11, 12, 15), (3, 4, 4), (2, 3, 3)),
    "odd and uneven": ((2, 6, 9, 13), (4, 3, 5), (3, 2, 4)),
    "one patch": ((1, 3, 4, 4), (3, 4, 4), (1, 1, 1)),
    "apart": ((1, 9, 11, 11), (2, 3, 3), (4, 5, 5)),
    "pixels": ((1, 3, 4, 5), (1, 1, 1), (1, 1, 1)),
}


# A patch of one value has no variance, so the smallest patch needs state channels.
NORMALISED = [(g, c) for g in GEOMETRIES for c in (0, 2, 4) if (g, c) != ("pixels", 0)]


def drawn(geometry: str, channels: int, dtype: torch.dtype = torch.float64) -> tuple[list[Tensor | None], Size3, Size3]:
    """Video, state, LayerNorm's weight and bias, projection's weight and bias; size; stride."""
    (batch, frames, height, width), size, stride = GEOMETRIES[geometry]
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype)

    values = (1 + channels) * size[0] * size[1] * size[2]
    state = draw(batch, channels, frames) if channels else None
    video = draw(batch, 1, frames, height, width)
    return [video, state, 1 + draw(values), draw(values), draw(6, values), draw(6)], size, stride


@pytest.mark.parametrize("inputs_too", [False, True])
@pytest.mark.parametrize(("geometry", "channels"), NORMALISED)
def test_patch_embed_is_layer_norm_and_linear_of_patches(geometry: str, channels: int, inputs_too: bool) -> None:
    inputs, size, stride = drawn(geometry, channels)
    leaves = [x.requires_grad_() for x in inputs[0 if inputs_too else 2 :] if x is not None]
    ours, theirs = patch_embed(*inputs, size, stride), embedded(*inputs, size, stride)  # type: ignore[arg-type]
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    weigh = torch.randn_like(ours)
    for a, b in zip(*(torch.autograd.grad((y * weigh).sum(), leaves) for y in (ours, theirs)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8 * b.abs().max().item())


@pytest.mark.parametrize("channels", [0, 4])
def test_autocast_takes_products_in_bf16(channels: int) -> None:
    inputs, size, stride = drawn("strides", channels, torch.float32)
    leaves = [x.requires_grad_() for x in inputs[2:] if x is not None]
    with torch.autocast("cpu", torch.bfloat16):
        ours = patch_embed(*inputs, size, stride)  # type: ignore[arg-type]
    theirs = embedded(*inputs, size, stride)  # type: ignore[arg-type]
    assert ours.dtype == torch.float32
    assert 1e-4 < (ours - theirs).norm() / theirs.norm() < 1e-2
    weigh = torch.randn_like(ours)
    for a, b in zip(*(torch.autograd.grad((y * weigh).sum(), leaves) for y in (ours, theirs)), strict=True):
        assert (a - b).norm() < 1e-2 * b.norm()


@pytest.mark.parametrize("values", [1, 3_000, 1_000_000])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_a_cpu_multiplies_in_groups_of_rows(geometry: str, values: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a convolution, without one, and with the same bits for any number of threads."""
    (batch, frames, *frame), size, stride = GEOMETRIES[geometry]
    video, kernel = torch.randn(batch, 1, frames, *frame), torch.randn(6, *size)
    expected = F.conv3d(video.double(), kernel[:, None].double(), stride=stride).permute(0, 2, 3, 4, 1)
    rstd, same, offset = torch.rand(*expected.shape[:4], 1), torch.randn(batch, 6, expected.shape[1]), torch.randn(6)
    grad = torch.randn(expected.shape)
    scaled = (grad * rstd).double().permute(0, 4, 1, 2, 3)
    of_kernel = torch.nn.grad.conv3d_weight(video.double(), (6, 1, *size), scaled, stride=stride)[:, 0]
    expected = (expected + same.mT[:, :, None, None]) * rstd + offset

    def convolution(*_: Any, **__: Any) -> None:
        raise AssertionError("a convolution")

    monkeypatch.setattr(cpu, "_GROUP_VALUES", values)
    monkeypatch.setattr(cpu, "conv3d_weight", convolution)
    monkeypatch.setattr(F, "conv3d", convolution)
    found, before = [], torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            y = cpu.project(video, kernel, stride, same, rstd, offset)
            found.append((y, cpu.project_backward(grad, rstd, video, size, stride)))
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
    torch.testing.assert_close([x.double() for x in found[0]], [expected, of_kernel], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("channels", [0, 2])
def test_opcheck(channels: int) -> None:
    inputs, size, stride = drawn("strides", channels)
    for x in inputs[2:]:
        assert x is not None
        x.requires_grad_()
    arguments = (*inputs, list(size), list(stride), 1e-5, torch.float64)
    torch.library.opcheck(torch.ops.viv1t.patch_embed.default, arguments)
    assert inputs[0] is not None
    transposed = inputs[0].transpose(3, 4).contiguous().transpose(3, 4)
    torch.library.opcheck(torch.ops.viv1t.patch_embed.default, (transposed, *arguments[1:]))


@pytest.mark.parametrize("channels", [0, 2])
def test_opcheck_with_gradients_of_the_inputs(channels: int) -> None:
    inputs, size, stride = drawn("strides", channels)
    leaves = [None if x is None else x.requires_grad_() for x in inputs]
    torch.library.opcheck(torch.ops.viv1t.patch_embed.default, (*leaves, list(size), list(stride), 1e-5, torch.float64))


def test_a_movie_s_gradient_computes_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a trained model, whose parameters stay as they are."""

    def no_gradient(*_: Any) -> None:
        raise AssertionError("gradients of parameters that need none")

    inputs, size, stride = drawn("published", 4)
    video = inputs[0]
    assert video is not None
    video.requires_grad_()
    y = patch_embed(*inputs, size, stride)  # type: ignore[arg-type]
    expected = torch.autograd.grad(definition(*inputs, size, stride).square().sum(), video)[0]  # type: ignore[arg-type]
    monkeypatch.setattr(cpu, "project_backward", no_gradient)
    torch.testing.assert_close(torch.autograd.grad(y.square().sum(), video)[0], expected)


def test_the_movie_s_gradient_writes_no_patches_out() -> None:
    """The largest allocation is that of a few results or videos; patches written out are 600 times the video."""
    video = torch.randn(1, 1, 24, 30, 40, requires_grad=True)
    values, size, stride = 13 * 49, (13, 7, 7), (1, 1, 1)
    parameters = torch.ones(values), torch.zeros(values), torch.randn(8, values), torch.zeros(8)

    def work() -> None:
        y = patch_embed(video, None, *parameters, size, stride)
        torch.autograd.grad(y, video, torch.ones_like(y))

    result = 12 * 24 * 34 * 8
    assert largest_allocation(work) < 4 * 4 * result < video.numel() * values


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_movie_s_gradient_in_lower_precision(dtype: torch.dtype) -> None:
    inputs, size, stride = drawn("published", 4)
    leaves = [x.float().requires_grad_() for x in inputs[:2] if x is not None]
    exact = [x.detach().double().requires_grad_() for x in leaves]
    rest = [x for x in inputs[2:] if x is not None]
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        ours = patch_embed(*leaves, *(x.float() for x in rest), size, stride)
    theirs = definition(*exact, *rest, size, stride)
    weigh = torch.randn_like(theirs)
    found = torch.autograd.grad((ours * weigh.float()).sum(), leaves)
    for a, b in zip(found, torch.autograd.grad((theirs * weigh).sum(), exact), strict=True):
        assert a.dtype == torch.float32
        assert (a - b).norm() < (2e-2 if dtype == torch.bfloat16 else 2e-5) * b.norm()


def test_compiled_without_graph_breaks(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch._dynamo.reset()
    compiled = torch.compile(patch_embed, fullgraph=True, backend="aot_eager")
    for precision in (False, True):
        inputs, size, stride = drawn("published", 4, torch.float32)
        leaves = [x.requires_grad_() for x in inputs[2:] if x is not None]
        with torch.autocast("cpu", torch.bfloat16, enabled=precision):
            ours, theirs = (f(*inputs, size, stride) for f in (compiled, patch_embed))
        for a, b in zip(*(torch.autograd.grad(y.square().sum(), leaves) for y in (ours, theirs)), strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("channels", [0, 4])
def test_patch_convolution_is_linear_of_patches(channels: int) -> None:
    size, stride = (3, 4, 4), (2, 3, 3)
    video, state = torch.randn(2, 1, 9, 12, 15).double(), torch.randn(2, channels, 9).double() if channels else None
    weight, bias = torch.randn(6, (1 + channels) * 48).double(), torch.randn(6).double()
    expected = F.linear(written_out(video, state, size, stride), weight, bias)
    torch.testing.assert_close(patch_convolution(video, state, weight, bias, size, stride), expected)


@pytest.mark.parametrize("offset", [0.0, 10.0, 1000.0])
def test_offsets_of_the_movie_do_not_cancel_in_float32(offset: float) -> None:
    """No further from float64 than patches written out in float32 are, up to a small factor."""
    size, stride = (5, 7, 7), (1, 2, 2)
    torch.manual_seed(0)
    video, state = offset + torch.randn(2, 1, 8, 13, 17), offset + torch.rand(2, 4, 8)
    values = 5 * 5 * 49
    parameters = (
        1 + 0.1 * torch.randn(values),
        torch.randn(values),
        torch.randn(16, values) / values**0.5,
        torch.randn(16),
    )
    exact = embedded(video.double(), state.double(), *(p.double() for p in parameters), size, stride)
    ours = patch_embed(video, state, *parameters, size, stride)
    theirs = embedded(video, state, *parameters, size, stride)
    errors = [((x.double() - exact).norm() / exact.norm()).item() for x in (ours, theirs)]
    assert errors[0] < max(3 * errors[1], 2e-6)


@pytest.mark.parametrize("function", [patch_embed, definition])
def test_a_constant_movie_gives_finite_tokens_and_gradients(function: Any) -> None:
    video = torch.full((1, 1, 5, 8, 8), 0.3, requires_grad=True)
    values = 3 * 16
    weight = torch.randn(4, values, requires_grad=True)
    y = function(video, None, torch.ones(values), torch.zeros(values), weight, torch.zeros(4), (3, 4, 4), (1, 2, 2))
    y.sum().backward()
    torch.testing.assert_close(y, torch.zeros_like(y), rtol=0, atol=1e-3)
    assert video.grad is not None
    assert video.grad.isfinite().all()
    assert weight.grad is not None
    assert weight.grad.isfinite().all()


def test_video_and_one_number_per_patch_are_kept() -> None:
    inputs, size, stride = drawn("published", 4, torch.float32)
    for x in inputs[2:]:
        assert x is not None
        x.requires_grad_()
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        y = patch_embed(*inputs, size, stride)  # type: ignore[arg-type]
    assert sum(kept.values()) <= 4 * (sum(x.numel() for x in inputs if x is not None) + y[..., 0].numel())
