"""Attention rollout: the blocks' own weights, multiplied in order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from viv1t.errors import ConfigError
from viv1t.families.sensorium2023.build import build_model
from viv1t.families.sensorium2023.run import RunConfig
from viv1t.model.twin import Neurons, ViV1T
from viv1t.prediction.attention_rollout import (
    attention_rollout,
    attention_weights,
    block_inputs,
    spread_over_pixels,
)

SMALL = {
    "ds_mode": 2, "transform_mode": 1, "core": "vivit", "readout": "gaussian2d", "output_dir": "run",
    "core_spatial_patch_size": 4, "core_spatial_patch_stride": 3, "core_temporal_patch_size": 5,
    "core_spatial_depth": 2, "core_temporal_depth": 2, "core_num_heads": 3, "core_emb_dim": 12, "core_head_dim": 4,
    "core_mlp_dim": 8,
}  # fmt: skip
FRAME = (12, 18)
T = 14


def small_model(**options: Any) -> ViV1T:
    torch.manual_seed(3)
    model = build_model(RunConfig.from_options(SMALL | options), {"A": Neurons(4), "B": Neurons(3)}, FRAME)
    # Initial weights are so small that attention is uniform.
    for name, p in model.core.named_parameters():
        if "blocks" in name and p.ndim == 2:
            p.data *= 30
    return model.eval()


def inputs(frames: int = T) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    return tuple(
        torch.randn(1, *shape, generator=generator) for shape in ((1, frames, *FRAME), (2, frames), (2, frames))
    )  # type: ignore[return-value]


KINDS = [
    {"core_parallel_attention": True},
    {"core_parallel_attention": True, "core_norm_qk": True, "core_ff_activation": "swiglu"},
    {"core_parallel_attention": False, "core_flash_attention": 0, "core_behavior_mode": 4},
    {"core_parallel_attention": False, "core_norm_qk": True, "core_pos_encoding": 2},
]


@pytest.mark.parametrize("options", KINDS)
def test_weights_are_those_the_block_attends_with(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model(**options)
    seen = []

    def spy(q: Tensor, k: Tensor, v: Tensor, *, scale: float, **_: Any) -> Tensor:
        seen.append((q @ k.mT * scale).softmax(-1).mean(1))
        return (q @ k.mT * scale).softmax(-1) @ v

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    # The operator's definition, whose attention can be watched, as it is exported.
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    with torch.no_grad(), block_inputs(model.core.spatial) as spatial, block_inputs(model.core.temporal) as temporal:
        model(*inputs()[:1], "A", *inputs()[1:])
        blocks = [*model.core.spatial.blocks, *model.core.temporal.blocks]
        for block, given, expected in zip(blocks, [*spatial, *temporal], seen, strict=True):
            torch.testing.assert_close(attention_weights(block, torch.cat(given)), expected, rtol=1e-5, atol=1e-6)
    assert max(float(w.max()) for w in seen) > 0.3, "attention is too uniform for this to tell anything"


@pytest.mark.parametrize("options", KINDS)
def test_rollout_is_the_product_of_the_blocks(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model(**options)
    video, behavior, pupil_center = inputs()
    grid, frames = model.core.tokenizer.grid, T - 4
    seen = []

    def spy(q: Tensor, k: Tensor, v: Tensor, *, scale: float, **_: Any) -> Tensor:
        weights = (q @ k.mT * scale).softmax(-1)
        seen.append((weights.mean(1) + torch.eye(q.shape[2])) / 2)
        return weights @ v

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    # The operator's definition, whose attention can be watched, as it is exported.
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    with torch.no_grad():
        model(video, "B", behavior, pupil_center)
    monkeypatch.undo()
    rollout = attention_rollout(model, video[0], behavior[0], pupil_center[0], "B")
    spatial = (seen[1] @ seen[0]).mean(1).view(frames, *grid)
    temporal = (seen[3] @ seen[2]).mean(0)
    np.testing.assert_allclose(rollout.spatial, spatial, atol=1e-5)
    np.testing.assert_allclose(rollout.temporal, temporal, atol=1e-5)
    np.testing.assert_allclose(rollout.spatial.sum(axis=(1, 2)), 1, atol=1e-5)
    np.testing.assert_allclose(rollout.temporal.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(rollout.frames, np.arange(4, T))
    assert rollout.pixels.shape == (frames, *FRAME)


def test_groups_of_sequences_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model(core_parallel_attention=True)
    whole = attention_rollout(model, *inputs(), "A")
    monkeypatch.setattr("viv1t.prediction.attention_rollout._VALUES", 1)
    monkeypatch.setattr("viv1t.model.layers.transformer._GROUP_VALUES", 1)
    parts = attention_rollout(model, *inputs(), "A")
    np.testing.assert_allclose(parts.spatial, whole.spatial, atol=1e-6)
    np.testing.assert_allclose(parts.temporal, whole.temporal, atol=1e-6)


def test_the_model_is_left_as_it_was() -> None:
    model = small_model(core_parallel_attention=True).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    first = attention_rollout(model, *inputs(), "A")
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_pre_hooks for m in model.modules())
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    np.testing.assert_array_equal(attention_rollout(model, *inputs(), "A").temporal, first.temporal)


def test_without_blocks_everything_looks_at_itself() -> None:
    rollout = attention_rollout(small_model(core_spatial_depth=0, core_temporal_depth=0), *inputs(), "A")
    np.testing.assert_allclose(rollout.spatial, 1 / rollout.spatial[0].size)
    np.testing.assert_allclose(rollout.temporal, np.eye(T - 4))


def test_strided_frames_are_the_last_of_their_patches() -> None:
    rollout = attention_rollout(small_model(core_temporal_patch_stride=3), *inputs(), "A")
    np.testing.assert_array_equal(rollout.frames, [4, 7, 10, 13])
    assert rollout.temporal.shape == (4, 4)


def test_pixels_are_means_over_their_patches() -> None:
    patches = torch.tensor([[[1.0, 3.0]]])
    pixels = spread_over_pixels(patches, (3, 6), size=3, stride=2)
    np.testing.assert_allclose(pixels[0, 0], np.array([1, 1, 2, 3, 3, np.nan]) / 2)
    apart = spread_over_pixels(patches, (1, 4), size=1, stride=3)
    np.testing.assert_allclose(apart[0], [[0.5, np.nan, np.nan, 1.5]])


def test_other_cores_mice_and_batches_are_refused() -> None:
    model = small_model(core_parallel_attention=True)
    video, behavior, pupil_center = inputs()
    with pytest.raises(ConfigError, match="one movie at a time, not 2"):
        attention_rollout(model, video.repeat(2, 1, 1, 1, 1), behavior, pupil_center, "A")
    with pytest.raises(ConfigError, match="'C' is not in this model"):
        attention_rollout(model, video, behavior, pupil_center, "C")
    options = {k: v for k, v in SMALL.items() if not k.startswith("core")} | {"core": "factorized_baseline"}
    other = build_model(RunConfig.from_options(options), {"A": Neurons(4)}, (36, 64))
    with pytest.raises(ConfigError, match="not factorized_baseline"):
        attention_rollout(other, *inputs(40), "A")
