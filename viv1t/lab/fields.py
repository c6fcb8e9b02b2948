"""Receptive fields: maps from responses, and the Gaussian that fits them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.optimize import least_squares

F64 = np.float64
_ON_FRAME = 2.0  # pixels that a fitted centre may lie outside the frame
_SIGMA = (1.0, 20.0)  # bounds of a fitted sigma, pixels


def dot_maps(
    responses: np.ndarray, centers: np.ndarray, on: np.ndarray, frame_size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Maps from dots of both polarities on a grid: summed responses less each map's median.

    Args:
        responses: (N, K) summed response to each dot.
        centers: (K, 2) column and row of each dot, pixels; on a full grid for either polarity.
        on: (K,) whether the dot was brighter than grey.
        frame_size: (H, W).

    Returns:
        on, off and field = max(on, 0) + max(off, 0), each (N, H, W), bilinear between the grid's places.
    """
    maps = []
    for which in (on.astype(bool), ~on.astype(bool)):
        xs, ys = np.unique(centers[which, 0]), np.unique(centers[which, 1])
        grid = np.full((len(responses), len(ys), len(xs)), np.nan)
        grid[:, np.searchsorted(ys, centers[which, 1]), np.searchsorted(xs, centers[which, 0])] = responses[:, which]
        grid -= np.nanmedian(grid, axis=(1, 2), keepdims=True)
        maps.append(_resampled(grid, ys, xs, frame_size))
    return maps[0], maps[1], np.maximum(maps[0], 0) + np.maximum(maps[1], 0)


def _resampled(grid: np.ndarray, ys: np.ndarray, xs: np.ndarray, frame_size: tuple[int, int]) -> np.ndarray:
    """(N, rows, columns) at places ys, xs, brought to every pixel; beyond the grid its border goes on."""
    for axis, places, size in ((1, ys, frame_size[0]), (2, xs, frame_size[1])):
        at = np.clip(np.interp(np.arange(size), places, np.arange(len(places))), 0, len(places) - 1)
        low = np.minimum(at.astype(int), max(len(places) - 2, 0))
        high = np.minimum(low + 1, len(places) - 1)
        shape = [1, 1, 1]
        shape[axis] = size
        part = (at - low).reshape(shape)
        grid = np.take(grid, low, axis=axis) * (1 - part) + np.take(grid, high, axis=axis) * part
    return grid


def on_off_balance(on: np.ndarray, off: np.ndarray) -> np.ndarray:
    """(on - off) / (on + off) of the maps' positive peaks, (N,) from -1 to 1; NaN where neither responds."""
    a, b = (np.maximum(m.max(axis=(1, 2)), 0) for m in (on, off))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((a - b) / (a + b))


def noise_maps(images: np.ndarray, responses: np.ndarray) -> np.ndarray:
    """Linear maps from noise: responses less their mean times images less grey, divided by the images' variance.

    Args:
        images: (B, H, W) grey levels 0 to 255.
        responses: (N, B).

    Returns:
        (N, H, W), responses per unit of grey level as a share of 255.
    """
    contrast = images.astype(F64) / 255 - 0.5
    centred = responses - responses.mean(1, keepdims=True)
    return np.tensordot(centred, contrast, axes=(1, 0)) / (len(images) * contrast.var())


def published_noise_maps(images: np.ndarray, responses: np.ndarray) -> np.ndarray:
    """The published artificial receptive field: the sum of response times image in [0, 1), not centred."""
    return np.tensordot(responses.astype(F64), images.astype(F64) / 255, axes=(1, 0))


def energy_maps(images: np.ndarray, responses: np.ndarray, sigma: float = 2.0) -> np.ndarray:
    """Maps of squared smoothed noise, which stay where the linear average of a complex cell vanishes.

    Shapes as for `noise_maps`; `sigma` in pixels.
    """
    contrast = images.astype(F64) / 255 - 0.5
    energy = gaussian_filter(contrast, (0, sigma, sigma), mode="reflect") ** 2
    energy -= energy.mean(0)
    centred = responses - responses.mean(1, keepdims=True)
    return np.tensordot(centred, energy, axes=(1, 0)) / (len(images) * energy.var())


