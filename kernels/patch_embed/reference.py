"""Overlapping patches -> LayerNorm -> Linear, without writing the patches out.

A patch holds C x pt x ps x ps values, flattened as (channel, frame, row, column). Channel 0 is the video; the further
channels are the animal's state, constant over rows and columns. LayerNorm followed by a Linear is then

    y = (conv3d(video, Wv) + conv1d(state, sum_rows_columns(Ws))) / sqrt(var + eps) + (W beta + bias)

with (Wv, Ws) = W gamma - mean(W gamma): centring the weight's rows stands for subtracting each patch's mean. The
variance comes from sums over the window. Both are taken about one value per sample, the video's mean, which LayerNorm
does not see: it keeps float32 from cancelling.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor


def fold(norm_weight: Tensor, norm_bias: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The centred weight (D, K), and what is added in the end (D,)."""
    folded = weight * norm_weight
    return folded - folded.mean(dim=1, keepdim=True), weight @ norm_bias + bias


def centred(video: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Both less the video's mean of that sample."""
    centre = video.mean(dim=(1, 2, 3, 4), keepdim=True).detach()
    return video - centre, None if state is None else state - centre[..., 0, 0]


def _window_sums(x: Tensor, size: Sequence[int], stride: Sequence[int]) -> Tensor:
    """Sums of (B, 1, T, H, W) over every patch -> (B, 1, t, Ph, Pw); separable, summed directly."""
    for dim, (n, step) in enumerate(zip(size, stride, strict=True), start=2):
        x = x.unfold(dim, n, step).sum(-1)
    return x


def window_totals(
    video: Tensor, state: Tensor | None, size: Sequence[int], stride: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Sums of every patch's values, and of their squares, (B, 1, t, Ph, Pw) each."""
    total, squares = _window_sums(video, size, stride), _window_sums(video.square(), size, stride)
    if state is not None:
        windows, pixels = state.unfold(2, size[0], stride[0]), size[1] * size[2]
        total = total + pixels * windows.sum(dim=(1, 3))[:, None, :, None, None]
        squares = squares + pixels * windows.square().sum(dim=(1, 3))[:, None, :, None, None]
    return total, squares


def inverse_deviations(
    video: Tensor, state: Tensor | None, size: Sequence[int], stride: Sequence[int], eps: float
) -> Tensor:
    """1 / sqrt(var + eps) of every patch, (B, 1, t, Ph, Pw), of `centred` inputs."""
    total, squares = window_totals(video, state, size, stride)
    count = (1 if state is None else 1 + state.shape[1]) * size[0] * size[1] * size[2]
    return ((squares / count - (total / count).square()).clamp_min(0) + eps).rsqrt()


def state_term(state: Tensor | None, kernel: Tensor, stride: Sequence[int]) -> Tensor | None:
    """The state's part of the product with kernel (D, 1 + S, pt, ps, ps) -> (B, D, t), the same for all patches."""
    return None if state is None else F.conv1d(state, kernel[:, 1:].sum(dim=(-1, -2)), stride=stride[0])


def _project(video: Tensor, state: Tensor | None, kernel: Tensor, stride: Sequence[int]) -> Tensor:
    """Correlates video (B, 1, T, H, W) and state (B, S, T) with kernel (D, 1 + S, pt, ps, ps) -> (B, D, t, Ph, Pw)."""
    y, same = F.conv3d(video, kernel[:, :1], stride=list(stride)), state_term(state, kernel, stride)
    return y if same is None else y + same[..., None, None]


def patch_embed(
    video: Tensor,
    state: Tensor | None,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight: Tensor,
    bias: Tensor,
    size: Sequence[int],
    stride: Sequence[int],
    eps: float = 1e-5,
) -> Tensor:
    """Normalised and projected patches (B, t, Ph, Pw, D); arguments as in `operator.py`.

    Differentiable in every argument.
    """
    kernel, offset = fold(norm_weight, norm_bias, weight, bias)
    video, state = centred(video, state)
    rstd = inverse_deviations(video, state, size, stride, eps)
    y = _project(video, state, kernel.unflatten(1, (-1, *size)), stride)
    return (y * rstd).permute(0, 2, 3, 4, 1) + offset


def patch_convolution(
    video: Tensor, state: Tensor | None, weight: Tensor, bias: Tensor, size: Sequence[int], stride: Sequence[int]
) -> Tensor:
    """Projected patches without a normalisation: a 3-D convolution; otherwise as `patch_embed`."""
    y = _project(video, state, weight.unflatten(1, (-1, *size)), stride)
    return y.permute(0, 2, 3, 4, 1) + bias
