"""Artificial receptive fields from dots, of all neurons at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from viv1t.errors import ConfigError
from viv1t.lab.fields import dot_maps, fit_gaussian, on_off_balance, spread_index
from viv1t.lab.present import Shown
from viv1t.lab.protocols import DOTS
from viv1t.stimuli.geometry import Monitor
from viv1t.stimuli.parametric import dot, dot_centers, grey

_CHUNK = 256  # neurons whose maps are held at a time
_COLUMNS = ("x", "y", "sigma_x", "sigma_y", "theta", "amplitude", "offset", "r2", "peak", "residual")


def dots(frame_size: tuple[int, int], step: int, seed: int = 1234) -> Shown:
    """Dots of both polarities every `step` pixels, 6 frames each and 6 of grey.

    Raises:
        ConfigError: the step leaves fewer than three places on an axis.
    """
    if not 1 <= step <= (min(frame_size) - 1) // 2:
        raise ConfigError(f"--step must be from 1 to {(min(frame_size) - 1) // 2} pixels, not {step}")
    places = dot_centers(step, frame_size)
    rest = grey(DOTS.pattern - 6, frame_size)
    films, on = [], []
    for polarity in (True, False):
        for x, y in places:
            films.append(np.concatenate([dot((x, y), on=polarity, frame_size=frame_size), rest]))
            on.append(polarity)
    centers = np.concatenate([places, places])
    return Shown(
        DOTS, films, {"x": centers[:, 0], "y": centers[:, 1], "on": np.array(on)}, np.ones((DOTS.pattern, 1)), seed
    )


def plans(frame_size: tuple[int, int], *, step: int | None = None, seed: int = 1234) -> list[Callable[[], Shown]]:
    """Every 2 pixels, or every 4; `step` alone where it is given."""
    return [lambda s=s: dots(frame_size, s, seed) for s in ((2, 4) if step is None else (step,))]  # type: ignore[misc]


def maps(shown: Shown, responses: np.ndarray, frame_size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """On, off and field maps of some neurons, (n, H, W) each."""
    p = shown.parameters
    return dot_maps(responses[..., 0].astype(np.float64), np.stack([p["x"], p["y"]], axis=1), p["on"], frame_size)


def table(
    shown: Shown, responses: np.ndarray, neurons: np.ndarray, frame_size: tuple[int, int], monitor: Monitor
) -> dict[str, Any]:
    """Fitted fields; x, y, sigmas in pixels, `x_deg`, `y_deg` degrees right and up from the screen's middle.

    Args:
        shown: as `dots` gives it.
        responses: (N, P, 1).
        neurons: which of the N.
        frame_size: (H, W).
        monitor: turns pixels into degrees.
    """
    columns: dict[str, Any] = {name: np.full(len(neurons), np.nan) for name in (*_COLUMNS, "ssi", "on_off")}
    good, reasons = np.zeros(len(neurons), bool), [""] * len(neurons)
    for first in range(0, len(neurons), _CHUNK):
        part = slice(first, first + _CHUNK)
        summed = responses[neurons[part]]
        finite = np.isfinite(summed).all(axis=(1, 2))
        on, off, field = maps(shown, np.where(finite[:, None, None], summed, 0), frame_size)
        columns["ssi"][part], columns["on_off"][part] = spread_index(field), on_off_balance(on, off)
        for n, one in enumerate(field, first):
            if (fit := fit_gaussian(one)) is None:
                reasons[n] = "does not respond to dots" if finite[n - first] else "response is not finite"
                continue
            for name in _COLUMNS:
                columns[name][n] = getattr(fit, name)
            good[n], reasons[n] = fit.good(), fit.reason()
    # The readout may look away from where the screen lies: degrees are of the screen, from its middle.
    degrees = monitor.degrees(columns["x"], columns["y"], frame_size)
    columns |= {"x_deg": degrees[:, 0], "y_deg": degrees[:, 1], "good": good, "reason": reasons}
    return columns
