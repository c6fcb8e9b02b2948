"""Where neurons look: receptive fields and readout positions on the movie's frame."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from viv1t.errors import DataError
from viv1t.plot.style import (
    DENSE,
    FRAME_SIZE,
    GRID,
    INK,
    MUTED,
    Array,
    drawing,
    frame_axes,
    mouse_colors,
    pearson,
    per_mouse,
    robust_range,
    same_neurons,
    short_name,
    some_mice,
)

_LINES = 250  # neurons of a mouse that are drawn on the frame: more would hide each other


def pixel_distance(a: Array, b: Array, frame_size: tuple[int, int] = FRAME_SIZE) -> Array:
    """Distance in pixels between positions (N, 2), x and y in [-1, 1] from border pixel to border pixel."""
    height, width = frame_size
    return np.asarray(np.hypot(*((a - b) * [(width - 1) / 2, (height - 1) / 2]).T))


def receptive_fields(
    true: Mapping[str, Array],
    recovered: Mapping[str, Array],
    out: str | Path,
    *,
    frame_size: tuple[int, int] = FRAME_SIZE,
    dpi: int = 120,
    format: str | None = None,
) -> Path:
    """Draws, a row per mouse, recovered receptive-field centres against the true ones.

    On the left a line on the frame leads from each true centre to the recovered one; on the right recovered x and y
    over the true ones, with their correlation.

    Args:
        true: (N, 2) per mouse, x to the right and y downwards in [-1, 1], as in grid_sample.
        recovered: (N, 2) per mouse, likewise; neurons with NaN are left out.
        out: the figure; its ending says the format unless `format` does.
        frame_size: (H, W) of the movie in pixels.
        dpi: resolution in dots per inch.
        format: pdf, svg or png.

    Returns:
        The figure's path.

    Raises:
        DataError: no mouse, or arrays that do not fit.
        ConfigError: an unusable format or resolution.
    """
    mice = some_mice(true)
    truth = per_mouse("true positions", true, mice, 2)
    found = per_mouse("recovered positions", recovered, mice, 2)
    for mouse in mice:
        same_neurons(mouse, true=truth[mouse], recovered=found[mouse])
    colors = mouse_colors(mice)
    with drawing(out, (9.2, 0.45 + 2.35 * len(mice)), dpi, format) as (figure, path):
        grid = figure.subplots(len(mice), 3, squeeze=False, width_ratios=[1.9, 1, 1])
        for row, mouse in zip(grid, mice, strict=True):
            a, b, color = truth[mouse], found[mouse], colors[mouse]
            known = np.isfinite(a).all(axis=1) & np.isfinite(b).all(axis=1)
            a, b = a[known], b[known]
            shown = np.unique(np.linspace(0, len(a) - 1, min(_LINES, len(a))).astype(int))
            ax = row[0]
            pairs = np.stack([a[shown], b[shown]])
            ax.plot(pairs[..., 0], pairs[..., 1], color=MUTED, linewidth=0.6, alpha=0.7, zorder=1)
            ax.scatter(*a[shown].T, s=14, facecolors="white", edgecolors=INK, linewidths=0.8, label="true", zorder=2)
            ax.scatter(*b[shown].T, s=12, color=color, linewidths=0, label="recovered", zorder=3, clip_on=False)
            frame_axes(ax, frame_size)
            count = f"{len(shown)} of {len(a)} neurons" if len(shown) < len(a) else f"{len(a)} neurons"
            apart = f", median distance {np.median(pixel_distance(a, b, frame_size)):.1f} pixels" if len(a) else ""
            ax.set_title(f"mouse {short_name(mouse)}: {count}{apart}")
            ax.set_ylabel("y (down)")
            for axis, name in enumerate("xy"):
                panel = row[1 + axis]
                panel.plot([-1, 1], [-1, 1], color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)))
                panel.scatter(
                    a[:, axis], b[:, axis], s=float(np.clip(4000 / max(len(a), 1), 2, 12)), color=color, alpha=0.6,
                    linewidths=0, rasterized=len(a) > DENSE,
                )  # fmt: skip
                panel.set(xlim=(-1.05, 1.05), ylim=(-1.05, 1.05), xticks=[-1, 0, 1], yticks=[-1, 0, 1], aspect="equal")
                panel.grid(color=GRID)
                panel.set_title(f"{name}:  r = {pearson(a[:, axis], b[:, axis]):.3f}")
                panel.set_ylabel(f"recovered {name}", labelpad=0)
        grid[-1, 0].set_xlabel("x")
        grid[-1, 1].set_xlabel("true x")
        grid[-1, 2].set_xlabel("true y")
        handles, labels = grid[0, 0].get_legend_handles_labels()
        figure.suptitle("Receptive-field centres on the frame", x=0.01, ha="left", fontsize=10)
        figure.legend(handles, labels, loc="outside upper right", ncols=2)
    return path


def readout_positions(
    positions: Mapping[str, Array],
    coordinates: Mapping[str, Array],
    out: str | Path,
    *,
    axis: str = "x",
    frame_size: tuple[int, int] = FRAME_SIZE,
    dpi: int = 120,
    format: str | None = None,
) -> Path:
    """Draws each mouse's readout positions on the frame, coloured by where the neurons lie in the cortex.

    Args:
        positions: (N, 2) per mouse, x to the right and y downwards in [-1, 1], as in grid_sample.
        coordinates: (N, 2 or 3) per mouse, cortical x, y (and z) in micrometres.
        out: the figure; its ending says the format unless `format` does.
        axis: cortical axis that gives the colour, `x` or `y`.
        frame_size: (H, W) of the movie in pixels.
        dpi: resolution in dots per inch.
        format: pdf, svg or png.

    Returns:
        The figure's path.

    Raises:
        DataError: no mouse, another axis, or arrays that do not fit.
        ConfigError: an unusable format or resolution.
    """
    if axis not in ("x", "y"):
        raise DataError(f"axis must be x or y, not {axis!r}")
    mice = some_mice(positions)
    points = per_mouse("readout positions", positions, mice, 2)
    places = per_mouse("coordinates", coordinates, mice, 2)
    for mouse in mice:
        same_neurons(mouse, positions=points[mouse], coordinates=places[mouse])
    # Mice lie differently under the microscope: only the distance from their own middle compares.
    centred = {m: place[:, "xy".index(axis)] - place[:, "xy".index(axis)].mean() for m, place in places.items()}
    extent = max(map(abs, robust_range(np.concatenate(list(centred.values()))))) or 1.0
    columns = min(len(mice), 2 if len(mice) <= 4 else 3)
    rows = -(-len(mice) // columns)
    with drawing(out, (0.9 + 3.4 * columns, 0.5 + 2.25 * rows), dpi, format) as (figure, path):
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for ax, mouse in zip(panels, mice, strict=False):
            count = len(centred[mouse])
            image = ax.scatter(
                *points[mouse][:, :2].T, c=centred[mouse], s=float(np.clip(4000 / max(count, 1), 2, 14)),
                cmap="coolwarm", vmin=-extent, vmax=extent, linewidths=0, rasterized=count > DENSE, clip_on=False,
            )  # fmt: skip
            frame_axes(ax, frame_size)
            ax.set_title(f"mouse {short_name(mouse)}: {count} neurons")
        for ax in panels[len(mice) :]:
            ax.set_visible(False)
        for ax in panels[::columns]:
            ax.set_ylabel("y (down)")
        for ax in panels[max(0, len(mice) - columns) : len(mice)]:
            ax.set_xlabel("x")
        figure.suptitle("Readout positions on the frame", x=0.01, ha="left", fontsize=10)
        beyond = any(np.abs(c).max(initial=0) > extent for c in centred.values())
        bar = figure.colorbar(image, ax=panels.tolist(), shrink=0.8, pad=0.02, extend="both" if beyond else "neither")
        bar.set_label(f"cortical {axis} − mean (µm)")
        bar.outline.set_visible(False)
    return path
