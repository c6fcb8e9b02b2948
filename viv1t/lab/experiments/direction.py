"""Direction and orientation tuning at each neuron's best frequencies."""

from __future__ import annotations

from typing import Any

import numpy as np

from viv1t.lab.gratings import Responses
from viv1t.lab.tuning import fit_von_mises, peak_selectivity, preference, selectivity, shuffled_p

_FIT = ("mu", "kappa", "phi", "width", "r2")


def table(responses: Responses, *, shuffles: int = 1000, seed: int = 1234) -> dict[str, Any]:
    """Indices, preferences and fits of the curve over directions at the frequencies of the largest response.

    `p_orientation` and `p_direction` say whether direction matters over all frequencies and phases together: they
    shuffle those responses, as a model without noise has no others. Angles are in degrees; `preferred_direction` as in
    stimuli (0 left, 90 down), `motion_angle` mathematical (0 right, counterclockwise).
    """
    grid, means = responses.grid, responses.over_phases
    rows = np.arange(len(means))
    best = responses.best()
    curve = means[rows, :, best[:, 1], best[:, 2]]
    reasons = responses.reasons()
    curve_known = np.where(np.array([r == "" for r in reasons])[:, None], curve, np.nan)
    osi, dsi = selectivity(curve_known, grid.angles)
    peak_osi, peak_dsi = peak_selectivity(curve_known)
    direction, orientation = preference(curve_known, grid.angles)
    fits = [fit_von_mises(row, grid.angles) if not why else None for row, why in zip(curve, reasons, strict=True)]
    single = responses.mean.reshape(len(means), grid.directions, -1)
    p_orientation, p_direction = np.full((2, len(means)), np.nan)
    known = np.flatnonzero([not why for why in reasons])
    if single.shape[2] > 1 and shuffles and len(known):
        p_orientation[known], p_direction[known] = shuffled_p(single[known], grid.angles, shuffles=shuffles, seed=seed)
    columns: dict[str, Any] = {
        "gOSI": osi, "gDSI": dsi, "OSI": peak_osi, "DSI": peak_dsi,
        "preferred_direction": direction, "preferred_orientation": orientation,
        "motion_angle": (direction + 180) % 360,
    }  # fmt: skip
    for name in _FIT:
        columns[f"fit_{name}"] = np.array([np.nan if fit is None else getattr(fit, name) for fit in fits])
    columns["fit_mu"] = np.degrees(columns["fit_mu"])
    return columns | {
        "peak": means.reshape(len(means), -1).max(1), "spontaneous": responses.spontaneous,
        "spatial_frequency": np.asarray(grid.frequencies)[best[:, 1]],
        "temporal_frequency": np.asarray(grid.hertz)[best[:, 2]],
        "p_orientation": p_orientation, "p_direction": p_direction,
        "tuning_curve": list(curve), "reason": reasons,
    }  # fmt: skip
