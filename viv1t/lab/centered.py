"""Patterns at receptive fields: neurons that look at the same place at the same grating share them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from viv1t.errors import ConfigError
from viv1t.lab.gratings import Responses

_STEP = 45.0  # degrees between the directions that neurons share


class NowhereToShow(ConfigError):
    """No neuron of a mouse has a place and a grating at which patterns could be shown.

    Attributes:
        reasons: why, of each neuron.
    """

    def __init__(self, reasons: list[str]) -> None:
        super().__init__(
            "no neuron has both a good receptive field and a response to gratings: there is nowhere to show a pattern; "
            "see the column reason"
        )
        self.reasons = reasons


@dataclass(frozen=True)
class Groups:
    """Who is shown what.

    Attributes:
        shown: (G, 5) of each group: x, y of the centre in pixels, direction in degrees, cycles a pixel, Hz.
        member: (n,) group of each neuron; -1 where it has none.
        reasons: n; why a neuron has none, empty where it has one.
    """

    shown: np.ndarray
    member: np.ndarray
    reasons: list[str]


def groups(fields: pd.DataFrame, responses: Responses, neurons: np.ndarray, *, centre_grid: int, own: bool) -> Groups:
    """Neurons by the centre of their field and their grating.

    Args:
        fields: the table of `rf`, a row for each of `neurons`.
        responses: to the grid of gratings, all neurons of the mouse.
        neurons: which of them.
        centre_grid: pixels to whose multiples centres are rounded.
        own: each neuron is shown its own best grating. If not, the frequencies are the medians of the mouse, and the
            direction the nearest of four 45 degrees apart to its preferred orientation.

    Raises:
        ConfigError: the step is not positive.
        NowhereToShow: no neuron has a good field and is driven by gratings.
    """
    if centre_grid < 1:
        raise ConfigError(f"--centre_grid must be at least 1 pixel, not {centre_grid}")
    grid, every = responses.grid, responses.reasons()
    reasons = [f"field: {why}" if why else every[n] for n, why in zip(neurons, fields["reason"], strict=True)]
    well = np.array([not why for why in reasons])
    if not well.any():
        raise NowhereToShow(reasons)
    best = responses.best()[neurons]
    x, y = (np.round(fields[axis].fillna(0).to_numpy() / centre_grid) * centre_grid for axis in "xy")
    d, f, g = (np.asarray(values)[best[:, i]] for i, values in enumerate((grid.angles, grid.frequencies, grid.hertz)))
    if not own:
        d = np.round(d % 180 / _STEP) * _STEP % 180
        f = np.full(len(f), _median(f[well]))
        g = np.full(len(g), _median(g[well]))
    keys = np.stack([x, y, d, f, g], axis=1)
    shown, member = np.unique(keys[well], axis=0, return_inverse=True)
    of = np.full(len(neurons), -1)
    of[well] = member.reshape(-1)
    return Groups(shown, of, reasons)


def _median(values: np.ndarray) -> float:
    """The middle value that is there."""
    return float(np.sort(values)[len(values) // 2])
