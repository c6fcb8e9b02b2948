"""Most exciting films, found by gradient."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from viv1t.errors import ConfigError
from viv1t.lab.ascent import EXCITING, Ascent
from viv1t.lab.bench import several
from viv1t.lab.climb import Search
from viv1t.lab.curves import Curves
from viv1t.lab.experiments import mei
from viv1t.lab.experiments.mei import Result
from viv1t.lab.gratings import Grid
from viv1t.lab.natural import Library, Sample, library_at, library_of, shortlist
from viv1t.lab.observers import Differentiable, Observer
from viv1t.lab.present import Theatre
from viv1t.lab.protocols import SINGLE, Layout
from viv1t.lab.wanted import NATURAL, RMS, SIZE, Case, Wanted, like
from viv1t.runs.ensemble import load_models
from viv1t.runs.folder import RunFolder
from viv1t.stimuli.files import write_film
from viv1t.stimuli.geometry import circle
from viv1t.system.device import best_device

_MOVIES = 60  # that are looked through for the clips beside a film; a search looks through all
LAYOUTS = {"short": EXCITING, "single": SINGLE}


class Films(Curves):
    """Most exciting films."""

    def mei(
        self,
        grid: Grid | None = None,
        *,
        mask: str | float = "full",
        surround: str = "",
        centre: str = "grating",
        outer: float | None = None,
        inhibit: bool = False,
        population: bool = False,
        weights: str = "grating",
        against: Sequence[Sequence[int]] = (),
        over: str = "sum",
        method: str = "cutoff",
        still: bool = False,
        start: str = "noise",
        constraint: str = "rms",
        contrast: float | None = None,
        precondition: str = "none",
        blur: tuple[float, float] | None = None,
        jitter: int = 0,
        tv: float = 0.0,
        smooth_time: float = 0.0,
        dropout: bool = False,
        starts: int = 3,
        steps: int = 1000,
        lr: float = 0.05,
        windows: str = "short",
        library: str | Path | None = None,
        judge: Any = None,
        films: str = "npy",
    ) -> pd.DataFrame:
        """Films that neurons answer most, or least, found by gradient.

        Args:
            grid: of gratings, of which the best are compared with.
            mask: where the film lies: `full`, `preferred` (a circle of each neuron's preferred size at its field), or
                the circle's size in degrees.
            surround: `exciting` or `inhibiting`: the film lies around a centre that stays as it is.
            centre: of a surround: the best `grating`, the best `natural` clip, or an `optimised` film.
            outer: degrees beyond which a surround is grey.
            inhibit: look for the least response.
            population: one film for all chosen neurons, in place of one each.
            weights: of a population: `grating` (each response is a share of that to its best grating), `correlation`
                (of the mean prediction with the mean recording; negative ones are 0) or `equal`.
            against: groups of neurons that are to answer less than those chosen; needs `population`.
            over: `sum` or `max` of the response over the film.
            method: `cutoff`, `kl` or `pixel`; see `viv1t.lab.experiments.mei.Wanted`, as for the next four.
            precondition: `none`, `blur:S` or `fft:A`; see `viv1t.lab.climb.Search`, as for the next four.
            windows: `short` (grey, the film, grey: 85 frames) or `single` (300 frames).
            library: movies that clips are taken from; default the training movies, where the recording is.
            judge: runs, or observers by mouse, that score what was found; without them no ratio is told.
            films: how films are written: `npy`, `mkv` or `avi`.

        Returns:
            See `viv1t.lab.experiments.mei.table`. The films lie in `<out>/<session>/<experiment>`.

        Raises:
            ConfigError: an option is wrong, or the models give no gradient.
        """
        kind, by = _precondition(precondition)
        search = Search(
            steps=steps, lr=lr, smooth_time=smooth_time, tv=tv, precondition=kind, precondition_by=by, blur=blur,
            jitter=jitter,
        )  # fmt: skip
        wanted = Wanted(
            inhibit=inhibit, over=over, surround=surround, centre=centre, method=method, still=still, start=start,
            constraint=constraint, contrast=contrast, starts=starts, dropout=dropout, search=search, seed=self.seed,
        )  # fmt: skip
        if windows not in LAYOUTS:
            raise ConfigError(f"--windows must be one of {', '.join(LAYOUTS)}, not {windows!r}")
        if films not in ("npy", "mkv", "avi"):
            raise ConfigError(f"--films must be npy, mkv or avi, not {films!r}")
        if weights not in ("grating", "correlation", "equal"):
            raise ConfigError(f"--weights must be grating, correlation or equal, not {weights!r}")
        if against and not population:
            raise ConfigError("--against compares groups: give --population, too")
        if outer is not None and not surround:
            raise ConfigError("--outer is where a surround ends: give --surround, too")
        size = circle_size(mask, bool(surround))
        judges = {} if judge is None else self._judges(judge)
        name = "_".join(
            ["mei", *(["population"] if population else []), *(["inhibiting"] if inhibit else []),
             *(["surround", surround] if surround else [])]
        )  # fmt: skip
        asked = {n: v for n, v in locals().items() if n in _ASKED} | {"size": size, "grid": repr(grid)}
        tables = []
        for id, theatre in self._theatres.items():
            observer = theatre.observer
            if not isinstance(observer, Differentiable):
                raise ConfigError(f"mouse {id}: mei needs a PyTorch model: this one gives no gradient")
            folder = None if theatre.folder is None else theatre.folder / "films"
            ascent = Ascent(theatre, LAYOUTS[windows], folder, dropout=dropout, seed=self.seed)
            clips = self._clips(id, observer, library)
            groups = tuple(np.asarray(self._chosen(group, observer)) for group in against)
            found: list[Result] = []

            def make(
                id: str = id, ascent: Ascent = ascent, clips: Library | None = clips,
                groups: tuple[np.ndarray, ...] = groups, found: list[Result] = found,
            ) -> dict[str, Any]:  # fmt: skip
                results, reasons = self._films(
                    id, ascent, wanted, clips, size, outer, population, weights, groups, name, grid
                )
                found += results
                judged = self._judged(judges.get(id), ascent.layout, wanted, results, name)
                self._write_films(ascent.twin, name, results, films)
                return mei.table(results, self._neurons[id], reasons, wanted.sign, judged)

            def picture(table: pd.DataFrame, path: Path, found: list[Result] = found) -> None:
                _draw(found, table, path)

            parts = [judges[id].observer.identity if id in judges else "", "" if clips is None else clips.identity]
            tables.append(self._keep(name, asked, observer, parts, make, picture, mei.notes, final=_done))
        return pd.concat(tables, ignore_index=True)

    def _judges(self, judge: Any) -> dict[str, Theatre]:
        """The theatres of who scores what was found, by mouse.

        Raises:
            ConfigError: it lacks a mouse, or has other neurons.
        """
        if isinstance(judge, Mapping):
            observers: dict[str, Observer] = dict(judge)
        else:
            folders = [RunFolder(run) for run in several(judge)]
            models, _ = load_models(folders, best_device(self._device), list(self._theatres))
            observers = self._twins(folders, models, list(self._theatres), [], self._given)
        for id, theatre in self._theatres.items():
            if id not in observers:
                raise ConfigError(f"--judge: does not know mouse {id}, but {', '.join(observers) or 'none'}")
            mouse, other = theatre.observer.mouse, observers[id].mouse
            if mouse.neurons != other.neurons:
                raise ConfigError(f"--judge: has {other.neurons} neurons of mouse {id}, and the model {mouse.neurons}")
            if observers[id].identity == theatre.observer.identity:
                raise ConfigError("--judge: is the model whose films it would judge: give another one")
        return {id: self._theatre(observers[id], None) for id in self._theatres}

    def _clips(self, id: str, observer: Observer, library: str | Path | None) -> Library | None:
        if library is not None:
            return library_at(Path(library), observer.frame_size)
        session = self._found_recording(id)
        return None if session is None else library_of(session)

    def _films(
        self, id: str, ascent: Ascent, wanted: Wanted, clips: Library | None, size: str | float | None,
        outer: float | None, population: bool, weights: str, against: tuple[np.ndarray, ...], name: str,
        gratings: Grid | None,
    ) -> tuple[list[Result], dict[int, str]]:  # fmt: skip
        """The films of a mouse, and why neurons have none."""
        theatre, neurons, layout = ascent.theatre, self._neurons[id], ascent.layout
        grid = self._grid(theatre, gratings)
        finite = np.isfinite(grid.mean[neurons]).all(axis=(1, 2, 3, 4))
        reasons = {int(n): "response is not finite" for n in neurons[~finite]}
        areas = self._areas(id, neurons, size, reasons)
        sample = None if clips is None else Sample(clips, layout.pattern)
        served = np.array([n for n in neurons if int(n) not in reasons], np.int64)
        if not len(served):
            return [], reasons
        if population:
            if size is not None:
                raise ConfigError("--population: neurons look at different places: leave out --mask and --surround")
            share = self._weights(id, served, grid, weights)
            cases = [Case("population", served, share, against, contrast=self._contrast(wanted, sample, None))]
        else:
            cases = [
                Case(
                    f"neuron_{n}", np.array([n]), np.ones(1), (), areas.get(int(n)), None,
                    self._contrast(wanted, sample, areas.get(int(n))),
                )
                for n in served
            ]  # fmt: skip
        naturals = self._naturals(theatre, clips, cases, wanted, layout)
        spectrum = None if sample is None or wanted.method != "kl" else sample.spectrum()
        if wanted.method == "kl" and sample is None:
            raise ConfigError("--method kl needs natural movies: give --library, or --data with the recordings")
        if wanted.surround:
            cases = self._around(ascent, wanted, cases, grid, naturals, sample, outer, id, name)
        return mei.find(ascent, wanted, cases, grid, naturals, spectrum, name), reasons

    def _around(
        self, ascent: Ascent, wanted: Wanted, cases: list[Case], grid: Any, naturals: Any, sample: Sample | None,
        outer: float | None, id: str, name: str,
    ) -> list[Case]:  # fmt: skip
        """The same cases with their centres found, and the film around them."""
        single = Wanted(
            over=wanted.over, method=wanted.method, constraint=wanted.constraint, contrast=wanted.contrast,
            starts=wanted.starts if wanted.centre == "optimised" else 1, search=wanted.search, seed=wanted.seed,
        )  # fmt: skip
        centres = mei.centres(ascent, single, cases, grid, naturals, wanted.centre, f"{name}: centres")
        rim = None if outer is None else self._areas(id, np.array([int(c.neurons[0]) for c in cases]), outer, {})
        around = []
        for case, centre in zip(cases, centres, strict=True):
            assert case.area is not None
            area = ~case.area if rim is None else ~case.area & rim[int(case.neurons[0])]
            if not area.any():
                raise ConfigError(f"--outer {outer}: leaves no surround around a centre as large")
            around.append(
                Case(case.name, case.neurons, case.weights, (), area, centre, self._contrast(wanted, sample, area))
            )
        return around

    def _contrast(self, wanted: Wanted, sample: Sample | None, area: np.ndarray | None) -> float:
        """Of films in an area: what was asked for, else what natural clips have there."""
        if wanted.contrast is not None:
            return wanted.contrast
        natural = RMS if sample is None else max(sample.rms(area), 1.0)
        if wanted.constraint != "norm":
            return natural
        pixels = self._theatres[next(iter(self._theatres))].observer.frame_size
        return natural * float(np.sqrt(np.prod(pixels) if area is None else area.sum()))

    def _areas(
        self, id: str, neurons: np.ndarray, size: str | float | None, reasons: dict[int, str]
    ) -> dict[int, np.ndarray]:
        """Circles at the fields of neurons; those without a good field get a reason."""
        if size is None:
            return {}
        fields, areas = self.rf(), {}
        fields = fields[fields["mouse"] == id].set_index("neuron")
        sizes = self.size() if size == "preferred" else None
        degrees = None if sizes is None else sizes[sizes["mouse"] == id].set_index("neuron")["preferred"]
        for n in neurons.tolist():
            row = fields.loc[n]
            if row["reason"]:
                reasons[n] = f"field: {row['reason']}"
                continue
            own = float(size) if degrees is None else float(degrees.loc[n])  # type: ignore[arg-type]
            own = own if np.isfinite(own) and own > 0 else SIZE
            frame_size = self._theatres[id].observer.frame_size
            center = float(np.round(row["x"])), float(np.round(row["y"]))
            area = circle(own, center, monitor=self.monitor, frame_size=frame_size)
            if area.any():
                areas[n] = area
            else:
                reasons[n] = f"a circle of {own:g} degrees holds no pixel at its field"
        return areas

    def _weights(self, id: str, neurons: np.ndarray, grid: Any, weights: str) -> np.ndarray:
        """Of a population's responses in the models' own units."""
        if weights == "equal":
            return np.ones(len(neurons))
        if weights == "grating":
            observer = self._theatres[id].observer
            best = grid.over_phases[neurons].reshape(len(neurons), -1).max(1)
            assert isinstance(observer, Differentiable)
            return np.asarray(np.broadcast_to(observer.factor, (observer.mouse.neurons,))[neurons] / best)
        from viv1t.lab.experiments import reliability

        found = reliability.table(self._theatres[id].observer, self.recording(id), neurons)
        share = np.maximum(np.nan_to_num(found["correlation"]), 0)
        if not share.any():
            raise ConfigError(f"mouse {id}: no chosen neuron is predicted better than by chance: give other --weights")
        return np.asarray(share)

    def _naturals(
        self, theatre: Theatre, clips: Library | None, cases: Sequence[Case], wanted: Wanted, layout: Layout
    ) -> Callable[[Case], list[np.ndarray]]:
        """Gives the clips that a case's neurons promise most for, in its area and with its contrast."""
        if clips is None:
            return lambda case: []
        neurons = np.unique(np.concatenate([case.neurons for case in cases]))
        movies = np.unique(np.linspace(0, len(clips) - 1, min(_MOVIES, len(clips))).astype(int)).tolist()
        found = shortlist(
            theatre.observer, clips, neurons, layout.pattern, NATURAL, movies=movies, sign=wanted.sign,
            folder=theatre.folder, progress=theatre.progress,
        )  # fmt: skip
        rows = {int(n): row for row, n in enumerate(neurons)}

        def of(case: Case) -> list[np.ndarray]:
            each = -(-NATURAL // len(case.neurons))
            places = [
                (int(found.movie[rows[n], k]), int(found.first[rows[n], k]))
                for n in case.neurons[: NATURAL].tolist() for k in range(each)
            ]  # fmt: skip
            cut = [clips.film(m)[f : f + layout.pattern] for m, f in dict.fromkeys(places) if m >= 0]
            return [film for clip in cut if (film := like(wanted, case, clip)) is not None]

        return of

    def _judged(
        self, judge: Theatre | None, layout: Layout, wanted: Wanted, results: Sequence[Result], name: str
    ) -> dict[str, dict[str, np.ndarray]]:
        """What the judge's neurons answer to the films of every case."""
        if judge is None or not results:
            return {}
        kinds = [(r.case.name, kind) for r in results for kind in mei.JUDGED if kind in r.films]
        shown = [r.films[kind] for r in results for kind in mei.JUDGED if kind in r.films]
        answers = mei.values(judge, layout, shown, wanted.over, f"{name}: the judge")
        judged: dict[str, dict[str, np.ndarray]] = {}
        for (case, kind), answer in zip(kinds, answers.T, strict=True):
            judged.setdefault(case, {})[kind] = answer
        return judged

    def _write_films(self, twin: Differentiable, name: str, results: Sequence[Result], ending: str) -> None:
        if self.out is None:
            return
        for result in results:
            write_film(self.out / twin.mouse.session / name / f"{result.case.name}.{ending}", result.films["film"])


# What a record says of `mei`, and its table depends on.
_ASKED = (
    "mask", "surround", "centre", "outer", "inhibit", "population", "weights", "against", "over", "method", "still",
    "start", "constraint", "contrast", "precondition", "blur", "jitter", "tv", "smooth_time", "dropout", "starts",
    "steps", "lr", "windows", "films",
)  # fmt: skip


def _done(table: pd.DataFrame) -> bool:
    return not (table["stopped"] == "budget").any()


def _draw(results: Sequence[Result], table: pd.DataFrame, path: Path) -> None:
    from viv1t.plot.films import films

    if results:
        shown = results[:12]
        rows = table.set_index("film")
        names = ["population" if r.case.name == "population" else r.case.name.replace("_", " ") for r in shown]
        answers = [{kind: float(r.case.reached(a)) for kind, a in r.answers.items()} for r in shown]
        mouse = str(rows["mouse"].iloc[0])
        films([r.films["film"] for r in shown], answers, names, path, title=f"Most exciting films, mouse {mouse}")


def circle_size(mask: str | float, surround: bool) -> str | float | None:
    """Of the circle that holds a film, or a surround's centre: degrees, `preferred`, or None for the whole frame."""
    if mask == "full":
        return SIZE if surround else None
    if mask == "preferred":
        return mask
    try:
        size = float(mask)
    except ValueError:
        size = 0.0
    if not 0 < size < 180:
        raise ConfigError(f"--mask must be full, preferred, or degrees above 0 and below 180, not {mask!r}")
    return size


def _precondition(words: str) -> tuple[str, float]:
    kind, _, by = words.partition(":")
    try:
        return kind, float(by) if by else {"blur": 1.0, "fft": 0.1}.get(kind, 0.0)
    except ValueError as error:
        raise ConfigError(f"--precondition must be none, blur:S or fft:A, not {words!r}") from error
