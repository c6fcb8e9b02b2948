"""Spatial and temporal frequency, and how far a response follows the grating's cycle."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.optimize import least_squares

from viv1t.lab.gratings import Responses

F64 = np.float64


def fit_octaves(curve: np.ndarray, frequencies: np.ndarray) -> tuple[float, float, float] | None:
    """A Gaussian over the logarithm of frequency: o + a exp(-(log2 f - log2 f0)^2 / (2 s^2)).

    Args:
        curve: (F,) responses, F at least 4.
        frequencies: (F,) ascending.

    Returns:
        f0, the full width at half height in octaves, and R^2; None where the curve is constant, not finite or short.
    """
    response, x = np.asarray(curve, dtype=F64), np.log2(np.asarray(frequencies, dtype=F64))
    scale = float(np.abs(response).max()) if np.isfinite(response).all() else 0.0
    if len(response) < 4 or not scale > 0 or not response.std() > 1e-9 * scale:
        return None
    r = response / scale
    lower, upper = np.array([0, x[0] - 1, 0.2, -1]), np.array([4, x[-1] + 1, 4, 1])

    def residual(p: np.ndarray) -> np.ndarray:
        return np.asarray(p[3] + p[0] * np.exp(-((x - p[1]) ** 2) / (2 * p[2] ** 2)) - r)

    base = float(np.clip(r.min(), -0.99, 0.99))
    starts = [(max(r.max() - base, 0.1), x[r.argmax()], s, base) for s in (0.5, 1.5)]
    fit = min((least_squares(residual, p, bounds=(lower, upper)) for p in starts), key=lambda f: f.cost)
    r2 = 1 - 2 * fit.cost / float(((r - r.mean()) ** 2).sum())
    return float(2 ** fit.x[1]), float(np.sqrt(8 * np.log(2)) * fit.x[2]), float(r2)


def modulation_ratio(responses: Responses) -> np.ndarray:
    """F1/F0 at the best grating, the mean over phases, (N,); NaN where the level is not above the spontaneous one.

    Above 1 a neuron is called simple, below it complex.
    """
    rows = np.arange(len(responses.mean))
    d, f, g = responses.best().T
    level = responses.level[rows, d, f, g] - responses.spontaneous[:, None]
    level = level.mean(-1)
    amplitude = np.abs(responses.modulation[rows, d, f, g]).mean(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(level > 0, amplitude / level, np.nan))


def table(responses: Responses, degrees_per_pixel: float) -> dict[str, Any]:
    """Preferred frequencies, fits and F1/F0.

    `frequency` is in cycles a pixel and `frequency_cpd` in cycles a degree, `hertz` in Hz; widths in octaves.
    """
    grid, means = responses.grid, responses.over_phases
    rows, (d, f, g) = np.arange(len(means)), responses.best().T
    reasons = responses.reasons()
    silent = np.array([bool(why) for why in reasons])
    columns: dict[str, Any] = {}
    for name, values, curves in (
        ("frequency", grid.frequencies, means[rows, d, :, g]), ("hertz", grid.hertz, means[rows, d, f, :]),
    ):  # fmt: skip
        at = np.asarray(values)[f if name == "frequency" else g]
        columns[name] = np.where(silent, np.nan, at)
        fits = [None if why else fit_octaves(c, np.asarray(values)) for c, why in zip(curves, reasons, strict=True)]
        for number, part in enumerate(("fit", "fit_width", "fit_r2")):
            columns[f"{name}_{part}"] = np.array([np.nan if fit is None else fit[number] for fit in fits])
        columns[f"{name}_curve"] = list(curves)
    columns["frequency_cpd"] = columns["frequency"] / degrees_per_pixel
    columns["f1_f0"] = np.where(silent, np.nan, modulation_ratio(responses))
    return columns | {"reason": reasons}
