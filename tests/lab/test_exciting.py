"""Most exciting stimuli: the published parametrisations and losses, constraints, and a search whose answer is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from viv1t.errors import ConfigError
from viv1t.lab import exciting
from viv1t.lab.climb import Climber, Search, climb, most_exciting
from viv1t.lab.exciting import FourierFilm, PixelFilm
from viv1t.stimuli.geometry import Monitor, circle
from viv1t.stimuli.parametric import grating


@pytest.fixture(scope="module")
def published(golden_in_silico: Path) -> tuple[dict[str, Any], Any]:
    facts = json.loads((golden_in_silico / "generated.json").read_text())
    return facts, np.load(golden_in_silico / "generated.npz")


def film_of(method: str, facts: dict[str, Any], arrays: Any) -> exciting.Film:
    start = torch.from_numpy(arrays[f"{'kl' if method == 'pixel' else method}_start"].astype(np.float32))
    if method == "pixel":
        return PixelFilm(start, 30)
    if method == "kl":
        return FourierFilm(start, 30, spatial_cutoff=1.0)
    if method == "static":  # the published one is a film of which all frequencies of time but one are zero
        start = start / np.sqrt(30)
    return FourierFilm(start, 30, spatial_cutoff=facts["spatial_cutoff"], temporal_cutoff=facts["temporal_cutoff"])


@pytest.mark.parametrize("method", ["dynamic", "static", "kl", "pixel"])
def test_published_films(published: tuple[dict[str, Any], Any], method: str) -> None:
    facts, arrays = published
    given = facts["mask"]
    mask = torch.from_numpy(circle(given["size"], given["center"], monitor=Monitor(*given["monitor"])))
    center = torch.from_numpy(grating(facts["center"]["direction"], frames=30)).float()
    with torch.no_grad():
        levels = exciting.in_range(film_of(method, facts, arrays)())
    for name, film in (
        ("center", exciting.composed(levels, mask)), ("surround", exciting.composed(levels, ~mask, center))
    ):  # fmt: skip
        expected = arrays[f"{method}_{name}"]
        assert np.abs(film[facts["frames_kept"]].numpy() - expected).max() < 0.02, name


def test_published_filters(published: tuple[dict[str, Any], Any]) -> None:
    _, arrays = published
    for name in (key for key in arrays if key.startswith("filter_")):
        _, size, cutoff = name.split("_")
        assert np.array_equal(exciting.low_pass(int(size), float(cutoff)).numpy(), arrays[name])


def test_published_spectrum_and_divergence(golden_in_silico: Path) -> None:
    golden = np.load(golden_in_silico / "spectrum.npz")
    clips = [
        torch.from_numpy(video[start : start + 30]).double()
        for video in golden["videos"] for start in range(0, len(video) - 29, 5)
    ]  # fmt: skip
    spectra = torch.stack([exciting.log_spectrum(clip) for clip in clips])
    natural = spectra.mean(0)
    np.testing.assert_allclose(natural, golden["spectrum"], atol=1e-4)
    ours = [float(exciting.divergence(spectrum, natural)) for spectrum in spectra]
    np.testing.assert_allclose(ours, golden["clip_divergence"], rtol=1e-3)


@pytest.mark.parametrize("sigma", [1, 2.5])
def test_published_blur(published: tuple[dict[str, Any], Any], sigma: float) -> None:
    _, arrays = published
    blurred = exciting.blur(torch.from_numpy(arrays["ops_input"]), sigma)
    np.testing.assert_allclose(blurred, arrays[f"blur_{sigma}"], atol=1e-5)


@pytest.mark.parametrize("rms", [10.0, 38.0, 80.0])
@pytest.mark.parametrize("masked", [False, True])
def test_contrast_is_held(rms: float, masked: bool) -> None:
    mask = torch.from_numpy(circle(40, (20, 12))) if masked else None
    film = exciting.with_rms(torch.randn(30, 36, 64, generator=torch.Generator().manual_seed(0)) + 3, rms, mask)
    seen = film if mask is None else film[:, mask]
    assert float(seen.std()) == pytest.approx(rms, rel=0.01)
    assert 0 <= float(film.min()) <= float(film.max()) <= 255


def test_a_film_without_contrast_is_refused() -> None:
    with pytest.raises(ConfigError, match="without contrast"):
        exciting.with_rms(torch.ones(3, 4, 5), 10)


def template() -> torch.Tensor:
    return torch.from_numpy(grating(45, frames=8, cpd=0.02).astype(np.float32) - 127) * torch.from_numpy(
        np.exp(-(np.hypot(*np.mgrid[-18:18, -32:32]) ** 2) / 60)
    )


@pytest.mark.parametrize("kind", [FourierFilm, PixelFilm])
def test_a_linear_neuron_is_found(kind: Any) -> None:
    wanted = template()

    def response(film: torch.Tensor) -> torch.Tensor:
        return ((film - 127.5) * wanted).sum() / 1e4

    generator = torch.Generator().manual_seed(1)
    film = kind(0.01 * torch.randn(8, 36, 64, generator=generator), 8)
    found = most_exciting(response, film, lambda f: exciting.with_rms(f, 20.0), Search(steps=50, lr=0.08))
    assert found.film.dtype == np.uint8
    assert found.facts["rms"] == pytest.approx(20, rel=0.02)
    similar = np.corrcoef(found.film.ravel().astype(float), wanted.numpy().ravel())[0, 1]
    assert similar > (0.9 if kind is FourierFilm else 0.8)
    assert found.value == max(found.history)
    inhibiting = kind(0.01 * torch.randn(8, 36, 64, generator=generator), 8)
    against = most_exciting(lambda f: -response(f), inhibiting, lambda f: exciting.with_rms(f, 20.0), Search(steps=40))
    assert np.corrcoef(against.film.ravel().astype(float), wanted.numpy().ravel())[0, 1] < -0.5


def test_a_search_stops_when_nothing_is_gained() -> None:
    film = PixelFilm(torch.zeros(2, 3, 4), 2)
    flat = most_exciting(lambda f: (f * 0).sum() + 1, film, search=Search(steps=500, patience=7))
    assert len(flat.history) == 8


def test_what_cannot_be_searched_is_refused() -> None:
    film = PixelFilm(torch.zeros(2, 3, 4), 2)
    with pytest.raises(ConfigError, match="does not depend on the film"):
        most_exciting(lambda f: torch.tensor(1.0), film)
    with pytest.raises(ConfigError, match="objective is nan at step 0"):
        most_exciting(lambda f: f.sum() * float("nan"), film)
    with pytest.raises(ConfigError, match="needs 1 or 5 frames, not 2"):
        PixelFilm(torch.zeros(2, 3, 4), 5)
    with pytest.raises(ConfigError, match="spatial_cutoff"):
        FourierFilm(torch.zeros(2, 3, 4), 2, spatial_cutoff=0)


def test_a_still_is_one_frame() -> None:
    film = FourierFilm(torch.randn(1, 36, 64), 30)
    with torch.no_grad():
        shown = film()
    assert shown.shape == (30, 36, 64)
    assert torch.equal(shown[0], shown[29])


def test_published_operations_on_images(published: tuple[dict[str, Any], Any]) -> None:
    _, arrays = published
    images = torch.from_numpy(arrays["ops_input"])
    np.testing.assert_allclose(exciting.scaled(images, 25), arrays["norm_25"], atol=1e-5)
    np.testing.assert_allclose(exciting.with_deviation(images, 0.3), arrays["std_0.3"], atol=1e-5)
    smooth = exciting.smooth_spectrum(images, 0.1, published=True)
    np.testing.assert_allclose(smooth, arrays["fft_smooth_0.1"], atol=1e-5)
    variation = exciting.total_variation(images.double(), published=True)
    np.testing.assert_allclose(variation, arrays["total_variation"], rtol=1e-6)
    # Ours: neighbours in both directions, and a filter that leaves a real image real and a constant one as it is.
    steps = torch.tensor([[[0.0, 1.0], [3.0, 3.0]]])
    assert float(exciting.total_variation(steps)) == 1 + 3 + 2
    kept = exciting.smooth_spectrum(images, 0.1)
    np.testing.assert_allclose(kept.flip(-1), exciting.smooth_spectrum(images.flip(-1), 0.1), atol=1e-5)
    assert not torch.allclose(
        smooth.flip(-1), exciting.smooth_spectrum(images.flip(-1), 0.1, published=True), atol=0.01
    )


@pytest.mark.parametrize("method", ["dynamic", "kl"])
@pytest.mark.parametrize("largest", [False, True])
@pytest.mark.parametrize("alpha", [0.0, 1.0])
@pytest.mark.parametrize("inhibit", [False, True])
def test_published_losses(
    published: tuple[dict[str, Any], Any], method: str, largest: bool, alpha: float, inhibit: bool
) -> None:
    facts, arrays = published
    given = facts["mask"]
    mask = torch.from_numpy(circle(given["size"], given["center"], monitor=Monitor(*given["monitor"])))
    center = torch.from_numpy(grating(facts["center"]["direction"], frames=30)).float()
    with torch.no_grad():
        film = exciting.composed(exciting.in_range(film_of(method, facts, arrays)()), ~mask, center)
    response = torch.from_numpy(arrays["loss_response"])[slice(*facts["presentation_frames_of_250"])]
    natural = torch.from_numpy(arrays["loss_natural_spectrum"])
    ours = exciting.published_loss(response, film, natural, largest=largest, alpha=alpha, inhibit=inhibit)
    expected = arrays[f"{method}_loss_{'max' if largest else 'sum'}_{alpha}_{int(inhibit)}"]
    np.testing.assert_allclose(ours, expected, rtol=1e-4)


@pytest.mark.parametrize("kind", [FourierFilm, PixelFilm])
def test_an_interrupted_search_goes_on_as_if_it_was_not(kind: Any) -> None:
    wanted = template()
    search = Search(steps=12, lr=0.1, jitter=2, precondition="blur", precondition_by=1.0)

    def climbers() -> list[Climber]:
        starts = [0.01 * torch.randn(8, 36, 64, generator=torch.Generator().manual_seed(s)) for s in (1, 2)]
        return [Climber(kind(s, 8), lambda f: exciting.with_rms(f, 20.0), search, seed=n) for n, s in enumerate(starts)]

    def worth(films: Any, places: Any) -> torch.Tensor:
        return torch.stack([((film - 127.5) * wanted).sum() / 1e4 for film in films])

    whole = climbers()
    while climb(worth, whole):
        pass
    first = climbers()
    for _ in range(5):
        climb(worth, first)
    second = climbers()
    for old, new in zip(first, second, strict=True):
        new.resume(old.state())
        assert new.steps == 5
    while climb(worth, second):
        pass
    for a, b in zip(whole, second, strict=True):
        assert a.history == b.history
        assert a.stopped == b.stopped == "steps"
        np.testing.assert_array_equal(a.found().film, b.found().film)
        assert a.value > a.history[0]
    # Films do not disturb each other: the second alone is found as beside the first.
    alone = climbers()[1:]
    while climb(worth, alone):
        pass
    np.testing.assert_allclose(alone[0].history, whole[1].history, rtol=1e-5)


def test_pixels_are_blurred_and_gradients_smoothed() -> None:
    rough = torch.randn(4, 20, 30, generator=torch.Generator().manual_seed(0))

    def sharpness(search: Search) -> float:
        film = PixelFilm(torch.zeros(4, 20, 30), 4)
        climber = Climber(film, lambda f: 127.5 + f, search)
        while climb(lambda films, _: torch.stack([((f - 127.5) * rough).sum() for f in films]), [climber]):
            pass
        with torch.no_grad():
            found = film().detach()
        return float(found.diff(dim=-1).std() / found.std())

    steps = {"steps": 8, "lr": 0.01}
    plain = sharpness(Search(**steps))
    assert sharpness(Search(**steps, blur=(1.5, 1.0))) < 0.7 * plain
    assert sharpness(Search(**steps, precondition="blur", precondition_by=1.0)) < 0.8 * plain
    assert sharpness(Search(**steps, precondition="fft", precondition_by=1.0)) < 0.95 * plain
    with pytest.raises(ConfigError, match="--blur smooths pixels"):
        Climber(FourierFilm(torch.zeros(4, 20, 30), 4), exciting.in_range, Search(blur=(1.5, 0.1)))
    for options, words in (
        ({"steps": 0}, "--steps must be at least 1"), ({"lr": 0}, "--lr must be above 0"),
        ({"precondition": "wave"}, "--precondition must be none"), ({"blur": (1.0, 0)}, "--blur takes two sigmas"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=words):
            Search(**options)  # type: ignore[arg-type]


def test_the_norm_is_held() -> None:
    film = exciting.with_norm(torch.randn(5, 36, 64, generator=torch.Generator().manual_seed(0)), 400.0)
    np.testing.assert_allclose((film - 127.5).square().sum((1, 2)).sqrt(), 400, rtol=1e-4)
    assert (exciting.with_norm(torch.zeros(2, 3, 4), 10.0) == 127.5).all()
