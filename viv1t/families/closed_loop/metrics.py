"""The scores of 2025, each under a name that says what it is.

| name here | name in the run folders of 2025 | name in those of 2023 |
| --- | --- | --- |
| correlation_over_trials | correlation | single_trial_correlation |
| correlation_within_trials | single_trial_correlation | (per trial) |
| average_per_video | correlation_to_average | correlation_to_average, but over all repeated videos together |
| normalized_per_video | normalized_correlation | (CCnorm), but per video |

Everything is computed in float64. Predictions and responses are lists of trials (N, t), of any t, or (B, N, t).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence

import torch
from torch import Tensor

from viv1t.scoring.correlation import EPS, CorrelationAccumulator, correlation

LEAST_POWER = 1e-4  # of the signal that repeats of a video share, below which a neuron has no normalised correlation


def correlation_over_trials(predictions: Iterable[Tensor], responses: Iterable[Tensor]) -> Tensor:
    """Correlation per neuron (N,) over all trials, one after the other: what decides which weights are the best."""
    accumulator = CorrelationAccumulator()
    for prediction, response in zip(predictions, responses, strict=True):
        accumulator.update(prediction, response)
    return accumulator.result()


def correlation_within_trials(predictions: Iterable[Tensor], responses: Iterable[Tensor]) -> Tensor:
    """Correlation per neuron (N,) within each trial, mean over trials, which all weigh the same."""
    found = [correlation(p, r, dim=1) for p, r in zip(predictions, responses, strict=True)]
    return torch.stack(found).mean(0)


def average_per_video(
    predictions: Sequence[Tensor], responses: Sequence[Tensor], videos: Sequence[Hashable]
) -> Tensor | None:
    """Correlation per neuron (N,) of means over a video's repeats, mean over videos; None where none is repeated.

    Args:
        predictions, responses: of every trial.
        videos: which video each trial shows.
    """
    found = [correlation(p.mean(0), r.mean(0), dim=1) for p, r in _repeated(predictions, responses, videos)]
    return torch.stack(found).mean(0) if found else None


def normalized_per_video(
    predictions: Sequence[Tensor], responses: Sequence[Tensor], videos: Sequence[Hashable]
) -> Tensor | None:
    """CC_norm (Schoppe et al. 2016) per neuron (N,), mean over the videos that have it, NaN where none has.

    cov(mean y, mean p) / (sqrt(var(mean p) SP) + 1e-8) with the signal's power SP = (var(sum of y) - sum of var(y)) /
    (R (R - 1)) over R repeats; a video has none where SP is at most 1e-4. None where no video is repeated.

    Args:
        predictions, responses, videos: as for `average_per_video`.
    """
    found = []
    for p, r in _repeated(predictions, responses, videos):
        repeats = len(r)
        power = (r.sum(0).var(1) - r.var(2).sum(0)) / (repeats * (repeats - 1))
        mean_r, mean_p = r.mean(0), p.mean(0)
        frames = r.shape[2]
        covariance = ((mean_r - mean_r.mean(1, keepdim=True)) * (mean_p - mean_p.mean(1, keepdim=True))).sum(1)
        value = covariance / (frames - 1) / ((mean_p.var(1) * power).clamp_min(0).sqrt() + EPS)
        found.append(torch.where(power > LEAST_POWER, value, torch.nan))
    return torch.stack(found).nanmean(0) if found else None


class VideoScores:
    """The scores that the run folders of 2025 hold, by their names there; trials arrive video by video.

    As the published code has it, a mouse whose tier repeats no video scores 0 in `normalized_correlation`.
    """

    def __init__(self) -> None:
        self._over_trials = CorrelationAccumulator()
        self._within: Tensor | float = 0.0
        self._trials = 0
        self._normalized: Tensor | float = 0.0
        self._videos: Tensor | float = 0.0

    def add(self, predictions: Sequence[Tensor], responses: Sequence[Tensor]) -> None:
        """Takes all trials of one video: the last T - 50 frames (N, T - 50) of each."""
        for prediction, response in zip(predictions, responses, strict=True):
            self._over_trials.update(prediction, response)
            self._within = self._within + correlation(prediction, response, dim=1)
            self._trials += 1
        normalized = normalized_per_video(predictions, responses, [0] * len(predictions))
        if normalized is not None:
            known = ~normalized.isnan()
            self._normalized = self._normalized + normalized.nan_to_num()
            self._videos = self._videos + known

    def result(self) -> dict[str, float]:
        """The scores, mean over neurons."""
        normalized = torch.as_tensor(self._normalized) / torch.as_tensor(self._videos)
        return {
            "correlation": float(self._over_trials.result().mean()),
            "single_trial_correlation": float(torch.as_tensor(self._within / self._trials).mean()),
            "normalized_correlation": float(normalized.nanmean().nan_to_num()),
        }


def _repeated(
    predictions: Sequence[Tensor], responses: Sequence[Tensor], videos: Sequence[Hashable]
) -> Iterable[tuple[Tensor, Tensor]]:
    """Predictions and responses (R, N, t) of every video shown more than once, over the frames all repeats have."""
    trials: dict[Hashable, list[int]] = {}
    for i, video in enumerate(videos):
        trials.setdefault(video, []).append(i)
    for shown in trials.values():
        if len(shown) > 1:
            frames = min(responses[i].shape[1] for i in shown)
            yield tuple(torch.stack([x[i][:, :frames].double() for i in shown]) for x in (predictions, responses))  # type: ignore[misc]
