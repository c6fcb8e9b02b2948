"""Tokens: LayerNorm and projection of patches that are never written out, and their positions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from small_models import small_core, small_inputs
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from viv1t.kernels.reference.patch_embed import patch_convolution, patch_embed

from viv1t.errors import ConfigError
from viv1t.model.tokenizer import Tokenizer, sinusoidal_positions

Size3 = tuple[int, int, int]


def written_out(video: Tensor, state: Tensor | None, size: Size3, stride: Size3) -> Tensor:
    """Every patch as a row: (B, t, Ph, Pw, C * pt * ph * pw), in the order (channel, frame, row, column)."""
    x = video
    if state is not None:
        x = torch.cat((video, state[..., None, None].expand(-1, -1, -1, *video.shape[3:])), dim=1)
    for dim, (n, step) in enumerate(zip(size, stride, strict=True), start=2):
        x = x.unfold(dim, n, step)
    return x.permute(0, 2, 3, 4, 1, 5, 6, 7).flatten(4)


def plain(
    video: Tensor,
    state: Tensor | None,
    gamma: Tensor,
    beta: Tensor,
    weight: Tensor,
    bias: Tensor,
    size: Size3,
    stride: Size3,
) -> Tensor:
    patches = written_out(video, state, size, stride)
    return F.linear(F.layer_norm(patches, patches.shape[-1:], gamma, beta), weight, bias).permute(0, 4, 1, 2, 3)


GEOMETRIES = {
    "published": ((1, 7, 13, 17), (5, 7, 7), (1, 2, 2)),
    "strides": ((2, 11, 12, 15), (3, 4, 4), (2, 3, 3)),
    "odd and uneven": ((2, 6, 9, 13), (4, 3, 5), (3, 2, 4)),
    "one patch": ((1, 3, 4, 4), (3, 4, 4), (1, 1, 1)),
    "apart": ((1, 9, 11, 11), (2, 3, 3), (4, 5, 5)),
    "pixels": ((1, 3, 4, 5), (1, 1, 1), (1, 1, 1)),
}


# A patch of one value has no variance, so the smallest patch needs state channels.
@pytest.mark.parametrize(
    ("geometry", "channels"), [(g, c) for g in GEOMETRIES for c in (0, 2, 4) if (g, c) != ("pixels", 0)]
)
def test_patch_embed_is_layer_norm_and_linear_of_patches(geometry: str, channels: int) -> None:
    (batch, frames, height, width), size, stride = GEOMETRIES[geometry]
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    values = (1 + channels) * size[0] * size[1] * size[2]
    inputs = {
        "video": draw(batch, 1, frames, height, width), "state": draw(batch, channels, frames) if channels else None,
        "gamma": 1 + draw(values), "beta": draw(values), "weight": draw(6, values), "bias": draw(6),
    }  # fmt: skip
    leaves = [x.requires_grad_() for x in inputs.values() if x is not None]
    ours = patch_embed(*inputs.values(), size, stride)  # type: ignore[arg-type]
    theirs = plain(*inputs.values(), size, stride)  # type: ignore[arg-type]
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    weigh = draw(*ours.shape)
    for a, b in zip(
        torch.autograd.grad((ours * weigh).sum(), leaves),
        torch.autograd.grad((theirs * weigh).sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8 * b.abs().max().item())


@pytest.mark.parametrize("channels", [0, 4])
def test_patch_convolution_is_linear_of_patches(channels: int) -> None:
    size, stride = (3, 4, 4), (2, 3, 3)
    video, state = torch.randn(2, 1, 9, 12, 15).double(), torch.randn(2, channels, 9).double() if channels else None
    weight, bias = torch.randn(6, (1 + channels) * 48).double(), torch.randn(6).double()
    expected = F.linear(written_out(video, state, size, stride), weight, bias).permute(0, 4, 1, 2, 3)
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
    exact = plain(video.double(), state.double(), *(p.double() for p in parameters), size, stride)
    ours = patch_embed(video, state, *parameters, size, stride)
    theirs = plain(video, state, *parameters, size, stride)
    errors = [((x.double() - exact).norm() / exact.norm()).item() for x in (ours, theirs)]
    assert errors[0] < max(3 * errors[1], 2e-6)


def test_a_constant_movie_gives_finite_tokens_and_gradients() -> None:
    video = torch.full((1, 1, 5, 8, 8), 0.3, requires_grad=True)
    values = 3 * 16
    weight = torch.randn(4, values, requires_grad=True)
    y = patch_embed(video, None, torch.ones(values), torch.zeros(values), weight, torch.zeros(4), (3, 4, 4), (1, 2, 2))
    y.sum().backward()
    torch.testing.assert_close(y, torch.zeros_like(y), rtol=0, atol=1e-3)
    assert video.grad is not None
    assert weight.grad is not None
    assert video.grad.isfinite().all()
    assert weight.grad.isfinite().all()


class LargestTensor(TorchDispatchMode):
    """Remembers the largest number of values that any operator returned."""

    values = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):  # views of overlapping windows take no memory
                self.values = max(self.values, leaf.untyped_storage().nbytes() // leaf.element_size())
        return out


def test_patches_are_never_written_out() -> None:
    video, _, behavior, pupil_center = small_inputs(frames=30)
    config = small_core(core_temporal_patch_size=15, core_spatial_patch_size=7, core_spatial_patch_stride=1)
    tokenizer = Tokenizer(config, (12, 16), 4)
    state = torch.cat((behavior, pupil_center), dim=1)
    patch_matrix = written_out(video, state, tokenizer.size, tokenizer.stride).numel()
    with LargestTensor() as mode:
        tokenizer(video, state).sum().backward()
    tokens = 2 * 16 * tokenizer.grid[0] * tokenizer.grid[1] * config.emb_dim
    largest = max(tokens, video.numel(), tokenizer.projection.weight.numel())
    assert mode.values <= 4 * largest  # backends pad their workspaces
    assert mode.values < patch_matrix / 50


def test_tokens_are_normalised_patches_with_positions() -> None:
    video, _, behavior, pupil_center = small_inputs()
    state = torch.cat((behavior, pupil_center), dim=1)
    tokenizer = Tokenizer(small_core(), (12, 16), 4).eval()
    patches = written_out(video, state, tokenizer.size, tokenizer.stride).flatten(2, 3)
    assert isinstance(tokenizer.projection, nn.Linear)
    expected = tokenizer.norm(tokenizer.projection(tokenizer.patch_norm(patches)))
    expected = expected + tokenizer.spatial_position + tokenizer.temporal_position[:, :16]
    tokens = tokenizer(video, state)
    assert tokens.shape == (2, 16, 12, 8)
    torch.testing.assert_close(tokens, expected, rtol=1e-4, atol=1e-5)


def test_sinusoids() -> None:
    table = sinusoidal_positions(300, 6)
    assert table.shape == (300, 6)
    for position, channel in ((0, 0), (0, 1), (7, 2), (299, 5)):
        angle = torch.tensor(position * 10000 ** (-(channel // 2 * 2) / 6))
        expected = torch.cos(angle) if channel % 2 else torch.sin(angle)
        assert table[position, channel].item() == pytest.approx(expected.item(), abs=1e-4)


def test_a_patch_larger_than_the_frame_is_refused() -> None:
    with pytest.raises(ConfigError, match="--core_spatial_patch_size 13 is larger than the frame, 12 x 16"):
        Tokenizer(small_core(core_spatial_patch_size=13), (12, 16), 0)
