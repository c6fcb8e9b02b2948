"""The scores that papers report of one tier, from one pass over its trials.

With r_i the response to the i-th of n repeats of a movie, p_i the prediction for it, bars for means over repeats, and
variances over the frames of all movies:

* single trial: corr(p_i, r_i) over all trials together; per trial: the mean over trials of corr(p_i, r_i);
* to average: corr(p̄, r̄): both are averaged over repeats first, as in the organisers' own code;
* CCnorm: cov(p̄, r̄) / sqrt(Var p̄ · SP), with the signal power SP = (Var Σ r_i - Σ Var r_i) / (n (n - 1)): the
  correlation to average, divided by the largest that noise allows (Schoppe, Harper, Willmore, King and Schnupp 2016,
  doi 10.3389/fncom.2016.00010, equations 7 and 9);
* FEVE: 1 - (mean (r_i - p_i)² - σ²) / (Var r_i - σ²), with the noise σ² the variance over repeats, averaged over frames
  (Cadena et al. 2019, doi 10.1371/journal.pcbi.1006897).

Only movies that are shown more than once count for the last three.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from viv1t.scoring.correlation import CorrelationAccumulator, correlation

EXPLAINABLE = 0.15  # least share of a neuron's variance that repeats must have in common for its FEVE to count
_ROUNDING = 1e-12  # variances below this share of the mean square are zero


@dataclass(frozen=True)
class Scores:
    """Scores of every neuron (N,), float64.

    Attributes:
        single_trial: single-trial correlation, all trials together.
        per_trial: correlation within a trial, mean over trials; a neuron that is constant in a trial scores 0 there.
        to_average: correlation to average; None where no movie is repeated, as the following.
        ccnorm: normalised correlation; NaN where the repeats have no signal in common, 0 for a constant prediction.
        feve: fraction of explainable variance explained; NaN where less than 15% of the variance is explainable.
    """

    single_trial: np.ndarray
    per_trial: np.ndarray
    to_average: np.ndarray | None = None
    ccnorm: np.ndarray | None = None
    feve: np.ndarray | None = None


class _Movie:
    """Sums over the repeats of a movie, frame by frame.

    Args:
        shown: how often it is shown.
        used: how many of these, the first ones, count for CCnorm.
    """

    def __init__(self, shown: int, used: int) -> None:
        self.shown, self.used = shown, used
        self.count = 0
        self.total = self.first = torch.zeros(())  # (2, N, t): predictions and responses
        self.deviation = torch.zeros(())  # (N, t): squared distances of the responses from their mean

    def add(self, index: int, p: Tensor, r: Tensor) -> None:
        """Adds the repeat number `index`."""
        pair = torch.stack((p, r))
        if index < self.used:
            self.first = self.first + pair
        # Welford's update, in which nothing cancels.
        mean = (self.total[1] if self.count else self.total) / max(self.count, 1)
        self.total = self.total + pair
        self.count += 1
        if self.count > 1:
            self.deviation = self.deviation + (r - mean) * (r - self.total[1] / self.count)


class ScoresAccumulator:
    """Scores of trials that arrive one by one.

    Args:
        movies: the trials that show each movie, ascending. Sums are held of a movie from its first trial to its last.
            Where movies are repeated unequally often, CCnorm takes the first n repeats of each, n the least.
    """

    def __init__(self, movies: Sequence[Sequence[int]]) -> None:
        repeated = [trials for trials in movies if len(trials) > 1]
        self.repeats = min((len(trials) for trials in repeated), default=0)
        self._place = {trial: (m, i) for m, trials in enumerate(repeated) for i, trial in enumerate(trials)}
        self._shown = [len(trials) for trials in repeated]
        self._movies: dict[int, _Movie] = {}
        self._single = CorrelationAccumulator()
        self._per_trial: Tensor | float = 0.0
        self._trials = 0
        # Of repeated movies alone:
        self._average = CorrelationAccumulator()
        self._average_of_used = CorrelationAccumulator()
        self._by_repeat = [CorrelationAccumulator() for _ in range(self.repeats)]
        self._pooled = CorrelationAccumulator()
        self._squared_error: Tensor | float = 0.0
        self._noise: Tensor | float = 0.0

    def update(self, trial: int, prediction: Tensor, response: Tensor) -> None:
        """Adds a trial: prediction and response (N, t); t is the same for all repeats of a movie."""
        p, r = (x.detach().cpu().double() for x in (prediction, response))
        self._single.update(p, r)
        self._per_trial = self._per_trial + correlation(p, r, dim=1)
        self._trials += 1
        if trial not in self._place:
            return
        m, index = self._place[trial]
        movie = self._movies.setdefault(m, _Movie(self._shown[m], self.repeats))
        movie.add(index, p, r)
        if index < self.repeats:
            self._by_repeat[index].update(p, r)
        self._pooled.update(p, r)
        self._squared_error = self._squared_error + (p - r).square().sum(1)
        if movie.count == movie.shown:
            self._average.update(*(movie.total / movie.shown))
            self._average_of_used.update(*(movie.first / self.repeats))
            self._noise = self._noise + movie.deviation.sum(1) / (movie.shown - 1)
            del self._movies[m]

    def result(self) -> Scores:
        """The scores of all trials so far.

        Raises:
            ValueError: no trial was added, or not every repeat of a movie.
        """
        if self._movies:
            raise ValueError("some repeats of a movie were not added")
        single = self._single.result().numpy()
        per_trial = torch.as_tensor(self._per_trial / self._trials).numpy()
        if not self._place:
            return Scores(single, per_trial)
        return Scores(single, per_trial, self._average.result().numpy(), self._ccnorm().numpy(), self._feve().numpy())

    def _ccnorm(self) -> Tensor:
        n = self.repeats
        variance, of_mean, covariance = self._average_of_used.moments()
        of_single = torch.stack([repeat.moments()[1] for repeat in self._by_repeat]).sum(0)
        power = (n * n * of_mean - of_single) / (n * (n - 1))
        scale = (variance * power).clamp(min=0).sqrt()
        result = torch.where(scale > 0, covariance / scale, 0.0)
        return torch.where(power > _ROUNDING * self._mean_square(), result, torch.nan)

    def _feve(self) -> Tensor:
        frames = self._pooled.frames
        total = self._pooled.moments()[1] * frames / (frames - 1)
        noise = self._noise / self._average.frames
        explainable = total - noise
        result = 1 - (self._squared_error / frames - noise) / explainable
        known = (explainable >= EXPLAINABLE * total) & (total > _ROUNDING * self._mean_square())
        return torch.where(known, result, torch.nan)

    def _mean_square(self) -> Tensor:
        return self._pooled.moments()[1] + self._pooled.mean()[1].square()
