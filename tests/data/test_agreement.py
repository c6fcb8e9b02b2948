"""Checks find an error where training would end in one, and only there; what both know is said in the same words."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from viv1t.config.data import DataConfig
from viv1t.data.inspect.check import check_folder
from viv1t.data.mice import open_recording
from viv1t.data.recordings import Recordings
from viv1t.data.store.pack import pack
from viv1t.data.store.verify import verify
from viv1t.errors import Viv1tError

TIERS = ["train"] * 3 + ["oracle"] * 4 + ["live_test_main"] * 2
KINDS = ("videos", "responses", "behavior", "pupil_center")
TRAIN, VALIDATION, TEST, ALL = range(3), range(3, 7), range(7, 9), range(9)


@pytest.fixture
def session(tmp_path: Path) -> Path:
    """A good mouse of 60 frames a trial; the test tier's responses are zero."""
    rng = np.random.default_rng(1)
    path = tmp_path / "data" / "m"
    for kind in (*(f"data/{k}" for k in KINDS), "meta/neurons", "meta/trials"):
        (path / kind).mkdir(parents=True)
    np.save(path / "meta/trials/tiers.npy", np.array(TIERS))
    np.save(path / "meta/neurons/cell_motor_coordinates.npy", rng.integers(-300, 300, (4, 3)))
    np.save(path / "meta/neurons/unit_ids.npy", np.arange(4))
    for trial in ALL:
        np.save(path / f"data/videos/{trial}.npy", rng.integers(0, 256, (6, 8, 60)).astype(np.float32))
        np.save(path / f"data/responses/{trial}.npy", rng.gamma(0.5, 2, (4, 60)) * (trial not in TEST))
        np.save(path / f"data/behavior/{trial}.npy", rng.uniform(1, 9, (2, 60)))
        np.save(path / f"data/pupil_center/{trial}.npy", rng.uniform(1, 9, (2, 60)))
    return path


def arrays(kinds: str | tuple[str, ...], trials: range, change: Callable[[np.ndarray], np.ndarray]) -> Any:
    def damage(path: Path) -> None:
        for kind in (kinds,) if isinstance(kinds, str) else kinds:
            for trial in trials:
                file = path / f"data/{kind}/{trial}.npy"
                np.save(file, change(np.load(file)))

    return damage


def tiers(change: Callable[[np.ndarray], np.ndarray]) -> Any:
    def damage(path: Path) -> None:
        file = path / "meta/trials/tiers.npy"
        np.save(file, change(np.load(file)))

    return damage


