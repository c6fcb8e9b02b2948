"""Reliability: how well repeats of a movie agree, and how well they are predicted."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from viv1t.data.session import Session
from viv1t.lab.observers import Observer
from viv1t.lab.recorded import film_of, reliability, repeated, responses_of, states_of
from viv1t.scoring.correlation import CorrelationAccumulator
from viv1t.types import UNSCORED_FRAMES


def table(observer: Observer, session: Session, neurons: np.ndarray, good: np.ndarray | None = None) -> dict[str, Any]:
    """What recorded repeats say, and how a model does on them.

    Args:
        observer: who predicts the trials, at their own behavior and gaze.
        session: the recording.
        neurons: which of the N.
        good: (n,) whether each has a good receptive field; None asks for none.

    Returns:
        `reliability`, the correlation of two repeats (mean over pairs, then over movies); `correlation` of the mean
        prediction with the mean recording; `order`, from 0, in which neurons are worth an experiment of their own: by
        both ranks summed; -1 for those that are left out.
    """
    found = reliability(session)
    sums = CorrelationAccumulator()
    for trials in repeated(session):
        recorded = responses_of(session, trials).mean(0)
        frames = recorded.shape[1]
        predicted = np.zeros_like(recorded)
        for trial in trials:
            states = {n: values[:, :frames] for n, values in states_of(session, trial).items()}
            predicted += observer.answer_long(film_of(session, trial)[:frames], states) / len(trials)
        known = np.isfinite(predicted).all(0)
        known[:UNSCORED_FRAMES] = False
        sums.update(torch.from_numpy(predicted[:, known]), torch.from_numpy(recorded[:, known]))
    correlation = sums.result().numpy()[neurons] if sums.frames else np.full(len(neurons), np.nan)
    value = found["reliability"][neurons]
    reasons = [
        "responses to repeats are constant" if not np.isfinite(r) else "" if np.isfinite(c) else "not predicted"
        for r, c in zip(value, correlation, strict=True)
    ]
    kept = np.array([not why for why in reasons])
    if good is not None:
        reasons = [why or ("" if well else "no good receptive field") for why, well in zip(reasons, good, strict=True)]
        kept &= good
    order = np.full(len(neurons), -1)
    ranks = sum(np.argsort(np.argsort(-x[kept], kind="stable"), kind="stable") for x in (value, correlation))
    order[np.flatnonzero(kept)[np.argsort(ranks, kind="stable")]] = np.arange(kept.sum())
    return {
        "reliability": value, "correlation": correlation, "order": order,
        "movies": np.full(len(neurons), int(found["movies"])), "repeats": np.full(len(neurons), int(found["repeats"])),
        "reason": reasons,
    }  # fmt: skip
