"""What the laboratory takes from recordings: repeats, states, and statistics of other mice."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from viv1t.data.mice import open_recording
from viv1t.data.session import Session
from viv1t.data.synthetic.truth import load_population
from viv1t.data.transform import Affine, Transform
from viv1t.errors import ConfigError, DataError
from viv1t.lab import Lab
from viv1t.lab.observers import TrueNeurons, Twin
from viv1t.lab.recorded import film_of, percentile_state, reliability
from viv1t.lab.states import mean_statistics, seen_as
from viv1t.prediction.subject import Subject
from viv1t.types import Mouse


@pytest.fixture(scope="module")
def session(mice: Path) -> Session:
    """Mouse F, whose repeats in the tier validation are given."""
    return open_recording(next(p for p in mice.iterdir() if p.name.startswith("dynamic29515")))


def test_reliability_is_the_mean_correlation_of_pairs(session: Session) -> None:
    found = reliability(session, ("validation",))
    expected = []
    for trials in session.repeats("validation"):
        shown = [session.read("response", t)[:, : session.duration(t)] for t in trials]
        pairs = [(a, b) for i, a in enumerate(shown) for b in shown[i + 1 :]]
        assert pairs
        expected.append(
            np.mean([[np.corrcoef(x, y)[0, 1] for x, y in zip(a, b, strict=True)] for a, b in pairs], axis=0)
        )
    np.testing.assert_allclose(found["reliability"], np.mean(expected, axis=0), rtol=1e-6)
    assert int(found["movies"]) == len(expected)


class Silent:
    """A recording of which a neuron never answers, or of which nothing is repeated."""

    def __init__(self, session: Session, repeats: bool = True) -> None:
        self.session, self.mouse, self._repeats = session, session.mouse, repeats

    def __getattr__(self, name: str) -> object:
        return getattr(self.session, name)

    def repeats(self, tier: str) -> list[list[int]]:
        groups = self.session.repeats(tier)
        return groups if self._repeats else [[group[0]] for group in groups]

    def read(self, variable: str, trial: int) -> np.ndarray:
        array = self.session.read(variable, trial).copy()
        if variable == "response":
            array[1] = 0
        return array


def test_silent_neurons_and_recordings_without_repeats(session: Session) -> None:
    found = reliability(Silent(session), ("validation",))  # type: ignore[arg-type]
    assert np.isnan(found["reliability"][1])
    assert np.isfinite(np.delete(found["reliability"], 1)).all()
    with pytest.raises(DataError, match="no movie of validation was shown twice"):
        reliability(Silent(session, repeats=False), ("validation",))  # type: ignore[arg-type]


def test_states_are_percentiles_of_training(session: Session) -> None:
    frames = np.concatenate(
        [session.read("behavior", t)[:, : session.duration(t)] for t in session.trials("train")], axis=1
    )
    np.testing.assert_allclose(percentile_state(session, "running"), np.percentile(frames, 90, axis=1))
    np.testing.assert_allclose(percentile_state(session, "still"), np.percentile(frames, 10, axis=1))
    np.testing.assert_allclose(percentile_state(session, "25"), np.percentile(frames, 25, axis=1))
    for wrong in ("fast", "101", "-1", "nan"):
        with pytest.raises(ConfigError, match="--state must be running, still or a percentile"):
            percentile_state(session, wrong)


def test_movies_are_grey_levels(session: Session) -> None:
    trial = session.trials("train")[0]
    film = film_of(session, trial)
    video = session.read("video", trial)[..., : session.duration(trial)]
    assert film.dtype == np.uint8
    np.testing.assert_array_equal(film, np.moveaxis(np.rint(video), -1, 0))


def test_true_neurons_are_reliable_and_predicted(mice: Path, session: Session, tmp_path: Path) -> None:
    cells = load_population(session.path)
    observer = TrueNeurons(session.mouse, cells)
    lab = Lab({"F": observer}, data=mice, out=tmp_path, neurons=[4, 1, 0])
    table = lab.reliability()
    assert table["neuron"].tolist() == [4, 1, 0]
    assert sorted(table["order"]) == [0, 1, 2]
    kept = []
    for trials in [g for t in ("validation", "live_main", "final_main") for g in session.repeats(t) if len(g) > 1]:
        if session.hidden(session.tiers[trials[0]]):
            continue
        frames = min(session.duration(t) for t in trials)
        states = [{n: session.read(n, t)[:, :frames] for n in ("behavior", "pupil_center")} for t in trials]
        predicted = [observer.answer_long(film_of(session, t)[:frames], s) for t, s in zip(trials, states, strict=True)]
        recorded = [session.read("response", t)[:, :frames] for t in trials]
        kept.append(np.stack([np.mean(predicted, axis=0), np.mean(recorded, axis=0)])[..., 50:])
    means = np.concatenate(kept, axis=-1)
    expected = [np.corrcoef(means[0, n], means[1, n])[0, 1] for n in (4, 1, 0)]
    np.testing.assert_allclose(table["correlation"], expected, rtol=1e-4)
    assert (table["reason"] == "").all()
    assert json.loads(next(tmp_path.rglob("reliability.json")).read_text())["options"] == {"fields": False}
    pd.testing.assert_frame_equal(Lab({"F": observer}, data=mice, out=tmp_path, neurons=[4, 1, 0]).reliability(), table)
    best = Lab({"F": observer}, data=mice, out=None, neurons="best:2")
    value = reliability(session)["reliability"]
    assert best._neurons["F"].tolist() == sorted(np.argsort(-value)[:2].tolist())
    with pytest.raises(ConfigError, match="needs its recording: give data"):
        Lab({"F": observer}, out=None, neurons="best:2")


def subject(id: str, seed: int, frames: int = 5) -> Subject:
    rng = np.random.default_rng(seed)

    def affine(*rows: int) -> Affine:
        offset, scale = rng.random((*rows, frames)), 1 / (1 + rng.random((*rows, frames)))
        return Affine(offset.astype(np.float32), scale.astype(np.float32))

    parts = {"video": affine(2, 3), "behavior": affine(2), "pupil_center": affine(2), "response": affine(4)}
    transform = Transform.of(id, parts, 1, (2, 3))
    mouse = Mouse(id, id, np.zeros((4, 3), np.float32), np.arange(4))
    return Subject(mouse, transform, lambda name: np.full(2, seed, np.float32), (0.0, 255.0))


def test_statistics_of_each_frame_become_their_mean() -> None:
    one = subject("F", 1)
    mean = mean_statistics(one)
    was, now = one.transform.affine, mean.transform.affine
    for name in ("video", "behavior", "pupil_center"):
        assert now[name].frames is None
        np.testing.assert_allclose(now[name].offset[..., 0], was[name].offset.mean(-1), rtol=1e-6)
        np.testing.assert_allclose(1 / now[name].scale[..., 0], (1 / was[name].scale).mean(-1), rtol=1e-6)
    assert now["response"] is was["response"]
    assert one.transform.affine["video"].frames == 5


def test_a_mouse_is_seen_as_another() -> None:
    one, other = subject("F", 1), subject("G", 2)
    seen = seen_as(one, other)
    assert seen.mouse.id == "F"
    for name in ("video", "behavior", "pupil_center"):
        assert seen.transform.affine[name] is other.transform.affine[name]
    assert seen.transform.affine["response"] is one.transform.affine["response"]
    assert seen.median("behavior").tolist() == [2, 2]
    assert seen_as(one, one) is one


def test_a_run_at_other_states(runs: Path, mice: Path) -> None:
    def twin(**options: object) -> Twin:
        with Lab(runs / "one", data=mice, out=None, device="cpu", mice="F", **options) as lab:  # type: ignore[arg-type]
            observer = lab._theatres["F"].observer
            assert isinstance(observer, Twin)
            return observer

    plain, running, other = twin(), twin(state="running"), twin(states_of="G")
    assert (running.states["behavior"] > plain.states["behavior"]).all()
    assert len({plain.identity, running.identity, other.identity}) == 3
    own, others = plain.subject.transform.affine, other.subject.transform.affine
    assert not np.array_equal(own["video"].offset, others["video"].offset)
    assert np.array_equal(own["response"].scale, others["response"].scale)
    with pytest.raises(ConfigError, match="--states_of Z: not a mouse of the run"):
        twin(states_of="Z")
    with pytest.raises(ConfigError, match="--state and --behavior both"):
        twin(state="still", behavior=(1.0, 2.0))
