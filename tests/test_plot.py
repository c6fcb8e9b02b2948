"""Figures: written whole or not at all, in every format, and refused with a reason when the input does not fit."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from viv1t import plot
from viv1t.errors import ConfigError, DataError
from viv1t.plot.attention import lag_profile
from viv1t.plot.movie import MovieSummary, raster
from viv1t.plot.positions import pixel_distance
from viv1t.plot.responses import depth_layers
from viv1t.plot.style import figure_path, mouse_colors, pearson, robust_range
from viv1t.plot.training import read_metrics

STARTS = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}
HEADER = "epoch,train_loss,validation_loss,correlation,learning_rate,seconds,correlation/F,correlation/G\n"
ROWS = [
    "1,90.5,20.5,0.1,0.0036,3.1,0.08,0.12\n",
    "2,80.5,18.5,0.15,0.0036,3.1,0.13,0.17\n",
    "3,70,17,0.14,0.001,3,0.12,0.16\n",
]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


@pytest.fixture
def metrics(tmp_path: Path) -> Path:
    path = tmp_path / "metrics.csv"
    path.write_text(HEADER + "".join(ROWS))
    return path


def population(rng: np.random.Generator, mouse_sizes: dict[str, int]) -> dict[str, dict[str, np.ndarray]]:
    """Positions on the frame, cortical coordinates and correlations of some mice."""
    positions = {m: rng.uniform(-1, 1, (n, 2)) for m, n in mouse_sizes.items()}
    coordinates = {
        m: np.concatenate([p * 300, rng.choice([150, 200, 250], (len(p), 1))], axis=1) for m, p in positions.items()
    }
    return {
        "positions": positions,
        "coordinates": coordinates,
        "correlations": {m: rng.uniform(0, 0.5, n) for m, n in mouse_sizes.items()},
    }


def figures(rng: np.random.Generator, metrics: Path) -> dict[str, Callable[..., Path]]:
    """Every figure as a function of its file and format."""
    mice = population(rng, {"F": 30, "synthetic-011": 7})
    trial = rng.exponential(size=(6, 40))
    attention = rng.uniform(0.5, 1.5, (10, 36, 64))
    movie = MovieSummary(40, {"F": 6})
    movie.add_stimulus(rng.uniform(0, 255, (40, 36, 64)))
    movie.add_response("F", trial)
    temporal = np.full((10, 10), 0.1)
    return {
        "learning_curves": lambda out, **k: plot.learning_curves(metrics, out, ceiling=0.3, **k),
        "response_traces": lambda out, **k: plot.response_traces(
            trial, trial * 0.5, out, neurons=[0, 3], expected=trial, names=["a", "b"], title="F $1$", **k
        ),
        "receptive_fields": lambda out, **k: plot.receptive_fields(mice["positions"], mice["positions"], out, **k),
        "correlation_by_neuron": lambda out, **k: plot.correlation_by_neuron(
            mice["correlations"], mice["coordinates"], out, **k
        ),
        "readout_positions": lambda out, **k: plot.readout_positions(mice["positions"], mice["coordinates"], out, **k),
        "attention_film_strip": lambda out, **k: plot.attention_film_strip(
            rng.uniform(0, 255, (14, 36, 64)), attention, temporal, out, frames=np.arange(4, 14), **k
        ),
        "movie_responses": lambda out, **k: plot.movie_responses(movie, out, **k),
    }


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", plot.__all__)
def test_every_figure_is_written_and_nothing_else(
    name: str, tmp_path: Path, rng: np.random.Generator, metrics: Path
) -> None:
    draw = figures(rng, metrics)[name]
    folder = tmp_path / "plots"
    made = [draw(folder / "a.png", dpi=30), draw(folder / "a", format="svg", dpi=30), draw(folder / "a.pdf", dpi=30)]
    assert made == [folder / "a.png", folder / "a.svg", folder / "a.pdf"]
    assert sorted(folder.iterdir()) == sorted(made)
    for path in made:
        assert path.read_bytes().startswith(STARTS[path.suffix[1:]])


def test_resolution_is_that_of_dpi(tmp_path: Path, metrics: Path) -> None:
    sizes = []
    for dpi in (40, 80):
        data = plot.learning_curves(metrics, tmp_path / "a.png", dpi=dpi).read_bytes()
        sizes.append((int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")))
    assert sizes[1] == (2 * sizes[0][0], 2 * sizes[0][1])


def test_the_same_input_gives_the_same_file(tmp_path: Path, metrics: Path) -> None:
    for ending in ("svg", "pdf", "png"):
        a, b = (plot.learning_curves(metrics, tmp_path / f"{n}.{ending}") for n in "ab")
        assert a.read_bytes() == b.read_bytes()


def test_pyplot_and_global_settings_are_left_alone(tmp_path: Path, metrics: Path) -> None:
    code = (
        "import sys; from viv1t import plot; assert 'matplotlib' not in sys.modules\n"
        "import matplotlib; before = str(matplotlib.rcParams.copy())\n"
        f"plot.learning_curves({str(metrics)!r}, {str(tmp_path / 'a.png')!r})\n"
        "assert 'matplotlib.pyplot' not in sys.modules and str(matplotlib.rcParams.copy()) == before"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=120)


def test_an_error_while_drawing_leaves_the_old_figure(tmp_path: Path, rng: np.random.Generator) -> None:
    out = tmp_path / "a.png"
    out.write_bytes(b"old")
    with pytest.raises(DataError):
        plot.response_traces(rng.random((3, 5)), rng.random((3, 4)), out, neurons=[0])
    with pytest.raises(TypeError):
        plot.response_traces(rng.random((3, 5)), rng.random((3, 5)), out, neurons=[0], frame_rate=30, dpi=None)  # type: ignore[arg-type]
    assert out.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize(
    ("out", "options", "words"),
    [
        ("a.jpg", {}, "must end in"),
        ("a", {}, "must end in"),
        ("a", {"format": "gif"}, "--format"),
        ("a.png", {"dpi": 0}, "--dpi"),
    ],
)
def test_unusable_formats_are_refused(
    out: str, options: dict[str, Any], words: str, tmp_path: Path, metrics: Path
) -> None:
    with pytest.raises(ConfigError, match=words):
        plot.learning_curves(metrics, tmp_path / out, **options)


def test_a_format_is_added_to_a_name_with_a_point() -> None:
    assert figure_path("epoch.5", "svg") == (Path("epoch.5.svg"), "svg")
    assert figure_path("curves.SVG", None) == (Path("curves.SVG"), "svg")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "rows",
    [ROWS[:1], ["1,nan,nan,nan,0.1,1,nan,nan\n"], [ROWS[0], "2,,inf,,0.0036,3,,\n", ROWS[2]], ["1,1,1,0,0,0,0,0\n"]],
)
def test_curves_of_short_or_broken_runs(rows: list[str], tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text(HEADER + "".join(rows))
    assert plot.learning_curves(path, tmp_path / "a.png").stat().st_size > 5000


def test_metrics_are_read_as_they_are(metrics: Path) -> None:
    metrics.write_text(HEADER + ROWS[0] + "2,,18.5,0.15,0.0036,3.1,,0.17\n")
    columns = read_metrics(metrics)
    np.testing.assert_array_equal(columns["train_loss"], [90.5, np.nan])
    np.testing.assert_array_equal(columns["correlation/G"], [0.12, 0.17])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "cannot be read"),
        ("", "no epoch"),
        (HEADER, "no epoch"),
        ("epoch,train_loss\n1,2\n", "validation_loss is missing"),
        (HEADER + ROWS[0].replace("20.5", "high"), "line 2: validation_loss must be a number, not 'high'"),
    ],
)
def test_unreadable_metrics_are_named(text: str | None, words: str, tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError, match=words) as error:
        plot.learning_curves(path, tmp_path / "a.png")
    assert str(path) in str(error.value)


def test_arrays_that_do_not_fit_are_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    out = tmp_path / "a.png"
    mice = population(rng, {"F": 30})
    few = {"F": rng.random((29, 2))}
    with pytest.raises(DataError, match=r"mouse F.*30 of true, 29 of recovered"):
        plot.receptive_fields(mice["positions"], few, out)
    with pytest.raises(DataError, match="mouse F has no recovered positions"):
        plot.receptive_fields(mice["positions"], {}, out)
    with pytest.raises(DataError, match="no mouse"):
        plot.readout_positions({}, {}, out)
    with pytest.raises(DataError, match=r"coordinates must be \(neurons, 3\), not \(30, 2\)"):
        plot.correlation_by_neuron(mice["correlations"], mice["positions"], out)
    with pytest.raises(DataError, match="no correlation is finite"):
        plot.correlation_by_neuron({"F": np.full(30, np.nan)}, mice["coordinates"], out)
    with pytest.raises(DataError, match="axis must be x or y"):
        plot.readout_positions(mice["positions"], mice["coordinates"], out, axis="z")
    trial = rng.random((3, 5))
    with pytest.raises(DataError, match="some of 0 to 2"):
        plot.response_traces(trial, trial, out, neurons=[3])
    with pytest.raises(DataError, match="1 names for 2"):
        plot.response_traces(trial, trial, out, neurons=[0, 1], names=["a"])
    with pytest.raises(DataError, match="leave the movie"):
        plot.attention_film_strip(
            rng.random((4, 6, 8)), rng.random((3, 6, 8)), np.eye(3), out, frames=np.array([2, 3, 4])
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("error")
def test_odd_neurons_are_drawn_all_the_same(tmp_path: Path, rng: np.random.Generator) -> None:
    """NaN scores and positions, one neuron alone, one plane, a prediction that starts late."""
    mice = population(rng, {"F": 5, "G": 1})
    mice["correlations"]["F"][:2] = np.nan
    mice["positions"]["F"][0] = np.nan
    mice["coordinates"]["F"][:, 2] = 200
    plot.correlation_by_neuron(mice["correlations"], mice["coordinates"], tmp_path / "a.png", dpi=30)
    plot.receptive_fields(mice["positions"], mice["positions"], tmp_path / "b.png", dpi=30)
    plot.readout_positions(mice["positions"], mice["coordinates"], tmp_path / "c.png", dpi=30)
    late = rng.random((2, 30))
    late[:, :10] = np.nan
    plot.response_traces(rng.random((2, 30)), late, tmp_path / "d.png", neurons=[1], dpi=30)
    plot.response_traces(np.zeros((1, 30)), np.full((1, 30), np.nan), tmp_path / "e.png", neurons=[0], dpi=30)


def test_mice_keep_their_colours() -> None:
    alone, together = mouse_colors(["G"]), mouse_colors(["synthetic-011", "F", "G", "H"])
    assert alone["G"] == together["G"]
    assert len(set(together.values())) == 4
    many = [*"ABCDEFGHIJ", "synthetic-011", "synthetic-012"]
    assert set(mouse_colors(many)) == set(many)


def test_depths_are_shared_out_without_dividing_a_plane(rng: np.random.Generator) -> None:
    z = rng.permutation(np.repeat([100.0, 125, 150, 175, 200, 225], 10))
    layers = depth_layers(z, 3)
    assert [sorted(set(z[layer])) for layer in layers] == [[100, 125], [150, 175], [200, 225]]
    assert sorted(np.concatenate(layers)) == list(range(60))
    assert [len(layer) for layer in depth_layers(np.zeros(9), 3)] == [9]


def test_numbers_in_titles() -> None:
    a = np.array([[0.0, 0.0], [-1, -1]])
    b = np.array([[0.0, 2 / 35], [1, -1]])
    np.testing.assert_allclose(pixel_distance(a, b), [1, 63])
    x = np.array([1.0, 2, 3, np.nan, 5])
    assert pearson(x, -2 * x + 1) == pytest.approx(-1)
    assert np.isnan(pearson(x, np.ones(5)))
    lags, share = lag_profile(np.eye(4) * 0.4 + np.eye(4, k=-1) * 0.6)
    np.testing.assert_allclose(dict(zip(lags.tolist(), share, strict=True))[-1], 2.4)
    assert np.isnan(share[lags == 0]).all()


# -- what every figure must keep --------------------------------------------------------------------------------------


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that are written, to be looked at."""
    from matplotlib.figure import Figure

    kept: list[Any] = []
    write = Figure.savefig

    def savefig(figure: Any, *args: Any, **options: Any) -> None:
        kept.append(figure)
        write(figure, *args, **options)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return kept


