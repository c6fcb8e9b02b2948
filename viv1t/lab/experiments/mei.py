"""Most exciting films: what neurons answer most or least, beside gratings and natural clips of equal contrast.

A film lies in an area of the frame; around it is grey or, for a surround, a centre that stays as it is. What it is
compared with lies in the same area, with the same contrast and length, in the same layout.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import wilcoxon
from torch import Tensor

from viv1t.errors import ConfigError
from viv1t.lab.ascent import Ascent, Reached
from viv1t.lab.climb import describe
from viv1t.lab.gratings import Responses
from viv1t.lab.present import Shown, Theatre
from viv1t.lab.protocols import Layout
from viv1t.lab.wanted import Case, Wanted, gratings_for, job, like
from viv1t.stimuli.files import as_shown_lossy
from viv1t.stimuli.parametric import GREY

_CASES = 16  # whose patterns are held at a time


def values(theatre: Theatre, layout: Layout, films: Sequence[np.ndarray], over: str, label: str) -> np.ndarray:
    """(N, films) what neurons answer, in recorded units: the sum or the largest over the frames."""
    weights = np.ones((layout.pattern, 1)) if over == "sum" else None
    shown = theatre.fit(Shown(layout, [*films], {}, weights, seed=None))
    return np.asarray(theatre.present(shown, label).max(-1) if over == "max" else theatre.present(shown, label)[..., 0])


@dataclass
class Result:
    """What was found of a case.

    Attributes:
        case: which.
        reached: the films of every start.
        films: (T, H, W) uint8 of each kind: `film`, the best of the starts; `grating` and `natural`, the best of those
            shown; `grey`; `center`, that of a surround alone. Absent where there is none.
        answers: (N,) all neurons' responses to each of them, recorded units.
        facts: a number of each name.
    """

    case: Case
    reached: list[Reached]
    films: dict[str, np.ndarray]
    answers: dict[str, np.ndarray]
    facts: dict[str, float]


def find(
    ascent: Ascent,
    wanted: Wanted,
    cases: Sequence[Case],
    grid: Responses,
    naturals: Callable[[Case], list[np.ndarray]],
    spectrum: Tensor | None,
    label: str,
) -> list[Result]:
    """Finds the films of cases, and shows them beside what they are compared with.

    Args:
        ascent: of the twin.
        wanted: what is looked for.
        cases: whom for.
        grid: responses to gratings.
        naturals: the clips (T, H, W) of the library that a case's neurons promise most for, in its area and contrast.
        spectrum: of natural clips, for `kl`.
        label: of lines of progress.
    """
    theatre, layout = ascent.theatre, ascent.layout
    clips = [naturals(case) for case in cases]
    jobs = [
        job(wanted, case, start, ascent.twin, layout, own, spectrum)
        for case, own in zip(cases, clips, strict=True)
        for start in range(wanted.starts)
    ]
    reached = ascent.run(jobs, label)
    by = [reached[i : i + wanted.starts] for i in range(0, len(reached), wanted.starts)]
    results: list[Result] = []
    for first in range(0, len(cases), _CASES):
        part = slice(first, first + _CASES)
        results += _shown(theatre, layout, wanted, cases[part], by[part], clips[part], grid, label)
    _robust(theatre, layout, wanted, results, label)
    return results


def centres(
    ascent: Ascent, wanted: Wanted, cases: Sequence[Case], grid: Responses,
    naturals: Callable[[Case], list[np.ndarray]], kind: str, label: str,
) -> list[np.ndarray]:  # fmt: skip
    """The film at each case's centre: the best `grating`, the best `natural` clip, or one that is `optimised`.

    Raises:
        ConfigError: there is no natural clip.
    """
    if kind == "optimised":
        return [result.films["film"] for result in find(ascent, wanted, cases, grid, naturals, None, label)]
    theatre, layout, chosen = ascent.theatre, ascent.layout, []
    for case in cases:
        if kind == "natural":
            films = naturals(case)
            if not films:
                raise ConfigError(
                    "--centre natural needs natural movies: give --library, or --data with the recordings"
                )
        else:
            made = [like(wanted, case, f) for f in gratings_for(grid, case, theatre.observer.frame_size)]
            films = [f for f in made if f is not None]
        worth = case.reached(values(theatre, layout, films, wanted.over, label))
        chosen.append(films[int(worth.argmax())])
    return chosen


def _shown(
    theatre: Theatre, layout: Layout, wanted: Wanted, cases: Sequence[Case], reached: Sequence[list[Reached]],
    clips: Sequence[list[np.ndarray]], grid: Responses, label: str,
) -> list[Result]:  # fmt: skip
    """The best of each case's starts, beside the best grating, the best clip, grey and the centre alone."""
    size = theatre.observer.frame_size
    grey = np.full((layout.pattern, *size), GREY, np.uint8)
    films: list[np.ndarray] = []
    places: list[dict[str, slice]] = []
    for case, own, natural in zip(cases, reached, clips, strict=True):
        made = [like(wanted, case, f) for f in gratings_for(grid, case, size, wanted.sign)]
        kinds = {
            "film": [r.found.film for r in own], "grating": [f for f in made if f is not None], "natural": natural,
            "grey": [grey], "center": [] if case.around is None else [_alone(case)],
        }  # fmt: skip
        where = {}
        for kind, some in kinds.items():
            where[kind] = slice(len(films), len(films) + len(some))
            films += some
        places.append(where)
    answers = values(theatre, layout, films, wanted.over, f"{label}: found films, gratings and clips")
    results = []
    for case, own, where in zip(cases, reached, places, strict=True):
        worth = case.reached(answers)
        chosen = {
            kind: place.start + int((wanted.sign * worth[place]).argmax())
            for kind, place in where.items() if place.stop > place.start
        }  # fmt: skip
        best = chosen["film"] - where["film"].start
        spread = worth[where["film"]]
        facts = {
            "start": float(best), "steps": float(len(own[best].found.history)),
            "spread": float(np.ptp(spread) / abs(spread[best])) if spread[best] else float("nan"),
            "similarity": _similarity([r.found.film for r in own], case.area),
            **describe(own[best].found.film, case.area),
        }  # fmt: skip
        shown = {kind: films[place] for kind, place in chosen.items()}
        results.append(Result(case, own, shown, {kind: answers[:, place] for kind, place in chosen.items()}, facts))
    return results


