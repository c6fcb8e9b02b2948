"""`python -m benchmarks.families`, at a tiny size."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from tiny_fixtures import torch_settings

from benchmarks import families
from viv1t.data.synthetic.mice import Size
from viv1t.recipes import demo

__all__ = ["torch_settings"]


def test_both_families_are_told_at_equal_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ((2, 2), (1, 1), (1, 1), (1, 1), (1, 1))
    monkeypatch.setattr(demo, "SIZE", Size(neurons=8, frames=90, trials=4, evaluation=few))
    assert families.main(["--seeds=1", "--minutes=0.001", f"--out={tmp_path / 'out'}"]) == 0
    with open(tmp_path / "out" / "families.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["family"], row["seed"], row["epochs"]) for row in rows] == [("2023", "1", "1"), ("2025", "1", "1")]
    for row in rows:
        assert float(row["share"]) == pytest.approx(float(row["correlation"]) / float(row["reachable"]))
        assert float(row["seconds"]) > 0
    content = json.loads((tmp_path / "out" / "families.json").read_text())
    assert content["minutes"] == 0.001
    assert content["mean_share"].keys() == {"2023", "2025"}
    assert "mean share: 2023" in capsys.readouterr().out
    # A time that holds more epochs is filled with them.
    monkeypatch.setattr(families, "trained", lambda family, *_: (0.2, [9.0, 4.0 if family == "2023" else 2.0]))
    rows = families.compare([1], 0.2, tmp_path)
    assert [row["epochs"] for row in rows] == [3, 6]
