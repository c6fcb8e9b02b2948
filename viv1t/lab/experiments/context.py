"""Contextual modulation: a grating at the receptive field, and what lies around it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from viv1t.lab.centered import Groups
from viv1t.lab.context import modulation
from viv1t.lab.gratings import wave
from viv1t.lab.present import Films, Shown
from viv1t.lab.protocols import BLOCKS, PUBLISHED_CONTEXT_SIZES, PUBLISHED_CONTRASTS
from viv1t.stimuli.geometry import Monitor
from viv1t.stimuli.parametric import CONTEXTS, in_context

SIZES = np.array(PUBLISHED_CONTEXT_SIZES, dtype=float)
PLANS = ((2, 4), (4, 2), (8, 2))  # pixels between centres, and phases
_AT = 20.0  # degrees at which the published index is taken
_BLANKS = 4


def plans(
    frame_size: tuple[int, int],
    grouped: Callable[[int], Groups],
    monitor: Monitor,
    *,
    centre_grid: int | None,
    seed: int,
) -> list[Callable[[], Shown]]:
    """Finer and coarser centres; one alone where `centre_grid` is given. Arguments as of `size.plans`."""
    wanted = PLANS if centre_grid is None else tuple((centre_grid, p) for p in (4, 2))
    return [partial(_shown, frame_size, grouped, monitor, grid, phases, seed) for grid, phases in wanted]


def _shown(
    frame_size: tuple[int, int], grouped: Callable[[int], Groups], monitor: Monitor, grid: int, phases: int, seed: int
) -> Shown:
    made = grouped(grid)
    axes = np.meshgrid(
        range(len(made.shown)), PUBLISHED_CONTRASTS, SIZES, range(len(CONTEXTS)), range(phases), indexing="ij"
    )
    group, contrast, sizes, context, phase = (axis.reshape(-1) for axis in axes)
    rows = np.column_stack([made.shown[group.astype(int)], contrast, sizes, context, phase])
    blanks = np.zeros((_BLANKS, rows.shape[1]))
    blanks[:, 3:5] = 0.1, 1.0

    def film(row: np.ndarray) -> np.ndarray:
        x, y, direction, frequency, hertz, level, size, kind, turn = row
        own = wave(direction, frequency, hertz, 360 * turn / phases, frame_size, level)
        # The surround is turned to one side in half of the phases, and to the other in the rest.
        side = 90 if int(turn) % 2 == 0 else -90
        cross = wave(direction + side, frequency, hertz, 360 * turn / phases, frame_size, level)
        return in_context(own, size, (x, y), context=CONTEXTS[int(kind)], cross=cross, monitor=monitor)

    about = repr(("context", frame_size, monitor, phases))
    films = Films(film, np.concatenate([rows, blanks]), about)
    return Shown(BLOCKS, films, {}, np.full((BLOCKS.pattern, 1), 1 / BLOCKS.pattern), seed, about=made)


def table(shown: Shown, responses: np.ndarray, neurons: np.ndarray) -> dict[str, Any]:
    """Indices of modulation at 20 degrees, and at each neuron's preferred size among those shown.

    Where the centre is smaller than the field, the surround lies in the field: `cmi` of such a neuron is negative
    without any context. `cmi_preferred` is over responses less the spontaneous one, clipped at 0.
    """
    made: Groups = shown.about
    count, kinds = len(neurons), len(CONTEXTS)
    curves = np.full((count, 2, len(SIZES), kinds), np.nan)
    blank = responses[neurons, -_BLANKS:, 0].mean(1, dtype=np.float64)
    for row, (n, group) in enumerate(zip(neurons, made.member, strict=True)):
        if group >= 0:
            by = responses[n, :-_BLANKS, 0].reshape(len(made.shown), 2, len(SIZES), kinds, -1)
            curves[row] = by[group].mean(-1, dtype=np.float64)
    high, low = curves[:, 1], curves[:, 0]
    at, rows = int(np.abs(SIZES - _AT).argmin()), np.arange(count)
    center, iso, cross, shift = np.moveaxis(high, -1, 0)
    known = made.member >= 0
    preferred = np.where(known[:, None], center, 0).argmax(1)
    above = np.maximum(high - blank[:, None, None], 0)[rows, preferred]
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "cmi": modulation(cross[:, at], iso[:, at]), "cmi_low_contrast": modulation(low[:, at, 2], low[:, at, 1]),
            "iso_center": iso[:, at] / center[:, at], "cross_center": cross[:, at] / center[:, at],
            "shift_center": shift[:, at] / center[:, at],
            "preferred": np.where(known, SIZES[preferred], np.nan),
            "cmi_preferred": np.where(known, modulation(above[:, 2], above[:, 1]), np.nan),
            "spontaneous": blank,
            **{f"curve_{name}": list(high[:, :, k]) for k, name in enumerate(CONTEXTS)},
            "reason": list(made.reasons),
        }  # fmt: skip