@pytest.mark.parametrize("name", plot.__all__)
def test_no_legend_covers_what_is_drawn(
    name: str, tmp_path: Path, rng: np.random.Generator, metrics: Path, drawn: list[Any]
) -> None:
    from matplotlib.legend import Legend

    figures(rng, metrics)[name](tmp_path / "a.png", dpi=60)
    (figure,) = drawn
    for legend in figure.findobj(Legend):
        box = legend.get_window_extent()
        for ax in figure.get_axes():
            assert not box.overlaps(ax.get_window_extent()), (name, ax.get_title(loc="left"))
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1  # noqa: PT018
        assert figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1  # noqa: PT018


def test_legends_of_ten_mice_fit(tmp_path: Path, rng: np.random.Generator, drawn: list[Any]) -> None:
    from matplotlib.legend import Legend

    mice = "ABCDEFGHIJ"
    path = tmp_path / "metrics.csv"
    path.write_text(
        "epoch,train_loss,validation_loss,correlation,learning_rate,seconds,"
        + ",".join(f"correlation/{m}" for m in mice)
        + "\n1,90,20,0.2,0.004,3" + ",0.2" * 10 + "\n2,80,19,0.3,0.004,3" + ",0.3" * 10 + "\n"
    )  # fmt: skip
    plot.learning_curves(path, tmp_path / "a.png", ceiling=0.4, dpi=60)
    movie = MovieSummary(40, dict.fromkeys(mice, 3))
    movie.add_stimulus(np.zeros((40, 36, 64)))
    for mouse in mice:
        movie.add_response(mouse, rng.random((3, 40)))
    plot.movie_responses(movie, tmp_path / "b.png", dpi=60)
    for figure, entries in zip(drawn, (12, 10), strict=True):
        (legend,) = figure.findobj(Legend)
        assert len(legend.get_texts()) == entries
        box = legend.get_window_extent()
        assert not any(box.overlaps(ax.get_window_extent()) for ax in figure.get_axes())
        assert figure.bbox.x0 <= box.x0
        assert box.x1 <= figure.bbox.x1


