"""Size tuning, contextual modulation and onsets: curves and indices from responses to the patterns of a protocol."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares
from scipy.special import erf

from viv1t.errors import ConfigError
from viv1t.types import FRAME_RATE

F64 = np.float64
TUNED_Z = 1.98  # of a curve over its ten sizes, as published


def pattern_means(responses: np.ndarray, frames: slice) -> np.ndarray:
    """Mean response during the frames `frames` of each block: (N, trials, blocks, T) to (N, trials, blocks)."""
    return np.asarray(responses[..., frames].astype(F64).mean(-1))


def averaged(means: np.ndarray, parameters: np.ndarray, keep: tuple[int, ...]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Averages responses over every parameter that is not kept.

    Args:
        means: (N, trials, blocks).
        parameters: (trials, blocks, P).
        keep: the columns of `parameters` that become axes.

    Returns:
        (N, values of the first kept column, of the second, ...) and the values of each; NaN where a combination was
        not shown.
    """
    flat, shown = means.reshape(len(means), -1), parameters.reshape(-1, parameters.shape[-1])[:, list(keep)]
    values = [np.unique(column) for column in shown.T]
    places = np.stack([np.searchsorted(v, column) for v, column in zip(values, shown.T, strict=True)])
    shape = tuple(map(len, values))
    index = np.ravel_multi_index(tuple(places), shape)
    count = np.bincount(index, minlength=int(np.prod(shape)))
    with np.errstate(invalid="ignore", divide="ignore"):
        total = np.stack([np.bincount(index, weights=row, minlength=len(count)) for row in flat]) / count
    return total.reshape(len(means), *shape), values


@dataclass(frozen=True)
class SizeTuning:
    """What curves over sizes say.

    Attributes:
        preferred: size of the largest classical response, degrees; NaN where nothing responds.
        preferred_inverse: the same of the inverse responses.
        suppression: 1 - (R_largest - r0) / (R_max - r0), r0 the response to size 0.
        published_tuned: z of the curve over its sizes at least 1.98 at some size and not at size 0.
        published_inverse_tuned: tuned, z at least 1.98 for an inverse size other than 0, whose largest response
            exceeds that to the inverse of size 0.
    """

    preferred: np.ndarray
    preferred_inverse: np.ndarray
    suppression: np.ndarray
    published_tuned: np.ndarray
    published_inverse_tuned: np.ndarray


def size_tuning(curves: np.ndarray, sizes: np.ndarray) -> SizeTuning:
    """Preferred sizes, suppression and the published rules.

    Args:
        curves: (N, S, 2) responses to S sizes, classical and inverse.
        sizes: (S,) degrees in ascending order, the first 0.

    Raises:
        ConfigError: the sizes do not start at 0 or do not ascend.
    """
    if len(sizes) < 2 or sizes[0] != 0 or (np.diff(sizes) <= 0).any():
        raise ConfigError(f"size tuning needs ascending sizes that start at 0, not {np.asarray(sizes).tolist()}")
    curve = curves.astype(F64)
    silent = ~((curve.max(1) - curve.min(1)) > 1e-9 * np.abs(curve).max(1))  # (N, 2)
    with np.errstate(invalid="ignore", divide="ignore"):
        z = (curve - curve.mean(1, keepdims=True)) / np.where(silent, np.nan, curve.std(1))[:, None]
        largest = curve[:, :, 0].max(1)
        base = curve[:, 0, 0]
        suppression = 1 - (curve[:, -1, 0] - base) / (largest - base)
        tuned = (z[:, 1:, 0].max(1) >= TUNED_Z) & ~(z[:, 0, 0] >= TUNED_Z)
        inverse = (z[:, 1:, 1].max(1) >= TUNED_Z) & (curve[:, 1:, 1].max(1) > curve[:, 0, 1])
    preferred = np.where(silent, np.nan, np.asarray(sizes)[curve.argmax(1)])
    return SizeTuning(
        preferred=preferred[:, 0],
        preferred_inverse=preferred[:, 1],
        suppression=np.where(silent[:, 0] | (largest <= base), np.nan, suppression),
        published_tuned=tuned,
        published_inverse_tuned=tuned & inverse,
    )


@dataclass(frozen=True)
class SizeFit:
    """The ratio of integrals r0 + a erf(s / c)^2 / (1 + b erf(s / d)^2), c < d (Cavanaugh et al. 2002).

    Attributes:
        center: size of the centre (c), degrees.
        surround: size of the surround (d), degrees.
        r2: share of the curve's variance that the fit holds.
    """

    center: float
    surround: float
    r2: float


def fit_sizes(curve: np.ndarray, sizes: np.ndarray) -> SizeFit | None:
    """Fits a classical size curve.

    Args:
        curve: (S,) responses.
        sizes: (S,) degrees, ascending from 0.

    Returns:
        None where the curve is constant or not finite.
    """
    response, s = np.asarray(curve, dtype=F64), np.asarray(sizes, dtype=F64)
    scale = float(np.abs(response).max()) if np.isfinite(response).all() else 0.0
    if not scale > 0 or not response.std() > 1e-9 * scale:
        return None
    r = response / scale
    step, top = float(s[s > 0].min()), float(s.max())
    # r0, a, b, c and d / c
    lower, upper = np.array([-np.inf, 0, 0, step / 4, 1]), np.array([np.inf, 100, 100, 2 * top, 20])

    def residual(p: np.ndarray) -> np.ndarray:
        base, a, b, c, ratio = p
        return np.asarray(base + a * erf(s / c) ** 2 / (1 + b * erf(s / (c * ratio)) ** 2) - r)

    height = max(float(r.max() - r[0]), 0.1)
    starts = [(r[0], height, 0.5, c, 2.0) for c in (2 * step, top / 3, top)]
    best = min((least_squares(residual, p, bounds=(lower, upper)) for p in starts), key=lambda fit: fit.cost)
    r2 = 1 - 2 * best.cost / float(((r - r.mean()) ** 2).sum())
    return SizeFit(center=float(best.x[3]), surround=float(best.x[3] * best.x[4]), r2=float(r2))


def modulation(cross: np.ndarray, iso: np.ndarray) -> np.ndarray:
    """Contextual modulation index (cross - iso) / (cross + iso); NaN where neither responds."""
    with np.errstate(invalid="ignore", divide="ignore"):
        total = cross.astype(F64) + iso
        return np.asarray(np.where(total != 0, (cross - iso) / total, np.nan))


def onsets(
    classical: np.ndarray, inverse: np.ndarray, *, before: int = 15, pattern: int = 15, threshold: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Seconds after a pattern starts until the response exceeds a z-score.

    z is over both mean responses joined in time; the onset is the first pattern frame whose z reaches the threshold.

    Args:
        classical: (N, T, repeats), the pattern at frames `before` to `before + pattern`.
        inverse: (N, T, repeats).
        before: grey frames before the pattern.
        pattern: frames of the pattern.
        threshold: z-score.

    Returns:
        Onsets of the classical and the inverse response, (N,) seconds; NaN where it is never reached.
    """
    means = np.concatenate([classical.mean(-1, dtype=F64), inverse.mean(-1, dtype=F64)], axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        z = (means - means.mean(1, keepdims=True)) / means.std(1, keepdims=True)
    length = classical.shape[1]
    first = []
    for start in (before, length + before):
        reached = z[:, start : start + pattern] >= threshold
        first.append(np.where(reached.any(1), reached.argmax(1) / FRAME_RATE, np.nan))
    return first[0], first[1]
