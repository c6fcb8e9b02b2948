"""The picture of a benchmark: bars of every variant, side by side in each case, a panel for each metric."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from viv1t.plot.style import EXPECTED, INK, MUTED, PREDICTED, drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from benchmarks.harness import Row

_COLORS = {"viv1t": PREDICTED, "published": EXPECTED}  # a peer is grey
_PREFIXES = ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""), (1e-3, "m"), (0.0, "µ"))


def number(value: float, unit: str) -> str:
    """A value for people to read, such as `12.9 s`, `4.05 GB` or `587 /s`."""
    if unit not in ("s", "B", "B/s"):
        return f"{value:.4g} {unit.removeprefix('1')}".rstrip()
    factor, prefix = next(p for p in _PREFIXES if abs(value) >= p[0])
    return f"{value / (factor or 1e-6):.3g} {prefix}{unit}"


def draw(rows: Sequence[Row], out: Path) -> Path:
    """Draws one benchmark's medians, the range from the 20th to the 80th percentile as a line; returns the path."""
    panels: dict[str, list[Row]] = {}
    for row in rows:
        panels.setdefault(row.metric, []).append(row)
    heights = [len(panel) + 1.0 * len({row.case for row in panel}) + 1 for panel in panels.values()]
    with drawing(out, (8, 0.19 * sum(heights) + 0.5 * len(heights)), 120, None) as (figure, path):
        axes = figure.subplots(len(panels), squeeze=False, height_ratios=heights)[:, 0]
        for ax, (metric, panel) in zip(axes, panels.items(), strict=True):
            _bars(ax, panel)
            ax.set_title(f"{panel[0].benchmark}, {metric.replace('_', ' ')}")
    return path


def _bars(ax: Axes, panel: Sequence[Row]) -> None:
    top, limit = 0.0, max(row.p80 for row in panel)
    for case in dict.fromkeys(row.case for row in panel):
        ax.text(0, top, case, va="center", fontsize=8, fontweight="bold")
        for row in (r for r in panel if r.case == case):
            top += 1
            ax.barh(top, row.median, height=0.75, color=_COLORS.get(row.variant, MUTED))
            ax.plot([row.p20, row.p80], [top, top], color=INK, linewidth=1)
            text = f" {row.variant.removeprefix('peer:')}  {number(row.median, row.unit)}"
            ax.text(max(row.median, row.p80), top, text, va="center", fontsize=7.5)
        top += 1.4
    ax.set_xlim(0, limit * 1.3)
    ax.set_ylim(top - 0.6, -0.8)
    ax.set_axis_off()  # every bar says its number
