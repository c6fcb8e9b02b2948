"""Most exciting films of whole experiments: gradients, known optima, resuming, judges, and mistakes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from commands import viv1t_lab as main
from tiny_runs import ran, script_validation, train

from viv1t.errors import ConfigError
from viv1t.lab import Lab
from viv1t.lab.ascent import EXCITING, Ascent
from viv1t.lab.gratings import Grid
from viv1t.lab.natural import Library, Sample, library_at, shortlist
from viv1t.lab.observers import TrueNeurons, Twin, digest_of
from viv1t.lab.present import OverBudget
from viv1t.stimuli.geometry import circle
from viv1t.stimuli.parametric import smooth_images
from viv1t.types import Mouse

SIZE = (24, 40)
GRID = Grid(4, (0.05, 0.1), (2.0,), 2)


class Linear:
    """A twin whose neurons have one elongated field each, off centre, and one that answers nothing (2)."""

    frame_size, longest, causal = SIZE, 85, True
    device = torch.device("cpu")

    def __init__(self, noise: float = 0.0, seed: int = 0) -> None:
        y, x = np.mgrid[: SIZE[0], : SIZE[1]]
        fields = []
        for x0, y0, theta in ((29.0, 7.0, 20.0), (10.0, 16.0, 110.0)):
            t = np.radians(theta)
            along = (x - x0) * np.cos(t) + (y - y0) * np.sin(t)
            across = (y - y0) * np.cos(t) - (x - x0) * np.sin(t)
            bump = np.exp(-(along**2) / (2 * 5.0**2) - across**2 / (2 * 2.5**2))
            fields.append(bump * np.cos(across / 1.5) / 50)
        stack = np.stack([*fields, np.zeros(SIZE)])
        stack[:2] += noise * np.random.default_rng(seed).standard_normal((2, *SIZE)) * np.abs(stack[:2]).max()
        self.fields = torch.from_numpy(stack).float()
        self.mouse = Mouse("F", "session-f", np.zeros((3, 3), np.float32), np.arange(3))
        self.models, self.factor = [self], np.full(3, 2.0)
        self.facts: dict[str, Any] = {"model": "linear"}
        self.identity = digest_of([self.fields.numpy().tobytes()])
        self.asked = 0

    @contextmanager
    def still(self) -> Iterator[None]:
        yield

    def drive(self, films: Any, member: int | None = None) -> torch.Tensor:
        self.asked += len(films)
        contrast = torch.stack([film.float() for film in films]) - 127
        return torch.relu(torch.einsum("bthw,nhw->bnt", contrast, self.fields) + 0.5)[..., 2:]

    def answer(self, films: np.ndarray) -> np.ndarray:
        answer = self.drive([torch.from_numpy(film) for film in films]).numpy()
        return np.asarray(answer * self.factor[:, None])

    def answer_long(self, film: np.ndarray, states: Any = None) -> np.ndarray:
        return np.pad(self.answer(film[None])[0], ((0, 0), (2, 0)), constant_values=np.nan)


def lab_of(observer: Any, **options: Any) -> Lab:
    lab = Lab({"F": observer}, **({"out": None} | options))
    lab._grids[("F", None)] = lab._grid(lab._theatres["F"], GRID)
    lab._clips = lambda *_: None  # type: ignore[method-assign]
    return lab


def test_a_linear_neuron_is_found_where_it_is_and_judged(tmp_path: Path) -> None:
    twin, judge = Linear(0.02, 1), Linear(0.02, 2)
    said: list[str] = []
    lab = lab_of(twin, out=tmp_path, say=said.append)
    table = lab.mei(steps=60, lr=0.02, starts=2, contrast=30.0, judge={"F": judge})
    truth = Linear().fields
    for n in (0, 1):
        film = np.load(tmp_path / "session-f" / "mei" / f"neuron_{n}.npy").astype(float)
        assert film.shape == (30, *SIZE)
        similar = np.corrcoef(film.mean(0).ravel(), truth[n].numpy().ravel())[0, 1]
        assert similar > 0.7  # rows and columns are not swapped, nor up and down
        row = table.iloc[n]
        assert row["ratio_grating"] > 1.5
        assert row["promised_grating"] > 1.5
        assert row["rank"] == 1
        assert row["rms"] == pytest.approx(30, rel=0.03)
        assert 0.05 < row["similarity"] < 1
        assert 0 <= row["spread"] < 0.1
        assert row["robust_pixel"] < row["robust_frame"] + 1e-6
        # What the record says of responses is what the twin answers to the file.
        shown = EXCITING.film([film.astype(np.uint8)])
        assert row["response"] == pytest.approx(twin.answer(shown[None])[0, n, -35:-5].sum(), rel=1e-4)
        assert row["judged"] == pytest.approx(judge.answer(shown[None])[0, n, -35:-5].sum(), rel=1e-4)
    # The neuron that answers nothing keeps its row.
    assert table["reason"].tolist()[:2] == ["", ""]
    assert table["reason"][2] == "no film moves its response away from that to grey"
    record = json.loads((tmp_path / "session-f" / "mei.json").read_text())
    assert record["options"]["contrast"] == 30
    assert "judged_over_grating" in record["notes"]
    asked = twin.asked
    pd.testing.assert_frame_equal(
        lab_of(twin, out=tmp_path).mei(steps=60, lr=0.02, starts=2, contrast=30.0, judge={"F": judge}), table
    )
    assert twin.asked == asked


def test_without_a_judge_there_is_a_warning_and_no_ratio() -> None:
    said: list[str] = []
    table = lab_of(Linear(), neurons=[0], say=said.append).mei(steps=5, starts=1)
    assert table[["judged", "ratio_grating", "ratio_natural"]].isna().all(axis=None)
    assert "warning no --judge" in said[-1]
    assert "judged over" not in said[-1]


def test_an_interrupted_search_goes_on(tmp_path: Path) -> None:
    options: dict[str, Any] = {"starts": 2, "lr": 0.1, "method": "pixel", "jitter": 1}
    whole = lab_of(Linear(), neurons=[0, 1], out=tmp_path / "whole").mei(steps=14, **options)
    twin = Linear()
    first = lab_of(twin, neurons=[0, 1], out=tmp_path / "parts").mei(steps=6, **options)
    assert (first["steps"] == 6).all()
    twin.asked = 0
    second = lab_of(twin, neurons=[0, 1], out=tmp_path / "parts").mei(steps=14, **options)
    pd.testing.assert_frame_equal(second, whole)
    states = sorted((tmp_path / "parts").rglob("films/*.npz"))
    assert len(states) == 4
    # A damaged state is found again, not believed.
    states[0].write_bytes(b"nothing")
    (tmp_path / "parts" / "session-f" / "mei.json").unlink()
    pd.testing.assert_frame_equal(lab_of(twin, neurons=[0, 1], out=tmp_path / "parts").mei(steps=14, **options), whole)


def test_a_budget_ends_a_search_which_goes_on_with_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]

    def monotonic() -> float:
        clock[0] += 0.05
        return clock[0]

    monkeypatch.setattr("viv1t.lab.ascent.time.monotonic", monotonic)
    twin = Linear()
    lab = lab_of(twin, neurons=[0], out=tmp_path)
    lab._theatres["F"].deadline = clock[0] + 8
    lab._theatres["F"].seconds = lambda shown: 0.0  # type: ignore[method-assign]
    short = lab.mei(steps=10_000, starts=1)
    assert short["stopped"].tolist() == ["budget"]
    assert 20 <= short["steps"][0] < 1000
    lab._theatres["F"].deadline = clock[0] + 8
    more = lab.mei(steps=10_000, starts=1)
    assert more["steps"][0] > short["steps"][0]
    assert more["response"][0] >= short["response"][0]
    lab._theatres["F"].deadline = clock[0] + 0.1
    with pytest.raises(OverBudget, match="20 steps of a film take"):
        lab.mei(steps=10_000, starts=1)


def test_a_surround_leaves_the_centre_as_it_is() -> None:
    twin = Linear()
    for name, better in (("exciting", True), ("inhibiting", False)):
        lab = lab_of(twin, neurons=[0])
        fields = pd.DataFrame({"mouse": ["F"], "neuron": [0], "x": [29.2], "y": [7.1], "reason": [""]})
        lab.rf = lambda fields=fields: fields  # type: ignore[method-assign]
        found = []
        lab._write_films = lambda *a, found=found: found.append(a[2])  # type: ignore[method-assign]
        table = lab.mei(steps=40, lr=0.01, starts=1, surround=name, mask=20.0, outer=80.0, contrast=30.0)
        (result,) = found[0]
        mask, rim = circle(20.0, (29, 7), frame_size=SIZE), circle(80.0, (29, 7), frame_size=SIZE)
        film, centre = result.films["film"], result.films["center"]
        assert np.array_equal(film[:, mask], centre[:, mask])
        assert (centre[:, ~mask] == 127).all()
        assert (film[:, ~rim] == 127).all()
        assert film[:, rim & ~mask].std() == pytest.approx(30, rel=0.05)
        row = table.iloc[0]
        assert (row["response"] > row["center"]) == better
        # The gratings it is compared with lie around the same centre.
        assert np.array_equal(result.films["grating"][:, mask], centre[:, mask])


def test_a_population_and_groups_that_are_to_answer_less() -> None:
    twin = Linear()
    options: dict[str, Any] = {"steps": 40, "lr": 0.02, "starts": 1}
    found: list[Any] = []

    def lab(neurons: list[int]) -> Lab:
        made = lab_of(twin, neurons=neurons)
        made._write_films = lambda *a: found.append(a[2])  # type: ignore[method-assign]
        return made

    both = lab([0, 1]).mei(**options, population=True)
    assert both["film"].tolist() == ["population"] * 2
    assert (both["response"] > 1.5 * both["grating"]).all()
    lab([0]).mei(**options, population=True, against=[[1]])
    together, against = (results[0].answers["film"] for results in found)
    assert against[0] / against[1] > 1.5 * together[0] / together[1]
    alone = lab([0, 1]).mei(**options)
    assert alone["rank"].tolist() == [1, 1]
    assert alone["response"][0] > 1.1 * both["response"][0]
    least = lab([0]).mei(**options, inhibit=True)
    assert least["response"][0] < 0.2 * least["grey"][0]


@pytest.mark.parametrize(
    "options",
    [
        {"method": "pixel", "blur": (1.5, 0.5), "tv": 0.1, "smooth_time": 0.1}, {"still": True, "over": "max"},
        {"constraint": "norm", "precondition": "blur:1", "contrast": 400.0},
        {"constraint": "range", "precondition": "fft:0.1"}, {"constraint": "none", "dropout": True},
    ],
)  # fmt: skip
def test_parametrisations_and_constraints(options: dict[str, Any]) -> None:
    found = []
    lab = lab_of(Linear(), neurons=[0])
    lab._write_films = lambda *a: found.append(a[2])  # type: ignore[method-assign]
    table = lab.mei(steps=12, lr=0.1, starts=1, **options)
    assert table["reason"].tolist() == [""]
    assert table["response"][0] > 1.3 * table["grey"][0]
    film = found[0][0].films["film"]
    if options.get("still"):
        assert (film == film[0]).all()
    if options.get("constraint") == "norm":
        lengths = np.sqrt(((film.astype(float) - 127.5) ** 2).sum((1, 2)))
        np.testing.assert_allclose(lengths, 400, rtol=0.02)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "wavelet"}, "--method must be one of cutoff, kl, pixel, not 'wavelet'"),
        ({"method": "kl"}, "--method kl needs natural movies"),
        ({"starts": 0}, "--starts must be at least 1"),
        ({"contrast": 5.0, "constraint": "range"}, "--contrast has no effect with --constraint range"),
        ({"surround": "exciting", "inhibit": True}, "--inhibit says nothing of a surround"),
        ({"against": [[1]]}, "--against compares groups: give --population"),
        ({"outer": 60.0}, "--outer is where a surround ends"),
        ({"mask": "half"}, "--mask must be full, preferred, or degrees"),
        ({"precondition": "blur:x"}, "--precondition must be none, blur:S or fft:A"),
        ({"windows": "long"}, "--windows must be one of short, single"),
        ({"films": "gif"}, "--films must be npy, mkv or avi"),
        ({"judge": {"G": Linear()}}, "--judge: does not know mouse F, but G"),
        ({"judge": {"F": Linear()}}, "--judge: is the model whose films it would judge"),
        ({"blur": (1.0, 0.1)}, "--blur smooths pixels"),
        ({"population": True, "mask": 20.0}, "--population: neurons look at different places"),
    ],
)
def test_mistakes(options: dict[str, Any], words: str) -> None:
    lab = lab_of(Linear(), neurons=[0])
    fields = pd.DataFrame({"mouse": ["F"], "neuron": [0], "x": [29.2], "y": [7.1], "reason": [""]})
    lab.rf = lambda: fields  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match=words):
        lab.mei(**({"steps": 3} | options))


def test_what_gives_no_gradient_is_refused() -> None:
    observer = TrueNeurons.__new__(TrueNeurons)
    observer.mouse = Linear().mouse
    with pytest.raises(ConfigError, match="mei needs a PyTorch model"):
        Lab({"F": observer}, out=None, neurons=[0]).mei()


# -- natural movies ----------------------------------------------------------------------------------------------------


def movies() -> Library:
    rng = np.random.default_rng(3)
    made = [smooth_images(rng, 50 + 7 * i, frame_size=SIZE) for i in range(3)]
    return Library(("a", "b", "c"), lambda i: made[i], "movies")


def test_the_best_clips_of_whole_movies(tmp_path: Path) -> None:
    twin, library = Linear(), movies()
    found = shortlist(twin, library, np.array([1, 0]), 30, 4, step=5, folder=tmp_path)
    every = []
    for movie in range(3):
        answer = twin.answer_long(library.film(movie))[[1, 0]]
        for first in range(5, answer.shape[1] - 29, 5):  # the first frames are not predicted
            every.append((answer[:, first : first + 30].sum(1), movie, first))
    assert found.seen == len(every)
    for row in (0, 1):
        best = sorted(every, key=lambda e: -e[0][row])[:4]
        assert found.movie[row].tolist() == [m for _, m, _ in best]
        assert found.first[row].tolist() == [f for _, _, f in best]
        np.testing.assert_allclose(found.promised[row], [s[row] for s, _, _ in best], rtol=1e-6)
    asked = twin.asked
    again = shortlist(twin, library, np.array([1, 0]), 30, 4, step=5, folder=tmp_path)
    assert twin.asked == asked
    np.testing.assert_array_equal(again.first, found.first)
    least = shortlist(twin, library, np.array([1]), 30, 1, sign=-1)
    assert least.promised[0, 0] == pytest.approx(min(s[0] for s, _, _ in every), rel=1e-6)
    many = shortlist(twin, library, np.array([0]), 60, 9)
    assert (many.movie[0, -1], np.isnan(many.promised[0, -1])) == (-1, True)  # fewer clips than asked for


def test_a_library_of_files(tmp_path: Path) -> None:
    film = movies().film(0)
    np.save(tmp_path / "a.npy", film)
    library = library_at(tmp_path, SIZE)
    assert library.names == ("a.npy",)
    np.testing.assert_array_equal(library.film(0), film)
    sample = Sample(library, 30)
    mask = circle(40, (20, 10), frame_size=SIZE)
    np.testing.assert_allclose(sample.rms(mask), np.median([c[:, mask].std() for c in sample.clips]))
    with pytest.raises(ConfigError, match=r"--library .*nothing: no such file or folder"):
        library_at(tmp_path / "nothing", SIZE)
    np.save(tmp_path / "b.npy", np.zeros((3, 4)))
    with pytest.raises(Exception, match=r"b\.npy: expected grey levels"):
        library_at(tmp_path, SIZE).film(1)
    with pytest.raises(Exception, match="as long as a clip of 90 frames"):
        Sample(library, 90)


def test_a_search_in_two_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    twin = Linear()
    monkeypatch.setattr("viv1t.lab.searches.library_at", lambda *_: movies())
    fields = pd.DataFrame({"mouse": ["F"] * 3, "neuron": [0, 1, 2], "x": [29.2, 10.0, 5.0], "y": [7.1, 16.0, 5.0]})
    fields["reason"] = ["", "", "more than one field"]
    said: list[str] = []

    def lab() -> Lab:
        made = lab_of(twin, out=tmp_path, say=said.append, plots=True)
        made.rf = lambda: fields  # type: ignore[method-assign]
        return made

    table = lab().search(library="movies", mask=60.0, listed=6, recall=2)
    # All clips shown alone, by hand.
    films, library = [], movies()
    for movie in range(3):
        length = len(library.film(movie))
        films += [(movie, f) for f in range(5, length - 29, 5)]
    for n, center in ((0, (29, 7)), (1, (10, 16))):
        mask = circle(60.0, center, frame_size=SIZE)
        shown = [np.where(mask, library.film(m)[f : f + 30], 127).astype(np.uint8) for m, f in films]
        trials = np.stack([EXCITING.film([film]) for film in shown])
        value = twin.answer(trials)[:, n, -35:-5].sum(-1)
        order = np.argsort(-value, kind="stable")
        row = table.iloc[n]
        listed = {(int(m), int(f)) for m, f in zip(row["best_movie"], row["best_frame"], strict=True)}
        assert row["recall"] == pytest.approx(np.mean([films[i] in listed for i in order[:20]]))
        if films[order[0]] in listed:
            assert row["response"] == pytest.approx(value[order[0]], rel=1e-4)
            assert (row["movie"], row["first_frame"]) == (library.names[films[order[0]][0]], films[order[0]][1])
        assert row["response"] > row["random"]
        assert row["response"] > row["grey"]
        assert len(row["best"]) == 6
        best = np.load(tmp_path / "session-f" / "search" / f"neuron_{n}.npy")
        assert (best[:, ~mask] == 127).all()
    assert table["reason"].tolist() == ["", "", "field: more than one field"]
    assert any("recall" in line for line in said)
    assert (tmp_path / "session-f" / "search.png").stat().st_size > 10_000
    asked = twin.asked
    pd.testing.assert_frame_equal(lab().search(library="movies", mask=60.0, listed=6, recall=2), table)
    assert twin.asked == asked
    still = lab().search(library="movies", mask="full", listed=3, still=True)
    film = np.load(tmp_path / "session-f" / "search" / "neuron_0.npy")
    assert (film == film[0]).all()
    assert still["reason"][2] == "no clip moves its response above that to grey"
    with pytest.raises(ConfigError, match="--listed must be at least 1"):
        lab().search(library="movies", listed=0)


# -- models ------------------------------------------------------------------------------------------------------------


def test_gradients_flow_to_films_without_patches(runs: Path, mice: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        script_validation(patch, [0.3])
        train(mice, tmp_path / "f", epochs=1, transform_mode=3, crop_frame=62, core="factorized_baseline")
    rng = torch.Generator().manual_seed(1)
    for folders in ([runs / "one"], [runs / "one", runs / "two"], [tmp_path / "f"]):
        with Lab(folders, out=None, device="cpu", mice="F") as lab:
            twin = lab._theatres["F"].observer
            assert isinstance(twin, Twin)
            ascent = Ascent(lab._theatres["F"], EXCITING, None)
            film = (127 + 30 * torch.randn(30, 36, 64, generator=rng)).requires_grad_()
            sizes: list[int] = []

            def keep(tensor: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
                sizes.append(tensor.numel())
                return tensor

            with twin.still(), torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
                value = ascent.responses([film])[0, 2].sum()
                (gradient,) = torch.autograd.grad(value, film)
            if folders[0].name == "one":  # five times the movie would be its overlapping patches
                assert max(sizes) <= 1.5 * 62 * 36 * 64
            assert all(p.requires_grad for p in twin.models[0].readouts.parameters())
            direction = torch.randn(film.shape, generator=rng)
            with torch.no_grad():
                up, down = (ascent.responses([film + s * direction])[0, 2].double().sum() for s in (1.0, -1.0))
            assert float((gradient * direction).sum()) == pytest.approx(float(up - down) / 2, rel=0.05, abs=1e-5)


def test_films_of_a_run_by_command(runs: Path, mice: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["mei", runs / "one", "--out", tmp_path, "--mouse_ids", "F", "--neurons", "1,3", "--steps", "2"]
    words += ["--starts", "1", "--judge", runs / "two", "--format", "csv", "--data", mice, "--population"]
    words += ["--directions", "4", "--frequencies", "0.05", "--hertz", "2", "--phases", "1"]
    out = ran(main, words, capsys)
    assert "mei_population, mouse F: 1 films, at most 2 steps of about" in out
    assert "judged over grating" in out
    folder = next(tmp_path.iterdir())
    table = pd.read_csv(folder / "mei_population.csv")
    assert table["neuron"].tolist() == [1, 3]
    assert (folder / "mei_population.png").stat().st_size > 10_000
    assert np.load(folder / "mei_population" / "population.npy").shape == (30, 36, 64)
    error = ran(main, [*words[:8], "--judge", runs / "one"], capsys, 2)
    assert "--judge: is the model whose films it would judge" in error
