"""Gradients of the video and the state, on any device, the patches never written out.

With v what is left of the video without its mean, m and var a patch's mean and variance over its n values, and the
product p = conv(v) + state's term, y = p rstd + offset gives

    dv = conv'(dy rstd) + v spread(h) - spread(h m),    h = -rstd^2 (dy . (y - offset)) / n

with conv' the transposed convolution and `spread` the transpose of sums over windows; the state's likewise.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv1d_input, conv3d_input

from .reference import window_totals


def _spread(x: Tensor, size: Sequence[int], stride: Sequence[int], shape: Sequence[int]) -> Tensor:
    """(B, 1, t, Ph, Pw), added to every value of its patch -> (B, 1, T, H, W); one axis after the other."""
    for axis, (n, step, whole) in enumerate(zip(size, stride, shape, strict=True)):
        sizes, steps = [1, 1, 1], [1, 1, 1]
        sizes[axis], steps[axis] = n, step
        x = F.conv_transpose3d(x, x.new_ones(1, 1, *sizes), stride=steps)
        beyond = [0] * 6
        beyond[2 * (2 - axis) + 1] = whole - x.shape[2 + axis]
        x = F.pad(x, beyond)
    return x


def input_gradients(
    grad: Tensor, y: Tensor, video: Tensor, state: Tensor | None, kernel: Tensor, offset: Tensor, rstd: Tensor,
    size: Sequence[int], stride: Sequence[int], products: torch.dtype,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Gradients of video (B, 1, T, H, W) and state (B, S, T).

    Args:
        grad, y: (B, t, Ph, Pw, D), the result and its gradient.
        video, state: as `reference.centred` gives them.
        kernel: (D, 1 + S, pt, ps, ps), centred.
        offset: (D,).
        rstd: (B, t, Ph, Pw, 1).
        size, stride: of patches.
        products: the type that products are taken in.
    """
    scaled = (grad * rstd).permute(0, 4, 1, 2, 3)  # gradient of the product
    of_video = conv3d_input(video.shape, kernel[:, :1].to(products), scaled.to(products), stride=list(stride))
    total, _ = window_totals(video, state, size, stride)
    count = kernel[0].numel()
    h = (grad * (y - offset)).sum(-1)[:, None] * rstd[..., 0][:, None].square() / -count
    h_mean = h * (total / count)
    shape = video.shape[2:]
    of_video = of_video.to(video.dtype).addcmul_(video, _spread(h, size, stride, shape))
    of_video -= _spread(h_mean, size, stride, shape)
    if state is None:
        return of_video, None
    weight = kernel[:, 1:].sum(dim=(-1, -2))
    of_state = conv1d_input(state.shape, weight, scaled.sum((-1, -2)), stride=stride[0])
    # Over a frame's patches, and each of their pixels.
    both = (size[1] * size[2]) * torch.cat((h, h_mean), dim=1).sum((-1, -2))[..., None, None]
    frames = (size[0], 1, 1), (stride[0], 1, 1), (state.shape[2], 1, 1)
    along, mean = (_spread(both[:, i : i + 1], *frames)[:, :, :, 0, 0] for i in range(2))
    return of_video, of_state.addcmul_(state, along).sub_(mean)
