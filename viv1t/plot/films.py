"""Most exciting films: a few frames of each, and what it drives beside what it must beat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from viv1t.errors import DataError
from viv1t.plot.style import EXPECTED, INK, PREDICTED, Array, drawing

FRAMES = 5


def films(
    shown: Sequence[Array],
    answers: Sequence[Mapping[str, float]],
    names: Sequence[str],
    out: str | Path,
    *,
    title: str = "Most exciting films",
    dpi: int = 120,
    format: str | None = None,
) -> Path:
    """Draws frames of films, spread over their length, and bars of responses.

    Args:
        shown: n films (T, H, W) of grey levels 0 to 255.
        answers: of each, responses by what was shown; the first is that to the film.
        names: n titles.
        out: the figure; its ending says the format unless `format` does.
        title: of the figure.
        dpi: resolution in dots per inch.
        format: pdf, svg or png.

    Returns:
        The figure's path.

    Raises:
        DataError: films that do not fit.
        ConfigError: an unusable format or resolution.
    """
    if not len(shown) == len(answers) == len(names) or any(np.ndim(film) != 3 for film in shown) or not shown:
        raise DataError(f"films must be (T, H, W), each with answers and a name, not {[np.shape(f) for f in shown]}")
    rows = len(shown)
    with drawing(out, (9.6, 0.5 + 1.0 * rows), dpi, format) as (figure, path):
        axes = figure.subplots(rows, FRAMES + 1, squeeze=False, width_ratios=[1.0] * FRAMES + [1.6])
        for row, (film, answer, name) in enumerate(zip(shown, answers, names, strict=True)):
            places = np.linspace(0, len(film) - 1, FRAMES).round().astype(int)
            for ax, place in zip(axes[row], places, strict=False):
                ax.imshow(film[place], cmap="gray", vmin=0, vmax=255, interpolation="nearest")
                ax.set(xticks=[], yticks=[])
                if row == 0:
                    ax.set_title(f"frame {place}", fontsize=7)
            axes[row, 0].set_ylabel(name, fontsize=7)
            bars = axes[row, -1]
            values = [answer[kind] for kind in answer]
            colors = [PREDICTED, *[EXPECTED] * (len(values) - 1)]
            bars.barh(range(len(values)), np.nan_to_num(values), color=colors)
            bars.set_yticks(range(len(values)), list(answer), fontsize=6, color=INK)
            bars.invert_yaxis()
            bars.tick_params(axis="x", labelsize=6)
        axes[-1, -1].set_xlabel("response, recorded units", fontsize=7)
        figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    return path
