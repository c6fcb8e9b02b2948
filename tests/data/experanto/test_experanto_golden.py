"""Experanto folders: every value that the format's own package reads in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from viv1t.data.formats.experanto import trials
from viv1t.data.formats.experanto.folder import Experiment, read_experiment
from viv1t.errors import DataError

NAMES = (
    "dynamic90001-3-7-Video-021a75e56847d574b9acbcc06c675055_30hz",
    "dynamic90011-2-9-Video-512cdd91f251cf74fff81375926f4002_full",
    "dynamic90021-1-1-encoded",
    "small_session1",
)


class Case:
    def __init__(self, folder: Path, name: str) -> None:
        self.experiment: Experiment = read_experiment(folder / "recordings" / name)
        self.folder = folder / "expected" / name
        self.expected: dict[str, Any] = json.loads((self.folder / "expected.json").read_text())


@pytest.fixture(scope="module", params=NAMES)
def case(request: pytest.FixtureRequest, golden_experanto: Path) -> Case:
    return Case(golden_experanto, request.param)


def relative(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Largest difference relative to 1 + |value|; NaN must meet NaN."""
    ours, theirs = ours.astype(np.float64), theirs.astype(np.float64)
    assert np.array_equal(np.isnan(ours), np.isnan(theirs))
    difference = np.abs(ours - theirs) / (1 + np.abs(theirs))
    return float(np.nanmax(difference, initial=0))


def test_name_devices_and_trials(case: Case) -> None:
    experiment = case.experiment
    assert experiment.key == next(iter(case.expected["datasets"].values()))["data_key"]
    for name, device in case.expected["devices"].items():
        if name == "screen":
            assert (experiment.screen.start, experiment.screen.end) == (device["start_time"], device["end_time"])
            continue
        ours = experiment.devices[name]
        assert ours.signals == device["n_signals"]
        assert len(ours.data) == device["n_stored"]
        assert ours.rate == device["sampling_rate"]
        assert ours.interval(linear=True)[0] == pytest.approx(device["valid_interval"][0], abs=1e-9)
    facts = [(t["key"], t["modality"], t["tier"], t["condition_hash"], t["first_frame_idx"], t["frames"])
             for t in case.expected["trials"]]  # fmt: skip
    assert [(t.key, t.modality, t.tier, t.condition, t.first, t.frames) for t in experiment.screen.trials] == facts
    spans = [experiment.screen.span(i) for i in range(len(facts))]
    assert spans == [(t["start"], t["end"]) for t in case.expected["trials"]]
    assert experiment.interval == tuple(case.expected["mouse"]["valid"])


def test_values_of_sequences(case: Case) -> None:
    golden = np.load(case.folder / "interpolate.npz")
    for name, device in case.experiment.devices.items():
        for mode, linear, bound in (("nearest_neighbor", False, 1e-7), ("linear_keep_nans", True, 1e-5)):
            times, expected, valid = (golden[f"{name}/{mode}/{part}"] for part in ("times", "values", "valid"))
            values, ours = device.at(times, linear=linear)
            assert np.array_equal(ours, valid), (name, mode)
            assert relative(values.astype(np.float32), expected) <= bound, (name, mode)


def test_frames_of_the_screen(case: Case) -> None:
    golden = np.load(case.folder / "interpolate.npz")
    encoded = any((case.experiment.screen.folder / "data").glob("*.mp4"))
    for name in {key.split("/")[1] for key in golden if key.startswith("screen/")}:
        times, expected, valid = (golden[f"screen/{name}/{part}"] for part in ("times", "values", "valid"))
        numbers = case.experiment.screen.frame_at(times)
        assert np.array_equal(np.flatnonzero(numbers >= 0), valid), name
        size = None if name == "native" else tuple(map(int, name.removeprefix("rescale_").split("x")))
        stored = case.experiment.screen.trials[0].size
        if size is not None and stored is not None and size[0] > stored[0]:
            with pytest.raises(DataError, match="enlarged"):
                case.experiment.screen.frames(numbers[valid], size)
            continue
        frames = case.experiment.screen.frames(numbers[valid], size)
        bound = 1.0 if encoded else 0.0 if size is None else 1e-3
        assert np.abs(frames.astype(np.float64) - expected).max() <= bound, name


def test_trials_on_the_grid(case: Case) -> None:
    golden = np.load(case.folder / "mouse.npz")
    screen = case.experiment.screen
    numbers = {trial.key: i for i, trial in enumerate(screen.trials)}
    enlarged = screen.trials[0].size is not None and screen.trials[0].size[0] < 36
    assert case.expected["mouse"]["trials"]
    for facts in case.expected["mouse"]["trials"]:
        key = facts["key"]
        start, end = screen.span(numbers[key])
        clip = trials.Clip(start, round(30 * (end - start)), "train", (key,), None)
        assert (clip.onset, clip.frames) == (facts["onset"], facts["frames"])
        for name, device in case.experiment.devices.items():
            for mode, linear, bound in (("zero_order", False, 1e-7), ("linear", True, 1e-5)):
                values, valid = device.at(clip.times, linear=linear)
                expected = golden[f"{key}/{name}/{mode}"]
                assert len(valid) == len(expected) == clip.frames
                assert relative(values.astype(np.float32), expected) <= bound
        if not enlarged:
            video = trials.video(case.experiment, clip, trials.Rules())
            assert video.shape == (36, 64, clip.frames)
            expected = golden[f"{key}/video"].astype(np.float64)
            assert np.abs(np.moveaxis(video, -1, 0)[::10] - expected).max() <= 1.0


def test_segments_of_images(case: Case) -> None:
    tiers = [trial.tier or "blank" for trial in case.experiment.screen.trials]
    ours = [(s.tier, s.onset, s.frames, s.keys) for s in trials.segments(case.experiment, tiers)]
    expected = case.expected["mouse"]["image_segments"]
    assert ours == [(s["tier"], s["onset"], s["frames"], tuple(s["keys"])) for s in expected]


def test_nothing_is_written_into_a_recording(case: Case) -> None:
    before = sorted(p for p in case.experiment.path.rglob("*"))
    trials.clips(read_experiment(case.experiment.path), trials.Rules(leaks="hold_out"))
    assert sorted(p for p in case.experiment.path.rglob("*")) == before
