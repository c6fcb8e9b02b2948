"""Scores of one run, or of several as an ensemble, on the tiers of a data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from viv1t.data.loader import Recordings
from viv1t.errors import CheckpointError
from viv1t.metrics import CorrelationAccumulator
from viv1t.model.viv1t import ViV1T
from viv1t.safe_yaml import read_yaml
from viv1t.train.ensemble import check_fit
from viv1t.train.validate import scored_trials


@dataclass
class TierScores:
    """Correlations of one tier, mean over neurons, by mouse.

    Attributes:
        single_trial: single-trial correlation.
        to_average: correlation to the average over repeats; only mice whose tier shows movies more than once.
        hidden: mice whose responses are withheld in this tier.
        by_neuron: single-trial correlation of every neuron (N,).
    """

    single_trial: dict[str, float] = field(default_factory=dict)
    to_average: dict[str, float] = field(default_factory=dict)
    hidden: list[str] = field(default_factory=list)
    by_neuron: dict[str, np.ndarray] = field(default_factory=dict)


def evaluate(models: Sequence[ViV1T], recordings: Recordings, tiers: Sequence[str]) -> dict[str, TierScores]:
    """Scores the mean prediction of `models`.

    Args:
        models: in evaluation mode, all with the recordings' mice.
        recordings: whose mice are scored.
        tiers: names, as `validation`.

    Raises:
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
            single, average = _score_mouse(models, recordings, mouse_id, tier)
            result.by_neuron[mouse_id] = single
            result.single_trial[mouse_id] = float(single.mean())
            if average is not None:
                result.to_average[mouse_id] = float(average.mean())
    return scores


def _score_mouse(
    models: Sequence[ViV1T], recordings: Recordings, mouse_id: str, tier: str
) -> tuple[np.ndarray, np.ndarray | None]:
    """Single-trial correlation and correlation to average, each (N,).

    For the latter, predictions and responses are each averaged, frame by frame, over the trials that show one movie.
    """
    group_of = {t: i for i, group in enumerate(recordings.repeats(mouse_id, tier)) if len(group) > 1 for t in group}
    sums: dict[int, tuple[Tensor, Tensor]] = {}
    single = CorrelationAccumulator()
    for trial, prediction, response in scored_trials(models, recordings, mouse_id, tier):
        single.update(prediction, response)
        if trial in group_of:
            before = sums.get(group_of[trial])
            sums[group_of[trial]] = (prediction + before[0], response + before[1]) if before else (prediction, response)
    to_average = CorrelationAccumulator()
    for i, (predictions, responses) in sums.items():
        repeats = list(group_of.values()).count(i)
        to_average.update(predictions / repeats, responses / repeats)
    return single.result().numpy(), to_average.result().numpy() if sums else None


def as_mapping(scores: Mapping[str, TierScores]) -> dict[str, dict[str, object]]:
    """For `evaluation.yaml`: {tier: {mouse: r, average: r}}, correlation to average under a key of its own."""
    result: dict[str, dict[str, object]] = {}
    averages: dict[str, object] = {}
    for tier, score in scores.items():
        if score.single_trial:
            result[tier] = {**score.single_trial, "average": _mean(score.single_trial)}
        if score.to_average:
            averages[tier] = {**score.to_average, "average": _mean(score.to_average)}
    if averages:
        result["correlation_to_average"] = averages
    return result


def read_evaluation(path: Path) -> dict[str, Any]:
    """The content of an `evaluation.yaml`; nothing where there is none.

    Raises:
        CheckpointError: it is not a mapping.
    """
    if not path.is_file():
        return {}
    try:
        content = read_yaml(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not readable as YAML; delete it, or choose another --output") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: a mapping of tiers was expected; delete it, or choose another --output")
    return content


def merged(before: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """An earlier evaluation of the same run with newer scores: tiers and mice not scored now keep theirs."""
    result = dict(before)
    for key, value in new.items():
        old = result.get(key)
        result[key] = value
        if isinstance(old, dict) and isinstance(value, dict):
            result[key] = merged(old, value)
            if "average" in value:
                by_mouse = [r for m, r in result[key].items() if m != "average"]
                result[key]["average"] = float(np.mean(by_mouse))
    return result


def as_table(scores: Mapping[str, TierScores]) -> str:
    """A table for people: a row per mouse, two columns per tier."""
    shown = [tier for tier, score in scores.items() if score.single_trial]
    mice = list(dict.fromkeys(m for tier in shown for m in scores[tier].single_trial))
    width = max([len(m) for m in mice] + [7])
    columns = [max(len(tier), 21) for tier in shown]
    lines = [" " * width + "".join(f"  {tier:>{w}}" for tier, w in zip(shown, columns, strict=True))]
    lines.append(f"{'mouse':<{width}}" + "".join(f"  {'single':>{w - 11}} {'to average':>10}" for w in columns))

    def cells(rows: Mapping[str, tuple[float | None, float | None]]) -> str:
        text = ""
        for tier, w in zip(shown, columns, strict=True):
            single, average = rows[tier]
            text += f"  {_number(single):>{w - 11}} {_number(average):>10}"
        return text

    for mouse in mice:
        lines.append(
            f"{mouse:<{width}}"
            + cells({t: (scores[t].single_trial.get(mouse), scores[t].to_average.get(mouse)) for t in shown})
        )
    means = {t: (_mean(scores[t].single_trial), _mean(scores[t].to_average)) for t in shown}
    lines.append(f"{'average':<{width}}" + cells(means))
    return "\n".join(lines)


def _mean(values: Mapping[str, float]) -> float | None:
    return float(np.mean(list(values.values()))) if values else None


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
