"""Scores of one run, or of several as an ensemble, on the tiers of a data set."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from viv1t.data.recordings import Recordings
from viv1t.errors import ConfigError
from viv1t.families.family import Family
from viv1t.model.twin import ViV1T
from viv1t.runs.ensemble import check_fit
from viv1t.scoring.scores import Scores, ScoresAccumulator
from viv1t.training.validate import scored_trials
from viv1t.types import MAX_FRAMES, UNSCORED_FRAMES

logger = logging.getLogger("viv1t")


@dataclass(frozen=True)
class View:
    """One way to compare predictions with responses, of which papers have several.

    Attributes:
        frames: 300 less the first frames that are left out, of trials of any length: 250 leaves out the first 50, as
            the challenge does, 249 one more.
        scale: responses are divided by their standard deviation over training trials, of each `frame` or of each
            `neuron`; None: as the model was trained. Of the latter the scores are those of unscaled responses: no score
            changes with a factor of a neuron's own.
    """

    frames: int = MAX_FRAMES - UNSCORED_FRAMES
    scale: str | None = None


AS_TRAINED = View()
VIEWS = tuple(View(frames, scale) for scale in ("frame", "neuron") for frames in (249, 250))


@dataclass
class TierScores:
    """Scores of one tier, by mouse.

    Attributes:
        single_trial: single-trial correlation, mean over neurons.
        to_average: correlation to the average over repeats, mean over neurons; only mice whose tier shows movies more
            than once.
        hidden: mice whose responses are withheld in this tier.
        by_view: every score of every neuron, by view.
    """

    single_trial: dict[str, float] = field(default_factory=dict)
    to_average: dict[str, float] = field(default_factory=dict)
    hidden: list[str] = field(default_factory=list)
    by_view: dict[View, dict[str, Scores]] = field(default_factory=dict)

    def add(self, mouse_id: str, view: View, scores: Scores) -> None:
        """Takes a mouse's scores."""
        self.by_view.setdefault(view, {})[mouse_id] = scores
        if view == AS_TRAINED:
            self.single_trial[mouse_id] = float(scores.single_trial.mean())
            if scores.to_average is not None:
                self.to_average[mouse_id] = float(scores.to_average.mean())


def evaluate(
    models: Sequence[ViV1T], recordings: Recordings, tiers: Sequence[str], views: Sequence[View] = ()
) -> dict[str, TierScores]:
    """Scores the mean prediction of `models`.

    Args:
        models: in evaluation mode, all with the recordings' mice.
        recordings: whose mice are scored.
        tiers: names, as `validation`.
        views: further views to score, beside `AS_TRAINED`.

    Raises:
        ConfigError: a view needs statistics, and the recordings are not transformed.
        DataError: the recordings are not those of the models: other mice, neurons or frames.
    """
    check_fit(models, recordings)
    scores: dict[str, TierScores] = {}
    for tier in tiers:
        scores[tier] = result = TierScores()
        for mouse_id in recordings.mice:
            if not recordings.trial_ids(mouse_id, tier):
                continue
            if recordings.hidden(mouse_id, tier):
                result.hidden.append(mouse_id)
                continue
            if long := recordings.long_trials(mouse_id, recordings.trial_ids(mouse_id, tier)):
                logger.warning("%s: %s", tier, long.line)
            for view, score in _score_mouse(models, recordings, mouse_id, tier, [AS_TRAINED, *views]).items():
                result.add(mouse_id, view, score)
    return scores


def family_scores(
    models: Sequence[ViV1T], recordings: Recordings, tiers: Sequence[str], family: Family
) -> dict[str, dict[str, dict[str, float]]]:
    """The scores of a family's own run folders, as their `evaluation.yaml` holds them; empty where it has none.

    Args:
        models, recordings, tiers: as for `evaluate`.
        family: of the models.

    Returns:
        {tier: {score: {mouse: value, average: value}}}, tiers without recorded responses left out.
    """
    result: dict[str, dict[str, dict[str, float]]] = {}
    if family.scorer is None:
        return result
    check_fit(models, recordings)
    for tier in tiers:
        of_tier: dict[str, dict[str, float]] = {}
        for mouse_id in recordings.mice:
            if not recordings.trial_ids(mouse_id, tier) or recordings.hidden(mouse_id, tier):
                continue
            scorer = family.scorer()
            for video in recordings.repeats(mouse_id, tier):
                trials = list(scored_trials(models, recordings, mouse_id, tier, video))
                scorer.add([p for _, p, _ in trials], [r for _, _, r in trials])
            for name, value in scorer.result().items():
                of_tier.setdefault(name, {})[mouse_id] = value
        for values in of_tier.values():
            values["average"] = float(np.mean(list(values.values())))
        if of_tier:
            result[tier] = of_tier
    return result


