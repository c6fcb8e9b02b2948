"""Direction and orientation tuning: indices, preferences, von Mises fits and their significance."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares

from viv1t.errors import ConfigError

F64 = np.float64
_SHUFFLED = 4_000_000  # responses that are held shuffled at a time, 32 MB


def selectivity(curve: np.ndarray, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Global selectivity, the vector form: |sum R e^(2 i theta)| / sum R, and |sum R e^(i theta)| / sum R.

    Args:
        curve: (..., K) responses to K directions; negative ones count as 0.
        directions: (K,) degrees.

    Returns:
        gOSI and gDSI, (...) from 0 to 1; NaN where nothing responds.
    """
    response = np.maximum(np.asarray(curve, dtype=F64), 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        total = response.sum(-1)
        return tuple(  # type: ignore[return-value]
            np.abs((response * np.exp(1j * n * np.radians(directions))).sum(-1)) / total for n in (2, 1)
        )


def peak_selectivity(curve: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Peak selectivity: OSI = (Rp - Ro) / (Rp + Ro) and DSI = (Rb - Rn) / (Rb + Rn).

    Rb is the best of the directions and Rn the response to its opposite, Rp their mean, and Ro the mean of the two at
    90 degrees from the best.

    Args:
        curve: (..., K) responses to K directions in equal steps over 360 degrees, K a multiple of 4; negative ones
            count as 0.

    Returns:
        OSI and DSI, (...); NaN where nothing responds.
    """
    response = np.maximum(np.asarray(curve, dtype=F64), 0)
    count = response.shape[-1]
    if count % 4:
        raise ConfigError(f"peak selectivity needs a multiple of 4 directions, not {count}")
    best = np.where(np.isnan(response), -np.inf, response).argmax(-1)[..., None]

    def at(turn: int) -> np.ndarray:
        return np.asarray(np.take_along_axis(response, (best + turn) % count, axis=-1)[..., 0])

    peak, null = at(0), at(count // 2)
    along, across = (peak + null) / 2, (at(count // 4) + at(-(count // 4))) / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        return (along - across) / (along + across), (peak - null) / (peak + null)


def preference(curve: np.ndarray, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Preferred direction (0 to below 360) and orientation (0 to below 180) in degrees: arguments of the vector sums.

    NaN where nothing responds. Shapes as for `selectivity`.
    """
    response = np.maximum(np.asarray(curve, dtype=F64), 0)
    angle = np.radians(directions)
    silent = ~(response.sum(-1) > 0)
    direction, orientation = (np.angle((response * np.exp(1j * n * angle)).sum(-1)) for n in (1, 2))
    return (
        np.where(silent, np.nan, np.degrees(direction) % 360),
        np.where(silent, np.nan, np.degrees(orientation) / 2 % 180),
    )


def circular_difference(a: np.ndarray, b: np.ndarray, period: float = 360.0) -> np.ndarray:
    """Distance of two angles in degrees, 0 to `period` / 2."""
    turn = (np.asarray(a, dtype=F64) - np.asarray(b, dtype=F64)) % period
    return np.minimum(turn, period - turn)


def aligned(curve: np.ndarray, *, orientation: bool = False) -> np.ndarray:
    """Curves turned so that the best response lies in the middle, as shares of it.

    Args:
        curve: (N, K) responses to K directions in equal steps, K even.
        orientation: average opposite directions first.

    Returns:
        (N, K + 1), or (N, K / 2 + 1): from half a turn before the best to half a turn after it. NaN where nothing
        responds.
    """
    response = np.asarray(curve, dtype=F64)
    if orientation:
        half = response.shape[1] // 2
        response = (response[:, :half] + response[:, half:]) / 2
    count = response.shape[1]
    best = response.argmax(1)[:, None]
    turned = np.take_along_axis(response, (best + np.arange(-(count // 2), count // 2 + 1)) % count, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(turned / np.where(response.max(1) > 0, response.max(1), np.nan)[:, None])


def shuffled_p(
    responses: np.ndarray, directions: np.ndarray, *, shuffles: int = 1000, seed: int = 1234
) -> tuple[np.ndarray, np.ndarray]:
    """Share of shuffled responses whose gOSI, gDSI reach the real one.

    Only repeats that differ say something: recorded trials do, equal phases through a model without noise do not.

    Args:
        responses: (N, K, S) single responses, S to each of K directions.
        directions: (K,) degrees.
        shuffles: of each neuron, with a generator of its own (child n of `SeedSequence(seed)`).
        seed: as above.

    Returns:
        p of orientation and of direction, (N,); NaN where the index is.
    """
    neurons, count, samples = responses.shape
    real = np.stack(selectivity(responses.mean(-1), directions))
    p = np.full((2, neurons), np.nan)
    waves = np.exp(1j * np.radians(directions)[:, None] * np.array([2, 1]))  # (K, 2)
    known = np.flatnonzero(~np.isnan(real).any(0))
    children = np.random.SeedSequence(seed).spawn(neurons)
    part = max(1, _SHUFFLED // (shuffles * count * samples))
    for first in range(0, len(known), part):
        some = known[first : first + part]
        drawn = np.empty((len(some), shuffles, count * samples))
        for row, n in zip(drawn, some, strict=True):
            row[:] = responses[n].reshape(-1)
            np.random.default_rng(children[n]).permuted(row, axis=1, out=row)
        means = np.maximum(drawn.reshape(len(some), shuffles, count, samples).mean(-1), 0)
        with np.errstate(invalid="ignore", divide="ignore"):
            index = np.abs(means @ waves) / means.sum(-1, keepdims=True)  # (n, shuffles, 2)
        p[:, some] = (index >= real[:, some].T[:, None]).mean(1).T
    return p[0], p[1]


@dataclass(frozen=True)
class VonMises:
    """A fitted curve: u + a (phi e^(k (cos(x - mu) - 1)) + (1 - phi) e^(k (cos(x - mu + pi) - 1))).

    Attributes:
        mu: preferred direction, radians from 0 to below 2 pi.
        kappa: concentration, at least 0.
        phi: share of the preferred direction, 0.5 to 1.
        scale: a, at least 0.
        bias: u, at least 0.
        mse: mean squared residual.
        r2: share of the curve's variance that the fit holds; NaN for a constant curve.
    """

    mu: float
    kappa: float
    phi: float
    scale: float
    bias: float
    mse: float
    r2: float

    def __call__(self, directions: np.ndarray) -> np.ndarray:
        """The curve at `directions` (K,), degrees."""
        return _von_mises(np.array([self.mu, self.kappa, self.phi, self.scale, self.bias]), np.radians(directions))

    @property
    def width(self) -> float:
        """Half width of the peak half way between top and trough, degrees; NaN where R^2 is below 0.6."""
        if not self.r2 >= 0.6 or self.kappa <= 0:
            return float("nan")
        level = 1 + np.log((1 + np.exp(-2 * self.kappa)) / 2) / self.kappa
        return float(np.degrees(np.arccos(np.clip(level, -1, 1))))


def _von_mises(parameters: np.ndarray, x: np.ndarray) -> np.ndarray:
    mu, kappa, phi, scale, bias = parameters
    turned = kappa * np.cos(x - mu)
    return np.asarray(bias + scale * (phi * np.exp(turned - kappa) + (1 - phi) * np.exp(-turned - kappa)))


def fit_von_mises(curve: np.ndarray, directions: np.ndarray, *, max_kappa: float | None = None) -> VonMises | None:
    """The best of the fits that start at the curve's peak and opposite to it.

    Args:
        curve: (K,) responses.
        directions: (K,) degrees.
        max_kappa: bound of the concentration, which few directions leave open; None is 30 for up to 8 directions and
            60 for more.

    Returns:
        None where the curve is not finite or has no peak.
    """
    response, x = np.asarray(curve, dtype=F64), np.radians(np.asarray(directions, dtype=F64))
    if not np.isfinite(response).all() or not response.max() > 0:
        return None
    top = (30.0 if len(response) <= 8 else 60.0) if max_kappa is None else max_kappa
    size = response.max()
    bias = max(response.min(), size / 100)
    peak = x[response.argmax()]
    lower = np.array([-np.inf, 0, 0, 0, 0])
    upper = np.array([np.inf, top, 1, np.inf, np.inf])
    fits = []
    for mu in (peak, peak + np.pi):
        start = np.array([mu, 1.0, 0.5, 2 * (1 - bias / size) + 1e-6, bias / size])
        for phi in (0.5, 0.9):
            start[2] = phi
            fits.append(
                least_squares(
                    lambda p: _von_mises(p, x) - response / size, start, bounds=(lower, upper),
                    xtol=1e-12, ftol=1e-12, gtol=1e-12,
                )
            )  # fmt: skip
    mu, kappa, phi, scale, bias = min(fits, key=lambda fit: fit.cost).x
    if phi <= 0.5:
        mu, phi = mu + np.pi, 1 - phi
    mu, scale, bias = mu % (2 * np.pi), scale * size, bias * size
    residual = _von_mises(np.array([mu, kappa, phi, scale, bias]), x) - response
    mse, variance = float((residual**2).mean()), float(response.var())
    r2 = 1 - mse / variance if variance > 1e-12 * size**2 else float("nan")
    return VonMises(float(mu), float(kappa), float(phi), float(scale), float(bias), mse, r2)