def _alone(case: Case) -> np.ndarray:
    """A case's centre with grey where the film would be."""
    assert case.around is not None
    return case.around if case.area is None else np.where(case.area, GREY, case.around).astype(np.uint8)


def _similarity(films: Sequence[np.ndarray], area: np.ndarray | None) -> float:
    """Mean correlation of the films of different starts, in their area; NaN of one."""
    if len(films) < 2:
        return float("nan")
    flat = np.stack([(f if area is None else f[:, area]).reshape(-1) for f in films]).astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        matrix = np.atleast_2d(np.corrcoef(flat))
    return float(matrix[np.triu_indices(len(films), 1)].mean())


def _robust(theatre: Theatre, layout: Layout, wanted: Wanted, results: Sequence[Result], label: str) -> None:
    """What is left of the response after a shift by a pixel, by a frame, and after a video file."""
    films: list[np.ndarray] = []
    kinds: list[str] = []
    for result in results:
        film = result.films["film"]
        lossy = as_shown_lossy(film)
        made = {"pixel": np.roll(film, 1, axis=2), "frame": np.roll(film, 1, axis=0)}
        for kind, changed in (made if lossy is None else {**made, "video": lossy}).items():
            films.append(changed)
            kinds.append(kind)
    answers = values(theatre, layout, films, wanted.over, f"{label}: films that are shifted and compressed")
    place = 0
    for result in results:
        for kind in ("pixel", "frame", "video"):
            result.facts[f"robust_{kind}"] = float("nan")
            if place < len(kinds) and kinds[place] == kind:
                worth = float(result.case.reached(answers[:, place]))
                whole = float(result.case.reached(result.answers["film"]))
                result.facts[f"robust_{kind}"] = worth / whole if whole else float("nan")
                place += 1


