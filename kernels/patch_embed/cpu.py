"""The patch embedding's product off CUDA: a 3-D convolution, the fastest way there in float32 and in bf16."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv3d_weight


def project(
    video: Tensor, kernel: Tensor, stride: Sequence[int], same: Tensor | None, rstd: Tensor, offset: Tensor
) -> Tensor:
    """(conv3d(video, kernel) + same) * rstd + offset.

    Args:
        video: (B, 1, T, H, W).
        kernel: (D, pt, ps, ps) in the dtype of `video`, in which products are taken.
        stride: (frames, rows, columns) between patches.
        same: (B, D, t) or None.
        rstd: (B, t, Ph, Pw, 1).
        offset: (D,).

    Returns:
        (B, t, Ph, Pw, D) in the dtype of `offset`.
    """
    y = F.conv3d(video, kernel[:, None], stride=list(stride)).permute(0, 2, 3, 4, 1)
    out = offset.new_empty(y.shape)
    if same is None:
        torch.mul(y, rstd, out=out)
    else:
        torch.add(y, same.transpose(1, 2)[:, :, None, None], out=out).mul_(rstd)
    return out.add_(offset)


def project_backward(grad: Tensor, rstd: Tensor, video: Tensor, size: Sequence[int], stride: Sequence[int]) -> Tensor:
    """Gradient (D, pt, ps, ps) of `project`'s kernel; grad (B, t, Ph, Pw, D)."""
    batch, *patches, depth = grad.shape
    scaled = torch.empty(batch, depth, *patches, dtype=video.dtype, device=grad.device)
    torch.mul(grad, rstd, out=scaled.permute(0, 2, 3, 4, 1))
    return conv3d_weight(video, torch.Size((depth, 1, *size)), scaled, stride=list(stride))[:, 0]
