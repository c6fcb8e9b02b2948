"""`viv1t-lab`: experiments on a run from the command line, stimuli as files, mistakes."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_runs import ran, script_validation, train

from viv1t.cli.lab import main, seconds
from viv1t.stimuli.film import Movie
from viv1t.stimuli.geometry import circle
from viv1t.stimuli.parametric import dot, grating, smooth_images


@pytest.fixture(scope="module")
def run(mice: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on F and G that knows windows of 62 frames."""
    folder = tmp_path_factory.mktemp("lab") / "run"
    with pytest.MonkeyPatch.context() as patch:
        script_validation(patch, [0.3])
        train(mice, folder, epochs=1, transform_mode=3, crop_frame=62)
    return folder


def test_experiments_write_tables_records_and_pictures(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = ["--directions", "4", "--frequencies", "0.05,0.1", "--hertz", "2", "--phases", "1"]
    words = ["all", run, "--out", tmp_path, "--mouse_ids", "F", "--format", "csv", "--step", "17", *grid]
    out = ran(main, words, capsys)
    # The estimate comes first, then what was written.
    assert "rf, mouse F: 24 of 24 trials of 62 frames, about " in out
    for name in ("rf", "direction", "frequency", "contrast"):
        assert f"{name}: 6 neurons of 1 mice" in out
        folder = next(tmp_path.iterdir())
        table = pd.read_csv(folder / f"{name}.csv")
        assert table.columns[:3].tolist() == ["mouse", "neuron", "unit_id"]
        assert table.columns[-1] == "reason"
        assert len(table) == 6
        assert (folder / f"{name}.json").is_file()
        assert (folder / f"{name}.png").stat().st_size > 10_000
    again = ran(main, words, capsys)
    assert "trials" not in again


def test_chosen_neurons_without_pictures(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ran(main, ["rf", run, "--out", tmp_path, "--neurons", "4,1", "--step", "17", "--no_plots", "--quiet"], capsys)
    assert out.splitlines() == [line for line in out.splitlines() if line.startswith("rf: 4 neurons of 2 mice")]
    tables = [pd.read_parquet(path) for path in sorted(tmp_path.rglob("*.parquet"))]
    assert [table["neuron"].tolist() for table in tables] == [[4, 1], [4, 1]]
    assert not list(tmp_path.rglob("*.png"))


@pytest.mark.parametrize(
    ("words", "status", "error"),
    [
        (["rf", "{tmp}/nothing"], 1, "is not a run folder"),
        (["rf", "{run}", "--mouse_ids", "Z"], 2, "--mouse_ids Z: not in every run"),
        (["rf", "{run}", "--step", "40"], 2, "--step must be from 1 to 17 pixels, not 40"),
        (["rf", "{run}", "--neurons", "6"], 2, "--neurons 6: mouse F has 6 neurons, numbered from 0 to 5"),
        (["rf", "{run}", "--format", "xlsx"], 2, "--format must be one of parquet, csv"),
        (["rf", "{run}", "--monitor", "56"], 2, "--monitor takes WIDTH,HEIGHT,DISTANCE"),
        (["rf", "{run}", "--behavior", "1,2,3"], 1, r"--behavior: expected \(2,\)"),
        (["direction", "{run}", "--directions", "6"], 2, "--directions must be a multiple of 4, not 6"),
        (["direction", "{run}", "--budget", "1e-9s"], None, ""),
        (["rf", "{run}", "--budget", "0.001s"], 2, "--budget is left: give more"),
        (["rf", "{run}", "--out", "{run}/args.yaml"], 2, "is a file"),
    ],
)
def test_mistakes_end_in_one_line(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], status: int | None, error: str
) -> None:
    filled = [word.format(run=run, tmp=tmp_path) for word in words]
    if "--out" not in filled:
        filled += ["--out", str(tmp_path / "out")]
    if status is None:  # the parser's own
        with pytest.raises(SystemExit, match="2"):
            main(filled)
        assert capsys.readouterr().err.count("\n") == 1
        return
    assert re.search(error, ran(main, filled, capsys, status))


def test_times() -> None:
    assert [seconds(word) for word in ("90", "90s", "20m", "1.5h")] == [90, 90, 1200, 5400]


# -- stimuli -----------------------------------------------------------------------------------------------------------


def test_stimuli_are_written_exactly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("av")
    film = tmp_path / "g.mkv"
    out = ran(main, ["stimulus", "grating", "--direction", 90, "--out", film, "--frames", 45], capsys)
    assert out == f"{film}: 45 frames of 36 x 64 pixels at 30 Hz\n"
    read = torch.cat([*Movie(film, (36, 64), "crop", torch.device("cpu")).chunks()]).numpy()
    assert np.array_equal(read, grating(90, frames=45))
    ran(main, ["stimulus", "dot", "--off", "--center", "50,4", "--frames", 3, "--out", tmp_path / "d.npy"], capsys)
    assert np.array_equal(np.load(tmp_path / "d.npy"), dot((50, 4), on=False, frames=3))
    given = ["--size", 40, "--center", "40,12", "--inverse", "--out", tmp_path / "s.npy", "--seed", 3]
    ran(main, ["stimulus", "smooth", *given], capsys)
    mask = circle(40, (40, 12))
    shown = np.load(tmp_path / "s.npy")
    assert (shown[:, mask] == 127).all()
    assert np.array_equal(shown[:, ~mask], smooth_images(np.random.default_rng(3), 30)[:, ~mask])


@pytest.mark.parametrize(
    ("words", "status", "error"),
    [
        (["grating", "--out", "{tmp}/g.mp4"], 2, "its name must end in one of .mkv, .avi, .npy"),
        (["grating", "--contrast", "2", "--out", "{tmp}/g.npy"], 2, "contrast goes from 0 to 1, not 2"),
        (["noise", "--direction", "3", "--out", "{tmp}/g.npy"], 2, "--direction has no effect on noise"),
        (["grating", "--inverse", "--out", "{tmp}/g.npy"], 2, "--inverse has no effect on grating without --size"),
        (["grating", "--frames", "0", "--out", "{tmp}/g.npy"], 2, "--frames must be at least 1, not 0"),
        (["grating", "--frame_size", "36", "--out", "{tmp}/g.npy"], 2, "--frame_size takes rows and columns"),
        (["grating", "--size", "200", "--out", "{tmp}/g.npy"], 2, "covers from 0 to below 180 degrees"),
    ],
)
def test_mistakes_in_stimuli(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], status: int, error: str
) -> None:
    assert error in ran(main, ["stimulus", *(word.format(tmp=tmp_path) for word in words)], capsys, status)
    assert not list(tmp_path.iterdir())
