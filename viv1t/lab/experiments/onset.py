"""Onsets: how long after a grating, or a hole in one, a response starts. For causal cores."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from viv1t.lab.centered import Groups
from viv1t.lab.context import onsets
from viv1t.lab.gratings import wave
from viv1t.lab.present import Films, Shown
from viv1t.lab.protocols import ONSET, Layout
from viv1t.stimuli.geometry import Monitor
from viv1t.stimuli.parametric import blocks, masked

_SIZE = 20.0  # degrees
# The grey around a pattern is part of it: the z-score is over all of its frames.
LAYOUT = Layout(lead=ONSET.lead, before=0, pattern=ONSET.block, after=0, count=ONSET.count)


def plans(
    frame_size: tuple[int, int],
    grouped: Callable[[int], Groups],
    monitor: Monitor,
    *,
    centre_grid: int | None,
    seed: int,
) -> list[Callable[[], Shown]]:
    """Finer and coarser centres; one alone where `centre_grid` is given. Arguments as of `size.plans`."""
    wanted = ((2, 8), (4, 4), (8, 4)) if centre_grid is None else ((centre_grid, 8), (centre_grid, 4))
    return [partial(_shown, frame_size, grouped, monitor, grid, phases, seed) for grid, phases in wanted]


def _shown(
    frame_size: tuple[int, int], grouped: Callable[[int], Groups], monitor: Monitor, grid: int, phases: int, seed: int
) -> Shown:
    made = grouped(grid)
    axes = np.meshgrid(range(len(made.shown)), (0, 1), range(phases), indexing="ij")
    group, inverse, phase = (axis.reshape(-1) for axis in axes)
    rows = np.column_stack([made.shown[group.astype(int)], inverse, 360 * phase / phases])

    def film(row: np.ndarray) -> np.ndarray:
        x, y, direction, frequency, hertz, around, turn = row
        full = wave(direction, frequency, hertz, turn, frame_size)[: ONSET.pattern]
        shown = masked(full, _SIZE, (x, y), inverse=bool(around), monitor=monitor)
        return blocks([shown], lead=0, before=ONSET.before, after=ONSET.after)

    about = repr(("onset", frame_size, monitor))
    return Shown(LAYOUT, Films(film, rows, about), {}, None, seed, about=made)


def table(shown: Shown, responses: np.ndarray, neurons: np.ndarray) -> dict[str, Any]:
    """`onset`, `onset_inverse`: seconds after the pattern starts; `delay`: the inverse less the classical one."""
    made: Groups = shown.about
    curves = np.full((len(neurons), 2, LAYOUT.pattern), np.nan)
    for row, (n, group) in enumerate(zip(neurons, made.member, strict=True)):
        if group >= 0:
            curves[row] = responses[n].reshape(len(made.shown), 2, -1, LAYOUT.pattern)[group].mean(1, dtype=np.float64)
    classical, inverse = onsets(curves[:, 0, :, None], curves[:, 1, :, None])
    reasons = [
        why or ("" if np.isfinite(first) else "its response does not reach one standard deviation")
        for why, first in zip(made.reasons, classical, strict=True)
    ]
    return {
        "onset": classical, "onset_inverse": inverse, "delay": inverse - classical,
        "curve": list(curves[:, 0]), "curve_inverse": list(curves[:, 1]), "reason": reasons,
    }  # fmt: skip
