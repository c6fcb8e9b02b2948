"""`viv1t-predict`: predictions of any tier, ensembles, the challenge's files, and what is refused."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_runs
import torch
from full_disks import largest_file

import viv1t
from viv1t.cli.predict import main
from viv1t.data.mice import open_recording
from viv1t.data.recordings import Recordings
from viv1t.errors import ConfigError, DataError
from viv1t.prediction.files import TrialPrediction, write_parquet
from viv1t.prediction.subject import Subject, SubjectModel
from viv1t.runs.ensemble import open_ensemble
from viv1t.runs.folder import RunFolder
from viv1t.types import SENSORIUM_SESSIONS, Mouse

F, G, A = (SENSORIUM_SESSIONS[m] for m in "FGA")


def ran(argv: list[Any], capsys: pytest.CaptureFixture[str], status: int = 0) -> str:
    return tiny_runs.ran(main, argv, capsys, status)


def files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_predictions_lie_beside_the_recorded_frames(
    runs: Path, mice: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ran([runs / "one", "--tier", "validation", "live_test_main", "live_test_bonus", "--out", tmp_path], capsys)
    assert f"validation: 4 trials written to {tmp_path}" in out
    assert "live_test_bonus: no trials; left out" in out
    model = viv1t.load_model(runs / "one")
    recordings = Recordings.open(RunFolder(runs / "one").config().data, 1)
    expected = set()
    for mouse, session in (("F", F), ("G", G)):
        for tier in ("validation", "live_test_main"):  # the responses of the latter are withheld
            for batch in recordings.trials(mouse, tier):
                path = tmp_path / session / tier / f"{batch.trial_ids[0]}.npy"
                expected.add(str(path.relative_to(tmp_path)))
                array = np.load(path)
                with torch.no_grad():
                    response = model(batch.video, mouse, batch.behavior, batch.pupil_center)[0].numpy()
                assert array.dtype == np.float32
                assert array.shape == (6, batch.video.shape[2])
                assert np.isnan(array[:, :4]).all()  # before the reach of 5 frames
                assert array[:, 4:] == pytest.approx(response, rel=1e-5, abs=1e-6)
    recordings.close()
    assert set(files(tmp_path)) == expected


def test_an_ensemble_is_the_mean_of_predictions(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, chosen in (("one", ["one"]), ("two", ["two"]), ("both", ["one", "two"])):
        ran([*(runs / run for run in chosen), "--output_dir", tmp_path / name, "--mouse_ids", "G"], capsys)
    names = files(tmp_path / "both")
    assert len(names) == 2
    for name in names:
        one, two, both = (np.load(tmp_path / folder / name) for folder in ("one", "two", "both"))
        assert np.isnan(both[:, :8]).all()  # of the longer reach
        assert both[:, 8:] == pytest.approx((one[:, 8:].astype(np.float64) + two[:, 8:]) / 2, rel=1e-6)
        assert not np.allclose(one[:, 8:], two[:, 8:])


def test_units_of_the_recording(runs: Path, mice: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for units in ("scaled", "recorded"):
        ran([runs / "one", "--out", tmp_path / units, "--units", units, "--mouse_ids", "F"], capsys)
    recordings = Recordings.open(RunFolder(runs / "one").config().data, 1)
    session = open_recording(mice / F)
    for batch in recordings.trials("F", "validation"):
        trial, frames = batch.trial_ids[0], batch.video.shape[2]
        scaled, recorded = (np.load(tmp_path / u / F / "validation" / f"{trial}.npy") for u in ("scaled", "recorded"))
        # What makes the recorded response of what the model was trained with makes the prediction, too.
        raw, response = session.read("response", trial)[:, :frames], batch.response[0].numpy()
        some = response > 0.01
        factor = raw[some] / response[some]
        assert (recorded / scaled)[some & ~np.isnan(scaled)] == pytest.approx(factor[~np.isnan(scaled[some])], rel=1e-4)
    recordings.close()


def test_the_challenges_files(runs: Path, mice: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pandas, parquet = pytest.importorskip("pandas"), pytest.importorskip("pyarrow.parquet")
    out = ran([runs / "all", "--submission", "--out", tmp_path / "sub"], capsys)
    name = "predictions_file_live_test_main_track.parquet.brotli"
    # The movies of both bonus tiers have no trial in these recordings.
    assert files(tmp_path / "sub") == [name.replace("live", "final"), name]
    assert f"live_test_main: 2 trials written to {tmp_path / 'sub' / name}" in out
    ran([runs / "all", "--out", tmp_path / "npy", "--tier", "live_test_main"], capsys)

    table = parquet.read_table(tmp_path / "sub" / name)
    assert [(f.name, str(f.type)) for f in table.schema] == [
        ("prediction", "list<element: list<element: double>>"), ("mouse", "string"), ("trial_indices", "int64"),
        ("neuron_ids", "list<element: uint32>"),
    ]  # fmt: skip
    file = parquet.ParquetFile(tmp_path / "sub" / name)
    group = file.metadata.row_group(0)
    assert {group.column(i).compression for i in range(group.num_columns)} == {"BROTLI"}

    frame = pandas.read_parquet(tmp_path / "sub" / name)
    assert list(frame.mouse) == [F, G]  # A is not one of the challenge's mice
    for row in frame.itertuples():
        session = open_recording(mice / row.mouse)
        assert row.trial_indices in session.trials("live_test_main")
        assert row.neuron_ids.dtype == np.uint32
        assert (row.neuron_ids == session.mouse.unit_ids).all()
        prediction = np.stack(list(row.prediction))
        aligned = np.load(tmp_path / "npy" / row.mouse / "live_test_main" / f"{row.trial_indices}.npy")
        assert prediction.dtype == np.float64
        assert prediction.shape == (6, session.duration(row.trial_indices) - 50)
        assert (prediction == aligned[:, 50:]).all()


def test_parquet_of_any_tier(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    words = [runs / "one", "--tier", "train", "validation", "--out", tmp_path]
    ran([*words, "--format", "parquet"], capsys)
    ran(words, capsys)
    assert {"train.parquet", "validation.parquet"} < set(files(tmp_path))
    frame = pandas.read_parquet(tmp_path / "train.parquet")
    assert len(frame) == 8
    for row in frame.itertuples():
        aligned = np.load(tmp_path / row.mouse / "train" / f"{row.trial_indices}.npy")
        np.testing.assert_array_equal(np.stack(list(row.prediction)), aligned)


def test_neuron_ids_are_kept_exactly_or_refused(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")

    def written(ids: list[int], **how: bool) -> list[int]:
        mouse = Mouse("M", "session", np.zeros((3, 3)), np.array(ids))
        prediction = TrialPrediction(mouse, 0, np.zeros((3, 2), np.float32), 60)
        write_parquet(tmp_path / "a.parquet", [prediction], lambda p: p.response, **how)
        return parquet.read_table(tmp_path / "a.parquet")["neuron_ids"].to_pylist()[0]

    ids = [864691135494192528, -5, 2**63 - 1]
    assert written(ids) == ids
    for odd in ids:
        with pytest.raises(DataError, match=rf"0 to 4294967295, found {odd}; .*--format parquet"):
            written([1, 2, odd], submission=True)
    assert written([1, 2, 2**32 - 1], submission=True) == [1, 2, 2**32 - 1]


def test_a_file_is_written_with_few_trials_in_memory(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    mouse = Mouse("M", "session", np.zeros((5, 3)), np.arange(5) + 7)
    living = most = 0

    def gone() -> None:
        nonlocal living
        living -= 1

    def rows() -> Iterator[TrialPrediction]:
        nonlocal living, most
        for trial in range(30):
            prediction = TrialPrediction(mouse, trial, np.full((5, 3 + trial % 4), trial, np.float32), 60)
            weakref.finalize(prediction, gone)
            living += 1
            most = max(most, living)
            yield prediction
            del prediction

    assert write_parquet(tmp_path / "a.parquet", rows(), lambda p: p.response) == 30
    file = parquet.ParquetFile(tmp_path / "a.parquet")
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [8, 8, 8, 6]
    assert most <= 10
    column = file.read().column("prediction").to_pylist()
    assert [np.shape(rows) for rows in column] == [(5, 3 + t % 4) for t in range(30)]  # trials differ in length
    assert all((np.array(rows) == t).all() for t, rows in enumerate(column))


def test_an_error_leaves_no_half_of_a_file(
    runs: Path, mice: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pyarrow")
    for session in (F, G):
        shutil.copytree(mice / session, tmp_path / "data" / session)
    damaged = open_recording(tmp_path / "data" / G)
    path = damaged.file("video", damaged.trials("validation")[-1])
    path.write_bytes(path.read_bytes()[:-100])
    words = [runs / "one", "--data", tmp_path / "data", "--out", tmp_path / "out", "--format", "parquet"]
    line = ran(words, capsys, 1)
    assert str(path) in line
    assert files(tmp_path / "out") == []


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--submission", "--tier", "validation"], "--submission is for the test tiers"),
        (["--submission", "--format", "npy"], "--submission writes parquet files"),
        (["--mouse_ids", "Z"], "--mouse_ids Z: not in every run; they have F, G"),
    ],
)
def test_what_does_not_go_together(
    runs: Path, tmp_path: Path, words: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert line in ran([runs / "one", "--out", tmp_path / "out", *words], capsys, 2)
    assert not (tmp_path / "out").exists()


def test_nothing_to_predict(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ran([runs / "one", "--out", tmp_path / "out", "--tier", "final_test_bonus"], capsys, 1)
    assert "nothing to predict: no trials in final_test_bonus" in line
    assert "is not a run folder" in ran([tmp_path / "nowhere", "--out", tmp_path / "out"], capsys, 1)
    assert not (tmp_path / "out").exists()


def test_without_pyarrow_the_extra_is_named(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    assert "viv1t[submission]" in ran([runs / "one", "--out", tmp_path / "out", "--submission"], capsys, 2)
    assert not (tmp_path / "out").exists()


def test_a_core_that_reaches_too_far_for_the_challenge() -> None:
    mouse = Mouse("M", "session", np.zeros((2, 3)), np.arange(2))
    short = TrialPrediction(mouse, 4, np.zeros((2, 9), np.float32), 60)
    with pytest.raises(ConfigError, match="mouse M, trial 4: the core predicts the last 9 of 60 frames"):
        short.scored()


def test_the_command_alone_needs_no_pytorch() -> None:
    heavy = "{'torch', 'pyarrow', 'viv1t._prefetcher'}"
    program = f"import sys, viv1t.cli.predict; print(*sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize("more", [[], ["--format", "parquet"]], ids=["npy", "parquet"])
def test_a_full_disk_is_named_with_the_file(
    more: list[str], runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if more:
        pytest.importorskip("pyarrow")
    with largest_file(200):
        line = ran([runs / "one", "--out", tmp_path, "--quiet", *more], capsys, 1)
    assert re.search(rf"{tmp_path}/\S+: cannot be written \(File too large\); the limit is 200 bytes: raise it", line)
    assert not files(tmp_path)


def test_long_trials_are_predicted_whole_and_without_responses(
    runs: Path, mice: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(mice / F, tmp_path / "data" / F)
    session = open_recording(tmp_path / "data" / F)
    long, short = session.trials("validation")[:2]
    for variable in ("video", "behavior", "pupil_center"):
        file = session.file(variable, long)
        recorded = np.load(file)[..., : session.duration(long)]
        np.save(file, np.concatenate([recorded] * 7, -1)[..., :420])
    for trial in (long, short):
        session.file("response", trial).unlink()
    words = [runs / "one", "--data", tmp_path / "data", "--mouse_ids", "F", "--tier", "validation"]
    ran([*words, "--out", tmp_path / "out"], capsys)
    ran([runs / "one", "--tier", "validation", "--out", tmp_path / "short"], capsys)
    whole = np.load(tmp_path / "out" / F / "validation" / f"{long}.npy")
    assert whole.shape == (6, 420)
    assert np.isnan(whole[:, :4]).all()  # before the core's reach of 5 frames
    assert np.isfinite(whole[:, 4:]).all()
    name = f"{F}/validation/{short}.npy"
    np.testing.assert_array_equal(np.load(tmp_path / "out" / name), np.load(tmp_path / "short" / name))
    # Its first window is as long as the crops of training, and predicted as a trial of its own.
    session = open_recording(tmp_path / "data" / F)
    models, recordings = open_ensemble([str(runs / "one")], torch.device("cpu"), str(tmp_path / "data"), ["F"])
    video, *states = (session.read(v, long)[..., :40].astype(np.float32) for v in ("video", "behavior", "pupil_center"))
    window = SubjectModel(models, Subject.of(recordings, "F")).window(
        torch.from_numpy(np.moveaxis(video, -1, 0).copy()), dict(zip(("behavior", "pupil_center"), states, strict=True))
    )
    recordings.close()
    np.testing.assert_allclose(whole[:, 4:14], window[:, :10], rtol=1e-5, atol=1e-6)
