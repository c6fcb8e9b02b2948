"""The challenge's two scores written plainly, over whole arrays in memory: what the engine's sums are held against."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

EPS = 1e-8


def correlations(predictions: Sequence[Any], responses: Sequence[Any]) -> np.ndarray:
    """Correlation of each neuron (N,) over the frames of all trials (N, t) together."""
    p, r = (np.concatenate([np.asarray(x, np.float64) for x in trials], axis=1) for trials in (predictions, responses))
    p, r = (x - x.mean(1, keepdims=True) for x in (p, r))
    result: np.ndarray = (p * r).mean(1) / ((p.std(1) + EPS) * (r.std(1) + EPS))
    return result


def single_trial_correlation(predictions: Sequence[Any], responses: Sequence[Any]) -> float:
    """Its mean over neurons."""
    return float(correlations(predictions, responses).mean())


def correlation_to_average(
    predictions: Sequence[Any], responses: Sequence[Any], stimuli: Sequence[Hashable]
) -> np.ndarray:
    """The same (N,) of means over the trials that show the same stimulus, all of one length."""
    shown = [[i for i, s in enumerate(stimuli) if s == stimulus] for stimulus in dict.fromkeys(stimuli)]
    means = [[np.mean([np.asarray(x[i]) for i in group], axis=0) for group in shown] for x in (predictions, responses)]
    return correlations(*means)
