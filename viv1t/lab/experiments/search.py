"""Search of a library of movies: the clips that a neuron answers most when each is shown alone at its field.

In two stages: the model sees whole movies once, for all neurons, and promises a list of clips of each; only these are
shown alone. How much the list misses is told where all clips of a few neurons are shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from viv1t.lab.natural import STEP, Library, Shortlist
from viv1t.lab.present import Films, Shown, Theatre
from viv1t.lab.protocols import Layout
from viv1t.stimuli.parametric import GREY

BEST = 20
_RANDOM = 20  # clips drawn from all, as a control


@dataclass(frozen=True)
class Searched:
    """What a neuron answered to clips shown alone.

    Attributes:
        neuron: which.
        places: (K, 2) movie and first frame of the clips of its list.
        answers: (K,) summed responses, recorded units.
        promised: (K,) what was summed up in the whole movies.
        random: responses to clips drawn from all.
        grey: the response to grey.
        recall: share of the true best clips that the list holds; NaN where it is not known.
        film: (T, H, W) uint8, the best clip as it was shown.
    """

    neuron: int
    places: np.ndarray
    answers: np.ndarray
    promised: np.ndarray
    random: np.ndarray
    grey: float
    recall: float
    film: np.ndarray


def every_clip(library: Library, frames: int, first: int, step: int = STEP) -> np.ndarray:
    """(C, 2) movie and first frame of all clips whose frames are predicted in the whole movies."""
    places = []
    for movie in range(len(library)):
        starts = np.arange(0, len(library.film(movie)) - frames + 1, step)
        starts = starts[starts >= first]
        places.append(np.stack([np.full(len(starts), movie), starts], axis=1))
    return np.concatenate(places) if places else np.empty((0, 2), int)


def search(
    theatre: Theatre,
    layout: Layout,
    library: Library,
    found: Shortlist,
    row: int,
    neuron: int,
    area: np.ndarray | None,
    *,
    still: bool = False,
    everything: np.ndarray,
    complete: bool = False,
    seed: int = 1234,
    label: str = "search",
) -> Searched:
    """Shows the clips of one neuron's list alone, in an area of the frame, beside some drawn from all.

    Args:
        theatre: of the observer.
        layout: where a clip lies in a trial.
        library: the movies.
        found: the lists.
        row: of the neuron in them.
        neuron: its place among the N.
        area: (H, W) pixels that are shown; None is the frame.
        still: each clip's first frame throughout.
        everything: (C, 2) all clips, as `every_clip` gives them.
        complete: whether all clips are shown, to tell what the list misses.
        seed: of the clips that are drawn.
        label: of lines of progress.
    """
    listed = np.stack([found.movie[row], found.first[row]], axis=1)
    there = listed[:, 0] >= 0
    listed, promised = listed[there], found.promised[row][there]
    rng = np.random.default_rng([seed, neuron])
    drawn = everything[rng.permutation(len(everything))[:_RANDOM]]
    more = everything if complete else np.empty((0, 2), int)
    rows = np.concatenate([listed, drawn, more, [[-1, 0]]]).astype(float)
    held: dict[int, np.ndarray] = {}

    def film(place: np.ndarray) -> np.ndarray:
        movie, first = int(place[0]), int(place[1])
        if movie < 0:
            return np.full((layout.pattern, *theatre.observer.frame_size), GREY, np.uint8)
        if movie not in held:
            if len(held) >= 8:
                held.clear()
            held[movie] = library.film(movie)
        clip = held[movie][first : first + (1 if still else layout.pattern)]
        clip = np.repeat(clip, layout.pattern, axis=0) if still else clip
        return clip if area is None else np.where(area, clip, GREY).astype(np.uint8)

    about = repr(("clip", library.identity, still, None if area is None else area.tobytes()))
    shown = theatre.fit(Shown(layout, Films(film, rows, about), {}, np.ones((layout.pattern, 1)), seed=None))
    answers = theatre.present(shown, f"{label}, neuron {neuron}")[neuron, :, 0].astype(np.float64)
    k, r = len(listed), len(drawn)
    recall = float("nan")
    if complete and len(more):
        best = np.argsort(-answers[k + r : -1], kind="stable")[:BEST]
        kept = {tuple(place) for place in listed.tolist()}
        recall = float(np.mean([tuple(more[i].tolist()) in kept for i in best]))
    top = int(answers[:k].argmax())
    return Searched(
        neuron, listed, answers[:k], promised, answers[k : k + r], float(answers[-1]), recall, film(rows[top])
    )


def table(
    searched: Sequence[Searched], library: Library, neurons: np.ndarray, reasons: Mapping[int, str]
) -> dict[str, Any]:
    """A row a neuron.

    Returns:
        `response` to the best clip shown alone, its `movie` and `first_frame`, what it `promised` in the whole movie
        and its `place` in the list; `grey`; `random`, the median response to clips drawn from all, and the share
        `random_p` of them that reach the best; `recall`; lists of the best 20: `best`, `best_movie`, `best_frame`.
    """
    names = ("response", "promised", "place", "grey", "random", "random_p", "recall", "first_frame")
    columns: dict[str, Any] = {name: np.full(len(neurons), np.nan) for name in names}
    columns["movie"] = [""] * len(neurons)
    lists = {name: [np.empty(0)] * len(neurons) for name in ("best", "best_movie", "best_frame")}
    words = [reasons.get(int(n), "") for n in neurons]
    rows = {int(n): row for row, n in enumerate(neurons)}
    for one in searched:
        row, order = rows[one.neuron], np.argsort(-one.answers, kind="stable")[:BEST]
        top = int(order[0])
        columns["response"][row], columns["promised"][row] = one.answers[top], one.promised[top]
        columns["place"][row], columns["grey"][row], columns["recall"][row] = top, one.grey, one.recall
        columns["random"][row] = np.median(one.random) if len(one.random) else np.nan
        columns["random_p"][row] = (one.random >= one.answers[top]).mean() if len(one.random) else np.nan
        columns["movie"][row] = library.names[int(one.places[top, 0])]
        columns["first_frame"][row] = one.places[top, 1]
        lists["best"][row] = one.answers[order]
        lists["best_movie"][row], lists["best_frame"][row] = one.places[order, 0], one.places[order, 1]
        if not one.answers[top] > one.grey + 1e-6 * abs(one.grey):
            words[row] = "no clip moves its response above that to grey"
    return columns | lists | {"reason": words}


def notes(table: Any) -> dict[str, Any]:
    """What a record says of a search: how much the best clips exceed drawn ones, and the recall."""
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = (table["response"] / table["random"]).to_numpy(float)
    said: dict[str, Any] = {}
    if np.isfinite(ratio).any():
        said["best_over_drawn_clips"] = float(np.median(ratio[np.isfinite(ratio)]))
    known = table["recall"].dropna()
    said["recall"] = float(known.mean()) if len(known) else "not known: no neuron was shown all clips (--recall)"
    return said
