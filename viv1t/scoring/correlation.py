"""Pearson's correlation of predictions and recordings, as the Sensorium challenge takes it.

Everything is computed in float64. `CorrelationAccumulator` takes one trial at a time, so that an evaluation never holds
more than one.
"""

from __future__ import annotations

import torch
from torch import Tensor

EPS = 1e-8  # added to every standard deviation


def _float64(x: Tensor) -> Tensor:
    """In double precision, on the CPU where the device has none; contiguous, so that sums are made in one order."""
    return (x.detach().cpu() if x.device.type == "mps" else x.detach()).double().contiguous()


class CorrelationAccumulator:
    """Pearson's correlation per neuron of series that arrive piece by piece.

    Holds means and centred sums, merged as in Chan, Golub and LeVeque (1983), so that nothing cancels.

    Args:
        eps: added to each (population) standard deviation: a constant series has correlation 0.
    """

    def __init__(self, eps: float = EPS) -> None:
        self.eps = eps
        self.frames = 0
        self._mean: Tensor | None = None  # (2, N): predictions, responses
        self._sums: Tensor | None = None  # (3, N): centred xx, yy, xy

    def update(self, prediction: Tensor, response: Tensor) -> None:
        """Adds frames: prediction (N, t) and response (N, t)."""
        _check_shapes(prediction, response)
        frames = prediction.shape[-1]
        if not frames:
            return
        x, y = _float64(prediction), _float64(response)
        mean = torch.stack((x.mean(-1), y.mean(-1)))
        x, y = x - mean[0, :, None], y - mean[1, :, None]
        sums = torch.stack(((x * x).sum(-1), (y * y).sum(-1), (x * y).sum(-1)))
        if self._mean is None or self._sums is None:
            self.frames, self._mean, self._sums = frames, mean, sums
            return
        total = self.frames + frames
        apart = mean - self._mean
        products = torch.stack((apart[0] * apart[0], apart[1] * apart[1], apart[0] * apart[1]))
        self._sums += sums + products * (self.frames * frames / total)
        self._mean += apart * (frames / total)
        self.frames = total

    def mean(self) -> Tensor:
        """(2, N): means of predictions and of responses.

        Raises:
            ValueError: no frame was added.
        """
        if self._mean is None:
            raise ValueError("no frame to correlate: every trial is empty")
        return self._mean

    def result(self) -> Tensor:
        """Correlation per neuron (N,), float64; NaN where a value was.

        Raises:
            ValueError: no frame was added.
        """
        xx, yy, xy = self.moments()
        result: Tensor = xy / ((xx.sqrt() + self.eps) * (yy.sqrt() + self.eps))
        return result

    def moments(self) -> Tensor:
        """(3, N): population variances of predictions and of responses, and their covariance.

        Raises:
            ValueError: no frame was added.
        """
        if self._sums is None:
            raise ValueError("no frame to correlate: every trial is empty")
        return self._sums / self.frames


def correlation(
    prediction: Tensor, response: Tensor, dim: int | tuple[int, ...] | None = None, eps: float = EPS
) -> Tensor:
    """Pearson's correlation over `dim` (all axes when None), eps added to each population std; float64."""
    _check_shapes(prediction, response)
    dims = tuple(range(prediction.ndim)) if dim is None else dim
    x, y = _float64(prediction), _float64(response)
    x, y = x - x.mean(dims, keepdim=True), y - y.mean(dims, keepdim=True)
    std_x, std_y = ((z * z).mean(dims).sqrt() + eps for z in (x, y))
    return (x * y).mean(dims) / (std_x * std_y)


def _check_shapes(prediction: Tensor, response: Tensor) -> None:
    if prediction.shape != response.shape:
        raise ValueError(f"predictions {tuple(prediction.shape)} and responses {tuple(response.shape)} differ in shape")
