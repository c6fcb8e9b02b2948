"""How a run went: its learning curves."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from viv1t.errors import DataError
from viv1t.plot.style import (
    GRID,
    INK,
    MUTED,
    PREDICTED,
    RECORDED,
    Array,
    drawing,
    limit_values,
    mouse_colors,
    short_name,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLUMNS = ("epoch", "train_loss", "validation_loss", "correlation", "learning_rate")


def read_metrics(path: Path) -> dict[str, Array]:
    """The columns of a run's `metrics.csv` as float64; an empty cell is NaN.

    Raises:
        DataError: the file is missing, empty, lacks a column or holds something that is not a number.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as a table of metrics: {error}") from error
    if not rows:
        raise DataError(f"{path}: no epoch in it yet; a run writes a row after each epoch")
    missing = [c for c in _COLUMNS if c not in rows[0]]
    if missing:
        raise DataError(f"{path}: the column {missing[0]} is missing; is this the metrics.csv of a run folder?")
    columns: dict[str, list[float]] = {c: [] for c in rows[0] if c is not None}
    for line, row in enumerate(rows, 2):
        for column, values in columns.items():
            try:
                values.append(float(row[column] or "nan"))
            except ValueError:
                raise DataError(f"{path} line {line}: {column} must be a number, not {row[column]!r}") from None
    return {c: np.array(v) for c, v in columns.items()}


def learning_curves(
    csv_path: str | Path, out: str | Path, *, ceiling: float | None = None, dpi: int = 120, format: str | None = None
) -> Path:
    """Draws correlation, losses and learning rate over the epochs of a run.

    Args:
        csv_path: `metrics.csv` of a run folder.
        out: the figure; its ending says the format unless `format` does.
        ceiling: highest correlation that any model could reach, drawn as a line.
        dpi: resolution in dots per inch.
        format: pdf, svg or png.

    Returns:
        The figure's path.

    Raises:
        DataError: the table cannot be read.
        ConfigError: an unusable format or resolution.
    """
    columns = read_metrics(Path(csv_path))
    epoch = columns["epoch"]
    mice = [c.removeprefix("correlation/") for c in columns if c.startswith("correlation/")]
    # A line through one point is invisible, and so is a point between two gaps.
    marker = "o" if len(epoch) <= 15 or not all(np.isfinite(c).all() for c in columns.values()) else None
    with drawing(out, (9, 4.6), dpi, format) as (figure, path):
        parts: Any = figure.subfigures(1, 2, width_ratios=(1.5, 1))
        left, right = parts
        ax = left.subplots()
        _correlations(ax, epoch, columns, mice, marker)
        if ceiling is not None:
            ax.axhline(ceiling, color=INK, linewidth=1, linestyle=(0, (5, 3)), label=f"ceiling {ceiling:.3f}")
        if len(mice) > 1 or ceiling is not None:
            left.legend(loc="outside lower center", ncols=4)
        panels = right.subplots(3, 1, sharex=True)
        for panel, column, title, color in zip(
            panels,
            ("train_loss", "validation_loss", "learning_rate"),
            ("Training loss", "Validation loss", "Learning rate of the core"),
            (RECORDED, PREDICTED, MUTED),
            strict=True,
        ):
            style = "steps-mid" if column == "learning_rate" else "default"
            panel.plot(epoch, columns[column], color=color, marker=marker, markersize=3, drawstyle=style)
            panel.set_title(title)
            panel.grid(axis="y", color=GRID)
            if column != "learning_rate":
                limit_values(panel, epoch, columns[column])
            panel.ticklabel_format(axis="y", scilimits=(-3, 4))
        panels[2].set_ylim(bottom=0)
        panels[2].set_xlabel("epoch")
        for panel in (ax, *panels):
            _whole_epochs(panel, epoch)
    return path


def _correlations(ax: Axes, epoch: Array, columns: dict[str, Array], mice: list[str], marker: str | None) -> None:
    colors = mouse_colors(mice)
    if len(mice) > 1:
        for mouse in mice:
            ax.plot(
                epoch, columns[f"correlation/{mouse}"], color=colors[mouse], linewidth=1, alpha=0.75, marker=marker,
                markersize=2.5, label=f"mouse {short_name(mouse)}",
            )  # fmt: skip
    mean = columns["correlation"]
    label = "mean of the mice" if len(mice) > 1 else "correlation"
    ax.plot(epoch, mean, color=INK, linewidth=2.2, marker=marker, markersize=4, label=label)
    title = "Single-trial correlation, validation"
    if np.isfinite(mean).any():
        best = int(np.nanargmax(mean))
        ax.plot(epoch[best], mean[best], "o", color="white", markeredgecolor=INK, markeredgewidth=1.8, markersize=7)
        title += f"   (best {mean[best]:.4f}, epoch {epoch[best]:.0f})"
    ax.set_title(title)
    ax.set_xlabel("epoch")
    ax.set_ylabel("correlation, mean over neurons")
    ax.grid(axis="y", color=GRID)


def _whole_epochs(ax: Axes, epoch: Array) -> None:
    from matplotlib.ticker import MaxNLocator

    ax.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
    if len(epoch) == 1:
        ax.set_xlim(epoch[0] - 1, epoch[0] + 1)
