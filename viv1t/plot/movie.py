"""What the neurons would do while a movie is shown."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from viv1t.errors import DataError
from viv1t.plot.style import Array, drawing, limit_values, mouse_colors, robust_range, short_name, some_mice
from viv1t.types import FRAME_RATE

BINS = 600  # columns of the rasters, at most
NEURONS = 80  # rows of the rasters, at most
STILLS = 8  # frames of the film strip


class MovieSummary:
    """Gathers, while a movie is predicted, what `movie_responses` draws; memory does not grow with the movie.

    Args:
        frames: T, of the movie.
        neurons: N, per mouse.
    """

    def __init__(self, frames: int, neurons: Mapping[str, int]) -> None:
        self.frames = frames
        self.width = -(-frames // BINS)  # frames of a bin
        bins = -(-frames // self.width)
        self.means = {mouse: np.full(bins, np.nan) for mouse in neurons}
        self.still_at = np.unique(np.linspace(0, frames - 1, min(STILLS, frames)).round().astype(int))
        self.stills: list[Array] = []
        self._sums = {mouse: np.zeros((count, bins), np.float32) for mouse, count in neurons.items()}
        self._counts = {mouse: np.zeros(bins) for mouse in neurons}
        self._seen = dict.fromkeys(neurons, 0)
        self._shown = 0

    def add_stimulus(self, frames: Array) -> None:
        """Takes the next frames of the movie, (n, H, W)."""
        for index in self.still_at:
            if self._shown <= index < self._shown + len(frames):
                self.stills.append(np.array(frames[index - self._shown]))
        self._shown += len(frames)

    def add_response(self, mouse: str, responses: Array) -> None:
        """Takes the next responses of a mouse, (N, n); frames with NaN are not counted."""
        first = self._seen[mouse]
        for column, index in enumerate(range(first, first + responses.shape[1])):
            if np.isfinite(responses[0, column]):
                self._sums[mouse][:, index // self.width] += responses[:, column]
                self._counts[mouse][index // self.width] += 1
        self._seen[mouse] = first + responses.shape[1]

    def rates(self, mouse: str) -> Array:
        """(N, bins) mean response in each bin; NaN where nothing is predicted."""
        with np.errstate(invalid="ignore"):
            counts = self._counts[mouse]
            return np.where(counts > 0, self._sums[mouse] / np.maximum(counts, 1), np.nan)


def movie_responses(
    summary: MovieSummary, out: str | Path, *, title: str = "", dpi: int = 120, format: str | None = None
) -> Path:
    """Draws stills of a movie, each mouse's mean response over time, and its neurons that vary most.

    Args:
        summary: of the whole movie.
        out: the figure; its ending says the format unless `format` does.
        title: of the figure, such as the movie's name.
        dpi: resolution in dots per inch.
        format: pdf, svg or png.

    Returns:
        The figure's path.

    Raises:
        DataError: there is no mouse, or nothing was predicted.
        ConfigError: an unusable format or resolution.
    """
    mice = some_mice(summary.means)
    rates = {mouse: summary.rates(mouse) for mouse in mice}
    if not all(np.isfinite(r).any() for r in rates.values()):
        raise DataError("nothing to draw: no frame of the movie was predicted")
    colors = mouse_colors(mice)
    seconds = summary.frames / FRAME_RATE
    time = (np.arange(next(iter(rates.values())).shape[1]) + 0.5) * summary.width / FRAME_RATE
    with drawing(out, (9, 2.9 + 1.7 * len(mice)), dpi, format) as (figure, path):
        parts: Any = figure.subfigures(2, 1, height_ratios=[1.0, 1.9 + 1.7 * len(mice)])
        for ax, still, index in zip(
            parts[0].subplots(1, len(summary.stills), squeeze=False)[0], summary.stills, summary.still_at, strict=True
        ):
            ax.imshow(still, cmap="gray", vmin=0, vmax=255)
            ax.set_xticks([])
            ax.set_yticks([])
            ax.set_title(f"{index / FRAME_RATE:.1f} s", fontsize=8, pad=2)
        if title:
            parts[0].suptitle(title, x=0.01, ha="left", fontsize=10)
        panels = parts[1].subplots(1 + len(mice), 1, sharex=True, height_ratios=[1.3, *[1.7] * len(mice)])
        for mouse in mice:
            mean = rates[mouse].mean(0)
            panels[0].plot(time, mean, color=colors[mouse], label=f"mouse {short_name(mouse)}")
        limit_values(panels[0], time, *(rates[mouse].mean(0) for mouse in mice))
        panels[0].set_ylabel("mean response")
        panels[0].margins(x=0)
        parts[1].legend(loc="outside upper right", ncols=min(5, len(mice)))
        for ax, mouse in zip(panels[1:], mice, strict=True):
            shown = raster(rates[mouse])
            image = ax.imshow(
                shown, aspect="auto", cmap="magma", extent=(0, seconds, len(shown), 0), interpolation="nearest",
                vmin=0, vmax=1,
            )  # fmt: skip
            ax.set_ylabel(f"{short_name(mouse)}\n{len(shown)} of {len(rates[mouse])} neurons", fontsize=8)
            ax.set_yticks([])
        panels[-1].set_xlim(0, seconds)
        panels[-1].set_xlabel("time (s)")
        bar = parts[1].colorbar(image, ax=panels[1:].tolist(), pad=0.01, fraction=0.05, ticks=[0, 1])
        bar.ax.set_yticklabels(["lowest", "highest"])
        bar.set_label("response of each neuron", labelpad=-18)
        bar.outline.set_visible(False)
    return path


def raster(rates: Array) -> Array:
    """The neurons that vary most, (at most 80, bins), in the order of their highest response.

    Each is scaled so that 0 to 1 is its `robust_range`: one bin far away from all others does not darken the rest.
    """
    known = np.isfinite(rates[0])
    limits = np.array([robust_range(row[known]) for row in rates])
    low, high = limits[:, :1], limits[:, 1:]
    varied = rates[:, known].clip(low, high).std(1)
    chosen = np.sort(np.argsort(-varied, kind="stable")[:NEURONS])
    span = np.where(high > low, high - low, 1)
    scaled = ((rates - low) / span)[chosen]
    return scaled[np.argsort(np.nanargmax(scaled, axis=1), kind="stable")]
