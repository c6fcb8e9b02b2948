"""Responses: traces of neurons, and how well each of them is predicted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from viv1t.errors import DataError
from viv1t.plot.style import (
    DENSE,
    EXPECTED,
    GRID,
    INK,
    PREDICTED,
    RECORDED,
    Array,
    drawing,
    limit_values,
    mouse_colors,
    pearson,
    per_mouse,
    robust_range,
    same_neurons,
    short_name,
    some_mice,
)
from viv1t.types import FRAME_RATE


def response_traces(
    recorded: Array,
    predicted: Array,
    out: str | Path,
    *,
    neurons: Sequence[int],
    frame_rate: float = FRAME_RATE,
    names: Sequence[str] | None = None,
    expected: Array | None = None,
    correlations: Array | None = None,
    first_frame: int = 0,
    title: str = "",
    dpi: int = 120,
    format: str | None = None,
) -> Path:
    """Draws recorded and predicted responses of chosen neurons over time, a row each.

    Args:
        recorded: (N, t) responses of one trial.
        predicted: (N, t); NaN where there is no prediction.
        out: the figure; its ending says the format unless `format` does.
        neurons: indices of the rows that are drawn, best ten or fewer.
        frame_rate: Hz.
        names: what to call each of `neurons`; their index when None.
        expected: (N, t) the true mean response, of synthetic mice.
        correlations: (N,) written beside each neuron; that of the drawn frames when None.
        first_frame: index in the trial of the first frame.
        title: of the figure, such as mouse and trial.
        dpi: resolution in dots per inch.
        format: pdf, svg or png.

    Returns:
        The figure's path.

    Raises:
        DataError: shapes differ, or a neuron is out of range.
        ConfigError: an unusable format or resolution.
    """
    recorded, predicted = np.asarray(recorded), np.asarray(predicted)
    series = {"predicted": predicted} | ({} if expected is None else {"expected": np.asarray(expected)})
    for name, array in series.items():
        if recorded.ndim != 2 or array.shape != recorded.shape:
            raise DataError(
                f"{name} responses must be (neurons, frames) like the recorded {recorded.shape}, not {array.shape}"
            )
    if not len(neurons) or not all(0 <= n < len(recorded) for n in neurons):
        raise DataError(f"neurons to draw must be some of 0 to {len(recorded) - 1}, not {list(neurons)}")
    if names is not None and len(names) != len(neurons):
        raise DataError(f"{len(names)} names for {len(neurons)} neurons: give one each")
    time = (first_frame + np.arange(recorded.shape[1])) / frame_rate
    with drawing(out, (8.5, 0.9 + 1.05 * len(neurons)), dpi, format) as (figure, path):
        panels = figure.subplots(len(neurons), 1, sharex=True, squeeze=False)[:, 0]
        for row, (ax, neuron) in enumerate(zip(panels, neurons, strict=True)):
            ax.fill_between(time, recorded[neuron], color=RECORDED, alpha=0.22, linewidth=0)
            ax.plot(time, recorded[neuron], color=RECORDED, linewidth=0.9, label="recorded")
            if expected is not None:
                ax.plot(time, series["expected"][neuron], color=EXPECTED, linewidth=1, label="expected (truth)")
            ax.plot(time, predicted[neuron], color=PREDICTED, linewidth=1.5, label="predicted")
            r = pearson(recorded[neuron], predicted[neuron]) if correlations is None else float(correlations[neuron])
            name = f"neuron {neuron}" if names is None else names[row]
            ax.set_title(f"{name}   r = {r:.2f}" if np.isfinite(r) else name, fontsize=8.5, pad=2)
            ax.margins(x=0)
            limit_values(ax, time, recorded[neuron], *(array[neuron] for array in series.values()))
            if _lowest(recorded[neuron], *(array[neuron] for array in series.values())) >= 0:
                ax.set_ylim(bottom=0)
            ax.locator_params(axis="y", nbins=3)
            if row < len(neurons) - 1:
                ax.spines["bottom"].set_visible(False)
                ax.tick_params(axis="x", length=0)
        panels[-1].set_xlabel("time (s)")
        figure.supylabel("response (deconvolved activity, a.u.)", fontsize=9)
        if title:
            figure.suptitle(title, x=0.01, ha="left", fontsize=10)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper right", ncols=len(labels))
    return path


def _lowest(*series: Array) -> float:
    values = np.concatenate(series)
    values = values[np.isfinite(values)]
    return float(values.min()) if values.size else 0.0


def correlation_by_neuron(
    correlations: Mapping[str, Array],
    coordinates: Mapping[str, Array],
    out: str | Path,
    *,
    depths: int = 3,
    dpi: int = 120,
    format: str | None = None,
) -> Path:
    """Draws, a row per mouse, the histogram of the neurons' correlations and their map over the cortex.

    Args:
        correlations: (N,) per mouse; neurons with NaN are left out and counted.
        coordinates: (N, 3) per mouse, cortical x, y, z in micrometres.
        out: the figure; its ending says the format unless `format` does.
        depths: maps per mouse, each of a range of z with about as many neurons.
        dpi: resolution in dots per inch.
        format: pdf, svg or png.

    Returns:
        The figure's path.

    Raises:
        DataError: no mouse, or arrays that do not fit.
        ConfigError: an unusable format or resolution.
    """
    mice = some_mice(correlations)
    scores = per_mouse("correlations", correlations, mice, None)
    places = per_mouse("coordinates", coordinates, mice, 3)
    for mouse in mice:
        same_neurons(mouse, correlations=scores[mouse], coordinates=places[mouse])
    everything = np.concatenate(list(scores.values()))
    everything = everything[np.isfinite(everything)]
    if depths < 1:
        raise DataError(f"depths must be at least 1, not {depths}")
    if not everything.size:
        raise DataError("no correlation is finite: nothing to draw")
    low, high = float(min(0, everything.min())), float(everything.max())
    high = high if high > low else low + 1
    top = float(max(np.percentile(everything, 99), low + 1e-6))
    colors = mouse_colors(mice)
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    scale = ScalarMappable(Normalize(low, top), "viridis")
    with drawing(out, (3.1 + 2.0 * depths, 0.5 + 2.3 * len(mice)), dpi, format) as (figure, path):
        grid = figure.subplots(len(mice), 1 + depths, squeeze=False, width_ratios=[1.35, *[1] * depths])
        for row, mouse in zip(grid, mice, strict=True):
            r, place = scores[mouse], places[mouse]
            known = np.isfinite(r)
            silent = f", {(~known).sum()} undefined" if not known.all() else ""
            row[0].hist(r[known], bins=np.linspace(low, high, 31).tolist(), color=colors[mouse], alpha=0.85)
            if known.any():
                mean = float(r[known].mean())
                row[0].axvline(mean, color=INK, linewidth=1.2)
                row[0].set_ylim(top=row[0].get_ylim()[1] * 1.12)  # room for its label
                row[0].annotate(
                    f"mean {mean:.3f}", (mean, 1), xycoords=row[0].get_xaxis_transform(), xytext=(4, -9),
                    textcoords="offset points", fontsize=8,
                )  # fmt: skip
            row[0].set_title(f"mouse {short_name(mouse)}: {len(r)} neurons{silent}")
            row[0].set_ylabel("neurons")
            row[0].grid(axis="y", color=GRID)
            layers = depth_layers(place[:, 2], depths)
            for ax, layer in zip(row[1:], layers, strict=False):
                shown = layer[known[layer]]
                shown = shown[np.argsort(r[shown])]  # the best on top
                ax.scatter(
                    place[shown, 0], place[shown, 1], c=r[shown], s=_dot(len(shown)), cmap=scale.cmap, norm=scale.norm,
                    linewidths=0, rasterized=len(shown) > DENSE,
                )  # fmt: skip
                ax.set_aspect("equal")
                ax.set_xlim(_around(place[:, 0]))
                ax.set_ylim(_around(place[:, 1]))
                inside = np.all(
                    [
                        (a <= place[layer, i]) & (place[layer, i] <= b)
                        for i, (a, b) in enumerate((ax.get_xlim(), ax.get_ylim()))
                    ],
                    axis=0,
                )
                beyond = f", {(~inside).sum()} beyond" if not inside.all() else ""
                ax.set_title(f"depth {_range(place[layer, 2])} µm{beyond}")
                ax.locator_params(nbins=4)
                ax.tick_params(labelleft=ax is row[1])
            row[1].set_ylabel("cortical y (µm)")
            for ax in row[1 + len(layers) :]:
                ax.set_visible(False)
        grid[-1, 0].set_xlabel("single-trial correlation")
        for ax in grid[-1, 1:]:
            ax.set_xlabel("cortical x (µm)")
        extend = "max" if top < high else "neither"
        bar = figure.colorbar(
            scale, ax=grid[:, 1:].ravel().tolist(), shrink=max(0.25, 0.85 / len(mice)), pad=0.02, extend=extend
        )
        bar.set_label("correlation")
        bar.outline.set_visible(False)
        figure.align_ylabels(grid[:, 0])
    return path


def depth_layers(z: Array, layers: int) -> list[Array]:
    """Indices of the neurons of each range of depth: at most `layers`, none empty, no plane divided."""
    planes, counts = np.unique(z, return_counts=True)
    # Each plane goes where the middle of its neurons falls.
    middle = (np.cumsum(counts) - counts / 2) / counts.sum()
    of_plane = np.minimum((middle * layers).astype(int), layers - 1)
    of_neuron = of_plane[np.searchsorted(planes, z)]
    return [np.flatnonzero(of_neuron == i) for i in range(layers) if (of_neuron == i).any()]


def _range(values: Array) -> str:
    low, high = values.min(), values.max()
    return f"{low:.0f}" if low == high else f"{low:.0f}–{high:.0f}"


def _around(values: Array) -> tuple[float, float]:
    low, high = robust_range(values)
    margin = 0.04 * (high - low) or 1.0
    return low - margin, high + margin


def _dot(count: int) -> float:
    """Area of a point, smaller where there are many."""
    return float(np.clip(6000 / max(count, 1), 2, 22))
