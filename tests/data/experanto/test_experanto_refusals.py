"""Experanto folders that are damaged, deviate, or hold what is not understood: one line that names file and trial."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from viv1t.data.formats.experanto import trials
from viv1t.data.formats.experanto.folder import read_experiment
from viv1t.data.formats.experanto.trials import Rules
from viv1t.errors import ConfigError, DataError

FRAMES = 90  # of each clip


class Recording:
    """A made-up experiment of two clips and a blank, to be spoiled."""

    def __init__(self, path: Path, clips: tuple[tuple[str, str], ...] = (("train", "a"), ("oracle", "b"))) -> None:
        self.path = path
        rng = np.random.default_rng(0)
        (path / "screen" / "data").mkdir(parents=True)
        described: dict[str, Any] = {}
        for i, (tier, condition) in enumerate(clips):
            film = rng.integers(0, 256, (FRAMES, 36, 64)).astype(np.uint8)
            np.save(path / f"screen/data/{i:05d}.npy", film)
            described[f"{i:05d}"] = {
                "modality": "video", "first_frame_idx": i * FRAMES, "image_size": [36, 64], "num_frames": FRAMES,
                "tier": tier, "condition_hash": condition,
            }  # fmt: skip
        last = len(clips)
        described[f"{last:05d}"] = {
            "modality": "blank", "first_frame_idx": last * FRAMES, "image_size": [36, 64], "interleave_value": 128,
        }  # fmt: skip
        self.write_trials(described)
        self.times = 100 + np.arange(last * FRAMES + 1) / 30
        np.save(path / "screen/timestamps.npy", self.times)
        self.write_meta("screen", {"modality": "screen", "frame_rate": 30.0})
        self.write_device("responses", rng.gamma(1, 1, (600, 5)).astype(np.float32), 30.0)
        eye = np.cumsum(rng.normal(size=(400, 3)), axis=0)
        self.write_device("eye_tracker", np.column_stack([eye, np.gradient(eye[:, 2])]), 20.0)
        self.write_device("treadmill", np.abs(rng.normal(size=(2000, 1))), 100.0)

    def write_trials(self, described: Any) -> None:
        (self.path / "screen/combined_meta.json").write_text(json.dumps(described))

    @property
    def trials(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.path / "screen/combined_meta.json").read_text())
        return content

    def write_meta(self, device: str, meta: dict[str, Any]) -> None:
        (self.path / device).mkdir(exist_ok=True)
        (self.path / device / "meta.yml").write_text(yaml.safe_dump(meta))

    def write_device(self, name: str, data: np.ndarray, rate: float, **changes: Any) -> None:
        meta = {
            "modality": "sequence", "sampling_rate": rate, "start_time": 99.0, "n_signals": data.shape[1],
            "n_timestamps": len(data), "dtype": str(data.dtype), "is_mem_mapped": True,
            "end_time": 99 + len(data) / rate,
        }  # fmt: skip
        self.write_meta(name, meta | changes)
        data.tofile(self.path / name / "data.mem")


@pytest.fixture
def recording(tmp_path: Path) -> Recording:
    return Recording(tmp_path / "dynamic1-2-3-Video-x_30hz")


def test_a_sound_recording(recording: Recording) -> None:
    experiment = read_experiment(recording.path)
    assert experiment.key == "1-2-3"
    found, _ = trials.clips(experiment)
    assert [(c.tier, c.frames, c.reason) for c in found] == [("train", 90, ""), ("oracle", 90, "")]
    rules = Rules()
    assert trials.responses(experiment, found[0], rules)[0].shape == (5, 90)
    assert trials.behavior(experiment, found[0], rules).shape == (2, 90)
    assert trials.pupil_center(experiment, found[0], rules).shape == (2, 90)
    trials.check_channels(experiment, rules)


def test_trials_from_files_of_their_own(recording: Recording) -> None:
    described = recording.trials
    (recording.path / "screen/combined_meta.json").unlink()
    (recording.path / "screen/meta").mkdir()
    for key, meta in described.items():
        (recording.path / f"screen/meta/{key}.yml").write_text(yaml.safe_dump(meta))
    assert len(read_experiment(recording.path).screen.trials) == 3
    described.pop("00002")
    recording.write_trials(described)
    with pytest.raises(DataError, match=r"combined_meta.json: 2 trials, but .*meta describes 3"):
        read_experiment(recording.path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"00001": {"first_frame_idx": 80}},
            "trial 00001: first_frame_idx 80, but the trials before it have 90 frames",
        ),
        ({"00001": {"num_frames": 900}}, "trial 00001: its frames end at 990"),
        ({"00000": {"modality": "hologram"}}, "trial 00000: modality hologram is none of"),
        ({"00000": {"num_frames": "many"}}, "num_frames must be a whole number"),
        ({"00000": {"num_frames": 0}}, "num_frames must be at least 1"),
        ({"00000": {"image_size": "big"}}, "image_size must be"),
        ({"00002": {"interleave_value": 300}}, "interleave_value must be a grey level"),
    ],
)
def test_trials_that_contradict(recording: Recording, change: dict[str, Any], message: str) -> None:
    described = recording.trials
    for key, values in change.items():
        described[key] |= values
    recording.write_trials(described)
    with pytest.raises(DataError, match=message):
        read_experiment(recording.path)


def test_times_that_descend(recording: Recording) -> None:
    times = recording.times.copy()
    times[40] = 0
    np.save(recording.path / "screen/timestamps.npy", times)
    with pytest.raises(DataError, match=r"timestamps.npy: times descend in trial 00000"):
        read_experiment(recording.path)


def test_times_in_float32_are_refused(recording: Recording) -> None:
    np.save(recording.path / "screen/timestamps.npy", recording.times.astype(np.float32))
    with pytest.raises(DataError, match="float64 seconds were expected"):
        read_experiment(recording.path)


@pytest.mark.parametrize("cut", [1, 4000])
def test_a_truncated_signal(recording: Recording, cut: int) -> None:
    file = recording.path / "responses/data.mem"
    file.write_bytes(file.read_bytes()[:-cut])
    with pytest.raises(DataError, match=r"responses/data.mem: .* promises 12000 .*truncated"):
        read_experiment(recording.path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": "object"}, "dtype object"),
        ({"dtype": "banana"}, "banana"),
        ({"sampling_rate": 0}, "must be above 0"),
        ({"sampling_rate": float("nan")}, "sampling_rate must be a number"),
        ({"n_signals": 2.5}, "n_signals must be a whole number"),
        ({"phase_shift_per_signal": "perhaps"}, "phase_shift_per_signal must be true or false"),
        ({"phase_shift_per_signal": True}, "phase_shifts.npy: missing"),
        ({"modality": "spikes"}, "modality spikes is not read here"),
    ],
)
def test_signals_that_are_not_understood(recording: Recording, changes: dict[str, Any], message: str) -> None:
    recording.write_device("responses", np.ones((600, 5), np.float32), 30.0, **changes)
    with pytest.raises(DataError, match=message):
        read_experiment(recording.path)


def test_a_flag_written_as_text_is_what_it_says(recording: Recording) -> None:
    recording.write_device("responses", np.ones((600, 5), np.float32), 30.0, phase_shift_per_signal="false")
    experiment = read_experiment(recording.path)
    assert not experiment.responses.shifts.any()
    assert any("'false', taken as false" in notice for notice in experiment.notices)


@pytest.mark.parametrize("missing", ["screen", "responses"])
def test_what_must_be_there(recording: Recording, missing: str) -> None:
    (recording.path / missing / "meta.yml").unlink()
    with pytest.raises(DataError, match=f"no {missing}/meta.yml"):
        read_experiment(recording.path)


@pytest.mark.parametrize("missing", ["eye_tracker", "treadmill"])
def test_what_may_be_missing(recording: Recording, missing: str) -> None:
    (recording.path / missing / "meta.yml").unlink()
    experiment = read_experiment(recording.path)
    assert any(f"no {missing}" in notice for notice in experiment.notices)
    clip = trials.clips(experiment)[0][0]
    assert clip.tier == "train"
    behavior = trials.behavior(experiment, clip, Rules())
    gaze = trials.pupil_center(experiment, clip, Rules())
    assert np.isfinite(behavior).all()
    assert behavior[1].any() == (missing != "treadmill")
    assert gaze.any() == (missing != "eye_tracker")


def test_a_stimulus_in_training_and_held_out(tmp_path: Path) -> None:
    leaking = Recording(tmp_path / "leak", (("train", "a"), ("oracle", "a"), ("train", "b")))
    experiment = read_experiment(leaking.path)
    with pytest.raises(DataError, match=r"1 stimuli are in the tier train and held out \(trials 00000, 00001\)"):
        trials.clips(experiment)
    found, notices = trials.clips(experiment, Rules(leaks="hold_out"))
    assert [c.tier for c in found] == ["none", "oracle", "train"]
    assert any("taken out of training" in notice for notice in notices)


def test_without_tiers_what_is_repeated_is_held_out(tmp_path: Path) -> None:
    clips = tuple(("", c) for c in ["a"] * 8 + ["b"] * 8 + ["c", "d"])
    experiment = read_experiment(Recording(tmp_path / "bare", clips).path)
    found, notices = trials.clips(experiment)
    inside = [c for c in found if c.reason != "beyond what every device recorded"]
    assert {c.condition: c.tier for c in inside}["a"] == "oracle"
    assert any("no tiers" in notice for notice in notices)
    tiers = trials._tiers(experiment, Rules(), [])
    assert tiers[:18] == ["oracle"] * 8 + ["final_test_main"] * 8 + ["train"] * 2


def test_blinks_are_filled_and_long_ones_take_a_trial(recording: Recording) -> None:
    eye = np.arange(1600, dtype=np.float64).reshape(400, 4)
    eye[40:45, :3] = np.nan  # a quarter of a second within the first clip
    recording.write_device("eye_tracker", eye, 20.0)
    experiment = read_experiment(recording.path)
    found, _ = trials.clips(experiment)
    assert [c.tier for c in found] == ["train", "oracle"]
    behavior = trials.behavior(experiment, found[0], Rules())[0]
    times = 99 + np.arange(400) / 20
    np.testing.assert_allclose(behavior, np.interp(found[0].times, times, np.arange(2, 1600, 4)), rtol=1e-6)
    eye[20:45] = np.nan
    recording.write_device("eye_tracker", eye, 20.0)
    first = trials.clips(read_experiment(recording.path))[0][0]
    assert first.tier == "none"
    assert "no eye in" in first.reason


def test_channels_in_another_order_are_noticed(recording: Recording) -> None:
    rng = np.random.default_rng(1)
    recording.write_device("eye_tracker", rng.normal(size=(400, 4)), 20.0)
    with pytest.raises(DataError, match="channel 3 of the eye tracker is not the derivative of channel 2"):
        trials.check_channels(read_experiment(recording.path), Rules())


def test_a_trial_beyond_the_recording_is_not_used(recording: Recording) -> None:
    recording.write_device("responses", np.ones((150, 5), np.float32), 30.0)  # ends 4 s after the screen began
    found, _ = trials.clips(read_experiment(recording.path))
    assert [(c.tier, c.reason) for c in found] == [("train", ""), ("none", "beyond what every device recorded")]


@pytest.mark.parametrize(
    ("film", "message"),
    [
        (np.zeros((FRAMES - 1, 36, 64), np.uint8), "90 frames of 36 x 64 were expected"),
        (np.zeros((FRAMES, 18, 32), np.uint8), "90 frames of 36 x 64 were expected"),
        (np.full((FRAMES, 36, 64), 0.5, np.float32), "from 0 to 1"),
        (np.full((FRAMES, 36, 64), np.nan, np.float32), "grey levels from 0 to 255"),
        (np.full((FRAMES, 36, 64), 300, np.int16), "grey levels from 0 to 255"),
        (np.full((FRAMES, 36, 64), "x"), "grey levels were expected"),
        (np.arange(FRAMES * 36 * 64 * 3).reshape(FRAMES, 36, 64, 3).astype(np.uint8), "in colour"),
    ],
)
def test_films_that_are_not_what_they_should_be(recording: Recording, film: np.ndarray, message: str) -> None:
    np.save(recording.path / "screen/data/00000.npy", film)
    experiment = read_experiment(recording.path)
    with pytest.raises(DataError, match=rf"00000.npy: .*{message}"):
        trials.video(experiment, trials.clips(experiment)[0][0], Rules())


def test_grey_films_in_three_channels_are_grey(recording: Recording) -> None:
    file = recording.path / "screen/data/00000.npy"
    film = np.load(file)
    np.save(file, np.repeat(film[..., None], 3, axis=-1))
    experiment = read_experiment(recording.path)
    video = trials.video(experiment, trials.clips(experiment)[0][0], Rules())
    assert np.array_equal(np.moveaxis(video, -1, 0), film)


def test_a_missing_film(recording: Recording) -> None:
    (recording.path / "screen/data/00001.npy").unlink()
    experiment = read_experiment(recording.path)
    with pytest.raises(DataError, match=r"00001.npy: missing, and no .mp4, .png"):
        trials.video(experiment, trials.clips(experiment)[0][1], Rules())


def test_responses_that_are_not_finite_or_negative(recording: Recording) -> None:
    data = np.ones((600, 5), np.float32)
    data[50, 3] = -1
    recording.write_device("responses", data, 30.0)
    experiment = read_experiment(recording.path)
    clip = trials.clips(experiment)[0][0]
    values, negative = trials.responses(experiment, clip, Rules())
    assert negative == 1
    assert values.min() == 0
    data[50, 3] = np.nan
    recording.write_device("responses", data, 30.0)
    experiment = read_experiment(recording.path)
    with pytest.raises(DataError, match=r"responses of 1 neurons \(first: 3\) are not finite in trial 00000"):
        trials.responses(experiment, clip, Rules())


@pytest.mark.parametrize("ids", [np.array([1.5, 2, 3, 4, 5]), np.array([np.nan, 2, 3, 4, 5])])
def test_neurons_numbers_are_whole(recording: Recording, ids: np.ndarray) -> None:
    (recording.path / "responses/meta").mkdir()
    np.save(recording.path / "responses/meta/unit_ids.npy", ids)
    with pytest.raises(DataError, match="must be whole"):
        read_experiment(recording.path)


def test_long_clips_are_split_for_training_and_cut_for_the_rest(golden_experanto: Path) -> None:
    experiment = read_experiment(golden_experanto / "recordings" / "small_session1")

    def lengths(rules: Rules) -> list[tuple[str, int]]:
        return [(c.tier, c.frames) for c in trials.clips(experiment, rules)[0]]

    # 332, 311, 308 (held out) and 156 frames on the grid
    assert lengths(Rules()) == [("train", 300), ("train", 300), ("final_test_main", 300), ("train", 156)]
    assert lengths(Rules(shortest=20))[:3] == [("train", 300), ("train", 32), ("train", 300)]
    assert lengths(Rules(long="cut", shortest=20))[:2] == [("train", 300), ("train", 300)]


@pytest.mark.parametrize("rules", [{"long": "drop"}, {"leaks": "ignore"}, {"responses": "cubic"}])
def test_unknown_rules_are_refused(rules: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="must be"):
        Rules(**rules)  # type: ignore[arg-type]