def spike_triggered_average(video: np.ndarray, responses: np.ndarray) -> np.ndarray:
    """sum_t r (s - s0) / sum_t r, s0 the corner pixel of each frame.

    Args:
        video: (T, H, W) grey levels.
        responses: (N, T).

    Returns:
        (N, H, W); NaN where the responses' sum is 0.
    """
    contrast = video.astype(F64)
    contrast = contrast - contrast[:, :1, :1]
    with np.errstate(invalid="ignore", divide="ignore"):
        total = responses.astype(F64).sum(1)[:, None, None]
        return np.asarray(np.tensordot(responses.astype(F64), contrast, axes=(1, 0)) / total)


def spread_index(maps: np.ndarray, *, published: bool = False) -> np.ndarray:
    """Spatial selectivity -ln det S, S the covariance of position under a map taken as a density.

    Positions are divided by max(H, W), and the map's positive part is the density. `published`: the signed map, and
    positions from 0 to 1 over each axis, which ViV1T-closed-loop lays out as (W, H) and reads as (H, W): rows and
    columns are mixed.

    Returns:
        (N,); NaN where the density has no positive sum or no spread.
    """
    rows, columns = maps.shape[1:]
    if published:
        mixed = np.meshgrid(np.linspace(0, 1, rows), np.linspace(0, 1, columns))
        y, x = (axis.reshape(rows, columns) for axis in mixed)
        density = maps.astype(F64)
    else:
        y, x = (axis / max(rows, columns) for axis in np.mgrid[:rows, :columns])
        density = np.maximum(maps.astype(F64), 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        density = density / density.sum(axis=(1, 2), keepdims=True)
        mean_x, mean_y = (np.einsum("nhw,hw->n", density, axis)[:, None, None] for axis in (x, y))
        xx, yy, xy = (
            (density * product).sum(axis=(1, 2))
            for product in ((x - mean_x) ** 2, (y - mean_y) ** 2, (x - mean_x) * (y - mean_y))
        )
        return np.asarray(-np.log(xx * yy - xy**2))


@dataclass(frozen=True)
class Gaussian:
    """o + a exp(-(A dx^2 + 2 B dx dy + C dy^2)) fitted to a map.

    Attributes:
        x: column of the centre, pixels.
        y: row of the centre, pixels.
        sigma_x: the larger sigma, pixels.
        sigma_y: the smaller sigma, pixels.
        theta: of the larger axis, degrees from 0 to below 180, from right towards down.
        amplitude: a, at least 0.
        offset: o.
        r2: share of the map's variance that the fit holds.
        peak: a over 1.48 median absolute deviations of the map.
        residual: largest residual smoothed over one pixel, over a.
        at_bound: whether a sigma or the centre lies at its bound, or the centre outside the frame.
    """

    x: float
    y: float
    sigma_x: float
    sigma_y: float
    theta: float
    amplitude: float
    offset: float
    r2: float
    peak: float
    residual: float
    at_bound: bool

    def good(self, r2: float = 0.5, peak: float = 5.0, residual: float = 0.5) -> bool:
        """Whether this is one field: strong, well fitted, alone, and inside the frame."""
        return self.peak >= peak and self.r2 >= r2 and self.residual <= residual and not self.at_bound

    def reason(self, r2: float = 0.5, peak: float = 5.0, residual: float = 0.5) -> str:
        """Why it is not good; empty where it is."""
        if self.peak < peak:
            return "no peak above the map's noise"
        if self.at_bound:
            return "at a bound of the fit"
        if self.residual > residual:
            return "more than one field"
        return "" if self.r2 >= r2 else "not like a Gaussian"


def _surface(p: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    a, x0, y0, sx, sy, theta, o = p
    dx, dy = x - x0, y - y0
    along, across = dx * np.cos(theta) + dy * np.sin(theta), -dx * np.sin(theta) + dy * np.cos(theta)
    return np.asarray(o + a * np.exp(-(along**2) / (2 * sx**2) - across**2 / (2 * sy**2)))


def _slope(p: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The surface's derivative by each parameter, (H W, 7)."""
    a, x0, y0, sx, sy, theta, _ = p
    dx, dy = x - x0, y - y0
    cos, sin = np.cos(theta), np.sin(theta)
    along, across = dx * cos + dy * sin, -dx * sin + dy * cos
    shape = np.exp(-(along**2) / (2 * sx**2) - across**2 / (2 * sy**2))
    bump, u, v = a * shape, along / sx**2, across / sy**2
    columns = (
        shape, bump * (u * cos - v * sin), bump * (u * sin + v * cos), bump * along * u / sx, bump * across * v / sy,
        bump * along * across * (1 / sy**2 - 1 / sx**2), np.ones_like(x),
    )  # fmt: skip
    return np.stack([column.ravel() for column in columns], axis=1)


def fit_gaussian(field: np.ndarray) -> Gaussian | None:
    """The better of two bounded fits, which start at the peak of the map smoothed over one pixel.

    Args:
        field: (H, W) a map whose field is positive.

    Returns:
        None where the map is constant or not finite.
    """
    z = np.asarray(field, dtype=F64)
    scale = float(np.abs(z).max()) if np.isfinite(z).all() else 0.0
    variance = float(z.var()) if scale > 0 else 0.0
    if not variance > 1e-20 * scale**2:
        return None
    z = z / scale
    rows, columns = z.shape
    y, x = (axis.astype(F64) for axis in np.mgrid[:rows, :columns])
    smooth = gaussian_filter(z, 1.0, mode="reflect")
    y0, x0 = np.unravel_index(smooth.argmax(), z.shape)
    median = float(np.median(z))
    lower = np.array([0, -_ON_FRAME, -_ON_FRAME, _SIGMA[0], _SIGMA[0], -np.inf, -np.inf])
    upper = np.array([np.inf, columns - 1 + _ON_FRAME, rows - 1 + _ON_FRAME, _SIGMA[1], _SIGMA[1], np.inf, np.inf])
    fits = []
    for sigma in (3.0, 6.0):
        start = [max(float(z[y0, x0]) - median, 1e-3), x0, y0, sigma, sigma * 0.9, 0.1, median]
        fits.append(
            least_squares(
                lambda p: (_surface(p, x, y) - z).ravel(), start, lambda p: _slope(p, x, y), (lower, upper),
                max_nfev=200,
            )
        )  # fmt: skip
    best = min(fits, key=lambda fit: fit.cost)
    a, cx, cy, sx, sy, theta, o = map(float, best.x)
    if sx < sy:
        sx, sy, theta = sy, sx, theta + np.pi / 2
    error = z - _surface(best.x, x, y)
    deviation = 1.48 * float(np.median(np.abs(z - median)))
    at_bound = (
        min(sx - _SIGMA[0], sy - _SIGMA[0], _SIGMA[1] - sx, _SIGMA[1] - sy) < 1e-3
        or not 0 <= cx <= columns - 1
        or not 0 <= cy <= rows - 1
    )
    return Gaussian(
        x=cx,
        y=cy,
        sigma_x=sx,
        sigma_y=sy,
        theta=float(np.degrees(theta) % 180),
        amplitude=a * scale,
        offset=o * scale,
        r2=1 - float((error**2).mean()) / (variance / scale**2),
        peak=a / deviation if deviation > 0 else float("inf") if a > 0 else 0.0,
        residual=float(gaussian_filter(error, 1.0, mode="reflect").max()) / a if a > 0 else float("inf"),
        at_bound=at_bound,
    )
