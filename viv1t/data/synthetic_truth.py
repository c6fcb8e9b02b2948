"""What is known of a synthetic session beside its data: its neurons, and what a perfect model would score."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import numpy as np

from viv1t.data.synthetic_neurons import Population
from viv1t.errors import DataError
from viv1t.types import MAX_FRAMES, UNSCORED_FRAMES

EVALUATION_TIERS = ("oracle", "live_test_main", "live_test_bonus", "final_test_main", "final_test_bonus")


class Correlation:
    """Correlation per neuron over trials and frames together, with 1e-8 added to each standard deviation."""

    def __init__(self) -> None:
        self.count = 0
        self.sums = np.zeros(0)

    def add(self, expected: np.ndarray, recorded: np.ndarray) -> None:
        x, y = expected.astype(np.float64), recorded.astype(np.float64)
        sums = np.stack([x.sum(1), y.sum(1), (x * x).sum(1), (y * y).sum(1), (x * y).sum(1)])
        self.sums = self.sums + sums if self.count else sums
        self.count += x.shape[1]

    def value(self) -> np.ndarray:
        x, y, xx, yy, xy = self.sums / self.count
        spread = (np.sqrt(np.maximum(xx - x * x, 0)) + 1e-8) * (np.sqrt(np.maximum(yy - y * y, 0)) + 1e-8)
        return np.asarray((xy - x * y) / spread, dtype=np.float32)


def noise_ceiling(
    session: Path, tier: str = "oracle", *, skip: int = UNSCORED_FRAMES, to_average: bool = False
) -> np.ndarray:
    """What a perfect model would score: the correlation of expected and recorded responses of a synthetic session.

    Pooled over the tier's trials and frames as `single_trial_correlation`, at most 300 frames of each trial. Hidden
    tiers are scored against the withheld responses.

    Args:
        session: a synthetic session's folder.
        tier: one of `EVALUATION_TIERS`, or `validation` for `oracle`.
        skip: first frames of each trial that are left out.
        to_average: both averaged over the repeats of a movie first, as `correlation_to_average`; movies shown once
            are left out.

    Returns:
        (N,) float32.

    Raises:
        DataError: not a synthetic session, it has no trial of the tier, no movie is repeated, or no frame is left.
    """
    truth = session / "truth"
    if not (truth / "trials.json").is_file():
        raise DataError(f"{session} is not a synthetic session: it has no truth/trials.json")
    tier = "oracle" if tier == "validation" else tier
    plans = [p for p in json.loads((truth / "trials.json").read_text()) if p["tier"] == tier]
    if not plans or tier == "train":
        raise DataError(f"{session} has no expected responses of the tier {tier}")
    score = Correlation()
    for movie in sorted({p["movie"] for p in plans}):
        repeats = [p for p in plans if p["movie"] == movie]
        if to_average and len(repeats) < 2:
            continue
        window = slice(skip, min(repeats[0]["frames"], MAX_FRAMES))
        recorded = [_recorded(session, p["trial"])[:, window] for p in repeats]
        expected = [np.load(truth / "rates" / f"{p['trial']}.npy")[:, window] for p in repeats]
        if to_average:
            recorded, expected = [np.mean(recorded, axis=0)], [np.mean(expected, axis=0)]
        for rates, response in zip(expected, recorded, strict=True):
            score.add(rates, response)
    if not score.count:
        what = "no movie is repeated in" if to_average and skip < MAX_FRAMES else "no frame is left of"
        raise DataError(f"{session}: {what} the tier {tier} after the first {skip} frames")
    return score.value()


def _recorded(session: Path, trial: int) -> np.ndarray:
    withheld = session / "truth" / "withheld" / f"{trial}.npy"
    return np.asarray(np.load(withheld if withheld.exists() else session / "data" / "responses" / f"{trial}.npy"))


def load_population(session: Path) -> Population:
    """The neurons of a synthetic session."""
    folder = session / "truth" / "neurons"
    return Population(**{f.name: np.load(folder / f"{f.name}.npy") for f in fields(Population)})
