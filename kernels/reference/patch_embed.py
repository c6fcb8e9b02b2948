"""Overlapping patches -> LayerNorm -> Linear, without writing the patches out.

A patch holds C x pt x ps x ps values, flattened as (channel, frame, row, column). Channel 0 is the video; the further
channels are the animal's state, constant over rows and columns. LayerNorm followed by a Linear is then

    y = (conv3d(video, Wv) + conv1d(state, sum_rows_columns(Ws))) / sqrt(var + eps) + (W beta + bias)

with (Wv, Ws) = W gamma - mean(W gamma): centring the weight's rows stands for subtracting each patch's mean. The
variance comes from sums over the window. Both are taken about one value per sample, the video's mean, which LayerNorm
does not see: it keeps float32 from cancelling.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

Size3 = tuple[int, int, int]


def _project(video: Tensor, state: Tensor | None, weight: Tensor, stride: Size3) -> Tensor:
    """Correlates video (B, 1, T, H, W) and state (B, S, T) with weight (D, 1 + S, pt, ps, ps) -> (B, D, t, Ph, Pw)."""
    y = F.conv3d(video, weight[:, :1], stride=stride)
    if state is not None:
        y = y + F.conv1d(state, weight[:, 1:].sum(dim=(-1, -2)), stride=stride[0])[..., None, None]
    return y


def _window_sums(x: Tensor, size: Size3, stride: Size3) -> Tensor:
    """Sums of (B, 1, T, H, W) over every patch -> (B, 1, t, Ph, Pw); separable, summed directly."""
    for dim, (n, step) in enumerate(zip(size, stride, strict=True), start=2):
        x = x.unfold(dim, n, step).sum(-1)
    return x


def patch_embed(
    video: Tensor,
    state: Tensor | None,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight: Tensor,
    bias: Tensor,
    size: Size3,
    stride: Size3,
    eps: float = 1e-5,
) -> Tensor:
    """Normalised and projected patches.

    Args:
        video: (B, 1, T, H, W).
        state: (B, S, T) channels that are constant over a frame, or None.
        norm_weight, norm_bias: (K,) of the LayerNorm over a patch, K = (1 + S) * pt * ps * ps.
        weight, bias: (D, K) and (D,) of the projection.
        size, stride: (frames, rows, columns) of a patch, and between patches.
        eps: of the LayerNorm.

    Returns:
        (B, D, t, Ph, Pw) in the input's dtype.
    """
    folded = weight * norm_weight
    centred = (folded - folded.mean(dim=1, keepdim=True)).unflatten(1, (-1, *size))
    centre = video.mean(dim=(1, 2, 3, 4), keepdim=True).detach()
    video = video - centre
    total, squares = _window_sums(video, size, stride), _window_sums(video.square(), size, stride)
    if state is not None:
        state = state - centre[..., 0, 0]
        pixels = size[1] * size[2]
        windows = state.unfold(2, size[0], stride[0])
        total = total + pixels * windows.sum(dim=(1, 3))[:, None, :, None, None]
        squares = squares + pixels * windows.square().sum(dim=(1, 3))[:, None, :, None, None]
    count = weight.shape[1]
    variance = (squares / count - (total / count).square()).clamp_min(0)
    offset = weight @ norm_bias + bias
    y = _project(video, state, centred, stride)
    return y * (variance + eps).rsqrt() + offset[:, None, None, None]


def patch_convolution(
    video: Tensor, state: Tensor | None, weight: Tensor, bias: Tensor, size: Size3, stride: Size3
) -> Tensor:
    """Projected patches without a normalisation: a 3-D convolution; arguments as in `patch_embed`, weight (D, K)."""
    y = _project(video, state, weight.unflatten(1, (-1, *size)), stride)
    return y + bias[:, None, None, None]
