"""Attention rollout: how much each output of a ViViT core looks at each patch and each frame.

After Abnar and Zuidema (2020), "Quantifying attention flow in transformers": a block's attention, mean over heads, is
mixed half and half with the identity, which stands for the residual path, and the blocks' matrices are multiplied. The
spatial blocks give patches over patches for each predicted frame, the temporal ones frames over frames for each patch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from viv1t.errors import ConfigError
from viv1t.model.cores.vivit import Vivit
from viv1t.model.layers.blocks import ParallelBlock, SequentialBlock, split_heads
from viv1t.model.layers.transformer import Transformer
from viv1t.model.twin import ViV1T

_VALUES = 8_000_000  # attention weights in memory at a time


@dataclass(frozen=True)
class Rollout:
    """Attention of one movie's trial.

    Attributes:
        spatial: (t, rows, columns) float32, attention each patch receives at each predicted frame, mean over the
            patches that attend; sums to 1 per frame.
        pixels: (t, H, W) float32, the same spread over the pixels of each patch; mean 1 over the pixels that patches
            cover, NaN on those that none does.
        temporal: (t, t) float32, attention that the predicted frame of a row pays to that of a column, mean over
            patches; rows sum to 1.
        frames: (t,) int64, index in the movie of each predicted frame.
    """

    spatial: np.ndarray
    pixels: np.ndarray
    temporal: np.ndarray
    frames: np.ndarray


def can_roll_out(core: Vivit) -> bool:
    """Whether its attention is of a kind that is known here: without masks, registers and rotary positions."""
    parts = (core.spatial, core.temporal)
    return not any(part.registers is not None or part.rotary is not None or part.masked for part in parts)


def attention_rollout(model: ViV1T, video: Tensor, behavior: Tensor, pupil_center: Tensor, mouse_id: str) -> Rollout:
    """Attention rollout of one movie, in evaluation mode.

    Args:
        model: with a ViViT core.
        video: (1, T, H, W) or (1, 1, T, H, W) transformed movie, T at most 300.
        behavior: (2, T) or (1, 2, T) transformed pupil dilation and running speed.
        pupil_center: (2, T) or (1, 2, T) transformed gaze.
        mouse_id: which mouse.

    Raises:
        ConfigError: another core, more than one movie, or a mouse that the model does not have.
    """
    core = model.core
    if not isinstance(core, Vivit):
        raise ConfigError(f"attention rollout needs a model with the core vivit, not {model.config.core.name}")
    if not can_roll_out(core):
        raise ConfigError("attention rollout does not know causal attention, registers or rotary positions yet")
    video, behavior, pupil_center = (
        x if x.ndim == n else x[None] for x, n in ((video, 5), (behavior, 3), (pupil_center, 3))
    )
    if len(video) != 1:
        raise ConfigError(f"attention rollout takes one movie at a time, not {len(video)}")
    device = model.device
    training = model.training
    model.eval()
    try:
        with (
            torch.no_grad(),
            block_inputs(core.spatial) as spatial_inputs,
            block_inputs(core.temporal) as temporal_inputs,
        ):
            maps = model.core_output(video.to(device), mouse_id, behavior.to(device), pupil_center.to(device))
        blocks: list[Any] = [*core.spatial.blocks, *core.temporal.blocks]
        heads = max((block.heads for block in blocks), default=1)
        frames, patches = maps.shape[2], maps.shape[3] * maps.shape[4]
        received = torch.cat(
            [flow.mean(dim=1) for flow in _flows(core.spatial, spatial_inputs, frames, patches, heads)]
        )
        flows = _flows(core.temporal, temporal_inputs, patches, frames, heads)
        temporal = torch.stack([flow.sum(dim=0) for flow in flows]).sum(dim=0) / patches
    finally:
        model.train(training)
    size, stride = core.tokenizer.size, core.tokenizer.stride
    spatial = received.view(frames, *core.tokenizer.grid)
    return Rollout(
        spatial=spatial.cpu().numpy(),
        pixels=spread_over_pixels(spatial, model.frame_size, size[1], stride[1]).cpu().numpy(),
        temporal=temporal.cpu().numpy(),
        frames=np.arange(frames) * stride[0] + size[0] - 1,
    )


@contextmanager
def block_inputs(transformer: Transformer) -> Iterator[list[list[Tensor]]]:
    """Collects, per block, the sequences (S, L, D) that it is given, in order; a block may take them in groups."""
    inputs: list[list[Tensor]] = [[] for _ in transformer.blocks]

    def keep(index: int, args: tuple[Tensor, ...]) -> None:
        inputs[index].append(args[0])

    with ExitStack() as stack:
        for i, block in enumerate(transformer.blocks):
            handle = block.register_forward_pre_hook(lambda _, args, i=i: keep(i, args))
            stack.callback(handle.remove)
        yield inputs


def attention_weights(block: nn.Module, x: Tensor) -> Tensor:
    """Softmax attention of a block for its input x (S, L, D), mean over heads: (S, L, L) float32, rows sum to 1."""
    x = x.float()
    if isinstance(block, ParallelBlock):
        q, k = block.fused_linear(block.norm(x)).split(block.widths, dim=-1)[:2]
    else:
        assert isinstance(block, SequentialBlock)
        q, k = block.qkv(block.attention_norm(x)).chunk(3, dim=-1)[:2]
    q, k = (split_heads(y, block.heads) for y in (block.norm_q(q), block.norm_k(k)))
    weights: Tensor = (q @ k.transpose(-1, -2) * block.scale).softmax(dim=-1)
    return weights.mean(dim=1)


@torch.no_grad()
def _flows(
    transformer: Transformer, inputs: list[list[Tensor]], sequences: int, length: int, heads: int
) -> Iterator[Tensor]:
    """Rollout of all sequences, in groups (s, L, L): row i says where output token i looks among the input tokens."""
    given = [torch.cat(parts) for parts in inputs]
    identity = torch.eye(length, device=given[0].device if given else None)
    group = max(1, _VALUES // (heads * length * length))
    for start in range(0, sequences, group):
        stop = min(start + group, sequences)
        flow = identity.expand(stop - start, -1, -1)
        for block, x in zip(transformer.blocks, given, strict=True):
            flow = (attention_weights(block, x[start:stop]) + identity) / 2 @ flow
        yield flow


def spread_over_pixels(patches: Tensor, frame_size: tuple[int, int], size: int, stride: int) -> Tensor:
    """Each pixel's mean over the patches that cover it, scaled to mean 1; patches (t, rows, columns) -> (t, H, W).

    Pixels that no patch covers are NaN.
    """
    kernel = patches.new_ones(1, 1, size, size)
    total = F.conv_transpose2d(patches[:, None], kernel, stride=stride)
    cover = F.conv_transpose2d(torch.ones_like(patches[:1, None]), kernel, stride=stride)
    pixels = total / cover  # 0 / 0 between patches further apart than their size
    pixels = pixels / pixels.nanmean(dim=(-1, -2), keepdim=True)
    below, right = frame_size[0] - pixels.shape[-2], frame_size[1] - pixels.shape[-1]
    return F.pad(pixels, (0, right, 0, below), value=float("nan"))[:, 0]
