"""Experiments that draw curves and maps: patterns are shown, and every neuron's answers are read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

import viv1t.lab.gratings as gratings
from viv1t.errors import ConfigError
from viv1t.lab.bench import Bench, Plans
from viv1t.lab.centered import Groups, groups
from viv1t.lab.experiments import context, contrast, direction, frequency, onset, rf, size
from viv1t.lab.gratings import Grid
from viv1t.lab.observers import Observer
from viv1t.lab.present import Shown, Theatre


class Curves(Bench):
    """Receptive fields, tuning, context and onsets."""

    def rf(self, *, step: int | None = None) -> pd.DataFrame:
        """Artificial receptive fields: maps from dots, a Gaussian fitted to each.

        Args:
            step: pixels between dots; default 2, or 4 where the budget asks for it.

        Returns:
            x, y, sigma_x, sigma_y (pixels), theta (degrees from right towards down), amplitude, offset, r2, peak,
            residual, ssi, on_off, x_deg, y_deg, good, reason.
        """

        def plans(theatre: Theatre) -> list[Callable[[], Shown]]:
            return rf.plans(theatre.observer.frame_size, step=step, seed=self.seed)

        def columns(observer: Observer, shown: Shown, responses: np.ndarray, neurons: np.ndarray) -> dict[str, Any]:
            return rf.table(shown, responses, neurons, observer.frame_size, self.monitor)

        return self._run("rf", {"step": step}, plans, columns)

    def direction(self, grid: Grid | None = None, *, shuffles: int = 1000) -> pd.DataFrame:
        """Direction and orientation tuning, at each neuron's best frequencies of the grid.

        Returns:
            See `viv1t.lab.experiments.direction.table`.
        """

        def columns(observer: Observer, shown: Shown, responses: np.ndarray, neurons: np.ndarray) -> dict[str, Any]:
            return direction.table(shown.about.read(responses[neurons]), shuffles=shuffles, seed=self.seed)

        return self._run("direction", {"grid": repr(grid), "shuffles": shuffles}, self._grid_plans(grid), columns)

    def frequency(self, grid: Grid | None = None) -> pd.DataFrame:
        """Spatial and temporal frequency, and F1/F0.

        Returns:
            See `viv1t.lab.experiments.frequency.table`.
        """

        def columns(observer: Observer, shown: Shown, responses: np.ndarray, neurons: np.ndarray) -> dict[str, Any]:
            degrees = self.monitor.degrees_per_pixel(observer.frame_size[1])
            return frequency.table(shown.about.read(responses[neurons]), degrees)

        return self._run("frequency", {"grid": repr(grid)}, self._grid_plans(grid), columns)

    def contrast(self, grid: Grid | None = None) -> pd.DataFrame:
        """Responses over contrast, at a grating that drives the neuron nearly best.

        Returns:
            See `viv1t.lab.experiments.contrast.table`.
        """

        def plans(theatre: Theatre) -> list[Callable[[], Shown]]:
            neurons = self._neurons[theatre.observer.mouse.id]
            return contrast.plans(theatre.observer.frame_size, self._grid(theatre, grid), neurons, self.seed)

        def columns(observer: Observer, shown: Shown, responses: np.ndarray, neurons: np.ndarray) -> dict[str, Any]:
            return contrast.table(shown, responses, self._grid(self._theatres[observer.mouse.id], grid), neurons)

        return self._run("contrast", {"grid": repr(grid)}, plans, columns)

    def size(self, *, centre_grid: int | None = None, own: bool | None = None, published: bool = False) -> pd.DataFrame:
        """Size tuning, of circles and of holes at each neuron's field.

        Args:
            centre_grid: pixels to whose multiples centres are rounded, which neurons then share; default 2, or more
                where the budget asks for it.
            own: whether each neuron is shown its own best grating, in place of the nearest of four directions at the
                mouse's median frequencies; default where `neurons` were chosen.
            published: directions 90 and 270, 0.04 cycles a degree, 2 Hz, 12 repeats with random phases.

        Returns:
            See `viv1t.lab.experiments.size.table`.
        """

        def plans(theatre: Theatre) -> list[Callable[[], Shown]]:
            return size.plans(
                theatre.observer.frame_size, self._grouped(theatre, own), self.monitor, centre_grid=centre_grid,
                published=published, seed=self.seed,
            )  # fmt: skip

        def columns(observer: Observer, shown: Shown, responses: np.ndarray, neurons: np.ndarray) -> dict[str, Any]:
            return size.table(shown, responses, neurons, self.seed)

        options = {"centre_grid": centre_grid, "own": own, "published": published}
        return self._run("size", options, plans, columns)

    def context(self, *, centre_grid: int | None = None, own: bool | None = None) -> pd.DataFrame:
        """Contextual modulation by a surround that goes on, is turned, or is shifted. Arguments as of `size`.

        Returns:
            See `viv1t.lab.experiments.context.table`.
        """

        def plans(theatre: Theatre) -> list[Callable[[], Shown]]:
            return context.plans(
                theatre.observer.frame_size, self._grouped(theatre, own), self.monitor, centre_grid=centre_grid,
                seed=self.seed,
            )  # fmt: skip

        def columns(observer: Observer, shown: Shown, responses: np.ndarray, neurons: np.ndarray) -> dict[str, Any]:
            return context.table(shown, responses, neurons)

        return self._run("context", {"centre_grid": centre_grid, "own": own}, plans, columns)

    def onset(self, *, centre_grid: int | None = None, own: bool | None = None) -> pd.DataFrame:
        """Onsets of responses to a circle and to a hole. Arguments as of `size`.

        Returns:
            See `viv1t.lab.experiments.onset.table`.

        Raises:
            ConfigError: a model is not causal: what follows a pattern would change when its response starts.
        """

        def plans(theatre: Theatre) -> list[Callable[[], Shown]]:
            if not theatre.observer.causal:
                raise ConfigError(
                    f"mouse {theatre.observer.mouse.id}: onset needs a causal core, as those of 2025 are with "
                    "core_use_causal_attention: this one looks at later frames, too"
                )
            return onset.plans(
                theatre.observer.frame_size, self._grouped(theatre, own), self.monitor, centre_grid=centre_grid,
                seed=self.seed,
            )  # fmt: skip

        def columns(observer: Observer, shown: Shown, responses: np.ndarray, neurons: np.ndarray) -> dict[str, Any]:
            return onset.table(shown, responses, neurons)

        return self._run("onset", {"centre_grid": centre_grid, "own": own}, plans, columns)

    # -- what they share -----------------------------------------------------------------------------------------------

    def _grid_plans(self, grid: Grid | None) -> Plans:
        return lambda theatre: gratings.plans(theatre.observer.frame_size, grid or Grid(), self.seed, lean=grid is None)

    def _grid(self, theatre: Theatre, grid: Grid | None) -> gratings.Responses:
        """Responses to the gratings, shown if they were not."""
        key = theatre.observer.mouse.id, grid
        if key not in self._grids:
            shown = theatre.choose(self._grid_plans(grid)(theatre))
            self._grids[key] = shown.about.read(theatre.present(shown, "gratings"))
        return self._grids[key]

    def _grouped(self, theatre: Theatre, own: bool | None) -> Callable[[int], Groups]:
        """Gives the neurons' groups by centre and grating, for a grid of centres."""
        id = theatre.observer.mouse.id
        fields = self.rf()
        fields, responses = fields[fields["mouse"] == id], self._grid(theatre, None)
        alone = self._some if own is None else own
        return lambda step: groups(fields, responses, self._neurons[id], centre_grid=step, own=alone)
