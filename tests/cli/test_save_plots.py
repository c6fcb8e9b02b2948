"""`--save_plots`: the pictures of a run, and what of them a model has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_runs import as_arguments, options

from viv1t.cli.train import main
from viv1t.report import chosen_neurons


def drawn(mice: Path, run: Path, **changes: Any) -> set[str]:
    assert main(as_arguments(options(mice, run, save_plots=True, epochs=1, **changes))) == 0
    return {p.name for p in (run / "plots").iterdir()}


def test_all_pictures_of_a_vivit(mice: Path, tmp_path: Path) -> None:
    names = drawn(mice, tmp_path / "run", format="png", dpi=50)
    assert names == {
        "learning_curves.png", "responses_F.png", "responses_G.png", "correlation.png", "readout_positions.png",
        "attention_F.png",
    }  # fmt: skip
    from matplotlib.image import imread

    sizes = {name: imread(tmp_path / "run" / "plots" / name).shape for name in names}
    assert all(height > 50 and width > 200 for height, width, _ in sizes.values())
    # The finished run is drawn anew.
    assert drawn(mice, tmp_path / "run", format="png", dpi=100) == names
    for name, (_, width, _) in sizes.items():
        assert imread(tmp_path / "run" / "plots" / name).shape[1] == pytest.approx(2 * width, abs=2), name


@pytest.mark.parametrize(
    ("changes", "missing"),
    [
        ({"core": "factorized_baseline"}, {"attention_F.svg"}),
        ({"readout": "factorized"}, {"readout_positions.svg"}),
        ({"readout": "random"}, {"readout_positions.svg"}),
    ],
    ids=["factorized_baseline", "factorized", "random"],
)
def test_pictures_that_a_model_does_not_have(
    mice: Path, tmp_path: Path, changes: dict[str, Any], missing: set[str]
) -> None:
    everything = {
        "learning_curves.svg", "responses_F.svg", "responses_G.svg", "correlation.svg", "readout_positions.svg",
        "attention_F.svg",
    }  # fmt: skip
    assert drawn(mice, tmp_path / "run", **changes) == everything - missing


def test_neurons_from_the_best_to_the_median() -> None:
    correlations = np.array([0.1, 0.9, 0.5, 0.3, 0.7, 0.2, 0.0])
    assert chosen_neurons(correlations, 3) == [1, 2, 3]
    assert chosen_neurons(correlations[:1]) == [0]
