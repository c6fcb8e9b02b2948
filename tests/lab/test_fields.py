"""Receptive fields: published maps and fits, known fields, and maps that hold none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from viv1t.lab import fields
from viv1t.stimuli.parametric import dot, dot_centers, smooth_images

FRAME = (36, 64)


def gaussian(x: float, y: float, sx: float, sy: float, theta: float, frame: tuple[int, int] = FRAME) -> np.ndarray:
    """A bump whose axis `sx` points `theta` degrees from right towards down."""
    rows, columns = np.mgrid[: frame[0], : frame[1]].astype(float)
    a = np.radians(theta)
    along = (columns - x) * np.cos(a) + (rows - y) * np.sin(a)
    across = -(columns - x) * np.sin(a) + (rows - y) * np.cos(a)
    return np.exp(-(along**2) / (2 * sx**2) - across**2 / (2 * sy**2))


@pytest.fixture(scope="module")
def published(golden_in_silico: Path) -> Any:
    return np.load(golden_in_silico / "fields.npz")


def test_published_averages(published: Any) -> None:
    average = fields.spike_triggered_average(published["video"], published["responses"])
    np.testing.assert_allclose(average, published["sta"], atol=1e-4 * np.abs(published["sta"]).max())
    np.testing.assert_allclose(fields.spread_index(average, published=True), published["ssi"], rtol=1e-4)
    np.testing.assert_allclose(fields.spread_index(average), published["ssi_foundation_of_positive_part"], rtol=1e-4)


def test_published_noise_maps(published: Any) -> None:
    images = published["noise"][:, 0].astype(np.float64) * 255
    maps = fields.published_noise_maps(images, published["noise_responses"].T)
    np.testing.assert_allclose(maps, published["arf"], atol=1e-4 * np.abs(published["arf"]).max())


def test_published_maps_are_fitted_at_least_as_well(golden_in_silico: Path) -> None:
    golden = np.load(golden_in_silico / "gaussian2d.npz")
    known = 0
    for kind, z, true, theirs in zip(
        golden["kind"], golden["maps"], golden["true"], golden["r2_without_noise"], strict=True
    ):
        fit = fields.fit_gaussian(np.abs((z - z.mean()) / z.std()))
        assert fit is not None
        if np.isnan(true).any():
            assert not fit.good(r2=0.05), kind
            assert fit.reason(r2=0.05)
            continue
        known += 1
        assert np.hypot(fit.x - true[0], fit.y - true[1]) < 1, kind
        if kind != "one pixel" and not np.isnan(theirs):
            assert fit.r2 >= theirs - 0.01, kind
    assert known == 21


@pytest.mark.parametrize("theta", [0.0, 30.0, 90.0, 150.0])
def test_an_elongated_field_off_centre_is_recovered(theta: float) -> None:
    field = 0.4 + 2.5 * gaussian(50.3, 8.6, 6.0, 2.5, theta)
    fit = fields.fit_gaussian(field)
    assert fit is not None
    assert (fit.x, fit.y) == pytest.approx((50.3, 8.6), abs=1e-3)
    assert (fit.sigma_x, fit.sigma_y) == pytest.approx((6.0, 2.5), abs=1e-3)
    assert min(abs(fit.theta - theta), 180 - abs(fit.theta - theta)) < 0.01
    assert (fit.amplitude, fit.offset) == pytest.approx((2.5, 0.4), abs=1e-3)
    assert fit.good()
    assert fit.reason() == ""


@pytest.mark.parametrize("field", [np.zeros(FRAME), np.full(FRAME, 2.0), np.full(FRAME, np.nan)])
def test_a_map_without_a_field_has_no_fit(field: np.ndarray) -> None:
    assert fields.fit_gaussian(field) is None


def test_the_spread_of_no_density_is_nothing() -> None:
    assert np.isnan(fields.spread_index(np.stack([np.zeros(FRAME), np.full(FRAME, -1.0)]))).all()


def test_dots_find_fields_of_both_signs_where_they_are() -> None:
    bright, dark = gaussian(50, 9, 5, 3, 20), gaussian(12, 27, 3, 3, 0)
    centers = dot_centers(4)
    responses, shown, on = [], [], []
    for sign in (True, False):
        for center in centers:
            image = dot(tuple(center), on=sign, frames=1)[0].astype(float) - 127
            responses.append([max((image * bright).sum(), 0), max(-(image * dark).sum(), 0)])
            shown.append(center)
            on.append(sign)
    maps_on, maps_off, field = fields.dot_maps(np.array(responses).T, np.array(shown), np.array(on), FRAME)
    assert field.shape == (2, *FRAME)
    for n, (x, y) in enumerate([(50, 9), (12, 27)]):
        fit = fields.fit_gaussian(field[n])
        assert fit is not None
        assert (fit.x, fit.y) == pytest.approx((x, y), abs=0.5)
        assert fit.good()
    assert fields.on_off_balance(maps_on, maps_off) == pytest.approx([1, -1])


def test_noise_finds_linear_fields_and_energy_those_of_complex_cells() -> None:
    rng = np.random.default_rng(3)
    images = smooth_images(rng, 1500)
    contrast = images.astype(float) / 255 - 0.5
    rows, columns = np.mgrid[:36, :64]
    envelope = gaussian(44, 12, 3, 3, 0)
    even, odd = (envelope * wave(0.6 * (columns - 44)) for wave in (np.cos, np.sin))
    simple = np.maximum(np.tensordot(contrast, envelope, axes=2), 0)
    quadrature = np.tensordot(contrast, even, axes=2) ** 2 + np.tensordot(contrast, odd, axes=2) ** 2
    responses = np.stack([simple, quadrature])
    linear = fields.fit_gaussian(fields.noise_maps(images, responses)[0])
    energy = fields.fit_gaussian(fields.energy_maps(images, responses)[1])
    for fit in (linear, energy):
        assert fit is not None
        assert (fit.x, fit.y) == pytest.approx((44, 12), abs=1.5)
        assert rows.shape == FRAME
