"""Tokens: LayerNorm and projection of patches that are never written out, and their positions."""

from __future__ import annotations

import pytest
import torch
from patches import largest_allocation, written_out
from small_models import small_core, small_inputs
from torch import nn

from viv1t.errors import ConfigError
from viv1t.families.sensorium2023.build import build_tokenizer
from viv1t.model.layers.positions import sinusoidal_positions


def test_patches_are_never_written_out() -> None:
    video, _, behavior, pupil_center = small_inputs(frames=30)
    config = small_core(core_temporal_patch_size=15, core_spatial_patch_size=7, core_spatial_patch_stride=1)
    tokenizer = build_tokenizer(config, (12, 16), 4)
    state = torch.cat((behavior, pupil_center), dim=1)
    patch_matrix = written_out(video, state, tokenizer.size, tokenizer.stride).numel()
    largest_bytes = largest_allocation(lambda: tokenizer(video, state).sum().backward())
    tokens = 2 * 16 * tokenizer.grid[0] * tokenizer.grid[1] * config.emb_dim
    largest = max(tokens, video.numel(), tokenizer.projection.weight.numel())
    assert 0 < largest_bytes <= 4 * 4 * largest  # backends pad their workspaces
    assert largest_bytes < 4 * patch_matrix / 50


def test_tokens_are_normalised_patches_with_positions() -> None:
    video, _, behavior, pupil_center = small_inputs()
    state = torch.cat((behavior, pupil_center), dim=1)
    tokenizer = build_tokenizer(small_core(), (12, 16), 4).eval()
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
        build_tokenizer(small_core(core_spatial_patch_size=13), (12, 16), 0)
