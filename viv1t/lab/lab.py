"""The laboratory: experiments on the twins of mice, one method each."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pandas as pd
import scipy
import torch

import viv1t
import viv1t.lab.gratings as gratings
from viv1t.errors import ConfigError
from viv1t.lab.centered import Groups, NowhereToShow, groups
from viv1t.lab.experiments import context, contrast, direction, frequency, onset, rf, size
from viv1t.lab.gratings import Grid
from viv1t.lab.observers import Observer, Twin, digest_of
from viv1t.lab.pictures import draw
from viv1t.lab.present import OverBudget, Shown, Theatre
from viv1t.lab.protocols import BLOCKS, Layout
from viv1t.lab.tables import FORMATS, read_table, table_of, write_table
from viv1t.prediction.sources import opened_subjects
from viv1t.runs.ensemble import load_models
from viv1t.runs.folder import RunFolder
from viv1t.stimuli.geometry import SENSORIUM, Monitor
from viv1t.system.files import write_text
from viv1t.training.trainer import best_device

VERSION = 1  # of the tables: raised when the same responses would give others
# Those that serve all neurons at once, and those whose patterns lie at each neuron's field.
EXPERIMENTS = ("rf", "direction", "frequency", "contrast")
AT_FIELDS = ("size", "context")

Plans = Callable[[Theatre], list[Callable[[], Shown]]]
Columns = Callable[[Observer, Shown, np.ndarray, np.ndarray], dict[str, Any]]


class Lab:
    """Experiments on the twins of the mice of a run.

    Every experiment gives a table, a row a neuron, and writes it to `<out>/<session>/<experiment>.parquet` beside
    `<experiment>.json`, which says everything that is needed to repeat it. What was shown is kept: an interrupted
    experiment goes on where it was, and a finished one is read.

    Args:
        runs: a run folder, several as an ensemble (their mean prediction), or observers by mouse, such as
            `viv1t.lab.observers.TrueNeurons`.
        data: folder of recordings, for what is known of the mice; default what the run keeps.
        mice: ids; default all of the run.
        out: folder to write to; None writes nothing.
        device: of the models; default the best there is.
        statistics: files in the recordings' place, as for `viv1t-predict`.
        neurons: places of the neurons that tables hold, or `all`.
        format: `parquet` or `csv`.
        monitor: turns pixels into degrees.
        behavior: (2,) as recorded, the same over every film; default the training medians.
        pupil_center: likewise.
        budget: seconds that all experiments together may take; leaner protocols are chosen by it. None is no limit.
        batch_size: trials in a batch; default by memory.
        seed: of the order of patterns, and of shufflings.
        plots: whether pictures are drawn beside the tables.
        say: is told what is about to be done and how long it will take.
        progress: whether a line shows how far it is.

    Raises:
        viv1t.errors.Viv1tError: a run, its statistics or recordings are missing or damaged, or an option is wrong.
    """

    def __init__(
        self,
        runs: str | Path | Sequence[str | Path] | Mapping[str, Observer],
        data: str | Path | None = None,
        mice: str | Sequence[str] | None = None,
        out: str | Path | None = "lab",
        device: str | None = None,
        *,
        statistics: str | Path | Sequence[str | Path] = (),
        neurons: str | Sequence[int] = "all",
        format: str = "parquet",
        monitor: Monitor = SENSORIUM,
        behavior: Any = None,
        pupil_center: Any = None,
        budget: float | None = None,
        batch_size: int | None = None,
        seed: int = 1234,
        plots: bool = False,
        say: Callable[[str], None] = lambda _: None,
        progress: bool = False,
    ) -> None:
        if format not in FORMATS:
            raise ConfigError(f"--format must be one of {', '.join(FORMATS)}, not {format!r}")
        if budget is not None and not budget > 0:
            raise ConfigError(f"--budget must be above 0 seconds, not {budget}")
        self.out = None if out is None else Path(out)
        if self.out is not None and self.out.exists() and not self.out.is_dir():
            raise ConfigError(f"--out {out}: is a file: name a folder")
        self.format, self.monitor, self.seed, self.plots, self._say = format, monitor, seed, plots, say
        self._stack = ExitStack()
        given = {n: v for n, v in (("behavior", behavior), ("pupil_center", pupil_center)) if v is not None}
        wanted = [mice] if isinstance(mice, str) else mice
        if isinstance(runs, Mapping):
            observers: dict[str, Observer] = {m: runs[m] for m in wanted or runs}
        else:
            observers = self._twins(_several(runs), data, wanted, device, _several(statistics), given)
        self._neurons = {id: _chosen(neurons, observer) for id, observer in observers.items()}
        deadline = None if budget is None else time.monotonic() + budget
        self._theatres = {
            id: Theatre(
                observer, None if self.out is None else self.out / observer.mouse.session / "responses",
                batch_size=batch_size, deadline=deadline, say=say, progress=progress,
            )
            for id, observer in observers.items()
        }  # fmt: skip
        self._grids: dict[tuple[str, Grid | None], gratings.Responses] = {}
        self._some = not isinstance(neurons, str)

    def _twins(
        self, runs: list[Any], data: Any, mice: Sequence[str] | None, device: str | None, statistics: list[Any],
        states: Mapping[str, Any],
    ) -> dict[str, Observer]:  # fmt: skip
        folders = [RunFolder(run) for run in runs]
        if not folders:
            raise ConfigError("runs is empty: give a run folder, or several")
        models, known = load_models(folders, best_device(device), mice)
        place = None if data is None else str(data)
        subjects = self._stack.enter_context(opened_subjects(folders, models, known, place, statistics))
        arrays = {name: np.asarray(values, dtype=np.float64) for name, values in states.items()}
        return {id: Twin(models, subject, arrays) for id, subject in subjects.items()}

    @property
    def experiments(self) -> tuple[str, ...]:
        """Those that `all` does."""
        limited = self._some or any(theatre.deadline is not None for theatre in self._theatres.values())
        return (*EXPERIMENTS, *AT_FIELDS) if limited else EXPERIMENTS

    @property
    def mice(self) -> list[str]:
        """Ids of the mice."""
        return list(self._theatres)

    # -- presenting ----------------------------------------------------------------------------------------------------

    def present(self, stimulus: Any, layout: Layout | None = None) -> Any:
        """Responses of all neurons, in recorded units.

        Args:
            stimulus: a film (T, H, W) of grey levels 0 to 255 of any length, or a list of patterns, films of the
                layout's length, each shown in grey.
            layout: of patterns; default blocks of 30 frames.

        Returns:
            (N, T) float32 of a film, NaN where nothing is predicted; (patterns, N, frames) of patterns. A dictionary
            by mouse where there are several.

        Raises:
            ConfigError: the stimulus does not fit.
        """
        answers = {}
        for id, theatre in self._theatres.items():
            if isinstance(stimulus, np.ndarray) and stimulus.ndim == 3:
                answers[id] = theatre.observer.answer_long(_film(stimulus, theatre.observer.frame_size))
            else:
                films = [_film(pattern, theatre.observer.frame_size) for pattern in stimulus]
                shown = theatre.fit(Shown(layout or BLOCKS, films, seed=self.seed))
                answers[id] = np.moveaxis(theatre.present(shown), 1, 0)
        return answers if len(answers) > 1 else next(iter(answers.values()))

    # -- experiments ---------------------------------------------------------------------------------------------------

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

    def all(self, options: Mapping[str, Mapping[str, Any]] | None = None) -> dict[str, pd.DataFrame]:
        """Every experiment for which there is time, those that say most a minute first; says what is left out.

        Those at each neuron's field take days for thousands of neurons: they are done where neurons were chosen, or
        where there is a budget.

        Args:
            options: of each experiment that is not to have its defaults.
        """
        tables = {}
        for name in self.experiments:
            try:
                tables[name] = getattr(self, name)(**(options or {}).get(name, {}))
            except OverBudget as error:
                self._say(f"{name} is left out: {error}")
        return tables

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

    def _run(self, name: str, options: Mapping[str, Any], plans: Plans, columns: Columns) -> pd.DataFrame:
        """Shows, computes and writes an experiment for every mouse; what is there already is read."""
        tables = []
        for id, theatre in self._theatres.items():
            observer, neurons = theatre.observer, self._neurons[id]
            path = self._path(observer, name)
            try:
                shown = theatre.choose(plans(theatre))
            except NowhereToShow as error:
                self._say(f"{name}, mouse {id}: {error}")
                tables.append(table_of(observer.mouse, neurons, {"reason": error.reasons}))
                if path is not None:
                    write_table(path, tables[-1])
                continue
            record = self._record(name, options, observer, shown, neurons)
            table = None if path is None else _finished(path, record["digest"])
            if table is None:
                responses = theatre.present(shown, name)
                table = table_of(observer.mouse, neurons, columns(observer, shown, responses, neurons))
                if path is not None:
                    write_table(path, table)
                    if self.plots:
                        draw(name, table, observer, shown, responses, path.with_suffix(".png"))
                    write_text(path.with_suffix(".json"), json.dumps(record, indent=2) + "\n")
            tables.append(table)
        return pd.concat(tables, ignore_index=True)

    def _path(self, observer: Observer, name: str) -> Path | None:
        return None if self.out is None else self.out / observer.mouse.session / f"{name}.{self.format}"

    def _record(
        self, name: str, options: Mapping[str, Any], observer: Observer, shown: Shown, neurons: np.ndarray
    ) -> dict[str, Any]:
        """What repeats an experiment; its digest is that of all that its table depends on."""
        monitor = [self.monitor.width, self.monitor.height, self.monitor.distance]
        decides = json.dumps([VERSION, name, dict(options), monitor, self.seed], sort_keys=True)
        parts = [observer.identity, shown.digest(), decides]
        layout = {k: getattr(shown.layout, k) for k in ("lead", "before", "pattern", "after", "count")}
        return {
            "experiment": name,
            "digest": digest_of([*(part.encode() for part in parts), neurons.tobytes()]),
            "options": dict(options), "mouse": observer.mouse.id, "session": observer.mouse.session,
            "neurons": len(neurons), "observer": observer.facts, "monitor": monitor, "seed": self.seed,
            "layout": layout, "patterns": len(shown.patterns), "trials": shown.trials,
            "versions": {
                "viv1t": viv1t.__version__, "python": platform.python_version(), "numpy": np.__version__,
                "scipy": scipy.__version__, "torch": str(torch.__version__),
            },
        }  # fmt: skip

    def close(self) -> None:
        """Closes recordings, where they were opened."""
        self._stack.close()

    def __enter__(self) -> Lab:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _several(given: Any) -> list[Any]:
    return [given] if isinstance(given, str | Path) else list(given)


def _finished(path: Path, digest: str) -> pd.DataFrame | None:
    """The table of an experiment whose record has this digest; None where there is none."""
    record = path.with_suffix(".json")
    try:
        same = path.is_file() and json.loads(record.read_text())["digest"] == digest
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return read_table(path) if same else None


def _chosen(neurons: str | Sequence[int], observer: Observer) -> np.ndarray:
    """Places of the chosen neurons.

    Raises:
        ConfigError: the mouse does not have one, or one is named twice.
    """
    count, id = observer.mouse.neurons, observer.mouse.id
    if isinstance(neurons, str):
        if neurons != "all":
            raise ConfigError(f"--neurons must be all, or numbers from 0, not {neurons!r}")
        return np.arange(count)
    chosen = np.asarray(neurons)
    if chosen.ndim != 1 or not len(chosen) or chosen.dtype.kind not in "iu":
        raise ConfigError(f"--neurons must be all, or numbers from 0, not {neurons!r}")
    if outside := [int(n) for n in chosen if not 0 <= n < count]:
        raise ConfigError(f"--neurons {outside[0]}: mouse {id} has {count} neurons, numbered from 0 to {count - 1}")
    if len(np.unique(chosen)) < len(chosen):
        raise ConfigError("--neurons: names a neuron twice")
    return chosen.astype(np.int64)


def _film(film: Any, frame_size: tuple[int, int]) -> np.ndarray:
    """Grey levels 0 to 255 as uint8, (T, H, W).

    Raises:
        ConfigError: another shape, or values that are no grey levels.
    """
    array = np.asarray(film)
    if array.ndim != 3 or array.shape[1:] != frame_size or not len(array):
        raise ConfigError(f"a film must be (T, {frame_size[0]}, {frame_size[1]}), not {array.shape}")
    if array.dtype.kind not in "fiub" or not np.isfinite(array).all() or array.min() < 0 or array.max() > 255:
        raise ConfigError("a film must have grey levels from 0 to 255")
    return np.rint(array).astype(np.uint8)
