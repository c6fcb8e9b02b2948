"""Size tuning: gratings in, and around, circles at the receptive field."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from viv1t.lab.centered import Groups
from viv1t.lab.context import averaged, fit_sizes, size_tuning
from viv1t.lab.gratings import wave
from viv1t.lab.present import Films, Shown
from viv1t.lab.protocols import BLOCKS, PUBLISHED_SIZES, published_size_order, size_pattern
from viv1t.stimuli.geometry import Monitor
from viv1t.stimuli.parametric import masked

SIZES = np.array(PUBLISHED_SIZES, dtype=float)
PLANS = ((2, 4), (4, 2), (8, 2))  # pixels between centres, and phases
_TUNED, _R2 = (
    1.2,
    0.8,
)  # how far the largest response exceeds those to nothing and to the largest size, and the fit's R^2


def plans(
    frame_size: tuple[int, int],
    grouped: Callable[[int], Groups],
    monitor: Monitor,
    *,
    centre_grid: int | None,
    published: bool,
    seed: int,
) -> list[Callable[[], Shown]]:
    """Finer and coarser centres; one alone where `centre_grid` is given.

    Args:
        frame_size: (H, W).
        grouped: gives the groups of a grid of centres.
        monitor: turns degrees into pixels.
        centre_grid: pixels.
        published: the published protocol at every centre: two directions, 0.04 cycles a degree at 2 Hz, random phases.
        seed: of the order.
    """
    if published:
        return [lambda: _published(frame_size, grouped(centre_grid or 1), monitor, seed)]
    wanted = PLANS if centre_grid is None else tuple((centre_grid, p) for p in (4, 2))
    return [partial(_shown, frame_size, grouped, monitor, grid, phases, seed) for grid, phases in wanted]


def _weights() -> np.ndarray:
    """The mean of the pattern's last half: the first 0.5 s are left out."""
    weights = np.zeros((BLOCKS.pattern, 1))
    weights[-15:] = 1 / 15
    return weights


def _shown(
    frame_size: tuple[int, int], grouped: Callable[[int], Groups], monitor: Monitor, grid: int, phases: int, seed: int
) -> Shown:
    made = grouped(grid)
    axes = np.meshgrid(range(len(made.shown)), SIZES, (0, 1), range(phases), indexing="ij")
    group, sizes, inverse, phase = (axis.reshape(-1) for axis in axes)
    rows = np.column_stack([made.shown[group.astype(int)], sizes, inverse, 360 * phase / phases])

    def film(row: np.ndarray) -> np.ndarray:
        x, y, direction, frequency, hertz, size, around, turn = row
        full = wave(direction, frequency, hertz, turn, frame_size)
        return masked(full, size, (x, y), inverse=bool(around), monitor=monitor)

    about = repr(("size", frame_size, monitor))
    return Shown(BLOCKS, Films(film, rows, about), {}, _weights(), seed, about=made)


def _published(frame_size: tuple[int, int], made: Groups, monitor: Monitor, seed: int) -> Shown:
    """Every centre in turn, in the published order of patterns and trials."""
    parameters, phases = published_size_order(seed)
    flat = np.column_stack([parameters.reshape(-1, 3), phases.reshape(-1)])
    centres = np.unique(made.shown[:, :2], axis=0)
    rows = np.concatenate([np.column_stack([np.tile(c, (len(flat), 1)), flat]) for c in centres])

    def film(row: np.ndarray) -> np.ndarray:
        x, y, size, direction, inverse, phase = row
        return size_pattern(
            size, direction, bool(inverse), phase, center=(x, y), monitor=monitor, frame_size=frame_size
        )

    about = repr(("published size", frame_size, monitor))
    return Shown(BLOCKS, Films(film, rows, about), {"centres": centres}, _weights(), None, about=made)


def table(shown: Shown, responses: np.ndarray, neurons: np.ndarray, seed: int) -> dict[str, Any]:
    """Preferred sizes in degrees, suppression, and fits.

    `tuned` is a response 1.2 times those to nothing and to the largest size, and a fit that holds 0.8 of the variance;
    `published_tuned` and `published_inverse_tuned` are rules on z-scores over the sizes.
    """
    made: Groups = shown.about
    curves = np.full((len(neurons), len(SIZES), 2), np.nan)
    for row, (n, group) in enumerate(zip(neurons, made.member.tolist(), strict=True)):
        if group < 0:
            continue
        if "centres" in shown.parameters:
            parameters, _ = published_size_order(seed)
            each = len(parameters) * parameters.shape[1]
            centre = int((shown.parameters["centres"] == made.shown[group, :2]).all(1).argmax())
            own = responses[n, centre * each : (centre + 1) * each, 0].reshape(1, *parameters.shape[:2])
            curves[row] = averaged(own.astype(np.float64), parameters, (0, 2))[0][0]
        else:
            by = responses[n, :, 0].reshape(len(made.shown), len(SIZES), 2, -1)
            curves[row] = by[group].mean(-1, dtype=np.float64)
    reasons, known = list(made.reasons), made.member >= 0
    tuning = size_tuning(np.where(known[:, None, None], curves, 0), SIZES)
    fits = [fit_sizes(c[:, 0], SIZES) if well else None for c, well in zip(curves, known, strict=True)]
    base, top, last = curves[:, 0, 0], curves[:, :, 0].max(1), curves[:, -1, 0]
    r2 = np.array([np.nan if fit is None else fit.r2 for fit in fits])
    for row in np.flatnonzero(known).tolist():
        if fits[row] is None:
            reasons[row] = "does not respond to gratings at its field"
    shape = {name: np.where(known, made.shown[made.member, i], np.nan) for i, name in enumerate(
        ("shown_x", "shown_y", "direction", "spatial_frequency", "temporal_frequency")
    )}  # fmt: skip
    return {
        "preferred": np.where(known, tuning.preferred, np.nan),
        "preferred_inverse": np.where(known, tuning.preferred_inverse, np.nan),
        "si": np.where(known, tuning.suppression, np.nan),
        "dog_center": np.array([np.nan if fit is None else fit.center for fit in fits]),
        "dog_surround": np.array([np.nan if fit is None else fit.surround for fit in fits]),
        "fit_r2": r2, "tuned": known & (top >= _TUNED * np.maximum(base, last)) & (r2 >= _R2),
        "published_tuned": known & tuning.published_tuned,
        "published_inverse_tuned": known & tuning.published_inverse_tuned,
        **shape, "curve": list(curves[:, :, 0]), "curve_inverse": list(curves[:, :, 1]), "reason": reasons,
    }  # fmt: skip
