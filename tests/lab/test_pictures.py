"""Pictures of experiments: whatever the arrays hold, a figure or one error."""

from __future__ import annotations

from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from viv1t.errors import DataError
from viv1t.plot import lab as plot


def test_examples_are_spread_over_what_is_known() -> None:
    values = np.array([0.1, np.nan, 0.9, 0.5, 0.7])
    assert plot.spread(values, 2).tolist() == [2, 0]
    assert plot.spread(values, 9).tolist() == [2, 4, 3, 0]
    assert plot.spread(np.full(3, np.nan)).tolist() == []


def test_fields_are_drawn_where_they_are(tmp_path: Path) -> None:
    y, x = np.mgrid[:36, :64]
    field = np.exp(-((x - 50) ** 2) / 50 - (y - 9) ** 2 / 8)
    one = {"x": np.array([50.0]), "y": np.array([9.0]), "sigma_x": np.array([5.0]), "sigma_y": np.array([2.0])}
    fits, population = {**one, "theta": np.zeros(1)}, {**one, "good": np.array([True])}
    path = plot.fields(field[None], fits, ["neuron 0"], population, tmp_path / "f.png")
    # The first panel takes the figure's upper left quarter: its field is red, right of its middle and above it.
    image = matplotlib.image.imread(path)[..., :3]
    red = (image[..., 0] > 0.35) & (image[..., 1] < 0.3) & (image[..., 2] < 0.35)
    rows, columns = np.nonzero(red[: image.shape[0] // 2, : image.shape[1] // 4])
    height, width = image.shape[0], image.shape[1] / 4
    assert 0.6 * width < columns.mean() < 0.95 * width
    assert np.ptp(columns) > 1.5 * np.ptp(rows)  # as elongated as it is
    assert rows.mean() < 0.3 * height
    with pytest.raises(DataError, match=r"maps must be \(neurons, H, W\)"):
        plot.fields(field, fits, ["neuron 0"], population, tmp_path / "g.png")
    assert not (tmp_path / "g.png").exists()


@pytest.mark.filterwarnings("error")
def test_neurons_without_results_leave_gaps(tmp_path: Path) -> None:
    empty = {name: np.full(3, np.nan) for name in ("gOSI", "gDSI", "preferred_direction")}
    curves = np.array([[1.0, 0, 2, 0], [0, 0, 0, 0], [3, 1, 1, 1]])
    fine = np.arange(0, 361, 30.0)
    angles = np.arange(4) * 90.0
    plot.directions(
        curves, angles, np.full((3, len(fine)), np.nan), fine, ["a", "b", "c"], empty, np.full((3, 5), np.nan),
        tmp_path / "d.png",
    )  # fmt: skip
    kinds = {"in": curves, "around": np.full((3, 4), np.nan)}
    plot.curves(
        angles, kinds, ["a", "b", "c"], {"index": np.full(3, np.nan)}, tmp_path / "c.png", label="x", population=curves
    )
    maps = np.zeros((1, 4, 6))
    nothing = {name: np.full(1, np.nan) for name in ("x", "y", "sigma_x", "sigma_y", "theta")}
    plot.fields(
        maps, nothing, ["n"], {**nothing, "good": np.array([False])}, tmp_path / "f.png", coordinates=np.zeros((1, 3))
    )
    assert all((tmp_path / name).stat().st_size > 5_000 for name in ("d.png", "c.png", "f.png"))
