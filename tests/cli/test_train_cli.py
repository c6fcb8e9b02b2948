"""`viv1t-train` as a command: exit statuses, one line for what is wrong, and nothing half written."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_runs import as_arguments, metrics, options

from viv1t.cli.train import main
from viv1t.data.mice import open_recording
from viv1t.data.session import Session
from viv1t.data.synthetic.mice import Size
from viv1t.recipes import demo
from viv1t.runs.folder import RunFolder
from viv1t.training.step import Step
from viv1t.types import SENSORIUM_SESSIONS


def words(mice: Path, run: Path, **changes: Any) -> list[str]:
    return as_arguments(options(mice, run, **{"verbose": None} | changes))


def failed(argv: list[str], capsys: pytest.CaptureFixture[str], status: int = 1) -> str:
    """The one line on standard error of a command that fails."""
    assert main(argv) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("viv1t-train: error: ")
    assert err.count("\n") == 1, err
    return err


@pytest.fixture
def mouse(mice: Path, tmp_path: Path) -> Session:
    """Mouse F in a folder of its own, to be damaged."""
    name = SENSORIUM_SESSIONS["F"]
    shutil.copytree(mice / name, tmp_path / "damaged" / name, ignore=shutil.ignore_patterns("truth", "viv1t_*"))
    return open_recording(tmp_path / "damaged" / name, "F")


# -- working --------------------------------------------------------------------------------------------------------


def test_trains_reports_and_continues(mice: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    for epochs in (1, 2):
        assert main(words(mice, run, epochs=epochs)) == 0
        out, err = capsys.readouterr()
        assert f"run folder: {run}" in out
        assert f"epoch {epochs}/{epochs}" in err
    assert f"continuing {run} after epoch 1" in err
    assert [row["epoch"] for row in metrics(run)] == ["1", "2"]
    assert main(words(mice, run, epochs=2)) == 0
    assert "is finished after epoch 2" in capsys.readouterr().err


def test_verbose_0_is_silent(mice: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words(mice, tmp_path / "run", epochs=1, verbose=0)) == 0
    assert capsys.readouterr() == ("", "")


# -- interrupted ------------------------------------------------------------------------------------------------------


def test_interrupt_is_status_130(
    mice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(self: Step) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(Step, "update", interrupted)
    assert main(words(mice, tmp_path / "run")) == 130
    assert capsys.readouterr().err == "\nviv1t-train: interrupted\n"


def test_ctrl_c_on_a_running_command(mice: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    # Every epoch collapses or waits for as long as rates allow, so that this would go on for long.
    argv = [sys.executable, "-m", "viv1t.cli.train", *words(mice, run, epochs=10_000, lr_schedule="cosine")]
    # Commands started in the background ignore the signal, and so would their children.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, before)
    try:
        deadline = time.monotonic() + 60
        while not (run / "ckpt" / "last.safetensors").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "Traceback" not in err
    assert err.endswith("viv1t-train: interrupted\n")
    epochs = [int(row["epoch"]) for row in metrics(run)]
    assert epochs == list(range(1, len(epochs) + 1))
    assert {p.name for p in run.rglob("*") if ".part" in p.name} == set()


PRINT = "from viv1t.cli.options import run_main; raise SystemExit(run_main('prog', lambda _: print('words') or 0, []))"


def test_nobody_reading_is_no_traceback() -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-c", PRINT], stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


# -- failing ----------------------------------------------------------------------------------------------------------


def test_missing_data_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = failed(words(tmp_path / "nowhere", tmp_path / "runs" / "run"), capsys)
    assert f"--data {tmp_path / 'nowhere'}: no such folder" in line
    assert list(tmp_path.iterdir()) == []


def test_mice_that_are_not_there(mice: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = failed(words(mice, tmp_path / "run", mouse_ids=None), capsys)
    assert "missing mice H" in line
    line = failed(words(mice, tmp_path / "run", mouse_ids=["F", "A"]), capsys, status=2)
    assert "--mouse_ids A: not among the mice of this --ds_mode" in line
    assert list(tmp_path.iterdir()) == []


def truncate(session: Session, trial: int) -> None:
    path = session.file("video", trial)
    path.write_bytes(path.read_bytes()[:-100])


def add_a_neuron(session: Session, trial: int) -> None:
    path = session.file("response", trial)
    np.save(path, np.pad(np.load(path), ((0, 1), (0, 0))))


def put_nan_inside(session: Session, trial: int) -> None:
    path = session.file("response", trial)
    array = np.load(path)
    array[1, 7] = np.nan
    np.save(path, array)


def delete(session: Session, trial: int) -> None:
    session.file("pupil_center", trial).unlink()


@pytest.mark.parametrize("tier", ["train", "validation"])
@pytest.mark.parametrize(
    ("damage", "words_of_it"),
    [(truncate, "videos"), (add_a_neuron, "6 neurons"), (put_nan_inside, "NaN or infinity at frame 7"),
     (delete, "the file is missing")],
)  # fmt: skip
def test_damaged_recordings_stop_before_anything_is_written(
    mouse: Session,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    tier: str,
    damage: Callable[[Session, int], None],
    words_of_it: str,
) -> None:
    trial = mouse.trials(tier)[-1]
    damage(mouse, trial)
    line = failed(words(mouse.path.parent, tmp_path / "runs" / "run", mouse_ids=["F"]), capsys)
    assert f"mouse F, trial {trial}: {mouse.path}" in line
    assert words_of_it in line
    assert not (tmp_path / "runs").exists()


def test_trials_too_short_to_be_scored(mouse: Session, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trial = mouse.trials("validation")[0]
    for variable in ("video", "response", "behavior", "pupil_center"):
        path = mouse.file(variable, trial)
        array = np.load(path)
        array[..., 50:] = np.nan
        np.save(path, array)
    line = failed(words(mouse.path.parent, tmp_path / "run", mouse_ids=["F"]), capsys)
    assert f"mouse F, trial {trial}: 50 frames are too short to be scored" in line
    assert not (tmp_path / "run").exists()


def test_output_dir_that_cannot_be_written(mice: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    line = failed(words(mice, tmp_path / "file" / "run"), capsys)
    assert f"--output_dir {tmp_path / 'file' / 'run'} cannot be written" in line


def test_output_dir_of_something_else(mice: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.txt").write_text("words")
    for clear in (True, None):
        assert "is not a run folder" in failed(words(mice, tmp_path, clear_output_dir=clear), capsys, status=2)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # There are no data either: nothing is read before this is known.
    (tmp_path / "nowhere").mkdir()
    line = failed(words(tmp_path / "nowhere", tmp_path / "run", device="cuda"), capsys, status=2)
    assert line == "viv1t-train: error: --device cuda is not available here; use cpu\n"
    line = failed(words(tmp_path / "nowhere", tmp_path / "run", cache_data="gpu", device="cuda"), capsys, status=2)
    assert "--device cuda" in line


def test_damaged_checkpoint(mice: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert main(words(mice, run, epochs=1, verbose=0)) == 0
    last = run / "ckpt" / "last.safetensors"
    last.write_bytes(last.read_bytes()[:1000])
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    line = failed(words(mice, run, epochs=2), capsys)
    assert f"{last}: damaged" in line
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("option", ["restore", "pretrain_core"])
def test_a_start_that_is_no_run(mice: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str) -> None:
    line = failed(words(mice, tmp_path / "run", **{option: str(tmp_path / "nowhere")}), capsys)
    assert f"{tmp_path / 'nowhere'} is not a run folder" in line
    assert list(tmp_path.iterdir()) == []


def test_a_failed_restart_keeps_the_run_that_was_to_be_cleared(
    mice: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(words(mice, run, epochs=1, verbose=0)) == 0
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    failed(words(tmp_path / "nowhere", run, clear_output_dir=True), capsys)
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before


def test_other_options_than_the_run_was_made_with(
    mice: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(mice, tmp_path / "run", epochs=1, verbose=0)) == 0
    line = failed(words(mice, tmp_path / "run", crop_frame=41, seed=5), capsys, status=2)
    assert "--crop_frame 40 (now 41), --seed 1234 (now 5)" in line


@pytest.mark.parametrize("family", ["2023", "2025"])
def test_the_demo_makes_mice_trains_and_draws(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    few = ((2, 2), (1, 1), (1, 1), (1, 1), (1, 1))
    monkeypatch.setattr(demo, "SIZE", Size(neurons=8, frames=90, trials=4, evaluation=few))
    monkeypatch.chdir(tmp_path)
    words = [] if family == "2023" else ["--family", family]
    assert main(["--demo", "--epochs=1", "--num_workers=1", *words]) == 0, capsys.readouterr().err
    assert "of what is reachable" in capsys.readouterr().out
    (run,) = (tmp_path / "runs").iterdir()
    assert RunFolder(run).family().name == family
    for name in ("learning_curves", "receptive_fields", "responses"):
        assert (run / "plots" / f"{name}.png").is_file()


@pytest.mark.parametrize("changes", [{"seed": "x"}, {"readout": "factorized"}, {"data": 3}, {"seed": -1}])
def test_mistakes_in_the_demo(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    if "data" in changes:
        (tmp_path / "o.yaml").write_text("data: 3")
        failed(["--demo", "--config=o.yaml"], capsys, status=2)
        (tmp_path / "o.yaml").unlink()
    else:
        failed(["--demo", *as_arguments(changes)], capsys, status=2)
    assert list(tmp_path.iterdir()) == []