def _score_mouse(
    models: Sequence[ViV1T], recordings: Recordings, mouse_id: str, tier: str, views: Sequence[View]
) -> dict[View, Scores]:
    movies = recordings.repeats(mouse_id, tier)
    order = [trial for trials in movies for trial in trials]  # so that few sums are held at a time
    accumulators = {view: ScoresAccumulator(movies) for view in views}
    factors = {view: _factor(recordings, mouse_id, view.scale) for view in views}
    for trial, prediction, response in scored_trials(models, recordings, mouse_id, tier, order):
        stop = recordings.frames(mouse_id, trial)
        for view, accumulator in accumulators.items():
            p, r = prediction, response
            if (factor := factors[view]) is not None:
                factor = factor if factor.shape[1] == 1 else factor[:, stop - p.shape[1] : stop]
                p, r = p * factor, r * factor
            late = max(0, p.shape[1] - (stop - MAX_FRAMES + view.frames))
            accumulator.update(trial, p[:, late:], r[:, late:])
    return {view: accumulator.result() for view, accumulator in accumulators.items()}


def _factor(recordings: Recordings, mouse_id: str, scale: str | None) -> Tensor | None:
    """(N, 1 or frames), from responses as the model was trained to responses of another scale; None for none."""
    if scale is None:
        return None
    now = recordings.response_precision(mouse_id, MAX_FRAMES)
    if scale == "neuron":
        return torch.from_numpy(1 / now)
    wanted = recordings.frame_precision(mouse_id, MAX_FRAMES)
    if wanted is None:
        raise ConfigError("responses cannot be scaled by frame: with --transform_mode 0 there are no statistics")
    return torch.from_numpy(wanted / now)


def as_mapping(scores: Mapping[str, TierScores]) -> dict[str, dict[str, object]]:
    """For `evaluation.yaml`: {tier: {mouse: r, average: r}}, everything else under keys of its own."""
    result: dict[str, dict[str, object]] = {}
    averages: dict[str, object] = {}
    everything: dict[str, object] = {}
    for tier, score in scores.items():
        if score.single_trial:
            result[tier] = {**score.single_trial, "average": mean_over_mice(score.single_trial)}
        if score.to_average:
            averages[tier] = {**score.to_average, "average": mean_over_mice(score.to_average)}
        views = {_view_name(v): view_mapping(by_mouse) for v, by_mouse in score.by_view.items() if v != AS_TRAINED}
        if views:
            everything[tier] = views
    if averages:
        result["correlation_to_average"] = averages
    if everything:
        result["all_metrics"] = everything
    return result


METRICS = ("single_trial", "per_trial", "to_average", "ccnorm", "feve")


def mean_over_neurons(scores: Scores, metric: str) -> tuple[float | None, int]:
    """The mean of a score over neurons, None where there is none; and over how many, where not every neuron has it."""
    values = getattr(scores, metric)
    if values is None:
        return None, 0
    if metric not in ("ccnorm", "feve"):
        return float(values.mean()), 0
    known = values[~np.isnan(values)]
    return (float(known.mean()) if len(known) else None), len(known)


def _view_name(view: View) -> str:
    return f"last_{view.frames}_scaled_by_{view.scale}"


def view_mapping(by_mouse: Mapping[str, Scores]) -> dict[str, dict[str, float]]:
    """Means over neurons, {metric: {mouse: value, average: value}}; mice without a value are left out."""
    result = {}
    for metric in METRICS:
        values = {m: mean_over_neurons(scores, metric)[0] for m, scores in by_mouse.items()}
        known = {m: value for m, value in values.items() if value is not None}
        if known:
            result[metric] = {**known, "average": float(np.mean(list(known.values())))}
    return result


def mean_over_mice(values: Mapping[str, float]) -> float | None:
    """The mean; None of nothing."""
    return float(np.mean(list(values.values()))) if values else None
