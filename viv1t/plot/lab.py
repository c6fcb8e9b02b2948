"""What in-silico experiments found: receptive fields, tuning curves, and how a mouse's neurons are spread over them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from viv1t.errors import DataError
from viv1t.plot.style import DENSE, EXPECTED, GRID, INK, MUTED, PREDICTED, Array, drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

EXAMPLES = 12  # neurons that are drawn alone


def spread(values: Array, count: int = EXAMPLES) -> Array:
    """Places of `count` values, evenly over their order from the largest to the smallest; NaN is left out."""
    order = np.argsort(-values, kind="stable")
    order = order[np.isfinite(values[order])]
    return order[np.unique(np.linspace(0, max(len(order) - 1, 0), min(count, len(order))).astype(int))]


def fields(
    maps: Array,
    fits: Mapping[str, Array],
    names: Sequence[str],
    population: Mapping[str, Array],
    out: str | Path,
    *,
    coordinates: Array | None = None,
    title: str = "Receptive fields",
    dpi: int = 120,
    format: str | None = None,
) -> Path:
    """Draws maps of a few neurons with the ellipse of one sigma, and the fields of all.

    Args:
        maps: (n, H, W) of the neurons that are drawn alone.
        fits: of these neurons (n,) x, y, sigma_x, sigma_y in pixels and theta in degrees; NaN draws no ellipse.
        names: n titles.
        population: (N,) x, y, sigma_x, sigma_y, and `good` as bool, of all neurons.
        out: the figure; its ending says the format unless `format` does.
        coordinates: (N, 2 or more) cortical positions in micrometres; None leaves them out.
        title: of the figure.
        dpi: resolution in dots per inch.
        format: pdf, svg or png.

    Returns:
        The figure's path.

    Raises:
        DataError: arrays that do not fit.
        ConfigError: an unusable format or resolution.
    """
    if maps.ndim != 3 or len(names) != len(maps) or any(len(values) != len(maps) for values in fits.values()):
        raise DataError(
            f"maps must be (neurons, H, W) with a fit and a name each, not {maps.shape}, {len(names)} names"
        )
    rows, columns = maps.shape[1:]
    across = 4
    down = -(-len(maps) // across)
    good = population["good"].astype(bool)
    x, y = population["x"][good], population["y"][good]
    with drawing(out, (9.2, 0.9 + 1.45 * down + 2.6), dpi, format) as (figure, path):
        top, bottom = np.asarray(figure.subfigures(2, 1, height_ratios=[max(1.45 * down, 0.5), 2.6]))
        panels = top.subplots(max(down, 1), across, squeeze=False).ravel()
        for n, ax in enumerate(panels):
            if n >= len(maps):
                ax.set_visible(False)
                continue
            limit = float(np.abs(maps[n]).max()) or 1.0
            ax.imshow(maps[n], cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
            _ellipse(ax, {name: float(values[n]) for name, values in fits.items()})
            ax.set(xticks=[], yticks=[], xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5))
            ax.set_title(names[n], fontsize=8)
        places = coordinates is not None and np.isfinite(coordinates[:, :2]).all() and len(x) > 1
        axes = bottom.subplots(1, 4 if places else 2, width_ratios=[1.6, 1, 1, 1] if places else [1.6, 1])
        axes[0].scatter(
            x,
            y,
            s=float(np.clip(3000 / max(len(x), 1), 2, 14)),
            color=PREDICTED,
            alpha=0.6,
            linewidths=0,
            rasterized=len(x) > DENSE,
        )
        axes[0].set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5), aspect="equal", xlabel="x (pixels)")
        axes[0].set_ylabel("y (pixels, down)")
        axes[0].set_title(f"centres of {len(x)} good fields of {len(good)}")
        sizes = np.sqrt(population["sigma_x"][good] * population["sigma_y"][good])
        _histogram(axes[1], sizes, "sigma (pixels)", "neurons")
        if places:
            assert coordinates is not None
            for ax, values, axis, place in ((axes[2], x, "x", 0), (axes[3], y, "y", 1)):
                ax.scatter(
                    coordinates[good, place],
                    values,
                    s=4,
                    color=PREDICTED,
                    alpha=0.6,
                    linewidths=0,
                    rasterized=len(x) > DENSE,
                )
                ax.set(xlabel=f"cortical {axis} (µm)", ylabel=f"{axis} (pixels)")
                ax.grid(color=GRID)
        figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    return path


def _ellipse(ax: Axes, fit: Mapping[str, float]) -> None:
    """The contour at exp(-1/2) of the peak: one sigma along each axis."""
    turn, theta = np.linspace(0, 2 * np.pi, 60), np.radians(fit["theta"])
    along, across = fit["sigma_x"] * np.cos(turn), fit["sigma_y"] * np.sin(turn)
    x = fit["x"] + along * np.cos(theta) - across * np.sin(theta)
    y = fit["y"] + along * np.sin(theta) + across * np.cos(theta)
    ax.plot(x, y, color=INK, linewidth=1.0)
    ax.plot(fit["x"], fit["y"], "+", color=INK, markersize=4)


def directions(
    curves: Array,
    angles: Array,
    fitted: Array,
    fine: Array,
    names: Sequence[str],
    population: Mapping[str, Array],
    aligned: Array,
    out: str | Path,
    *,
    title: str = "Direction tuning",
    dpi: int = 120,
    format: str | None = None,
) -> Path:
    """Draws tuning curves of a few neurons, polar, with their fits, and the indices of all.

    Args:
        curves: (n, K) responses of the neurons that are drawn alone.
        angles: (K,) directions in degrees, 0 left and 90 down.
        fitted: (n, F) fits; NaN draws none.
        fine: (F,) their directions.
        names: n titles.
        population: (N,) gOSI, gDSI and preferred_direction of all neurons.
        aligned: (N, K + 1) curves about the preferred direction, as shares of the peak.
        out, title, dpi, format: as for `fields`.

    Returns:
        The figure's path.
    """
    across = 6
    down = -(-len(curves) // across)
    with drawing(out, (9.2, 0.7 + 1.75 * down + 2.3), dpi, format) as (figure, path):
        top, bottom = np.asarray(figure.subfigures(2, 1, height_ratios=[max(1.75 * down, 0.5), 2.3]))
        panels = top.subplots(max(down, 1), across, squeeze=False, subplot_kw={"projection": "polar"}).ravel()
        for n, ax in enumerate(panels):
            if n >= len(curves):
                ax.set_visible(False)
                continue
            # As it looks on the screen: 0 moves left and 90 down.
            ax.set_theta_zero_location("W")
            around = np.radians([*angles, angles[0]])
            ax.plot(
                around, np.maximum([*curves[n], curves[n][0]], 0), "o-", color=PREDICTED, markersize=2.5, linewidth=1
            )
            ax.plot(np.radians(fine), np.maximum(fitted[n], 0), color=EXPECTED, linewidth=0.9)
            ax.set(xticks=np.radians([0, 90, 180, 270]), yticklabels=[])
            ax.set_xticklabels(["←", "↓", "→", "↑"], fontsize=7)
            ax.tick_params(pad=-3)
            ax.grid(color=GRID)
            ax.spines["polar"].set_visible(False)
            ax.set_title(names[n], fontsize=8, loc="center")
        axes = bottom.subplots(1, 4)
        for ax, name in zip(axes, ("gOSI", "gDSI"), strict=False):
            _histogram(ax, population[name], name, "neurons" if name == "gOSI" else "", limits=(0, 1))
        _histogram(
            axes[2],
            population["preferred_direction"],
            "preferred direction (°)",
            "",
            limits=(0, 360),
            bins=16,
            median=False,
        )
        axes[2].set_xticks([0, 90, 180, 270, 360])
        shown = aligned[np.isfinite(aligned).all(axis=1)]
        if len(shown):
            offset = np.linspace(-180, 180, aligned.shape[1])
            _band(axes[3], offset, shown, PREDICTED)
        axes[3].set(xlabel="from the preferred (°)", xticks=[-180, -90, 0, 90, 180], ylim=(0, 1.05))
        axes[3].set_title(f"aligned, {len(shown)} neurons")
        figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    return path


def curves(
    x: Array,
    examples: Mapping[str, Array],
    names: Sequence[str],
    histograms: Mapping[str, Array],
    out: str | Path,
    *,
    label: str,
    logarithmic: bool = False,
    population: Array | None = None,
    title: str = "",
    dpi: int = 120,
    format: str | None = None,
) -> Path:
    """Draws curves of a few neurons over one axis, the mean of all as shares of each peak, and histograms.

    Args:
        x: (K,) places on the axis.
        examples: (n, K) responses of each kind, the first the one that matters most.
        names: n titles.
        histograms: (N,) values of each name.
        out: the figure; its ending says the format unless `format` does.
        label: of the axis.
        logarithmic: whether its steps are.
        population: (N, K) curves of all neurons; None draws no mean.
        title: of the figure.
        dpi: resolution in dots per inch.
        format: pdf, svg or png.

    Returns:
        The figure's path.
    """
    from matplotlib.lines import Line2D

    across, shown = 6, list(examples.values())
    colors = (PREDICTED, EXPECTED, MUTED, INK)
    down = -(-len(names) // across)
    with drawing(out, (9.2, 0.7 + 1.3 * down + 2.3), dpi, format) as (figure, path):
        top, bottom = np.asarray(figure.subfigures(2, 1, height_ratios=[max(1.3 * down, 0.5), 2.3]))
        panels = top.subplots(max(down, 1), across, squeeze=False, sharex=True).ravel()
        for n, ax in enumerate(panels):
            if n >= len(names):
                ax.set_visible(False)
                continue
            for kind, color in zip(shown, colors, strict=False):
                ax.plot(x, kind[n], "o-", color=color, markersize=3, linewidth=1.1)
            ax.set_ylim(bottom=min(0.0, *(float(np.nanmin(k[n])) for k in shown if np.isfinite(k[n]).any()), 0.0))
            if logarithmic:
                _logarithmic(ax, x, few=True)
            ax.set_title(names[n], fontsize=8)
            ax.tick_params(labelsize=7)
        figures = [*histograms.items()]
        axes = np.atleast_1d(bottom.subplots(1, len(figures) + (population is not None)))
        for number, (ax, (name, values)) in enumerate(zip(axes, figures, strict=False)):
            _histogram(ax, values, name, "" if number else "neurons")
        if population is not None:
            with np.errstate(invalid="ignore", divide="ignore"):
                shares = population / population.max(axis=1, keepdims=True)
            shares = shares[np.isfinite(shares).all(axis=1)]
            if len(shares):
                _band(axes[-1], x, shares, PREDICTED)
            if logarithmic:
                _logarithmic(axes[-1], x)
            axes[-1].set(xlabel=label, ylim=(min(0, axes[-1].get_ylim()[0]), 1.05))
            axes[-1].set_title(f"share of the peak, {len(shares)} neurons")
        if len(examples) > 1:
            lines = [Line2D([], [], color=color, label=kind) for kind, color in zip(examples, colors, strict=False)]
            figure.legend(handles=lines, loc="outside upper right", ncols=len(lines))
        figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    return path


def _logarithmic(ax: Axes, x: Array, few: bool = False) -> None:
    ax.set_xscale("log")
    ticks = x[np.unique([0, len(x) // 2, len(x) - 1])] if few else x
    ax.set_xticks(ticks)
    ax.set_xticklabels([f"{value:g}" for value in ticks])
    ax.minorticks_off()


def _band(ax: Axes, x: Array, shares: Array, color: str) -> None:
    """Median with quartiles."""
    low, middle, high = np.percentile(shares, [25, 50, 75], axis=0)
    ax.fill_between(x, low, high, color=color, alpha=0.2, linewidth=0)
    ax.plot(x, middle, color=color)
    ax.grid(color=GRID)


def _histogram(
    ax: Axes,
    values: Array,
    label: str,
    ylabel: str,
    *,
    limits: tuple[float, float] | None = None,
    bins: int = 24,
    median: bool = True,
) -> None:
    known = np.asarray(values, dtype=np.float64)
    known = known[np.isfinite(known)]
    if len(known):
        span: Any = limits
        if span is None:
            low, high = np.percentile(known, [0, 99])
            span = (float(low), float(high) if high > low else float(low) + 1)
        ax.hist(np.clip(known, *span), bins=bins, range=span, color=MUTED, edgecolor="white", linewidth=0.4)
        if median:
            ax.axvline(float(np.median(known)), color=PREDICTED, linewidth=1.1)
            ax.set_title(f"median {np.median(known):.3g}")
    ax.set(xlabel=label, ylabel=ylabel)
