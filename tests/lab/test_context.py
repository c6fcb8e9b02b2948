"""Size, context and onsets: the published numbers, and neurons that say nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from viv1t.errors import ConfigError
from viv1t.lab import context

SIZES = np.arange(0, 100, 10)


def test_published_size_tuning(golden_in_silico: Path) -> None:
    golden = np.load(golden_in_silico / "size.npz")
    means = context.pattern_means(golden["responses"], slice(30, 45))  # the last 15 of the pattern's frames 15 to 44
    curves, values = context.averaged(means, golden["parameters"], (0, 2))
    assert np.array_equal(values[0], SIZES)
    np.testing.assert_allclose(curves, golden["curves"], rtol=1e-5, atol=1e-6)
    tuning = context.size_tuning(curves, SIZES)
    assert np.array_equal(np.flatnonzero(tuning.published_tuned), golden["classic_tuned"])
    assert np.array_equal(np.flatnonzero(tuning.published_inverse_tuned), golden["inverse_tuned"])
    assert np.array_equal(tuning.preferred[:-1], golden["classic_preference"][:-1])
    assert np.array_equal(tuning.preferred_inverse[:-1], golden["inverse_preference"][:-1])
    assert np.isnan(tuning.preferred[-1])  # the silent neuron, which the published code lets prefer size 0
    assert np.isnan(tuning.suppression[-1])


def test_published_context(golden_in_silico: Path) -> None:
    golden = np.load(golden_in_silico / "context.npz")
    means = context.pattern_means(golden["responses"], slice(15, 45))
    curves, _ = context.averaged(means, golden["parameters"], (0, 1, 3))
    np.testing.assert_allclose(curves, golden["means"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(context.modulation(curves[..., 2], curves[..., 1]), golden["cmi"], atol=1e-5)


def test_published_onsets(golden_in_silico: Path) -> None:
    golden = np.load(golden_in_silico / "onset.npz")
    classical, inverse = context.onsets(
        golden["classic"], golden["inverse"], before=int(golden["blank"]), pattern=int(golden["pattern"]),
        threshold=float(golden["threshold"]),
    )  # fmt: skip
    np.testing.assert_allclose(classical, golden["classic_onset"], atol=1e-6)
    np.testing.assert_allclose(inverse, golden["inverse_onset"], atol=1e-6)
    assert np.isnan(inverse).any()


def test_averages_know_what_was_not_shown() -> None:
    parameters = np.array([[[10, 0], [20, 0]], [[10, 1], [10, 1]]])
    means = np.array([[[1.0, 2.0], [3.0, 5.0]]])
    curves, values = context.averaged(means, parameters, (0, 1))
    assert [v.tolist() for v in values] == [[10, 20], [0, 1]]
    assert np.array_equal(curves, [[[1, 4], [2, np.nan]]], equal_nan=True)


@pytest.mark.parametrize(("c", "d"), [(20.0, 60.0), (40.0, 80.0)])
def test_a_known_size_curve_is_fitted(c: float, d: float) -> None:
    from scipy.special import erf

    curve = 0.3 + 4 * erf(SIZES / c) ** 2 / (1 + 2 * erf(SIZES / d) ** 2)
    fit = context.fit_sizes(curve, SIZES)
    assert fit is not None
    assert fit.r2 > 0.9999
    assert fit.center == pytest.approx(c, rel=0.05)
    assert fit.surround == pytest.approx(d, rel=0.1)


def test_suppression_by_hand() -> None:
    curve = np.zeros((1, 10, 2))
    curve[0, :, 0] = [1, 2, 5, 6, 5, 4, 4, 3.5, 3.5, 3]
    tuning = context.size_tuning(curve, SIZES)
    assert tuning.preferred == [30]
    assert tuning.suppression == pytest.approx([1 - 2 / 5])
    assert np.isnan(tuning.preferred_inverse[0])


@pytest.mark.parametrize("curve", [np.zeros(10), np.full(10, 2.0), np.full(10, np.nan)])
def test_curves_that_say_nothing(curve: np.ndarray) -> None:
    assert context.fit_sizes(curve, SIZES) is None
    both = np.stack([curve, curve], axis=1)[None]
    tuning = context.size_tuning(both, SIZES)
    assert not tuning.published_tuned.any()
    assert not tuning.published_inverse_tuned.any()
    assert np.isnan(tuning.preferred).all()
    assert np.isnan(tuning.suppression).all()
    assert np.isnan(context.modulation(np.zeros(3), np.zeros(3))).all()
    silent = np.repeat(np.resize(curve, 45)[None, :, None], 2, axis=2)
    assert np.isnan(np.stack(context.onsets(silent, silent))).all()


def test_sizes_out_of_order_are_refused() -> None:
    with pytest.raises(ConfigError, match="ascending sizes that start at 0"):
        context.size_tuning(np.ones((1, 3, 2)), np.array([10, 20, 30]))
