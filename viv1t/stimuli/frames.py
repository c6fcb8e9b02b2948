"""From luma to the frames a model is shown: 30 Hz by time stamps, full range, resized with antialiasing.

The same PyTorch code whatever has decoded the frames, and wherever they lie.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from viv1t.errors import check_choice
from viv1t.types import FRAME_RATE

FITS = ("crop", "pad", "stretch")
BACKGROUND = 127.0  # grey level around frames that are padded
_PIECE = 300  # frames that a still is handed out in, at most
_BLOCK = 4 << 20  # pixels that are converted at once


def tick(time: float) -> int:
    """The first 30 Hz frame that shows what is shown from `time` (seconds) on: the nearest.

    Halfway is at 0.47 of the way, so that films of 60 Hz, and time stamps rounded to milliseconds, are no toss-up.
    """
    return math.floor(FRAME_RATE * time - 0.47) + 1


def resampled_length(end: float) -> int:
    """How many 30 Hz frames a video of `end` seconds becomes."""
    return max(1, tick(end))


def resample(
    chunks: Iterable[tuple[np.ndarray, Tensor]], end: float, resize: Resize
) -> Iterator[Tensor]:
    """Shows every frame from the 30 Hz frame nearest to its time on, until the next; of several at one, the last.

    Args:
        chunks: seconds (n,) and luma (n, H, W) of the video's frames, in order.
        end: seconds at which the last frame ends.
        resize: is applied to the frames that are shown.

    Yields:
        (n, h, w) float32 grey levels of 0 to 255, together `resampled_length(end)` frames.
    """
    last: tuple[int, Tensor] | None = None  # where the newest frame starts, and the frame
    for times, luma in chunks:
        starts = [tick(float(time)) for time in times]
        shown = [i for i, start in enumerate(starts) if i + 1 == len(starts) or starts[i + 1] > start]
        frames = resize(luma if len(shown) == len(starts) else luma[shown])
        starts = [starts[i] for i in shown]
        if last is None:
            starts[0] = 0  # what comes before the first frame that can be decoded
        else:
            yield from _held(last[1], starts[0] - last[0])
        if len(starts) > 1:
            counts = torch.tensor(np.diff(starts), device=frames.device)
            if int(counts.sum()) <= max(_PIECE, 2 * len(counts)):
                yield frames[:-1].repeat_interleave(counts, 0)
            else:
                for frame, count in zip(frames, counts.tolist(), strict=False):
                    yield from _held(frame[None], count)
        last = starts[-1], frames[-1:]
    if last is not None:
        yield from _held(last[1], max(resampled_length(end), last[0]) - last[0])


def _held(frame: Tensor, count: int) -> Iterator[Tensor]:
    for first in range(0, count, _PIECE):
        yield frame.repeat(min(_PIECE, count - first), 1, 1)


class Resize:
    """Turns luma as decoded into grey levels at the model's size.

    Every pixel is the mean of the area it covers: rows and columns are each a product with a matrix of shares.

    Args:
        source: (H, W) of the luma.
        frame_size: (h, w) of the result.
        fit: `crop` cuts what is too wide or too high around the centre; `pad` shows everything, on grey 127;
            `stretch` gives up the proportions.
        bits: of a luma sample.
        full_range: whether luma is 0 to 2^bits - 1, not 16 to 235 times 2^(bits - 8).
        pixel_aspect: width of a luma pixel divided by its height; those of the result are square.
        rotation: degrees, a multiple of 90, by which frames are turned counterclockwise first.
        mirrored: whether left and right are exchanged before that.
        device: where the luma lies.

    Raises:
        ConfigError: `fit` is none of these.
    """

    def __init__(
        self,
        source: tuple[int, int],
        frame_size: tuple[int, int],
        fit: str = "crop",
        *,
        bits: int = 8,
        full_range: bool = True,
        pixel_aspect: float = 1.0,
        rotation: int = 0,
        mirrored: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        check_choice("--fit", fit, FITS)
        self.turns, self.mirrored = rotation // 90, mirrored
        if self.turns % 2:
            source, pixel_aspect = (source[1], source[0]), 1 / pixel_aspect
        height, width = source
        ratio = (width * pixel_aspect / height) / (frame_size[1] / frame_size[0])  # above 1: too wide
        seen = [1.0, 1.0]  # shares of the source's height and width that are shown
        taken = list(frame_size)  # pixels of the result that show them
        if fit == "crop":
            seen[int(ratio > 1)] = min(ratio, 1 / ratio)
        elif fit == "pad":
            axis = int(ratio < 1)
            taken[axis] = max(1, round(frame_size[axis] * min(ratio, 1 / ratio)))
        tables = [
            area_shares(n, n * (1 - share) / 2, n * (1 + share) / 2, pixels, whole)
            for n, share, pixels, whole in zip(source, seen, taken, frame_size, strict=True)
        ]
        self.rows, self.columns = (torch.from_numpy(t.astype(np.float32)).to(device) for t in tables)
        inside = self.rows.sum(1).round()[:, None] * self.columns.sum(1).round()
        self.background = None if bool(inside.all()) else BACKGROUND * (1 - inside)
        self.low, self.high = (0, (1 << bits) - 1) if full_range else (16 << (bits - 8), 235 << (bits - 8))
        self.inside = inside

    def __call__(self, luma: Tensor) -> Tensor:
        """(n, H, W) luma to (n, h, w) float32 grey levels of 0 to 255."""
        luma = luma.flip(2) if self.mirrored else luma
        luma = luma.rot90(self.turns, (1, 2)) if self.turns else luma
        frames = [self._reduced(frame) for frame in luma]
        out = torch.stack(frames) if frames else luma.new_empty((0, len(self.rows), len(self.columns)))
        if (self.low, self.high) != (0, 255):
            out = (out - self.low) * (255 / (self.high - self.low))
        if self.background is not None:
            out = out * self.inside + self.background
        return out.clamp_(0, 255)

    def _reduced(self, frame: Tensor) -> Tensor:
        """(H, W) luma to (h, w): rows first, some at a time where float32 copies of all would take much memory."""
        step = max(1, _BLOCK // frame.shape[1])
        out = torch.zeros(len(self.rows), frame.shape[1], device=frame.device)
        for first in range(0, len(frame), step):
            block = frame[first : first + step].to(torch.float32).clamp(self.low, self.high)
            out += self.rows[:, first : first + step] @ block
        return out @ self.columns.T


def area_shares(pixels: int, start: float, stop: float, parts: int, out: int) -> np.ndarray:
    """(out, pixels) float64: the share of each pixel in the mean over each part of [start, stop].

    Args:
        pixels: of an axis; pixel i covers i to i + 1.
        start: where the first part begins.
        stop: where the last one ends.
        parts: how many parts, of equal length, in the middle of the rows.
        out: rows in all; those around the parts are zero.
    """
    edges = np.linspace(start, stop, parts + 1)
    left, right = edges[:-1, None], edges[1:, None]
    index = np.arange(pixels)
    covered = np.clip(np.minimum(right, index + 1) - np.maximum(left, index), 0, None)
    shares = np.zeros((out, pixels))
    first = (out - parts) // 2
    shares[first : first + parts] = covered / covered.sum(1, keepdims=True)
    return shares
