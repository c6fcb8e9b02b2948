"""Contrast at a grating that drives each neuron nearly best."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.optimize import least_squares

from viv1t.lab.gratings import Responses, cover, wave
from viv1t.lab.present import Shown
from viv1t.lab.protocols import BLOCKS
from viv1t.stimuli.parametric import grey

CONTRASTS = (0.05, 0.1, 0.25, 0.5, 1.0)
F64 = np.float64


def plans(
    frame_size: tuple[int, int], responses: Responses, neurons: np.ndarray, seed: int = 1234
) -> list[Callable[[], Shown]]:
    """Contrasts of few gratings of which each neuron has one that drives it to 90 % of its best, or to 75 %."""
    phases = responses.grid.phases
    return [
        lambda share=share, p=p: _shown(frame_size, responses, neurons, share, p, seed)  # type: ignore[misc]
        for share, p in ((0.9, phases), (0.75, min(phases, 2)))
    ]


def _shown(
    frame_size: tuple[int, int], responses: Responses, neurons: np.ndarray, share: float, phases: int, seed: int
) -> Shown:
    grid = responses.grid
    means = responses.over_phases[neurons].reshape(len(neurons), -1)
    gratings = cover(means, share)
    films, rows = [], []
    for index in gratings:
        d, f, g = np.unravel_index(index, grid.shape[:3])
        angle, frequency, hertz = float(grid.angles[d]), float(grid.frequencies[f]), float(grid.hertz[g])
        for c, contrast in enumerate(CONTRASTS):
            for p in range(phases):
                films.append(wave(angle, frequency, hertz, 360 * p / phases, frame_size, contrast))
                rows.append((index, c, p))
    blanks = max(4, phases)
    films += [grey(BLOCKS.pattern, frame_size)] * blanks
    weights = np.full((BLOCKS.pattern, 1), 1 / BLOCKS.pattern)
    return Shown(BLOCKS, films, {"place": np.array(rows)}, weights, seed, about=gratings)


def fit_contrast(curve: np.ndarray, contrasts: np.ndarray) -> tuple[float, float, float, float, float] | None:
    """R = r0 + rmax c^n / (c^n + c50^n).

    Args:
        curve: (K,) responses, the first to contrast 0.
        contrasts: (K,) from 0 to 1.

    Returns:
        r0, rmax, c50, n and R^2; None where the curve is constant or not finite.
    """
    response, c = np.asarray(curve, dtype=F64), np.asarray(contrasts, dtype=F64)
    scale = float(np.abs(response).max()) if np.isfinite(response).all() else 0.0
    if not scale > 0 or not response.std() > 1e-9 * scale:
        return None
    r = response / scale

    def residual(p: np.ndarray) -> np.ndarray:
        base, top, half, n = p
        return np.asarray(base + top * c**n / (c**n + half**n) - r)

    bounds = (np.array([-2, 0, 0.01, 0.5]), np.array([2, 10, 1, 8]))
    starts = [(r[0], max(float(np.ptp(r)), 0.1), half, 2.0) for half in (0.1, 0.4)]
    fit = min((least_squares(residual, p, bounds=bounds) for p in starts), key=lambda f: f.cost)
    r2 = 1 - 2 * fit.cost / float(((r - r.mean()) ** 2).sum())
    base, top, half, n = fit.x
    return float(base * scale), float(top * scale), float(half), float(n), float(r2)


def table(shown: Shown, contrasts: np.ndarray, responses: Responses, neurons: np.ndarray) -> dict[str, Any]:
    """Curves over contrast, 0 first, and their fits.

    Args:
        shown: as `plans` gives it.
        contrasts: (N, P, 1) what it gave.
        responses: to the grid of gratings.
        neurons: which of the N.
    """
    gratings, grid = shown.about, responses.grid
    count = len(shown.parameters["place"])
    by = contrasts[neurons, :count, 0].reshape(len(neurons), len(gratings), len(CONTRASTS), -1).mean(-1, dtype=F64)
    blank = contrasts[neurons, count:, 0].mean(1, dtype=F64)
    means = responses.over_phases[neurons].reshape(len(neurons), -1)
    best = np.where(np.isnan(means), -np.inf, means)[:, gratings].argmax(1)
    rows = np.arange(len(neurons))
    curves = np.concatenate([blank[:, None], by[rows, best]], axis=1)
    reasons = [responses.reasons()[n] for n in neurons]
    levels = np.array([0.0, *CONTRASTS])
    fits = [None if why else fit_contrast(c, levels) for c, why in zip(curves, reasons, strict=True)]
    columns: dict[str, Any] = {
        name: np.array([np.nan if fit is None else fit[i] for fit in fits])
        for i, name in enumerate(("r0", "rmax", "c50", "exponent", "fit_r2"))
    }
    d, f, g = np.unravel_index(gratings[best], grid.shape[:3])
    with np.errstate(invalid="ignore", divide="ignore"):
        share = means[rows, gratings[best]] / means.max(1)
    return columns | {
        "direction": grid.angles[d], "spatial_frequency": np.asarray(grid.frequencies)[f],
        "temporal_frequency": np.asarray(grid.hertz)[g], "share_of_best": share, "curve": list(curves),
        "reason": reasons,
    }  # fmt: skip
