"""Where a core looks: attention rollout over a movie."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from viv1t.errors import DataError
from viv1t.plot.style import GRID, INK, MUTED, PREDICTED, Array, drawing
from viv1t.types import FRAME_RATE


def attention_film_strip(
    video: Array,
    spatial: Array,
    temporal: Array,
    out: str | Path,
    *,
    frames: Array,
    shown: Sequence[int] | None = None,
    frame_rate: float = FRAME_RATE,
    title: str = "",
    dpi: int = 120,
    format: str | None = None,
) -> Path:
    """Draws frames of a movie, the same frames under the spatial rollout, and the temporal rollout over the trial.

    Args:
        video: (T, H, W) movie, any unit.
        spatial: (t, H, W) attention received by each pixel at each predicted frame, 1 where attention is uniform;
            NaN is left bare.
        temporal: (t, t) attention that the predicted frame of a row pays to that of a column; rows sum to 1.
        out: the figure; its ending says the format unless `format` does.
        frames: (t,) index in `video` of each predicted frame.
        shown: which of the t predicted frames to draw; eight, evenly spread, when None.
        frame_rate: Hz.
        title: of the figure, such as mouse and trial.
        dpi: resolution in dots per inch.
        format: pdf, svg or png.

    Returns:
        The figure's path.

    Raises:
        DataError: arrays that do not fit.
        ConfigError: an unusable format or resolution.
    """
    video, spatial, temporal, frames = (np.asarray(a) for a in (video, spatial, temporal, frames))
    count = len(spatial)
    if video.ndim != 3 or spatial.shape[1:] != video.shape[1:]:
        raise DataError(f"the movie {video.shape} and the attention {spatial.shape} must be (frames, H, W) of one size")
    if temporal.shape != (count, count) or frames.shape != (count,):
        raise DataError(f"{count} frames have attention, but temporal is {temporal.shape} and frames {frames.shape}")
    if count and (frames.min() < 0 or frames.max() >= len(video)):
        raise DataError(f"predicted frames {frames.min()} to {frames.max()} leave the movie of {len(video)} frames")
    chosen = np.unique(np.linspace(0, count - 1, 8).round().astype(int)) if shown is None else np.asarray(shown)
    if not len(chosen) or chosen.min() < 0 or chosen.max() >= count:
        raise DataError(f"frames to draw must be some of 0 to {count - 1}, not {chosen.tolist()}")
    time = frames / frame_rate
    high = max(float(np.nanpercentile(spatial[chosen], 99.5)), 1.05)
    low = min(float(np.nanpercentile(spatial[chosen], 0.5)), 0.95)
    ratio = video.shape[1] / video.shape[2]
    width = 1.45 * len(chosen)
    with drawing(out, (width + 0.9, 2 * 1.45 * ratio + 2.3), dpi, format) as (figure, path):
        parts: Any = figure.subfigures(2, 1, height_ratios=(2 * 1.45 * ratio + 0.5, 1.8))
        top, bottom = parts
        strip = top.subplots(2, len(chosen), squeeze=False)
        for column, token in enumerate(chosen):
            frame = video[frames[token]]
            for row in range(2):
                ax = strip[row, column]
                ax.imshow(frame, cmap="gray", vmin=float(video.min()), vmax=float(video.max()))
                ax.set(xticks=[], yticks=[])
                ax.spines[:].set_visible(False)
            image = strip[1, column].imshow(spatial[token], cmap="inferno", vmin=low, vmax=high, alpha=0.62)
            strip[0, column].set_title(f"{time[token]:.2f} s", loc="center", pad=3)
        strip[0, 0].set_ylabel("movie")
        strip[1, 0].set_ylabel("attention")
        bar = top.colorbar(image, ax=strip.ravel().tolist(), shrink=0.9, pad=0.01, extend="both")
        bar.set_label("spatial attention\n(1 = uniform)")
        bar.outline.set_visible(False)
        bar.solids.set(alpha=1)
        ax, lags = bottom.subplots(1, 2, width_ratios=(2.2, 1))
        ax.axhline(1, color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)))
        ax.plot(time, temporal.mean(axis=0) * count, color=INK)
        for moment in time[chosen]:
            ax.axvline(moment, color=PREDICTED, linewidth=0.8, alpha=0.5)
        ax.set(title="Temporal attention received by each frame", xlabel="time (s)", ylabel="times uniform")
        ax.margins(x=0.01)
        lag, share = lag_profile(temporal)
        lags.axvline(0, color=MUTED, linewidth=0.8)
        lags.plot(lag * float(np.diff(time).mean() if count > 1 else 1 / frame_rate), share, color=INK)
        lags.set(title="by lag; its own frame left out", xlabel="attended frame, from the predicted (s)")
        for panel in (ax, lags):
            panel.grid(axis="y", color=GRID)
        if title:
            figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    return path


def lag_profile(temporal: Array, longest: int = 45) -> tuple[Array, Array]:
    """Lags in predicted frames, at most `longest` either way, and the mean attention (1 is uniform) at each.

    NaN at lag 0, where the residual path alone outweighs every other lag.
    """
    count = len(temporal)
    reach = min(longest, count // 2)  # further lags are of few pairs
    lags = np.arange(-reach, reach + 1)
    share = np.array([np.diagonal(temporal, k).mean() * count for k in lags])
    share[lags == 0] = np.nan
    return lags, share
