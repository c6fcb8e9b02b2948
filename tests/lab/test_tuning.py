"""Direction tuning: the published numbers, known curves, and curves that say nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from viv1t.errors import ConfigError
from viv1t.lab import tuning

EIGHT = np.arange(8) * 45.0


@pytest.fixture(scope="module")
def published(golden_in_silico: Path) -> Any:
    return np.load(golden_in_silico / "direction.npz")


def test_published_indices(published: Any) -> None:
    orientation, direction = tuning.selectivity(published["responses"].mean(-1), EIGHT)
    np.testing.assert_allclose(orientation, published["OSI"], atol=1e-6)
    np.testing.assert_allclose(direction, published["DSI"], atol=1e-6)
    assert np.isnan(orientation[-1])  # the silent neuron


def test_published_significance_but_for_the_silent_neuron(published: Any) -> None:
    p_orientation, p_direction = tuning.shuffled_p(published["responses"], EIGHT, shuffles=100)
    compared = np.ones(20, bool)
    compared[[15, 18, 19]] = False  # indices that cancel to rounding, and the silent neuron
    assert np.array_equal(p_orientation[compared] <= 0.01, published["orientation_selective"][compared])
    assert np.array_equal(p_direction[compared] <= 0.01, published["direction_selective"][compared])
    assert published["orientation_selective"][-1]  # the published slip, which is not followed:
    assert np.isnan(p_orientation[-1])
    assert np.isnan(p_direction[-1])


def test_shuffling_in_parts_is_that_of_each_neuron_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    responses = np.random.default_rng(0).random((7, 8, 3))
    responses[2], responses[4] = 0, np.nan
    whole = tuning.shuffled_p(responses, EIGHT, shuffles=40, seed=5)
    monkeypatch.setattr(tuning, "_SHUFFLED", 2 * 40 * 24)  # two neurons at a time
    np.testing.assert_array_equal(tuning.shuffled_p(responses, EIGHT, shuffles=40, seed=5), whole)
    monkeypatch.setattr(tuning, "_SHUFFLED", 1)
    np.testing.assert_array_equal(tuning.shuffled_p(responses, EIGHT, shuffles=40, seed=5), whole)
    assert np.isnan(whole[0])[[2, 4]].all()
    # By hand, for the last neuron.
    rng, row = np.random.default_rng(np.random.SeedSequence(5).spawn(7)[6]), np.tile(responses[6].reshape(-1), (40, 1))
    drawn = rng.permuted(row, axis=1).reshape(40, 8, 3).mean(-1)
    for p, drawn_index, real in zip(
        whole, tuning.selectivity(drawn, EIGHT), tuning.selectivity(responses[6].mean(-1), EIGHT), strict=True
    ):
        assert p[6] == (drawn_index >= real).mean()


def test_published_aligned_curves(published: Any) -> None:
    curves = published["tuning_curve"][published["nonzero"]]
    np.testing.assert_allclose(tuning.aligned(curves), published["aligned_direction"], atol=1e-6)
    np.testing.assert_allclose(tuning.aligned(curves, orientation=True), published["aligned_orientation"], atol=1e-6)


def test_published_differences_of_preference(published: Any) -> None:
    of_direction = tuning.circular_difference(published["index_a"] * 45, published["index_b"] * 45)
    assert np.array_equal(of_direction, published["difference_deg"])
    of_orientation = tuning.circular_difference(published["index_a4"] * 45, published["index_b4"] * 45, 180)
    assert np.array_equal(of_orientation, published["difference4_deg"])


def test_published_von_mises_fits(golden_in_silico: Path) -> None:
    cases = json.loads((golden_in_silico / "von_mises.json").read_text())
    compared = 0
    for case in cases:
        directions, curve = np.array(case["direction"]), np.array(case["response"])
        fit = tuning.fit_von_mises(curve, directions, max_kappa=np.inf)
        assert fit is not None
        theirs = case["fit"]
        variance = curve.var()
        assert fit.mse <= 1.01 * theirs["mse"] + 1e-6 * variance, case["kind"]
        np.testing.assert_allclose(((fit(directions) - curve) ** 2).mean(), fit.mse, rtol=1e-6, atol=1e-12)
        if case["kind"] in ("clean", "symmetric"):
            compared += 1
            turn = 180.0 if case["kind"] == "symmetric" else 360.0
            assert tuning.circular_difference(np.degrees(fit.mu), np.degrees(theirs["mu"]), turn) < 0.06
            for name in ("kappa", "phi", "scale", "bias"):
                assert getattr(fit, name) == pytest.approx(theirs[name], rel=1e-3, abs=1e-3), (case["kind"], name)
    assert compared >= 6


def test_bounds_keep_few_directions_from_a_needle() -> None:
    needle = np.zeros(8)
    needle[3] = 1
    fit = tuning.fit_von_mises(needle, EIGHT)
    assert fit is not None
    assert fit.kappa <= 30
    assert np.degrees(fit.mu) == pytest.approx(135, abs=1)


@pytest.mark.parametrize("theta", [0.0, 20.0, 135.0, 300.0])
def test_a_known_curve_is_recovered(theta: float) -> None:
    directions = np.arange(16) * 22.5
    angle = np.radians(directions - theta)
    curve = 0.2 + np.exp(2.5 * (np.cos(angle) - 1)) + 0.3 * np.exp(2.5 * (np.cos(angle + np.pi) - 1))
    direction, orientation = tuning.preference(curve, directions)
    assert tuning.circular_difference(direction, theta) < 1e-6
    assert tuning.circular_difference(orientation, theta, 180) < 1e-6
    fit = tuning.fit_von_mises(curve, directions)
    assert fit is not None
    assert tuning.circular_difference(np.degrees(fit.mu), theta) < 1e-3
    assert fit.r2 == pytest.approx(1)
    # The peak alone falls to half way between its top and its trough at the width.
    top, trough, half = (np.exp(fit.kappa * (np.cos(a) - 1)) for a in (0.0, np.pi, np.radians(fit.width)))
    assert half == pytest.approx((top + trough) / 2)


def test_peak_indices_are_by_hand() -> None:
    curve = np.array([10.0, 0, 2, 0, 6, 0, 4, 0])
    orientation, direction = tuning.peak_selectivity(curve)
    assert orientation == pytest.approx((8 - 3) / (8 + 3))
    assert direction == pytest.approx((10 - 6) / (10 + 6))
    with pytest.raises(ConfigError, match="multiple of 4 directions, not 6"):
        tuning.peak_selectivity(np.ones(6))


@pytest.mark.parametrize("curve", [np.zeros(8), np.full(8, -1.0), np.full(8, np.nan)])
def test_neurons_that_say_nothing_have_no_index(curve: np.ndarray) -> None:
    for value in (*tuning.selectivity(curve, EIGHT), *tuning.peak_selectivity(curve), *tuning.preference(curve, EIGHT)):
        assert np.isnan(value)
    assert tuning.fit_von_mises(curve, EIGHT) is None
    assert np.isnan(tuning.shuffled_p(np.repeat(curve[None, :, None], 3, axis=2), EIGHT, shuffles=5)).all()
    if not np.isnan(curve).any():
        assert np.isnan(tuning.aligned(np.minimum(curve, 0)[None])).all()


def test_a_constant_curve_is_not_selective() -> None:
    orientation, direction = tuning.selectivity(np.full(8, 3.0), EIGHT)
    assert orientation < 1e-12
    assert direction < 1e-12
    fit = tuning.fit_von_mises(np.full(8, 3.0), EIGHT)
    assert fit is None or np.isnan(fit.width)


def test_negative_responses_count_as_none() -> None:
    curve = np.array([4.0, -2, 1, -2, 0, -2, 1, -2])
    assert np.allclose(tuning.selectivity(curve, EIGHT), tuning.selectivity(np.maximum(curve, 0), EIGHT))
