"""The laboratory: tables, records, what is not computed again, and neurons that say nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from viv1t.errors import ConfigError
from viv1t.lab import Lab
from viv1t.lab.experiments.contrast import fit_contrast
from viv1t.lab.experiments.frequency import fit_octaves
from viv1t.lab.gratings import Grid, cover, harmonics, leaner
from viv1t.lab.observers import Twin
from viv1t.lab.present import OverBudget
from viv1t.stimuli.geometry import Monitor
from viv1t.types import Mouse

SIZE = (24, 40)
GRID = Grid(8, (0.05, 0.1), (2.0,), 2)


class Linear:
    """Neurons of one Gaussian field each, rectified: 0 is elongated and off centre, 1 is silent, 2 always the same,
    3 not finite, 4 as 0 but mirrored and turned."""

    frame_size = SIZE
    longest = 300

    def __init__(self) -> None:
        y, x = np.mgrid[: SIZE[0], : SIZE[1]]
        fields = []
        for x0, y0, theta in ((29.0, 7.0, 20.0), (10.0, 16.0, 110.0)):
            t = np.radians(theta)
            along = (x - x0) * np.cos(t) + (y - y0) * np.sin(t)
            across = (y - y0) * np.cos(t) - (x - x0) * np.sin(t)
            fields.append(np.exp(-(along**2) / (2 * 5.0**2) - across**2 / (2 * 2.5**2)) / 50)
        self.fields = np.stack(fields)
        self.mouse = Mouse("F", "session-f", np.zeros((5, 3), np.float32), np.array([7, 5, 9, 3, 1]))
        self.facts: dict[str, Any] = {"model": "linear"}
        self.identity, self.shown = "linear", 0

    def answer(self, films: np.ndarray) -> np.ndarray:
        self.shown += len(films)
        contrast = films.astype(np.float64) - 127
        drive = np.maximum(np.einsum("bthw,nhw->bnt", contrast, self.fields), 0)
        out = np.zeros((len(films), 5, films.shape[1]))
        out[:, 0], out[:, 2], out[:, 3], out[:, 4] = drive[:, 0], 3.0, np.nan, drive[:, 1]
        return out.astype(np.float32)

    def answer_long(self, film: np.ndarray) -> np.ndarray:
        return self.answer(film[None])[0]


def test_fields_off_centre_are_found_where_they_are_and_others_say_why_not() -> None:
    table = Lab({"F": Linear()}, out=None, monitor=Monitor(40, 24, 20)).rf(step=2)
    assert table["unit_id"].tolist() == [7, 5, 9, 3, 1]
    assert table["neuron"].tolist() == [0, 1, 2, 3, 4]
    for n, x, y, theta in ((0, 29, 7, 20), (4, 10, 16, 110)):
        row = table.iloc[n]
        assert abs(row["x"] - x) < 0.5
        assert abs(row["y"] - y) < 0.5
        assert abs((row["theta"] - theta + 90) % 180 - 90) < 6
        assert row["sigma_x"] > 1.4 * row["sigma_y"]
        assert row["good"]
        assert row["reason"] == ""
        # A pixel is a centimetre wide here: degrees are right and up from the middle.
        expected = np.degrees(np.arctan([(row["x"] - 19.5) / 20, (11.5 - row["y"]) / 20]))
        np.testing.assert_allclose([row["x_deg"], row["y_deg"]], expected)
        assert row["on_off"] > 0.9
    words = ["", "does not respond to dots", "does not respond to dots", "response is not finite", ""]
    assert table["reason"].tolist() == words
    assert table.loc[[1, 2, 3], ["x", "y", "r2", "ssi"]].isna().all(axis=None)
    assert not table.loc[[1, 2, 3], "good"].any()


def test_neurons_that_say_nothing_keep_their_rows_in_every_experiment() -> None:
    lab = Lab({"F": Linear()}, out=None)
    words = ["", "does not respond to gratings", "does not respond to gratings", "response is not finite", ""]
    for table in (lab.direction(GRID, shuffles=5), lab.frequency(GRID), lab.contrast(GRID)):
        assert table["reason"].tolist() == words
    direction = lab.direction(GRID, shuffles=5)
    silent = direction.loc[[1, 2, 3], ["gOSI", "DSI", "preferred_direction", "fit_mu", "p_direction", "motion_angle"]]
    assert silent.isna().all(axis=None)
    # The elongated fields prefer bars along them, which move across: the axis of motion is at right angles.
    for n, theta in ((0, 20), (4, 110)):
        # From right towards down, as fields have it, to stimuli: from left towards down.
        expected = (180 - (theta + 90)) % 180
        assert abs((direction["preferred_orientation"][n] - expected + 90) % 180 - 90) < 8
    turn = (direction["motion_angle"] - direction["preferred_direction"]).dropna().abs()
    np.testing.assert_allclose(turn, 180)
    assert (lab.frequency(GRID)["f1_f0"][[0, 4]] > 1).all()  # linear neurons follow the grating
    curves = np.stack(lab.contrast(GRID)["curve"][[0, 4]].to_list())
    np.testing.assert_allclose(curves / curves[:, -1:], np.tile([0, 0.05, 0.1, 0.25, 0.5, 1], (2, 1)), atol=0.02)


@pytest.mark.parametrize("format", ["parquet", "csv"])
def test_what_is_finished_is_read_and_what_decides_it_is_written(tmp_path: Path, format: str) -> None:
    first = Lab({"F": Linear()}, out=tmp_path, format=format)
    tables = {"rf": first.rf(step=6), "direction": first.direction(GRID, shuffles=5)}
    observer = Linear()
    again = Lab({"F": observer}, out=tmp_path, format=format)
    pd.testing.assert_frame_equal(again.rf(step=6), tables["rf"])
    pd.testing.assert_frame_equal(again.direction(GRID, shuffles=5), tables["direction"])
    assert observer.shown == 0
    record = json.loads((tmp_path / "session-f" / "direction.json").read_text())
    assert record["observer"] == {"model": "linear"}
    assert record["layout"] == {"lead": 60, "before": 15, "pattern": 30, "after": 15, "count": 4}
    assert record["monitor"] == [56.5, 31.8, 15]
    assert {"viv1t", "numpy", "scipy", "torch"} <= record["versions"].keys()
    # Other neurons, another monitor: the same responses, other tables.
    other = Lab({"F": observer}, out=tmp_path, format=format, neurons=[4, 0], monitor=Monitor(40, 24, 20))
    table = other.rf(step=6)
    assert observer.shown == 0
    assert table["neuron"].tolist() == [4, 0]
    assert table["unit_id"].tolist() == [1, 7]
    assert table["x"].tolist() == tables["rf"]["x"][[4, 0]].tolist()
    assert other.rf(step=8)["x"].tolist() != table["x"].tolist()
    assert observer.shown > 0


def test_all_leaves_out_what_there_is_no_time_for(monkeypatch: pytest.MonkeyPatch) -> None:
    options = {name: {"grid": GRID} for name in ("direction", "frequency", "contrast")}
    monkeypatch.setattr("viv1t.lab.present.time.monotonic", lambda: 0.0)

    def lab_with(room: float, said: list[str]) -> Lab:
        lab = Lab({"F": Linear()}, out=None, budget=1000, say=said.append)
        theatre = lab._theatres["F"]
        theatre.deadline, theatre._passes = room, {300: 1.0}
        return lab

    assert list(lab_with(100.0, []).all(options)) == ["rf", "direction", "frequency", "contrast", "size", "context"]
    said: list[str] = []
    lab = lab_with(8.5, said)
    assert list(lab.all(options)) == ["rf"]  # every 4 pixels in place of 2: 6 trials in place of 24
    left_out = [line.split(" is left out")[0] for line in said if "is left out" in line]
    assert left_out == ["direction", "frequency", "contrast", "size", "context"]
    with pytest.raises(OverBudget, match="--budget"):
        lab.direction(GRID)
    # Without a budget what takes days is not begun.
    assert Lab({"F": Linear()}, out=None).experiments == ("rf", "direction", "frequency", "contrast")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"format": "xlsx"}, "--format must be one of parquet, csv, not 'xlsx'"),
        ({"neurons": [0, 5]}, "--neurons 5: mouse F has 5 neurons, numbered from 0 to 4"),
        ({"neurons": [1, 1]}, "names a neuron twice"),
        ({"neurons": "best"}, "--neurons must be all, numbers from 0, or best:K with K from 1 to 5 for mouse F"),
        ({"budget": 0}, "--budget must be above 0 seconds"),
        ({"batch_size": 0}, "--batch_size must be at least 1, not 0"),
    ],
)
def test_one_wrong_option(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Lab({"F": Linear()}, **{"out": None, **options})


def test_wrong_options_of_experiments(tmp_path: Path) -> None:
    lab = Lab({"F": Linear()}, out=None)
    with pytest.raises(ConfigError, match="--step must be from 1 to 11 pixels, not 12"):
        lab.rf(step=12)
    for values, words in (
        ({"directions": 6}, "--directions must be a multiple of 4, not 6"),
        ({"phases": 0}, "--phases must be at least 1"),
        ({"frequencies": (0.1, 0.05)}, "--frequencies must be different and ascending, above 0 and at most 0.5"),
        ({"hertz": (20.0,)}, "--hertz must be different and ascending, above 0 and at most 15"),
    ):
        with pytest.raises(ConfigError, match=words):
            Grid(**values)  # type: ignore[arg-type]
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"--out .*file: is a file"):
        Lab({"F": Linear()}, out=tmp_path / "file")


def test_a_run_is_examined(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Lab([runs / "one", runs / "two"], out=tmp_path, device="cpu", mice="F") as lab:
        table = lab.rf(step=17)
        assert len(table) == 6
        assert set(table["mouse"]) == {"F"}
        record = json.loads((next(tmp_path.iterdir()) / "rf.json").read_text())
        assert record["layout"]["count"] == 1  # the run knows windows of 62 frames
        assert record["observer"]["models"] == 2
    monkeypatch.setattr(Twin, "answer", None)
    with Lab([runs / "one", runs / "two"], out=tmp_path, device="cpu", mice="F") as lab:
        pd.testing.assert_frame_equal(lab.rf(step=17), table)


# -- parts -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hertz", [1.0, 2.0, 4.0])
def test_harmonics_of_a_known_response(hertz: float) -> None:
    n = np.arange(30)
    response = 3 + 2 * np.cos(2 * np.pi * hertz * n / 30 + 0.7)
    mean, level, real, imaginary = response @ harmonics(hertz)
    assert level == pytest.approx(3)
    assert abs(real + 1j * imaginary) == pytest.approx(2)
    assert np.angle(real + 1j * imaginary) == pytest.approx(0.7)
    assert mean == pytest.approx(3)
    # What comes first is left out where a later cycle is there.
    response[:10] += 50
    assert (response @ harmonics(hertz))[1] == pytest.approx(3 if hertz > 1 else 3 + 50 / 3)


def test_fits_of_known_curves() -> None:
    frequencies = np.array([0.03, 0.05, 0.07, 0.1, 0.135])
    curve = 2 + 5 * np.exp(-((np.log2(frequencies) - np.log2(0.08)) ** 2) / (2 * 0.6**2))
    found = fit_octaves(curve, frequencies)
    assert found is not None
    np.testing.assert_allclose(found, (0.08, 0.6 * np.sqrt(8 * np.log(2)), 1), rtol=1e-3)
    contrasts = np.array([0, 0.05, 0.1, 0.25, 0.5, 1])
    known = (1.0, 6.0, 0.2, 2.5)
    curve = known[0] + known[1] * contrasts ** known[3] / (contrasts ** known[3] + known[2] ** known[3])
    found_contrast = fit_contrast(curve, contrasts)
    assert found_contrast is not None
    np.testing.assert_allclose(found_contrast, (*known, 1), rtol=1e-3)
    for bad in (np.zeros(5), np.full(5, 2.0), np.array([1, 2, np.nan, 3, 4])):
        assert fit_octaves(bad, frequencies) is None
        assert fit_contrast(bad, contrasts[1:]) is None
    assert fit_octaves(curve[:3], frequencies[:3]) is None


def test_few_gratings_serve_every_neuron() -> None:
    rng = np.random.default_rng(0)
    responses = rng.random((40, 12))
    responses[3], responses[4] = 0, np.nan
    chosen = cover(responses, 0.8)
    asking = np.delete(responses, [3, 4], axis=0)
    assert (asking[:, chosen].max(1) >= 0.8 * asking.max(1)).all()
    assert len(chosen) < 12
    assert cover(np.zeros((2, 5))).tolist() == [0]
    sizes = [np.prod(grid.shape) for grid in leaner(Grid())]
    assert sizes == sorted(sizes, reverse=True)
    assert len(sizes) == len(set(sizes))
