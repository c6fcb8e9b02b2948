"""The scores of a tier: against their definitions in NumPy, neuron by neuron, and where they are not defined."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from viv1t.scoring.scores import EXPLAINABLE, Scores, ScoresAccumulator

Trials = dict[int, tuple[np.ndarray, np.ndarray]]


def make_trials(movies: list[list[int]], neurons: int = 5, seed: int = 0, noise: float = 1.0) -> Trials:
    """Predictions and responses of trials that show movies of 20, 21, ... frames: signal, own noise, and a drift."""
    rng = np.random.default_rng(seed)
    trials = {}
    for m, group in enumerate(movies):
        signal = rng.gamma(1.0, size=(neurons, 20 + m))
        for i, trial in enumerate(group):
            response = signal + noise * rng.normal(size=signal.shape) + 0.1 * i
            trials[trial] = (0.5 * signal + 0.3 * rng.normal(size=signal.shape), response)
    return trials


def scored(movies: list[list[int]], trials: Trials, order: list[int] | None = None) -> Scores:
    accumulator = ScoresAccumulator(movies)
    for trial in order or sorted(trials):
        accumulator.update(trial, *(torch.from_numpy(x) for x in trials[trial]))
    return accumulator.result()


def correlated(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a, b)[0, 1])


def reference(movies: list[list[int]], trials: Trials, neuron: int) -> dict[str, float]:
    """The definitions, as in the papers, for one neuron."""
    p = {t: pair[0][neuron] for t, pair in trials.items()}
    r = {t: pair[1][neuron] for t, pair in trials.items()}
    everything = sorted(trials)
    repeated = [group for group in movies if len(group) > 1]
    result = {
        "single_trial": correlated(*(np.concatenate([x[t] for t in everything]) for x in (p, r))),
        "per_trial": float(np.mean([correlated(p[t], r[t]) for t in everything])),
        "to_average": correlated(
            np.concatenate([np.mean([p[t] for t in g], axis=0) for g in repeated]),
            np.concatenate([np.mean([r[t] for t in g], axis=0) for g in repeated]),
        ),
    }
    # Schoppe et al.: R is (n, T); every series runs over all movies.
    n = min(map(len, repeated))
    responses = np.stack([np.concatenate([r[g[i]] for g in repeated]) for i in range(n)])
    predictions = np.stack([np.concatenate([p[g[i]] for g in repeated]) for i in range(n)])
    power = (np.var(responses.sum(0)) - np.var(responses, axis=1).sum()) / (n * (n - 1))
    x, y = predictions.mean(0), responses.mean(0)
    result["ccnorm"] = np.mean((x - x.mean()) * (y - y.mean())) / np.sqrt(np.var(x) * power) if power > 0 else np.nan
    # Cadena et al.
    pooled = np.concatenate([r[t] for g in repeated for t in g])
    error = np.concatenate([r[t] - p[t] for g in repeated for t in g])
    noise = np.mean(np.concatenate([np.var([r[t] for t in g], axis=0, ddof=1) for g in repeated]))
    total = np.var(pooled, ddof=1)
    explainable = total - noise
    result["feve"] = 1 - (np.mean(error**2) - noise) / explainable if explainable / total >= EXPLAINABLE else np.nan
    return result


@pytest.mark.parametrize(
    "movies",
    [
        [[0, 1, 2], [3, 4, 5]],
        [[0, 2], [1, 3]],
        [[0, 3, 4, 6], [1, 5], [2], [7, 8, 9]],  # unequal, and one that is not repeated
    ],
    ids=["equal", "interleaved", "unequal"],
)
def test_scores_are_their_definitions(movies: list[list[int]]) -> None:
    trials = make_trials(movies)
    scores = scored(movies, trials)
    for neuron in range(5):
        for name, value in reference(movies, trials, neuron).items():
            assert getattr(scores, name)[neuron] == pytest.approx(value, rel=1e-6, nan_ok=True), (name, neuron)
    assert np.isfinite(scores.ccnorm).any()
    assert np.isfinite(scores.feve).any()


def test_noisy_neurons_have_no_feve() -> None:
    movies = [[0, 1, 2], [3, 4, 5]]
    trials = make_trials(movies, neurons=40, noise=2.5)
    scores = scored(movies, trials)
    expected = [reference(movies, trials, n)["feve"] for n in range(40)]
    assert scores.feve == pytest.approx(np.array(expected), rel=1e-6, nan_ok=True)
    assert 0 < np.isnan(scores.feve).sum() < 40


def test_the_order_of_trials_does_not_matter() -> None:
    movies = [[0, 3, 4], [1, 2, 5]]
    trials = make_trials(movies)
    one, other = scored(movies, trials), scored(movies, trials, [5, 4, 3, 2, 1, 0])
    for name in ("single_trial", "per_trial", "to_average", "ccnorm", "feve"):
        assert getattr(one, name) == pytest.approx(getattr(other, name), rel=1e-9)


def test_a_perfect_prediction_of_noiseless_responses_scores_one() -> None:
    movies = [[0, 1], [2, 3, 4]]
    rng = np.random.default_rng(1)
    signals = [rng.gamma(1.0, size=(4, 30)) for _ in movies]
    trials = {t: (signals[m], signals[m]) for m, group in enumerate(movies) for t in group}
    scores = scored(movies, trials)
    for name in ("single_trial", "per_trial", "to_average", "ccnorm", "feve"):
        assert getattr(scores, name) == pytest.approx(np.ones(4), abs=1e-6), name


def test_the_true_signal_is_all_that_can_be_explained() -> None:
    """With much data a model that knows the signal reaches 1 in what is corrected for noise, and less elsewhere."""
    rng = np.random.default_rng(2)
    movies = [list(range(10 * m, 10 * m + 10)) for m in range(4)]
    trials: Trials = {}
    for group in movies:
        signal = rng.gamma(1.0, size=(3, 2000))
        trials |= {t: (signal, signal + rng.normal(size=signal.shape)) for t in group}
    scores = scored(movies, trials)
    assert scores.ccnorm == pytest.approx(np.ones(3), abs=0.01)
    assert scores.feve == pytest.approx(np.ones(3), abs=0.02)
    assert (scores.single_trial < 0.75).all()


def test_without_repeats_there_is_no_average() -> None:
    movies = [[0], [1], [2]]
    scores = scored(movies, make_trials(movies))
    assert np.isfinite(scores.single_trial).all()
    assert (scores.to_average, scores.ccnorm, scores.feve) == (None, None, None)


def test_neurons_and_predictions_that_are_constant() -> None:
    movies = [[0, 1, 2], [3, 4, 5]]
    trials = make_trials(movies)
    for prediction, response in trials.values():
        response[0] = 0.1  # a silent neuron
        prediction[1] = 0.3  # a model without an idea
    scores = scored(movies, trials)
    assert scores.single_trial[:2] == pytest.approx(0, abs=1e-6)
    assert scores.per_trial[:2] == pytest.approx(0, abs=1e-6)
    assert scores.to_average[:2] == pytest.approx(0, abs=1e-6)
    assert np.isnan(scores.ccnorm[0])
    assert scores.ccnorm[1] == pytest.approx(0, abs=1e-6)
    assert np.isnan(scores.feve[0])
    assert scores.feve[1] < 0  # worse than the mean response
    assert np.isfinite([scores.ccnorm[2:], scores.feve[2:]]).all()


def test_repeats_without_a_signal_have_no_ccnorm() -> None:
    rng = np.random.default_rng(3)
    movies = [[0, 1], [2, 3]]
    trials = {t: (rng.normal(size=(50, 40)), rng.normal(size=(50, 40))) for t in range(4)}
    scores = scored(movies, trials)
    unknown = np.isnan(scores.ccnorm)
    assert 10 < unknown.sum() < 40  # the signal power of noise is as often below zero as above
    assert unknown.tolist() == [np.isnan(reference(movies, trials, n)["ccnorm"]) for n in range(50)]


def test_a_missing_repeat_is_noticed() -> None:
    movies = [[0, 1], [2, 3]]
    trials = make_trials(movies)
    del trials[3]
    with pytest.raises(ValueError, match="some repeats of a movie were not added"):
        scored(movies, trials)
