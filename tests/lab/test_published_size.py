"""`size --published` shows the published trials in their order, and reads them as the published curves are read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from true_neurons import draw

from viv1t.errors import ConfigError
from viv1t.lab import Lab
from viv1t.lab.centered import Groups, NowhereToShow, groups
from viv1t.lab.experiments import size
from viv1t.lab.gratings import Grid
from viv1t.lab.protocols import published_size_order
from viv1t.stimuli.geometry import SENSORIUM


def test_the_published_trials_are_shown_in_their_order(golden_in_silico: Path) -> None:
    facts = json.loads((golden_in_silico / "protocol.json").read_text())
    trial = np.load(golden_in_silico / "protocol.npz")["size_trial"]
    places = np.array([[*facts["center"], 0, 0.1, 2], [50, 8, 0, 0.1, 2]], dtype=float)
    made = Groups(places, np.array([0, 1, 0]), ["", "", ""])
    (plan,) = size.plans((36, 64), lambda _: made, SENSORIUM, centre_grid=None, published=True, seed=facts["seed"])
    shown = plan()
    centre = int((shown.parameters["centres"] == facts["center"]).all(1).argmax())
    order = shown.order()[120 * centre + facts["size_trial"]]
    film = shown.layout.film([shown.patterns[p] for p in order])
    difference = np.abs(film.astype(int) - trial.astype(int))
    assert difference.max() <= 1
    assert (difference > 0).mean() <= 1e-3

    # Each neuron reads its own centre, averaged over directions and repeats.
    parameters, _ = published_size_order(facts["seed"])
    answer = parameters[..., 0] * (1 + parameters[..., 2])  # size, twice as much around the circle
    responses = np.stack([np.concatenate([(c + 1) * answer.reshape(-1) for c in range(2)])] * 3)[..., None]
    table = size.table(shown, responses.astype(np.float32), np.arange(3), facts["seed"])
    centres = shown.parameters["centres"]
    for n, group in enumerate(made.member):
        factor = 1 + int((centres == places[group, :2]).all(1).argmax())
        np.testing.assert_allclose(table["curve"][n], factor * size.SIZES)
        np.testing.assert_allclose(table["curve_inverse"][n], 2 * factor * size.SIZES)


def test_neurons_share_centres_and_gratings() -> None:
    observer, _ = draw(6, 4)
    lab = Lab({"F": observer}, out=None)
    fields = lab.rf(step=4)
    responses = lab._grid(lab._theatres["F"], Grid(8, (0.05, 0.1), (2.0,), 2))
    fields.loc[2, "reason"] = "more than one field"
    neurons = np.arange(6)
    shared = groups(fields, responses, neurons, centre_grid=4, own=False)
    assert shared.member[2] == -1
    assert shared.reasons[2] == "field: more than one field"
    for n in (0, 1, 3, 4, 5):
        x, y, direction, frequency, hertz = shared.shown[shared.member[n]]
        assert abs(x - fields["x"][n]) <= 2
        assert abs(y - fields["y"][n]) <= 2
        assert (x % 4, y % 4) == (0, 0)
        assert direction in (0, 45, 90, 135)
        assert (frequency in (0.05, 0.1), hertz) == (True, 2)
    assert len(np.unique(shared.shown[:, 3])) == 1
    own = groups(fields, responses, neurons, centre_grid=1, own=True)
    best = responses.best()
    assert own.shown[own.member[0], 2:4].tolist() == [best[0, 0] * 45, (0.05, 0.1)[best[0, 1]]]
    with pytest.raises(ConfigError, match="--centre_grid must be at least 1 pixel, not 0"):
        groups(fields, responses, neurons, centre_grid=0, own=True)
    fields["reason"] = "no peak above the map's noise"
    with pytest.raises(NowhereToShow, match="no neuron has both a good receptive field"):
        groups(fields, responses, neurons, centre_grid=2, own=True)


def test_a_mouse_without_a_field_keeps_its_rows(tmp_path: Path) -> None:
    observer, _ = draw(2, 4)
    said: list[str] = []
    lab = Lab({"F": observer}, out=tmp_path, neurons=[1, 0], say=said.append)
    fields = lab.rf(step=4)
    fields["reason"] = "no peak above the map's noise"
    lab.rf = lambda: fields  # type: ignore[method-assign, assignment]
    lab._grids[("F", None)] = lab._grid(lab._theatres["F"], Grid(4, (0.05,), (2.0,), 1))
    table = lab.size()
    assert table["neuron"].tolist() == [1, 0]
    assert table["reason"].tolist() == ["field: no peak above the map's noise"] * 2
    assert said[-1].startswith("size, mouse F: no neuron has both")
    assert len(list(tmp_path.rglob("size.parquet"))) == 1
