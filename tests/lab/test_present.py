"""Showing patterns: through a run's models, in batches, kept on disk, interrupted and continued."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from viv1t.errors import ConfigError, DataError
from viv1t.lab import Lab
from viv1t.lab.observers import Twin
from viv1t.lab.present import OverBudget, Shown, Theatre
from viv1t.lab.protocols import Layout
from viv1t.prediction.sources import opened_subjects
from viv1t.prediction.subject import SubjectModel
from viv1t.runs.ensemble import load_models
from viv1t.runs.folder import RunFolder
from viv1t.types import Mouse

SIZE = (6, 10)
LAYOUT = Layout(lead=3, before=1, pattern=4, after=2, count=3)


class Scripted:
    """Answers each frame with a neuron's own multiple of the frame's corner pixel, or what `change` makes of it."""

    frame_size = SIZE
    longest = 300
    identity = "scripted"

    def __init__(self, neurons: int = 3, change: Callable[[np.ndarray], np.ndarray] = lambda a: a) -> None:
        self.mouse = Mouse("F", "session-f", np.zeros((neurons, 3), np.float32), np.arange(10, 10 + neurons))
        self.facts: dict[str, Any] = {}
        self.change, self.shown = change, 0

    def answer(self, films: np.ndarray) -> np.ndarray:
        self.shown += len(films)
        level = films[:, :, 0, 0].astype(np.float32)
        return self.change(level[:, None] * np.arange(1, self.mouse.neurons + 1, dtype=np.float32)[:, None])

    def answer_long(self, film: np.ndarray) -> np.ndarray:
        return self.answer(film[None])[0]


def patterns(count: int, seed: int = 0) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).integers(0, 256, (count, LAYOUT.pattern, *SIZE), dtype=np.uint8))


def test_every_pattern_gets_its_own_response_in_whatever_order_and_batch() -> None:
    films = patterns(7)  # the last trial is not full
    expected = np.stack([np.arange(1, 4)[:, None] * film[:, 0, 0].astype(float) for film in films], axis=1)
    for seed, size in itertools.product((1, 2), (1, 2, 5)):
        shown = Shown(LAYOUT, films, seed=seed)
        np.testing.assert_array_equal(Theatre(Scripted(), batch_size=size).present(shown), expected)
    assert not np.array_equal(Shown(LAYOUT, films, seed=1).order(), Shown(LAYOUT, films, seed=2).order())
    weights = np.random.default_rng(3).normal(size=(7, LAYOUT.pattern, 2))
    taken = Theatre(Scripted()).present(Shown(LAYOUT, films, weights=weights))
    np.testing.assert_allclose(taken, np.einsum("npt,ptr->npr", expected, weights), rtol=1e-5)


def test_an_interrupted_presentation_goes_on_by_trial(tmp_path: Path) -> None:
    shown = Shown(LAYOUT, patterns(14))

    class Stopped(Scripted):
        def answer(self, films: np.ndarray) -> np.ndarray:
            if self.shown == 4:  # two of them are the timed passes
                raise KeyboardInterrupt
            return super().answer(films)

    with pytest.raises(KeyboardInterrupt):
        Theatre(Stopped(), tmp_path, batch_size=1).present(shown)
    rest = Scripted()
    theatre = Theatre(rest, tmp_path, batch_size=1)
    assert len(theatre.left(shown)) == 3
    whole = theatre.present(shown)
    assert rest.shown - 2 == 3
    np.testing.assert_array_equal(whole, Theatre(Scripted()).present(shown))
    again = Scripted()
    np.testing.assert_array_equal(Theatre(again, tmp_path).present(shown), whole)
    assert again.shown == 0
    # Nothing of the way there is left lying about.
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} == {".npy"}


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY nonsense"])
def test_a_damaged_trial_is_shown_again(tmp_path: Path, damage: bytes) -> None:
    shown = Shown(LAYOUT, patterns(6))
    whole = Theatre(Scripted(), tmp_path).present(shown)
    sorted(tmp_path.rglob("*.npy"))[0].write_bytes(damage)
    again = Scripted()
    np.testing.assert_array_equal(Theatre(again, tmp_path).present(shown), whole)
    assert again.shown - 2 == 1  # the timed passes beside it


def test_what_decides_the_numbers_decides_where_they_are_kept(tmp_path: Path) -> None:
    films = patterns(3)
    base = Shown(LAYOUT, films)
    other = [film.copy() for film in films]
    other[2][-1, -1, -1] ^= 1
    changed = [
        Shown(LAYOUT, other), Shown(LAYOUT, films, seed=5), Shown(LAYOUT, films, weights=np.ones((4, 1))),
        Shown(Layout(lead=4, before=1, pattern=4, after=2, count=3), films),
    ]  # fmt: skip
    places = {Theatre(Scripted(), tmp_path).place(shown) for shown in (base, *changed)}
    assert len(places) == 5
    another = Scripted()
    another.identity = "another"
    assert Theatre(another, tmp_path).place(base) not in places


def test_time_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theatre = Theatre(Scripted(), tmp_path, batch_size=1)
    rich, lean = Shown(LAYOUT, patterns(30)), Shown(LAYOUT, patterns(6))
    theatre._passes[LAYOUT.frames] = 10.0
    now = [0.0]
    monkeypatch.setattr("viv1t.lab.present.time.monotonic", lambda: now[0])
    for room, chosen in ((101.0, rich), (99.0, lean)):
        theatre.deadline = room
        assert theatre.choose([lambda: rich, lambda: lean]) == chosen
    theatre.deadline = 15.0
    with pytest.raises(OverBudget, match=r"mouse F: the least of it takes 0:20, and 0:15 of --budget is left"):
        theatre.choose([lambda: rich, lambda: lean])
    # What was begun goes on, and costs no more than is left of it.
    theatre.present(lean)
    assert theatre.choose([lambda: rich, lambda: lean]) == lean


def test_patterns_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"pattern 1 must be \(T, H, W\) = \(4, 6, 10\), not \(5, 6, 10\)"):
        Theatre(Scripted()).present(Shown(LAYOUT, [patterns(1)[0], np.zeros((5, *SIZE), np.uint8)]))
    with pytest.raises(ConfigError, match="no pattern"):
        Shown(LAYOUT, [])
    with pytest.raises(DataError, match="no predicted response is finite"):
        Theatre(Scripted(change=lambda a: a * np.nan)).present(Shown(LAYOUT, patterns(3)))


# -- the models of a run -----------------------------------------------------------------------------------------------


def twins(runs: list[Path], **states: np.ndarray) -> tuple[list[Any], Any, Twin]:
    folders = [RunFolder(run) for run in runs]
    models, known = load_models(folders, torch.device("cpu"))
    with opened_subjects(folders, models, known[:1]) as subjects:
        subject = subjects[known[0]]
    return models, subject, Twin(models, subject, states)


def test_a_twin_answers_as_a_prediction_does_in_one_unit_over_time(runs: Path) -> None:
    models, subject, twin = twins([runs / "one", runs / "two"])
    films = np.random.default_rng(1).integers(0, 256, (3, 60, 36, 64), dtype=np.uint8)
    answers = twin.answer(films)
    window = SubjectModel(models, subject)
    states = {n: np.repeat(subject.median(n)[:, None], 60, 1) for n in ("behavior", "pupil_center")}
    deviations = 1 / subject.transform.affine["response"].scale.astype(np.float64)
    for film, answer in zip(films, answers, strict=True):
        predicted = window.window(torch.from_numpy(film), states)
        np.testing.assert_allclose(answer, predicted * deviations.mean(1, keepdims=True), rtol=1e-4, atol=1e-5)
    each = [twins([runs / name])[2].answer(films[:1])[0] for name in ("one", "two")]
    frames = min(a.shape[1] for a in each)
    np.testing.assert_allclose(answers[0][:, -frames:], sum(a[:, -frames:] for a in each) / 2, rtol=1e-4, atol=1e-5)


def test_states_and_weights_are_part_of_who_answers(runs: Path) -> None:
    one = twins([runs / "one"])[2]
    assert one.identity == twins([runs / "one"])[2].identity
    others = [
        twins([runs / "two"])[2], twins([runs / "one", runs / "two"])[2],
        twins([runs / "one"], behavior=one.states["behavior"] + 1)[2],
    ]  # fmt: skip
    assert len({one.identity, *(other.identity for other in others)}) == 4
    with pytest.raises(DataError, match="--behavior"):
        twins([runs / "one"], behavior=np.zeros(3))


def test_films_and_patterns_are_presented_to_every_mouse(runs: Path) -> None:
    with Lab(runs / "one", out=None, device="cpu") as lab:
        film = np.full((70, 36, 64), 127.0)
        answers = lab.present(film)
        assert {id: a.shape for id, a in answers.items()} == {"F": (6, 70), "G": (6, 70)}
    with Lab(runs / "one", out=None, device="cpu", mice="G") as lab:
        assert lab.present([np.zeros((30, 36, 64), np.uint8)] * 5).shape == (5, 6, 30)
        with pytest.raises(ConfigError, match=r"a film must be \(T, 36, 64\), not \(36, 64, 70\)"):
            lab.present(np.moveaxis(film, 0, -1))
        with pytest.raises(ConfigError, match="grey levels from 0 to 255"):
            lab.present(film + 200)


def test_layouts_fit_into_windows_that_the_model_knows() -> None:
    assert LAYOUT.within(300) == LAYOUT
    assert LAYOUT.within(LAYOUT.frames - 1) == Layout(lead=3, before=1, pattern=4, after=2, count=2)
    assert LAYOUT.within(9) == Layout(lead=2, before=1, pattern=4, after=2, count=1)
    with pytest.raises(ConfigError, match=r"take 7, but the model knows windows of 6 frames.*--crop_frame"):
        LAYOUT.within(6)
    short = Scripted()
    short.longest = 11
    films = patterns(5)
    theatre = Theatre(short)
    shown = theatre.fit(Shown(LAYOUT, films))
    assert (shown.layout.frames, shown.trials) == (10, 5)
    np.testing.assert_array_equal(theatre.present(shown), Theatre(Scripted()).present(Shown(LAYOUT, films)))
