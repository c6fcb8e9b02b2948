"""Overlapping patches of a padded movie, normalised and projected, never written out.

Zeros surround the frame, in the state's channels too, so that the state is not constant over a patch at the border. Its
part of the product is taken with kernels summed over the pixels of each patch that lie on the frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from viv1t.kernels.patch_embed import patch_embed
from viv1t.kernels.patch_embed.reference import fold, patch_convolution
from viv1t.model.layers.norms import DynamicTanh, Norm


class Padding(NamedTuple):
    """Zeros before the first frame and around every frame, in frames and pixels; negative numbers cut off."""

    front: int = 0
    top: int = 0
    bottom: int = 0
    left: int = 0
    right: int = 0

    @classmethod
    def covering(
        cls, frames: int, frame_size: tuple[int, int], size: tuple[int, int, int], stride: tuple[int, int, int]
    ) -> Padding:
        """The padding with which a patch starts at every stride-th frame, row and column."""
        of_time, of_rows, of_columns = (
            (-(-n // s) - 1) * s + p - n for n, p, s in zip((frames, *frame_size), size, stride, strict=True)
        )
        top, left = of_rows // 2, of_columns // 2
        return cls(of_time, top, of_rows - top, left, of_columns - left)

    def of_video(self, video: Tensor) -> Tensor:
        """(..., T, H, W) with zeros around."""
        if not any(self):
            return video
        return F.pad(video, (self.left, self.right, self.top, self.bottom, self.front, 0))

    def of_state(self, state: Tensor) -> Tensor:
        """(..., T) with zeros in front."""
        return F.pad(state, (self.front, 0)) if self.front else state

    @property
    def around(self) -> bool:
        """Whether there are zeros around a frame."""
        return max(self[1:]) > 0


def patch_count(size: int, patch: int, stride: int) -> int:
    """Number of patches along an axis of `size` pixels or frames."""
    return (size - patch) // stride + 1


def embed_patches(
    video: Tensor,
    state: Tensor | None,
    norm: Norm | None,
    weight: Tensor,
    bias: Tensor,
    size: tuple[int, int, int],
    stride: tuple[int, int, int],
    padding: Padding,
) -> Tensor:
    """Patches, flattened as (channel, frame, row, column), normalised and projected.

    Args:
        video: (B, 1, T, H, W).
        state: (B, S, T) channels that are constant over a frame, or None.
        norm: over the (1 + S) * pt * ps * ps values of a patch; None for none.
        weight, bias: (D, values) and (D,) of the projection.
        size, stride: (frames, rows, columns) of a patch, and between patches.
        padding: zeros in every channel.

    Returns:
        (B, t, Ph, Pw, D).
    """
    if state is None or not padding.around:
        whole, same = padding.of_video(video), None if state is None else padding.of_state(state)
        if isinstance(norm, nn.LayerNorm):
            return patch_embed(whole, same, norm.weight, norm.bias, weight, bias, size, stride, norm.eps)
        if norm is None:
            return patch_convolution(whole, same, weight, bias, size, stride)
    return _embed_bordered(video, state, norm, weight, bias, size, stride, padding)


def _embed_bordered(
    video: Tensor,
    state: Tensor | None,
    norm: Norm | None,
    weight: Tensor,
    bias: Tensor,
    size: tuple[int, int, int],
    stride: tuple[int, int, int],
    padding: Padding,
) -> Tensor:
    """As `embed_patches`, for every norm and padding."""
    on_frame = pixels_on_frame(video, (video.shape[3], video.shape[4]), size, stride, padding)
    pixels = size[1] * size[2]
    centre = video.new_zeros(1, 1, 1, 1, 1)
    if isinstance(norm, DynamicTanh):
        video = torch.tanh(norm.alpha * video)
        state = None if state is None else torch.tanh(norm.alpha * state)
    windows = None
    if state is not None:  # (B, t, S, pt)
        windows = padding.of_state(state).unfold(2, size[0], stride[0]).transpose(1, 2)
    if isinstance(norm, nn.LayerNorm):
        # LayerNorm does not see what is subtracted from all values of a patch: it keeps float32 from cancelling.
        centre = video.mean(dim=(1, 2, 3, 4)).detach()[:, None, None, None, None]
        kernel, bias = fold(norm.weight, norm.bias, weight, bias)
    elif norm is not None:
        kernel = weight * norm.weight
        bias = bias + weight @ norm.bias if isinstance(norm, DynamicTanh) else bias
    else:
        kernel = weight
    video = padding.of_video(video) - centre
    channels = kernel.unflatten(1, (-1, *size))
    y = F.conv3d(video, channels[:, :1], stride=list(stride)).permute(0, 2, 3, 4, 1)
    if windows is not None:
        of_state = channels[:, 1:]
        at_patches = torch.einsum("dskq,yxq->skyxd", of_state.flatten(3), on_frame)
        product = windows.flatten(2) @ at_patches.flatten(2).flatten(0, 1)
        y = y + product.unflatten(2, at_patches.shape[2:]) - centre * of_state.sum(dim=(1, 2, 3, 4))
    if isinstance(norm, nn.LayerNorm | nn.RMSNorm):
        total, squares = (_window_sums(x[:, 0], size, stride) for x in (video, video.square()))
        count = size[0] * pixels
        if windows is not None:
            covered = on_frame.sum(-1)[None, None]
            count *= 1 + windows.shape[2]
            c, of_window = centre[..., 0], windows.flatten(2)
            values = of_window.shape[2]
            total = total + of_window.sum(2)[..., None, None] * covered - c * (pixels * values)
            of_squares = (of_window - c[..., 0]).square().sum(2)[..., None, None]
            squares = squares + of_squares * covered + c.square() * values * (pixels - covered)
        power = squares / count
        eps = torch.finfo(power.dtype).eps if norm.eps is None else norm.eps
        if isinstance(norm, nn.LayerNorm):
            power = (power - (total / count).square()).clamp_min(0)
        y = y * (power + eps).rsqrt()[..., None]
    return y + bias


def pixels_on_frame(
    like: Tensor, frame_size: tuple[int, int], size: Sequence[int], stride: Sequence[int], padding: Padding
) -> Tensor:
    """(Ph, Pw, ps * ps): 1 at those of a patch's pixels that lie on the frame, 0 at the others; of the type of `like`.

    Args:
        like: any tensor.
        frame_size: (H, W).
        size, stride, padding: as of `embed_patches`.
    """
    inside = padding._replace(front=0).of_video(like.new_ones(1, *frame_size))[0]
    return inside.unfold(0, size[1], stride[1]).unfold(1, size[2], stride[2]).flatten(2)


def _window_sums(x: Tensor, size: Sequence[int], stride: Sequence[int]) -> Tensor:
    """Sums of (B, T, H, W) over every patch -> (B, t, Ph, Pw); separable, summed directly."""
    for dim, (n, step) in enumerate(zip(size, stride, strict=True), start=1):
        x = x.unfold(dim, n, step).sum(-1)
    return x