@pytest.mark.parametrize("name", plot.__all__)
def test_every_map_of_numbers_has_a_colour_bar(
    name: str, tmp_path: Path, rng: np.random.Generator, metrics: Path, drawn: list[Any]
) -> None:
    from matplotlib.cm import ScalarMappable

    figures(rng, metrics)[name](tmp_path / "a.png", dpi=30)
    (figure,) = drawn
    found = [m for m in figure.findobj(lambda m: isinstance(m, ScalarMappable)) if m.get_array() is not None]
    bars = [ax._colorbar for ax in figure.get_axes() if hasattr(ax, "_colorbar")]
    scales = {(bar.cmap.name, bar.norm.vmin, bar.norm.vmax) for bar in bars}
    maps = [m for m in found if m.cmap.name != "gray" and m not in [bar.solids for bar in bars]]  # no film's frames
    assert all((m.cmap.name, m.norm.vmin, m.norm.vmax) in scales for m in maps)
    assert bool(maps) == (
        name in {"movie_responses", "attention_film_strip", "readout_positions", "correlation_by_neuron"}
    )


def test_one_outlier_does_not_flatten_the_rest(tmp_path: Path, rng: np.random.Generator, drawn: list[Any]) -> None:
    trial = rng.random((2, 300))
    trial[0, 100], trial[1, 7] = 500, -80
    plot.response_traces(trial, trial * 0.5, tmp_path / "a.png", neurons=[0, 1], dpi=30)
    movie = MovieSummary(300, {"F": 2})
    movie.add_stimulus(np.zeros((300, 36, 64)))
    movie.add_response("F", trial)
    plot.movie_responses(movie, tmp_path / "b.png", dpi=30)
    traces, responses = drawn
    high, low = traces.get_axes()
    assert high.get_ylim()[1] < 1.2
    assert low.get_ylim()[0] > -0.2
    assert [text.get_text() for text in high.texts] == ["▲ 500"]
    assert [text.get_text() for text in low.texts] == ["▼ -80"]
    mean = next(ax for ax in responses.get_axes() if ax.get_ylabel() == "mean response")
    assert -0.2 < mean.get_ylim()[0] < mean.get_ylim()[1] < 1.2
    scaled = raster(trial)
    assert (np.median(scaled, axis=1) > 0.4).all()
    assert (np.median(scaled, axis=1) < 0.6).all()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 1, 2, 3], (0, 3)),
        ([0, 1, 2, 3, 4, 1000], (0, 4)),
        ([-1000, 0, 1, 2, 3, 4], (0, 4)),
        ([0] * 50 + [5], (0, 5)),  # a neuron that fires once
        ([0] * 50 + [5, 6, 4], (0, 6)),
        ([7], (7, 7)),
        ([np.nan, np.inf], (0, 1)),
        ([0, 1, 2, np.nan, np.inf], (0, 2)),
    ],
)
def test_the_range_that_is_drawn(values: list[float], expected: tuple[float, float]) -> None:
    assert robust_range(np.array(values, float)) == expected
