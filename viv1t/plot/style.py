"""What all figures share: size, type, colours, and how they reach the disk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from viv1t.errors import ConfigError, DataError
from viv1t.system.files import replacing
from viv1t.types import NEW_MICE, OLD_MICE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = np.ndarray

FORMATS = ("pdf", "svg", "png")
FRAME_SIZE = (36, 64)  # pixels, height and width, of a published movie

RECORDED, PREDICTED, EXPECTED = "#5f6670", "#d1495b", "#1f6fb2"
INK, MUTED, GRID = "#22262b", "#7a828c", "#e3e6ea"
_PALETTE = (
    "#4e79a7", "#f28e2b", "#59a14f", "#b07aa1", "#9c755f", "#d1495b", "#1f6fb2", "#2a9d8f", "#c98a00", "#7b5ea7",
)  # fmt: skip
DENSE = 2000  # points above which a scatter is stored as pixels in vector formats

_STYLE: dict[Any, Any] = {
    "figure.constrained_layout.use": True,
    "figure.facecolor": "white",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.titlepad": 6,
    "axes.labelsize": 9,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "text.color": INK,
    "text.parse_math": False,  # names are names, whatever signs they hold
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.4,
    "pdf.fonttype": 42,  # text stays text, for those who edit figures
    "svg.fonttype": "none",
    "svg.hashsalt": "viv1t",
}
_UNDATED = {"pdf": {"CreationDate": None}, "svg": {"Date": None}, "png": {}}


def figure_path(out: str | Path, format: str | None) -> tuple[Path, str]:
    """Where a figure goes and its format: `format`, added to the name when it lacks it, or the name's own ending.

    Raises:
        ConfigError: neither says one of pdf, svg, png.
    """
    path = Path(out)
    ending = path.suffix[1:].lower()
    if format is None and ending not in FORMATS:
        raise ConfigError(f"figure {path}: its name must end in one of {', '.join(FORMATS)}")
    if format is not None and format not in FORMATS:
        raise ConfigError(f"--format must be one of {', '.join(FORMATS)}, not {format!r}")
    kind = ending if format is None else format
    return (path if ending == kind else path.with_name(f"{path.name}.{kind}")), kind


@contextmanager
def drawing(out: str | Path, size: tuple[float, float], dpi: int, format: str | None) -> Iterator[tuple[Figure, Path]]:
    """A figure of `size` inches to draw on and its path; written when the block ends without an error.

    Raises:
        ConfigError: an unusable format or resolution.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    path, kind = figure_path(out, format)
    if dpi < 1:
        raise ConfigError(f"--dpi must be at least 1, not {dpi}")
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=size)
        FigureCanvasAgg(figure)
        yield figure, path
        with replacing(path) as temporary:
            figure.savefig(temporary, format=kind, dpi=dpi, metadata=_UNDATED[kind])


def mouse_colors(mice: Sequence[str]) -> dict[str, str]:
    """A colour per mouse: the published mice keep theirs in every figure, others share what is left, in order."""
    letters = (*OLD_MICE, *NEW_MICE)
    fixed = dict(zip(letters, _PALETTE, strict=True))
    free = [c for m, c in fixed.items() if m not in mice] or list(_PALETTE)
    others = [m for m in mice if m not in fixed]
    return {m: fixed.get(m) or free[others.index(m) % len(free)] for m in mice}


def short_name(mouse: str, length: int = 18) -> str:
    """A mouse's id, cut where it is a long folder name."""
    return mouse if len(mouse) <= length else mouse[: length - 1] + "…"


def frame_axes(ax: Axes, frame_size: tuple[int, int]) -> None:
    """Makes axes the movie's frame: x to the right, y downwards, both -1 to 1, in the proportions of its pixels."""
    ax.set_xlim(-1, 1)
    ax.set_ylim(1, -1)
    ax.set_aspect(frame_size[0] / frame_size[1])
    ax.set_xticks([-1, 0, 1])
    ax.set_yticks([-1, 0, 1])
    for side in ("top", "right"):
        ax.spines[side].set_visible(True)


def per_mouse(name: str, values: Mapping[str, Any], mice: Sequence[str], columns: int | None) -> dict[str, Array]:
    """The arrays of `mice`, checked: (N,) where `columns` is None, (N, at least `columns`) otherwise.

    Raises:
        DataError: a mouse has none, or one of another shape.
    """
    checked = {}
    for mouse in mice:
        if mouse not in values:
            raise DataError(f"mouse {mouse} has no {name}: give them for {', '.join(mice)}")
        array = np.asarray(values[mouse], dtype=np.float64)
        wanted = "(neurons,)" if columns is None else f"(neurons, {columns})"
        if array.ndim != (1 if columns is None else 2) or (columns is not None and array.shape[1] < columns):
            raise DataError(f"mouse {mouse}: {name} must be {wanted}, not {array.shape}")
        checked[mouse] = array
    return checked


def same_neurons(mouse: str, **arrays: Array) -> None:
    """Raises a DataError when arrays of one mouse are of different numbers of neurons."""
    counts = {name: len(array) for name, array in arrays.items()}
    if len(set(counts.values())) > 1:
        words = ", ".join(f"{n} of {name}" for name, n in counts.items())
        raise DataError(f"mouse {mouse}: one value per neuron was expected everywhere, not {words}")


def some_mice(values: Mapping[str, Any]) -> list[str]:
    """The mice of a mapping, in order; a DataError when there are none."""
    if not values:
        raise DataError("nothing to draw: no mouse was given")
    return list(values)


def pearson(a: Array, b: Array) -> float:
    """Correlation of the pairs that are both finite; NaN where it is not defined."""
    both = np.isfinite(a) & np.isfinite(b)
    if both.sum() < 2 or np.std(a[both]) == 0 or np.std(b[both]) == 0:
        return float("nan")
    return float(np.corrcoef(a[both], b[both])[0, 1])


def robust_range(values: Array) -> tuple[float, float]:
    """The lowest and highest of the finite values, but for a few far away from all others: at most one in 150.

    Far away is more than three times as far from the median as the farthest of the others. (0, 1) where nothing is
    finite.
    """
    known = np.sort(values[np.isfinite(values)], axis=None)
    if not known.size:
        return 0.0, 1.0
    few = max(1, known.size // 150)
    middle = float(known[known.size // 2])
    low, high = float(known[0]), float(known[-1])
    if known.size > 2 * few + 1:
        below, above = middle - float(known[few]), float(known[-1 - few]) - middle
        low = float(known[known >= middle - 3 * below][0]) if below else low
        high = float(known[known <= middle + 3 * above][-1]) if above else high
    return low, high


def limit_values(ax: Axes, x: Array, *series: Array) -> None:
    """Sets the axis of values to the `robust_range` of curves over `x`, and writes down the peaks that leave it."""
    low, high = robust_range(np.concatenate(series))
    margin = 0.06 * (high - low) or 0.5
    bottom, top = low - margin, high + margin
    ax.set_ylim(bottom, top)
    every = np.stack(series)
    for above in (True, False):
        peak = every[np.isfinite(every)].max(initial=top) if above else every[np.isfinite(every)].min(initial=bottom)
        if bottom <= peak <= top:
            continue
        at = int(np.argwhere(every == peak)[0, 1])
        late = at > 0.8 * len(x)
        ax.annotate(
            f"{'▲' if above else '▼'} {peak:.3g}", (x[at], top if above else bottom),
            xytext=(-4 if late else 4, -1 if above else 1), textcoords="offset points",
            va="top" if above else "bottom", ha="right" if late else "left", fontsize=7, color=INK,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 0.5},
        )  # fmt: skip
