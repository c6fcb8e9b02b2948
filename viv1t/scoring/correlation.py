"""How well predictions match recordings: the metrics of the Sensorium challenge.

Everything is computed in float64. `CorrelationAccumulator` takes one trial at a time, so that an evaluation never holds
more than one.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence

import torch
from torch import Tensor

EPS = 1e-8  # added to every standard deviation, and to responses inside the Poisson loss


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


def single_trial_correlation(
    predictions: Iterable[Tensor],
    responses: Iterable[Tensor],
    *,
    skip: int = 0,
    frames_of_first_trial: bool = False,
) -> float:
    """Mean over neurons of the correlation over all trials of a tier, put one after the other.

    Args:
        predictions: per trial (N, t), or one (B, N, t).
        responses: per trial (N, T), T at least t.
        skip: frames left out at the start of each recorded trial, whatever part of them is predicted; the last
            min(t, T - skip) frames of both are compared.
        frames_of_first_trial: use of every trial only as many last frames as the first has left after `skip`, or whole
            trials if it has none left: what the published function does with trials of unequal length.

    Returns:
        The correlation; NaN if a value is.

    Raises:
        ValueError: no frame is left to compare.
    """
    accumulator = CorrelationAccumulator()
    first: int | None = None
    for prediction, response in zip(predictions, responses, strict=True):
        length = min(prediction.shape[-1], response.shape[-1])
        if frames_of_first_trial:
            first = length - skip if first is None else first
            frames = min(first, length) if first > 0 else length
        else:
            frames = max(0, min(length, response.shape[-1] - skip))
        accumulator.update(_last(prediction, frames), _last(response, frames))
    return float(accumulator.result().mean())


def correlation_to_average(
    predictions: Iterable[Tensor], responses: Iterable[Tensor], stimuli: Sequence[Hashable]
) -> Tensor:
    """Correlation per neuron (N,) after averaging responses, and predictions, over the repeats of each stimulus.

    The challenge's second score (Turishcheva et al. 2023, arXiv 2305.19654). Predictions of repeats differ because
    behavior does. Of a stimulus, the frames that all its repeats have are used.

    Args:
        predictions: per trial (N, t).
        responses: per trial (N, t).
        stimuli: which stimulus each trial showed.
    """
    sums: dict[Hashable, Tensor] = {}  # (2, N, t): predictions, responses
    repeats: dict[Hashable, int] = {}
    for prediction, response, stimulus in zip(predictions, responses, stimuli, strict=True):
        _check_shapes(prediction, response)
        pair = torch.stack((_float64(prediction), _float64(response)))
        if stimulus in sums:
            frames = min(pair.shape[-1], sums[stimulus].shape[-1])
            pair = pair[..., :frames] + sums[stimulus][..., :frames]
        sums[stimulus] = pair
        repeats[stimulus] = repeats.get(stimulus, 0) + 1
    accumulator = CorrelationAccumulator()
    for stimulus, pair in sums.items():
        accumulator.update(*(pair / repeats[stimulus]))
    return accumulator.result()


def sse(prediction: Tensor, response: Tensor, reduction: str = "mean") -> float:
    """Squared error summed over neurons and frames, `mean` or `sum` over the trials of (B, N, t)."""
    _check_shapes(prediction, response)
    return _reduce((_float64(prediction) - _float64(response)).square(), reduction)


def poisson_loss(prediction: Tensor, response: Tensor, eps: float = EPS, reduction: str = "mean") -> float:
    """p + e - (y + e) log(p + e) summed over neurons and frames, `mean` or `sum` over the trials of (B, N, t)."""
    _check_shapes(prediction, response)
    y, p = _float64(response) + eps, _float64(prediction) + eps
    return _reduce(p - y * torch.log(p), reduction)


def compute_metrics(prediction: Tensor, response: Tensor) -> dict[str, float]:
    """The metrics of one batch, predictions and responses (B, N, t): msse, poisson_loss, single_trial_correlation."""
    return {
        "msse": sse(prediction, response),
        "poisson_loss": poisson_loss(prediction, response),
        "single_trial_correlation": single_trial_correlation(prediction, response),
    }


def _reduce(x: Tensor, reduction: str) -> float:
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction must be mean or sum, not {reduction!r}")
    return float(x.sum()) / (x.shape[0] if reduction == "mean" else 1)


def _last(x: Tensor, frames: int) -> Tensor:
    return x[..., x.shape[-1] - frames :]


def _check_shapes(prediction: Tensor, response: Tensor) -> None:
    if prediction.shape != response.shape:
        raise ValueError(f"predictions {tuple(prediction.shape)} and responses {tuple(response.shape)} differ in shape")
