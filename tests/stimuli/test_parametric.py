"""Stimuli: the published ones pixel by pixel, and what their parameters promise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from viv1t.errors import ConfigError
from viv1t.stimuli import parametric
from viv1t.stimuli.geometry import CLOSED_LOOP, SENSORIUM, Monitor, circle
from viv1t.stimuli.parametric import dot, gabor_film, grating, in_context, masked, plaid


def close(ours: np.ndarray, theirs: np.ndarray) -> None:
    """Equal but for at most one pixel in a thousand, by one level: a cosine that meets a whole number."""
    assert ours.shape == theirs.shape
    difference = np.abs(ours.astype(int) - theirs.astype(int))
    assert difference.max() <= 1
    assert (difference > 0).mean() <= 1e-3


@pytest.fixture(scope="module")
def published(golden_in_silico: Path) -> tuple[dict[str, Any], Any]:
    return json.loads((golden_in_silico / "stimuli.json").read_text()), np.load(golden_in_silico / "stimuli.npz")


def test_published_gratings(published: tuple[dict[str, Any], Any]) -> None:
    facts, arrays = published
    assert len(facts["gratings"]) > 10
    for i, given in enumerate(facts["gratings"]):
        film = grating(
            given["direction"], cpd=given["cpd"], cpf=given["cpf"], frames=given["num_frames"],
            phase=given["phase"], contrast=given["contrast"],
        )  # fmt: skip
        close(film[given["frames"]], arrays[f"grating_{i}"])


def test_published_masks(published: tuple[dict[str, Any], Any]) -> None:
    facts, arrays = published
    for i, given in enumerate(facts["masks"]):
        center = None if given["center"][0] is None else tuple(given["center"])
        mask = circle(given["size"], center, monitor=Monitor(*given["monitor"]))
        assert np.array_equal(mask, arrays[f"mask_{i}"])
        assert mask.sum() == given["pixels"]


def test_published_surrounds(published: tuple[dict[str, Any], Any]) -> None:
    facts, arrays = published
    for i, given in enumerate(facts["center_surround"]):
        wave = {"cpd": given["cpd"], "cpf": given["cpf"], "frames": given["num_frames"]}
        wave |= {"phase": given.get("phase", 0), "contrast": given.get("contrast", 1)}
        center = grating(given["center_direction"], **wave)
        around = given["surround_direction"]
        film = in_context(
            center, given["stimulus_size"], given["center"],
            context="center" if around < 0 else "cross", cross=None if around < 0 else grating(around, **wave),
        )  # fmt: skip
        close(film[given["frames"]], arrays[f"cs_{i}"])


def test_published_gabors(published: tuple[dict[str, Any], Any]) -> None:
    facts, arrays = published
    for i, given in enumerate(facts["gabors"]):
        film = gabor_film(given["direction"], given["wavelength"], given["frequency"], sigma=given["sigma"])
        np.testing.assert_allclose(film[given["frames"]], arrays[f"gabor_{i}"], atol=1e-3)


def test_published_degrees(published: tuple[dict[str, Any], Any]) -> None:
    facts, _ = published
    assert SENSORIUM.degrees_per_pixel() == pytest.approx(facts["degrees_per_pixel"]["(56.5, 31.8, 15.0)"], rel=1e-6)
    for size, radius in facts["radius_of_size"].items():
        assert SENSORIUM.radius(float(size)) == pytest.approx(radius["15cm"], rel=1e-6)
        assert CLOSED_LOOP.radius(float(size)) == pytest.approx(radius["20cm"], rel=1e-6)
    for radius, size in facts["size_of_radius"].items():
        assert SENSORIUM.size(float(radius)) == pytest.approx(size["15cm"], rel=1e-6)


@pytest.mark.parametrize(("direction", "axis", "sign"), [(0, 2, -1), (90, 1, 1), (180, 2, 1), (270, 1, -1)])
def test_a_direction_moves_where_it_says(direction: int, axis: int, sign: int) -> None:
    # A step of one pixel a frame: 1/8 cycle a pixel and 1/8 cycle a frame.
    film = grating(direction, cpd=1 / 8, cpf=1 / 8, frames=4, phase=40, degrees_per_pixel=1.0).astype(int)
    moved = np.roll(film[0], sign, axis=axis - 1)
    inner = (slice(2, -2), slice(2, -2))
    assert np.abs(moved - film[1])[inner].max() <= 1
    assert np.abs(np.roll(film[0], -sign, axis=axis - 1) - film[1])[inner].max() > 50


def test_masked_films_are_grey_on_the_other_side() -> None:
    film = grating(30, phase=10)
    mask = circle(40, (20, 12))
    inner, outer = masked(film, 40, (20, 12)), masked(film, 40, (20, 12), inverse=True)
    assert np.array_equal(inner[:, mask], film[:, mask])
    assert np.array_equal(outer[:, ~mask], film[:, ~mask])
    assert (inner[:, ~mask] == 127).all()
    assert (outer[:, mask] == 127).all()
    assert np.array_equal(masked(film, 0, inverse=True), film)
    assert (masked(film, 0) == 127).all()


def test_a_shifted_surround_is_half_a_cycle_away() -> None:
    film = grating(90, phase=20)
    shifted = in_context(film, 20, (24, 14), context="shift")
    mask = circle(20, (24, 14))
    assert np.array_equal(shifted[:, mask], film[:, mask])
    assert np.array_equal(shifted[:, ~mask].astype(int), 255 - film[:, ~mask].astype(int))
    half_a_cycle_later = grating(90, phase=200).astype(int)[:, ~mask]
    assert np.abs(shifted[:, ~mask].astype(int) - half_a_cycle_later).max() <= 1


def test_a_plaid_keeps_its_contrast() -> None:
    film = plaid(90, contrast=0.5)
    assert film.min() >= 127 - 64
    assert film.max() <= 127 + 64
    assert film.std() > 10


def test_dots_are_where_they_are_asked_for() -> None:
    on, off = dot((40.0, 10.0)), dot((40.0, 10.0), on=False)
    assert on.shape == (6, 36, 64)
    assert np.unravel_index(on[0].argmax(), on[0].shape) == (10, 40)
    assert np.unravel_index(off[0].argmin(), off[0].shape) == (10, 40)
    assert on[0, 0, 0] == off[0, 0, 0] == 127
    assert on.max() == 255
    assert off.min() == 0


@pytest.mark.parametrize(("step", "count"), [(4, 9 * 16), (2, 18 * 32)])
def test_dots_cover_the_frame_evenly(step: int, count: int) -> None:
    centers = parametric.dot_centers(step)
    assert len(centers) == count
    x, y = centers.T
    assert x.min() + x.max() == pytest.approx(63)
    assert y.min() + y.max() == pytest.approx(35)


def test_noise_is_as_described() -> None:
    rng = np.random.default_rng(0)
    white = parametric.white_noise(rng, 50)
    assert white.max() == 254
    assert abs(white.mean() - 127) < 1
    smooth = parametric.smooth_images(rng, 20, rms=30.0)
    assert abs(smooth.std(axis=(1, 2)).mean() - 30) < 1
    neighbours = np.corrcoef(smooth[:, :, :-1].ravel(), smooth[:, :, 1:].ravel())[0, 1]
    assert neighbours > 0.9


@pytest.mark.parametrize("contrast", [-0.1, 1.01, float("nan")])
def test_a_contrast_outside_its_range_is_refused(contrast: float) -> None:
    with pytest.raises(ConfigError, match="contrast"):
        grating(0, contrast=contrast)


@pytest.mark.parametrize("text", ["56.5,31.8", "a,b,c", "0,1,1", "1,1,inf", "nan,1,1"])
def test_a_monitor_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="monitor"):
        Monitor.from_text(text)


def test_degrees_of_places_are_signed_right_and_up() -> None:
    middle, right_up = SENSORIUM.degrees(np.array([31.5, 63.0]), np.array([17.5, 0.0]))
    assert middle == pytest.approx([0, 0])
    assert right_up[0] == pytest.approx(61.66, abs=0.1)
    assert right_up[1] == pytest.approx(45.8, abs=0.5)


def test_unknown_contexts_are_refused() -> None:
    film = grating(0)
    with pytest.raises(ConfigError, match="one of center, iso, cross, shift"):
        in_context(film, 20, context="ring")
    with pytest.raises(ConfigError, match="needs the film around it"):
        in_context(film, 20, context="cross")