KINDS = ("film", "grating", "natural", "grey", "center")
JUDGED = KINDS[:4]
_FACTS = (
    "start", "steps", "spread", "similarity", "rms", "mean", "min", "max", "saturated", "robust_pixel", "robust_frame",
    "robust_video",
)  # fmt: skip


def table(
    results: Sequence[Result],
    neurons: np.ndarray,
    reasons: Mapping[int, str],
    sign: int,
    judged: Mapping[str, Mapping[str, np.ndarray]],
) -> dict[str, Any]:
    """A row a neuron.

    Args:
        results: of the cases.
        neurons: which of the N.
        reasons: why a neuron has no film.
        sign: -1 where less is better.
        judged: what another observer's neurons answer, (N,) by case and kind of film; empty without one.

    Returns:
        `response` to the film found, and to `grating`, `natural` (the best of each that the model chose), `grey`,
        `center` (a surround's, alone), recorded units; `promised_grating`, `promised_natural`, the model's own ratios;
        `judged...` and `ratio_grating`, `ratio_natural` by the judge, NaN without one; `rank` of the film among all
        films for the neuron, 1 the first; the film's contrast, and what shifts and a video file leave of its response.
    """
    names = (
        "response", *KINDS[1:], "promised_grating", "promised_natural", "judged", *(f"judged_{k}" for k in JUDGED[1:]),
        "ratio_grating", "ratio_natural", "rank", *_FACTS,
    )  # fmt: skip
    columns: dict[str, Any] = {n: np.full(len(neurons), np.nan) for n in names}
    columns["stopped"], columns["film"] = [""] * len(neurons), [""] * len(neurons)
    rows = {int(n): row for row, n in enumerate(neurons)}
    own = np.stack([result.answers["film"] for result in results], axis=1) if results else np.empty((0, 0))
    for number, result in enumerate(results):
        for n in result.case.neurons.tolist():
            row = rows[n]
            for kind, answer in result.answers.items():
                columns["response" if kind == "film" else kind][row] = answer[n]
            for kind, answer in judged.get(result.case.name, {}).items():
                columns["judged" if kind == "film" else f"judged_{kind}"][row] = answer[n]
            for name in _FACTS:
                columns[name][row] = result.facts[name]
            columns["rank"][row] = 1 + int((sign * own[n] > sign * own[n, number]).sum())
            columns["stopped"][row] = result.reached[int(result.facts["start"])].stopped
            columns["film"][row] = result.case.name
    with np.errstate(invalid="ignore", divide="ignore"):
        for kind in ("grating", "natural"):
            columns[f"promised_{kind}"] = columns["response"] / columns[kind]
            columns[f"ratio_{kind}"] = columns["judged"] / columns[f"judged_{kind}"]
    words = [reasons.get(int(n), "") for n in neurons]
    gained = sign * (columns["response"] - columns["grey"]) > 1e-6 * np.abs(columns["response"])
    for row in np.flatnonzero(~gained & np.isfinite(columns["response"])).tolist():
        words[row] = "no film moves its response away from that to grey"
    return columns | {"reason": words}


def notes(table: Any) -> dict[str, Any]:
    """What a record says of films: the median ratio by the judge with its quartiles, and a signed-rank test of it.

    Without a judge there is no ratio, and a warning in its place.
    """
    said: dict[str, Any] = {"films": int(table["film"][table["film"] != ""].nunique())}
    if not said["films"]:
        return said
    if table["judged"].isna().all():
        return said | {"warning": "no --judge: what a model promises of its own films is several times what is true"}
    for kind in ("grating", "natural"):
        ratio = table[f"ratio_{kind}"].to_numpy(float)
        ratio = ratio[np.isfinite(ratio) & (ratio > 0)]
        if len(ratio):
            low, middle, high = np.percentile(ratio, (25, 50, 75))
            said[f"judged_over_{kind}"] = f"{middle:.2f} ({low:.2f} to {high:.2f})"
            logs = np.log(ratio)
            said[f"judged_over_{kind}_p"] = float(wilcoxon(logs).pvalue) if len(logs) > 4 and logs.any() else None
    return said