def put(where: Any, value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array = array.copy()
        array[where] = value
        return array

    return change


def remove(kind: str, trials: range) -> Any:
    return lambda path: [(path / f"data/{kind}/{trial}.npy").unlink() for trial in trials]


def same(kind: str) -> Any:
    return lambda path: [np.save(path / f"data/{kind}/{t}.npy", np.load(path / f"data/{kind}/0.npy")) for t in TRAIN]


def long(array: np.ndarray) -> np.ndarray:
    return np.tile(array, 7)


# What is changed; whether it is an error; words of the finding, and of training's own line.
CASES: dict[str, tuple[Any, bool, str]] = {
    "good": (lambda _: None, False, ""),
    "one training trial": (tiers(lambda a: np.where(np.arange(9) < 2, "none", a)), True, "one trial of the tier train"),
    "no training trial": (tiers(lambda a: np.where(np.arange(9) < 3, "none", a)), True, "no trial of the tier train"),
    "no validation": (tiers(lambda a: np.where(a == "oracle", "none", a)), True, "no trial of the tier oracle"),
    "capitals": (tiers(np.char.capitalize), True, "of the tier train, but of 'Live_test_main' (write live_test_main)"),
    "line ends": (tiers(lambda a: np.char.add(a, "\n")), True, r"'train\n' (write train)"),
    "bytes": (tiers(lambda a: a.astype("S")), False, ""),
    "bytes that are no text": (tiers(lambda a: np.append(a.astype("S"), b"\xff")), False, ""),
    "five frames": (arrays(KINDS, ALL, lambda a: a[..., :5]), True, "5 frames"),
    "five frames of training": (arrays(KINDS, TRAIN, lambda a: a[..., :5]), True, "5 frames, fewer than the core's"),
    "50 frames": (arrays(KINDS, VALIDATION, lambda a: a[..., :50]), True, "50 frames"),
    "51 frames": (arrays(KINDS, VALIDATION, lambda a: a[..., :51]), False, ""),
    "beyond float32": (arrays("responses", range(1), put((1, 7), 1e300)), True, "1e+300"),
    "beyond float32, behavior": (arrays("behavior", range(1), put((1, 7), -1e39)), True, "-1e+39"),
    "large": (arrays("responses", range(1), put((1, 7), 1e30)), False, ""),
    "below float32": (arrays("responses", ALL, lambda a: a * 1e-42), True, "same in every trial"),
    "NaN neuron": (arrays("responses", ALL, put(2, np.nan)), True, "neuron 2"),
    "NaN frame": (arrays("responses", range(1), put((1, 7), np.nan)), True, "at frame 7"),
    "NaN tail": (arrays("responses", range(1), put(np.s_[:, 55:], np.nan)), False, ""),
    "(T, H, W)": (arrays("videos", ALL, lambda a: a.transpose(2, 0, 1)), True, "found (T, H, W)"),
    "(T, N)": (arrays("responses", ALL, lambda a: a.T), True, "(60, 4)"),
    "constant speed": (arrays("behavior", ALL, put(1, 0)), False, ""),
    "constant behavior": (arrays("behavior", ALL, lambda a: a * 0 + 1), False, "the same in every"),
    "same responses": (same("responses"), True, "same in every trial"),
    "same behavior": (same("behavior"), False, "the same in every"),
    "blinks": (arrays("pupil_center", range(2), put(np.s_[:, 20:25], np.nan)), False, "as in blinks"),
    "no eye in a trial": (arrays("pupil_center", range(1), lambda a: a * np.nan), False, "as in blinks"),
    "eye lost": (arrays("pupil_center", range(1), put(np.s_[:, 5:], np.nan)), False, "as in blinks"),
    "no eye tracker": (remove("pupil_center", ALL), False, "no data/pupil_center: it is given as 0"),
    "one row": (arrays("behavior", ALL, lambda a: a[:1]), False, "one row, taken for the pupil dilation"),
    "one axis": (arrays("behavior", ALL, lambda a: a[1]), False, "one row, taken for the pupil dilation"),
    "infinite gaze": (arrays("pupil_center", range(1), put((0, 7), np.inf)), True, "infin"),
    "gaze of a trial absent": (remove("pupil_center", range(1)), True, "the file is missing"),
    "silent validation": (arrays("responses", VALIDATION, lambda a: a * 0), True, "responses"),
    "validation absent": (remove("responses", VALIDATION), True, "responses"),
    "training absent": (remove("responses", range(1)), True, "the file is missing"),
    "test absent": (remove("responses", TEST), False, ""),
    "test NaN": (arrays("responses", TEST, lambda a: a * np.nan), False, ""),
    "grey levels 0 to 1": (arrays("videos", ALL, lambda a: a / 255), False, "levels from 0 to 1: expected 0 to 255"),
    "standardised": (arrays("videos", ALL, lambda a: a / 70 - 2), False, "grey levels outside 0 to 255"),
    "420 frames": (arrays(KINDS, ALL, long), False, "up to 420 frames: training and scores use the first 300"),
    "ids twice": (lambda p: np.save(p / "meta/neurons/unit_ids.npy", np.ones(4, int)), False, "names 3 neurons twice"),
    "other frames": (arrays("behavior", range(1), lambda a: a[:, :50]), True, "50"),
    "another size": (arrays("videos", range(1), lambda a: a[:5]), True, "(5, 8"),
}  # fmt: skip


def trained(data: Path) -> None:
    """What training does with recordings before its first step, and the reading of every trial."""
    from viv1t.families.sensorium2023.options import VivitConfig
    from viv1t.training.validate import check_recordings

    config = DataConfig(path=str(data), mice="all", transform="published", batch_size=2, crop_frame=40, num_workers=0)
    recordings = Recordings.open(config, seed=1)
    check_recordings(recordings)
    for batch in recordings.train_batches(0):
        if (frames := int(batch.frames.min())) < VivitConfig().temporal_patch_size:
            raise Viv1tError(f"{frames} frames, fewer than the core's temporal extent")
    for batch in recordings.trials("m", "validation"):
        if (frames := int(batch.frames.min())) <= 50:
            raise Viv1tError(f"{frames} frames are too short to be scored")


@pytest.mark.parametrize("case", CASES)
def test_checks_and_training_agree(case: str, session: Path, caplog: pytest.LogCaptureFixture) -> None:
    damage, is_error, words = CASES[case]
    damage(session)
    findings = [f for f in check_folder(session.parent) if "no meta/statistics" not in f.what]
    lines = [str(f) for f in findings]
    assert any(f.severity == "error" for f in findings) == is_error, lines
    assert not words or any(words in line for line in lines), lines
    assert all(line.count("\n") == 0 for line in lines)
    with caplog.at_level(logging.WARNING, "viv1t"):
        if is_error:
            with pytest.raises(Viv1tError) as error:
                trained(session.parent)
            assert case in ("below float32", "validation absent", "silent validation", "(T, N)") or any(
                word in str(error.value) for word in (words, words.split(",")[0])
            ), str(error.value)
        else:
            trained(session.parent)
            assert words in caplog.text


def test_an_integer_movie_ends_with_the_arrays_beside_it(session: Path) -> None:
    arrays("videos", ALL, lambda a: a.astype(np.uint8))(session)
    arrays(KINDS[1:], range(2), put(np.s_[:, 57:], np.nan))(session)
    arrays("pupil_center", range(1), put(np.s_[:, 52:], np.nan))(session)
    opened = open_recording(session)
    assert [opened.duration(trial) for trial in (0, 1, 2)] == [52, 57, 60]
    assert opened.read("video", 0).shape == (6, 8, 60)
    findings = [str(f) for f in check_folder(session) if "no meta/statistics" not in f.what]
    assert findings == [
        "warning: mouse m trial 0: data/pupil_center ends at frame 52, others at frame 57 -> cut all four arrays at "
        "the same frame; what lies after frame 52 is not used"
    ]


def test_a_neuron_without_numbers_does_not_end_a_trial(session: Path) -> None:
    arrays("responses", range(1), put(np.s_[0], np.nan))(session)
    assert open_recording(session).duration(0) == 60
    arrays("responses", range(1), put(np.s_[:, 50:], np.nan))(session)
    assert open_recording(session).duration(0) == 50


@pytest.mark.parametrize("how", ["absent", "NaN"])
def test_withheld_responses_are_hidden_packed_and_not_trained_on(session: Path, how: str, tmp_path: Path) -> None:
    if how == "absent":
        remove("responses", TEST)(session)
    else:
        arrays("responses", TEST, lambda a: a * np.nan)(session)
    (packed,) = pack(session, tmp_path / "packed")
    assert [str(f) for f in verify(tmp_path / "packed")] == []
    for opened in (open_recording(session), open_recording(packed.path)):
        assert opened.hidden("live_test_main")
        assert not opened.hidden("train")
        assert [opened.duration(trial) for trial in TEST] == [60, 60]
    config = DataConfig(path=str(session.parent), mice="all", transform="published", num_workers=1)
    for folder in (session.parent, tmp_path / "packed"):
        recordings = Recordings.open(config.__class__(**{**vars(config), "path": str(folder)}), seed=1)
        shapes = [(b.trial_ids, b.response.shape) for b in recordings.trials("m", "live_test_main", responses=False)]
        assert shapes == [((7,), (1, 4, 60)), ((8,), (1, 4, 60))]
