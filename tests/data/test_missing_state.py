"""What was not recorded of the animal's state is given as 0 or filled, and said; or refused, where that is asked."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from commands import viv1t_data
from tiny_runs import ran

from viv1t.config.data import DataConfig
from viv1t.data.inspect.check import check_folder
from viv1t.data.mice import open_recording
from viv1t.data.recordings import Recordings
from viv1t.data.rules import Rules
from viv1t.data.store.pack import pack
from viv1t.errors import DataError

Make = Callable[..., Path]
REFUSE = Rules(missing="refuse")


def change(session: Path, kind: str, trial: int, do: Callable[[np.ndarray], np.ndarray]) -> None:
    file = session / "data" / kind / f"{trial}.npy"
    np.save(file, do(np.load(file)))


def blink(start: int, stop: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda a: np.where((np.arange(a.shape[-1]) >= start) & (np.arange(a.shape[-1]) < stop), np.nan, a)


def test_blinks_are_filled_from_the_frames_beside_them(make_session: Make, caplog: pytest.LogCaptureFixture) -> None:
    session = make_session(durations=[20] * 10)
    whole = np.load(session / "data/pupil_center/2.npy")
    change(session, "pupil_center", 2, blink(5, 9))
    change(session, "pupil_center", 4, blink(0, 3))
    with caplog.at_level(logging.WARNING, "viv1t"):
        opened = open_recording(session)
        found, first = opened.read("pupil_center", 2), opened.read("pupil_center", 4)
    assert caplog.text.count("as in blinks") == 1
    expected = whole[:, 4, None] + (whole[:, 9] - whole[:, 4])[:, None] * np.arange(1, 5) / 5
    np.testing.assert_allclose(found[:, 5:9], expected)
    assert np.array_equal(np.delete(found, np.s_[5:9], 1), np.delete(whole, np.s_[5:9], 1), equal_nan=True)
    assert (first[:, :3] == first[:, 3:4]).all()
    with pytest.raises(DataError, match="NaN or infinity at frame 5"):
        open_recording(session, rules=REFUSE).read("pupil_center", 2)
    (finding,) = [f for f in check_folder(session) if "blinks" in f.what]
    assert (finding.severity, finding.trials, finding.what.split(":")[1]) == (
        "warning",
        (2, 4),
        " NaN in 7 frames, as in blinks",
    )
    assert any(f.severity == "error" and "NaN at frame 5" in f.what for f in check_folder(session, REFUSE))


@pytest.mark.parametrize("start", [0, 6])
def test_an_eye_that_was_lost_does_not_end_a_trial(make_session: Make, start: int) -> None:
    session = make_session(durations=[20] * 10)
    change(session, "pupil_center", 2, blink(start, 24))
    for trial in range(10):
        change(session, "videos", trial, lambda a: np.nan_to_num(a).astype(np.uint8))
    opened = open_recording(session)
    assert opened.duration(2) == 20
    gaze = opened.read("pupil_center", 2)[:, :20]
    if start:
        assert (gaze[:, start:] == gaze[:, start - 1 : start]).all()
    else:
        known = [np.load(session / f"data/pupil_center/{t}.npy")[:, :20] for t in (0, 4, 8, 9)]
        np.testing.assert_allclose(gaze, np.repeat(np.mean(known, axis=(0, 2))[:, None], 20, 1))
    change(session, "pupil_center", 4, blink(17, 24))  # a short tail is the trial's end, as of every array
    assert open_recording(session).duration(4) == 17


@pytest.mark.parametrize(
    ("damage", "notice", "behavior", "gaze"),
    [
        ("no pupil_center", "no data/pupil_center: it is given as 0", (1, 1), 0),
        ("no behavior", "no data/behavior: it is given as 0", (0, 0), 1),
        ("one row", "taken for the pupil dilation: the running speed is given as 0", (1, 0), 1),
        ("one row of a wheel", "taken for the running speed: the pupil dilation is given as 0", (0, 1), 0),
    ],
)
def test_recordings_without_eye_tracker_or_treadmill_are_trained_on(
    make_session: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str, notice: str,
    behavior: tuple[int, int], gaze: int,
) -> None:  # fmt: skip
    session = make_session()
    if damage in ("no pupil_center", "one row of a wheel"):
        shutil.rmtree(session / "data/pupil_center")
    if damage == "no behavior":
        shutil.rmtree(session / "data/behavior")
    for trial in range(10) if "row" in damage else ():
        change(session, "behavior", trial, lambda a: a[:1])
    with caplog.at_level(logging.WARNING, "viv1t"):
        opened = open_recording(session)
    assert notice in caplog.text
    assert tuple(opened.read("behavior", 0).any(1)) == behavior
    assert opened.read("behavior", 0).shape == (2, 24)
    assert opened.read("pupil_center", 0).any() == bool(gaze)
    with pytest.raises(DataError, match=notice.split(":")[0]):
        open_recording(session, rules=REFUSE)
    findings = list(check_folder(session))
    assert any(notice in f.what for f in findings)
    assert not [f for f in findings if f.severity == "error" and "responses" not in f.what and "frames" not in f.what]
    (packed,) = pack(session, tmp_path / "packed")
    for folder, workers in ((session.parent, 0), (session.parent, 1), (packed.path.parent, 1)):
        config = DataConfig(path=str(folder), mice="all", transform="published", num_workers=workers, batch_size=4)
        recordings = Recordings.open(config.__class__(**{**vars(config), "mouse_ids": ("mouse-1",)}), seed=1)
        for batch in recordings.train_batches(0):
            assert np.isfinite(batch.pupil_center.numpy()).all()
            assert bool(batch.pupil_center.any()) == bool(gaze)


def test_refusal_is_an_option_of_commands(
    make_session: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    session = make_session()
    shutil.rmtree(session / "data/pupil_center")
    ran(viv1t_data, ["pack", session, tmp_path / "packed", "--quiet"], capsys)
    error = ran(viv1t_data, ["pack", session, tmp_path / "other", "--quiet", "--missing", "refuse"], capsys, status=1)
    assert "mouse mouse-1" in error
    assert "no data/pupil_center" in error
