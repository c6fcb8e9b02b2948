"""The patch embedding's product off CUDA.

On a CPU it is a sum of products, one for each frame of a patch: the patches of single frames are copied out, a few
rows at a time, and serve every product that they take part in. With AVX2 the kernel's gradient takes a seventh to a
tenth of the time of a 3-D convolution's, and the result no more than its. bf16, which would be rounded at every
addition, and other devices take the convolution.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv3d_weight

from ..common.lanes import lane_slices, run_lanes

# Values of copied patches, and of results, at a time.
_GROUP_VALUES = 400_000
_FEWEST_GROUPS = 8


class _Group(NamedTuple):
    """Rows of the patch grid of one trial that are computed together, in all frames."""

    trial: int
    rows: slice

    @property
    def place(self) -> tuple[int, slice, slice]:
        """Where they lie in (B, t, Ph, ...)."""
        return self.trial, slice(None), self.rows

    def products(self, video: Tensor, size: Sequence[int], stride: Sequence[int]) -> Iterator[Tensor]:
        """For each frame of a patch, what the video holds there: (t * rows * Pw, ps * ps)."""
        movie = video[self.trial, 0].unfold(1, size[1], stride[1])[:, self.rows].unfold(2, size[2], stride[2])
        copied = movie.reshape(len(movie), -1, size[1] * size[2])
        last = len(movie) - size[0] + 1
        return (copied[k : last + k : stride[0]].flatten(0, 1) for k in range(size[0]))


def _lanes(shape: Sequence[int], frames: int, size: Sequence[int]) -> list[list[_Group]]:
    """Groups of all trials, in lanes; `shape` is the result's (B, t, Ph, Pw, D), `frames` the video's T."""
    batch, results, height, width, depth = shape
    of_row = width * max(frames * size[1] * size[2], results * depth)
    groups = max(-(-height // max(1, _GROUP_VALUES // max(1, of_row))), -(-_FEWEST_GROUPS // max(1, batch)))
    bounds = [i * height // min(groups, height) for i in range(min(groups, height) + 1)]
    found = [_Group(trial, slice(*ends)) for trial in range(batch) for ends in pairwise(bounds)]
    return [found[parts[0].start : parts[-1].stop] for parts in lane_slices(len(found), 1)]


def _by_products(x: Tensor) -> bool:
    """Whether `x` and its kernel are multiplied frame by frame."""
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)


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
    depth, *size = kernel.shape
    out = offset.new_empty(*rstd.shape[:4], depth)
    if not _by_products(video):
        y = F.conv3d(video, kernel[:, None], stride=list(stride)).permute(0, 2, 3, 4, 1)
        if same is None:
            torch.mul(y, rstd, out=out)
        else:
            torch.add(y, same.transpose(1, 2)[:, :, None, None], out=out).mul_(rstd)
        return out.add_(offset)
    weights = kernel.flatten(2).permute(1, 2, 0).contiguous()  # (pt, ps * ps, D)
    lanes = _lanes(out.shape, video.shape[2], size)

    def work(index: int) -> None:
        for group in lanes[index]:
            some = out[group.place]
            y = out.new_empty(some.shape)
            flat = y.view(-1, depth)
            for k, x in enumerate(group.products(video, size, stride)):
                if k == 0:
                    torch.mm(x, weights[k], out=flat)
                else:
                    flat.addmm_(x, weights[k])
            if same is not None:
                y += same[group.trial].T[:, None, None]
            torch.mul(y, rstd[group.place], out=some).add_(offset)

    run_lanes(work, len(lanes))
    return out


def project_backward(grad: Tensor, rstd: Tensor, video: Tensor, size: Sequence[int], stride: Sequence[int]) -> Tensor:
    """Gradient (D, pt, ps, ps) of `project`'s kernel; grad (B, t, Ph, Pw, D)."""
    batch, *patches, depth = grad.shape
    if not _by_products(video):
        scaled = torch.empty(batch, depth, *patches, dtype=video.dtype, device=grad.device)
        torch.mul(grad, rstd, out=scaled.permute(0, 2, 3, 4, 1))
        return conv3d_weight(video, torch.Size((depth, 1, *size)), scaled, stride=list(stride))[:, 0]
    lanes = _lanes(grad.shape, video.shape[2], size)
    sums = video.new_zeros(max(1, len(lanes)), size[0], depth, size[1] * size[2])

    def work(index: int) -> None:
        for group in lanes[index]:
            above = (grad[group.place] * rstd[group.place]).reshape(-1, depth).T
            for total, x in zip(sums[index], group.products(video, size, stride), strict=True):
                total.addmm_(above, x)

    run_lanes(work, len(lanes))
    return sums.sum(0).transpose(0, 1).reshape(depth, *size)
