"""What all experiments share: who is examined, what was shown, and tables that are written once."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pandas as pd
import scipy
import torch

import viv1t
import viv1t.lab.gratings as gratings
from viv1t.data.mice import choose_sessions
from viv1t.data.session import Session
from viv1t.errors import ConfigError, DataError
from viv1t.lab.catalogue import EXPERIMENTS
from viv1t.lab.centered import NowhereToShow
from viv1t.lab.observers import Observer, Twin, digest_of
from viv1t.lab.pictures import draw
from viv1t.lab.present import Shown, Theatre
from viv1t.lab.protocols import BLOCKS, Layout
from viv1t.lab.recorded import percentile_state, reliability
from viv1t.lab.states import mean_statistics, seen_as
from viv1t.lab.tables import FORMATS, read_table, table_of, write_table
from viv1t.prediction.sources import opened_subjects
from viv1t.runs.ensemble import load_models, open_recordings
from viv1t.runs.folder import RunFolder
from viv1t.stimuli.geometry import SENSORIUM, Monitor
from viv1t.system.device import best_device
from viv1t.system.files import write_text

VERSION = 1  # of the tables: raised when the same responses would give others

Plans = Callable[[Theatre], list[Callable[[], Shown]]]
Columns = Callable[[Observer, Shown, np.ndarray, np.ndarray], dict[str, Any]]
Notes = Callable[[pd.DataFrame], dict[str, Any]]


class Bench:
    """The mice of a run, and what was written of them. See `viv1t.lab.Lab`, which says what the arguments are."""

    def __init__(
        self,
        runs: str | Path | Sequence[str | Path] | Mapping[str, Observer],
        data: str | Path | None = None,
        mice: str | Sequence[str] | None = None,
        out: str | Path | None = "lab",
        device: str | None = None,
        *,
        statistics: str | Path | Sequence[str | Path] = (),
        mean_statistics: bool = False,
        states_of: str | None = None,
        neurons: str | Sequence[int] = "all",
        format: str = "parquet",
        monitor: Monitor = SENSORIUM,
        state: str | float | None = None,
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
        if state is not None and behavior is not None:
            raise ConfigError("--state and --behavior both say how the animal behaves: give one")
        self.out = None if out is None else Path(out)
        if self.out is not None and self.out.exists() and not self.out.is_dir():
            raise ConfigError(f"--out {out}: is a file: name a folder")
        self.format, self.monitor, self.seed, self.plots, self._say = format, monitor, seed, plots, say
        self._device, self._progress, self._batch_size = device, progress, batch_size
        self._stack = ExitStack()
        self._place, self._folders, self._models = None if data is None else str(data), list[RunFolder](), list[Any]()
        self._sessions: dict[str, Session] | None = None
        self._mean, self._states_of, self._state = mean_statistics, states_of, state
        self._given = {n: v for n, v in (("behavior", behavior), ("pupil_center", pupil_center)) if v is not None}
        wanted = [mice] if isinstance(mice, str) else mice
        if isinstance(runs, Mapping):
            observers: dict[str, Observer] = {m: runs[m] for m in wanted or runs}
        else:
            self._folders = [RunFolder(run) for run in several(runs)]
            if not self._folders:
                raise ConfigError("runs is empty: give a run folder, or several")
            self._models, known = load_models(self._folders, best_device(device), wanted)
            self._ids = known
            observers = self._twins(self._folders, self._models, known, several(statistics), self._given)
        self._ids = list(observers)
        self._neurons = {id: self._chosen(neurons, observer) for id, observer in observers.items()}
        deadline = None if budget is None else time.monotonic() + budget
        self._theatres = {id: self._theatre(observer, deadline) for id, observer in observers.items()}
        self._some = not (isinstance(neurons, str) and neurons == "all")
        self._grids: dict[tuple[str, gratings.Grid | None], gratings.Responses] = {}

    def _theatre(self, observer: Observer, deadline: float | None) -> Theatre:
        return Theatre(
            observer, None if self.out is None else self.out / observer.mouse.session / "responses",
            batch_size=self._batch_size, deadline=deadline, say=self._say, progress=self._progress,
        )  # fmt: skip

    def _twins(
        self, folders: list[RunFolder], models: list[Any], mice: list[str], statistics: list[Any],
        states: Mapping[str, Any],
    ) -> dict[str, Observer]:  # fmt: skip
        other = [] if self._states_of is None or self._states_of in mice else [self._states_of]
        if other and any(other[0] not in model.neurons for model in models):
            raise ConfigError(f"--states_of {other[0]}: not a mouse of the run, which has {', '.join(mice)}")
        subjects = self._stack.enter_context(opened_subjects(folders, models, [*mice, *other], self._place, statistics))
        if self._states_of is not None:
            subjects = {id: seen_as(subject, subjects[self._states_of]) for id, subject in subjects.items()}
        if self._mean:
            subjects = {id: mean_statistics(subject) for id, subject in subjects.items()}
        arrays = {name: np.asarray(values, dtype=np.float64) for name, values in states.items()}
        twins: dict[str, Observer] = {}
        for id in mice:
            own = dict(arrays)
            if self._state is not None:
                own["behavior"] = percentile_state(self.recording(self._states_of or id), self._state)
            twins[id] = Twin(models, subjects[id], own)
        return twins

    @property
    def experiments(self) -> tuple[str, ...]:
        """Those that `all` does."""
        limited = self._some or any(theatre.deadline is not None for theatre in self._theatres.values())
        return tuple(n for n, kind in EXPERIMENTS.items() if kind.of_all and (limited or not kind.at_fields))

    @property
    def mice(self) -> list[str]:
        """Ids of the mice."""
        return list(self._theatres)

    def recording(self, id: str) -> Session:
        """A mouse's recording.

        Raises:
            ConfigError: there is none, and it is not said where it is.
            DataError: it is missing, damaged, or of other neurons.
        """
        if self._sessions is None:
            if self._folders:
                known = [*dict.fromkeys([*self._ids, id])]
                recordings = open_recordings(self._folders, self._models, self._place, known)
                self._stack.callback(recordings.close)
                self._sessions = {mouse: recordings.session(mouse) for mouse in known}
            elif self._place is None:
                raise ConfigError(f"mouse {id}: this needs its recording: give data")
            else:
                self._sessions = choose_sessions(Path(self._place), self._ids, data="data ", ids="mice")
        return self._sessions[id]

    def _found_recording(self, id: str) -> Session | None:
        """A mouse's recording; None, with a word, where it is not there."""
        try:
            return self.recording(id)
        except (ConfigError, DataError) as error:
            self._say(f"mouse {id}: goes on without its recording: {error}")
            return None

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

    # -- tables that are written once ----------------------------------------------------------------------------------

    def _run(
        self, name: str, options: Mapping[str, Any], plans: Plans, columns: Columns, notes: Notes | None = None
    ) -> pd.DataFrame:
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
            responses: list[np.ndarray] = []

            def make(theatre: Theatre = theatre, shown: Shown = shown, kept: list[Any] = responses) -> dict[str, Any]:
                kept.append(theatre.present(shown, name))
                return columns(theatre.observer, shown, kept[0], self._neurons[theatre.observer.mouse.id])

            def picture(
                table: pd.DataFrame, path: Path, observer: Observer = observer, shown: Shown = shown,
                kept: list[Any] = responses,
            ) -> None:  # fmt: skip
                draw(name, table, observer, shown, kept[0], path)

            layout = {k: getattr(shown.layout, k) for k in ("lead", "before", "pattern", "after", "count")}
            about = {"layout": layout, "patterns": len(shown.patterns), "trials": shown.trials}
            tables.append(self._keep(name, options, observer, [shown.digest()], make, picture, notes, about))
        return pd.concat(tables, ignore_index=True)

    def _keep(
        self,
        name: str,
        options: Mapping[str, Any],
        observer: Observer,
        parts: Sequence[str],
        make: Callable[[], dict[str, Any]],
        picture: Callable[[pd.DataFrame, Path], None] | None = None,
        notes: Notes | None = None,
        about: Mapping[str, Any] | None = None,
        final: Callable[[pd.DataFrame], bool] = lambda _: True,
    ) -> pd.DataFrame:
        """The table of a mouse: read where its record is of the same digest, else made, written and drawn.

        Args:
            name: of the experiment.
            options: of the experiment; they are recorded, and the table depends on them.
            observer: who answered.
            parts: what else the table depends on.
            make: gives the columns.
            picture: draws the table to a path.
            notes: what the record says of the table.
            about: what else the record says.
            final: whether the table is what it would be without a budget; where it is not, it is made again.
        """
        neurons, path = self._neurons[observer.mouse.id], self._path(observer, name)
        record = self._record(name, options, observer, parts, neurons) | dict(about or {})
        table = None if path is None else _finished(path, record["digest"])
        if table is not None:
            return table
        table = table_of(observer.mouse, neurons, make())
        if not final(table):
            record["digest"] = ""
        said = {} if notes is None else notes(table)
        if said:
            self._say(f"{name}, mouse {observer.mouse.id}: {words(said)}")
            record["notes"] = said
        if path is not None:
            write_table(path, table)
            if self.plots and picture is not None:
                picture(table, path.with_suffix(".png"))
            write_text(path.with_suffix(".json"), json.dumps(record, indent=2) + "\n")
        return table

    def _path(self, observer: Observer, name: str) -> Path | None:
        return None if self.out is None else self.out / observer.mouse.session / f"{name}.{self.format}"

    def _record(
        self, name: str, options: Mapping[str, Any], observer: Observer, parts: Sequence[str], neurons: np.ndarray
    ) -> dict[str, Any]:
        """What repeats an experiment; its digest is that of all that its table depends on."""
        monitor = [self.monitor.width, self.monitor.height, self.monitor.distance]
        decides = json.dumps([VERSION, name, dict(options), monitor, self.seed], sort_keys=True)
        everything = [observer.identity, *parts, decides]
        return {
            "experiment": name,
            "digest": digest_of([*(part.encode() for part in everything), neurons.tobytes()]),
            "options": dict(options), "mouse": observer.mouse.id, "session": observer.mouse.session,
            "neurons": len(neurons), "observer": observer.facts, "monitor": monitor, "seed": self.seed,
            "versions": {
                "viv1t": viv1t.__version__, "python": platform.python_version(), "numpy": np.__version__,
                "scipy": scipy.__version__, "torch": str(torch.__version__),
            },
        }  # fmt: skip

    def _chosen(self, neurons: str | Sequence[int], observer: Observer) -> np.ndarray:
        """Places of the chosen neurons.

        Raises:
            ConfigError: the mouse does not have one, one is named twice, or the best are not known.
        """
        count, id = observer.mouse.neurons, observer.mouse.id
        if isinstance(neurons, str):
            if neurons == "all":
                return np.arange(count)
            best = neurons.removeprefix("best:")
            if best == neurons or not best.isdecimal() or not 1 <= int(best) <= count:
                raise ConfigError(
                    f"--neurons must be all, numbers from 0, or best:K with K from 1 to {count} for mouse {id}, not "
                    f"{neurons!r}"
                )
            rank = reliability(self.recording(id))["reliability"]
            order = np.argsort(-np.where(np.isnan(rank), -np.inf, rank), kind="stable")
            return np.sort(order[: int(best)])
        chosen = np.asarray(neurons)
        if chosen.ndim != 1 or not len(chosen) or chosen.dtype.kind not in "iu":
            raise ConfigError(f"--neurons must be all, numbers from 0, or best:K, not {neurons!r}")
        if outside := [int(n) for n in chosen if not 0 <= n < count]:
            raise ConfigError(f"--neurons {outside[0]}: mouse {id} has {count} neurons, numbered from 0 to {count - 1}")
        if len(np.unique(chosen)) < len(chosen):
            raise ConfigError("--neurons: names a neuron twice")
        return chosen.astype(np.int64)

    def close(self) -> None:
        """Closes recordings, where they were opened."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def words(notes: Mapping[str, Any]) -> str:
    """What a record says, in a line."""
    return ", ".join(f"{n.replace('_', ' ')} {v:.3g}" if isinstance(v, float) else f"{n.replace('_', ' ')} {v}"
                     for n, v in notes.items())  # fmt: skip


def several(given: Any) -> list[Any]:
    return [given] if isinstance(given, str | Path) else list(given)


def _finished(path: Path, digest: str) -> pd.DataFrame | None:
    """The table of an experiment whose record has this digest; None where there is none."""
    record = path.with_suffix(".json")
    try:
        same = path.is_file() and json.loads(record.read_text())["digest"] == digest
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return read_table(path) if same else None


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
