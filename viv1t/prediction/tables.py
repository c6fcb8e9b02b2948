"""Scores as tables for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from viv1t.prediction.evaluate import (
    AS_TRAINED,
    METRICS,
    TierScores,
    mean_over_mice,
    mean_over_neurons,
    view_mapping,
)
from viv1t.types import MAX_FRAMES

NOTES = """\
single trial: all trials together; per trial: the mean over trials; to average: predictions and responses are averaged
over repeats. To average, CCnorm and FEVE are of movies shown more than once; -: there is none. CCnorm leaves out
neurons whose repeats have no signal in common, FEVE those with less than 15% of explainable variance. Scaled by neuron,
scores are those of unscaled responses."""


OWN_NAMES = {
    "correlation": "correlation is over all trials together (single trial above)",
    "single_trial_correlation": "single_trial_correlation is within each trial (per trial above)",
    "normalized_correlation": "normalized_correlation is CCnorm of each repeated movie, mean over movies",
}


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
    means = {t: (mean_over_mice(scores[t].single_trial), mean_over_mice(scores[t].to_average)) for t in shown}
    lines.append(f"{'average':<{width}}" + cells(means))
    return "\n".join(lines)


def own_table(scores: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """The scores that a family's own run folders hold, with what their names mean there."""
    names = list(dict.fromkeys(name for tier in scores.values() for name in tier))
    mice = list(dict.fromkeys(m for tier in scores.values() for values in tier.values() for m in values))
    width = max(len(m) for m in mice)
    lines = [f"by the definitions of the family of 2025: {'; '.join(OWN_NAMES[name] for name in names)}"]
    for tier, of_tier in scores.items():
        lines.append(f"{tier}:")
        lines.append(" " * width + "".join(f"  {name:>{max(len(name), 7)}}" for name in names))
        for mouse in mice:
            cells = [_number(of_tier.get(name, {}).get(mouse)) for name in names]
            row = "".join(f"  {c:>{max(len(n), 7)}}" for c, n in zip(cells, names, strict=True))
            lines.append(f"{mouse:<{width}}{row}")
    return "\n".join(lines)


def as_tables(tier: str, score: TierScores) -> str:
    """Every score of a tier: a table per view, a row per mouse."""
    width = max([len(m) for m in score.single_trial] + [7])

    def row(name: str, means: Sequence[tuple[float | None, int]]) -> str:
        cells = [f"{_number(value)} ({count})" if count else _number(value) for value, count in means]
        return f"{name:<{width}}  {cells[0]:>12}  {cells[1]:>9}  {cells[2]:>10}  {cells[3]:>16}  {cells[4]:>16}"

    blocks = []
    for view, by_mouse in score.by_view.items():
        if view == AS_TRAINED:
            continue
        lines = [
            f"{tier}: without the first {MAX_FRAMES - view.frames} frames of a trial, responses scaled by {view.scale}",
            f"{'mouse':<{width}}  single trial  per trial  to average  CCnorm (neurons)    FEVE (neurons)",
        ]
        lines += [row(mouse, [mean_over_neurons(scores, m) for m in METRICS]) for mouse, scores in by_mouse.items()]
        averages = view_mapping(by_mouse)
        lines.append(row("average", [(averages.get(metric, {}).get("average"), 0) for metric in METRICS]))
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
