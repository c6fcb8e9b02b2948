"""What recordings say of their neurons: repeats, states, and responses to known stimuli."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from viv1t.data.session import Session
from viv1t.errors import ConfigError, DataError
from viv1t.inputs import STATES

_REPEATS = 2  # that a movie must have: published are 5
STATE_WORDS = {"running": 90.0, "still": 10.0}


def percentile_state(session: Session, state: str | float) -> np.ndarray:
    """Pupil dilation and running speed at a percentile of the training trials' frames, (2,) as recorded.

    Args:
        session: the recording.
        state: `running` (the 90th percentile), `still` (the 10th) or a percentile, 0 to 100.

    Raises:
        ConfigError: not a state.
        DataError: there is no training trial.
    """
    try:
        percent = STATE_WORDS[state] if state in STATE_WORDS else float(state)  # type: ignore[index]
    except ValueError:
        percent = np.nan
    if not 0 <= percent <= 100:
        raise ConfigError(f"--state must be running, still or a percentile from 0 to 100, not {state!r}")
    if not (trials := session.trials("train")):
        raise DataError(f"mouse {session.mouse.id}: no trial of the tier train, whose behavior --state is a part of")
    behavior = [session.read("behavior", t)[:, : session.duration(t)] for t in trials]
    return np.asarray(np.percentile(np.concatenate(behavior, axis=1), percent, axis=1))


TIERS = ("validation", "live_main", "final_main")


def repeated(session: Session, tiers: Sequence[str] = TIERS) -> Iterator[list[int]]:
    """The trials of each movie of some tiers that was shown more than once and whose responses are given."""
    for tier in tiers:
        if session.trials(tier) and not session.hidden(tier):
            yield from (trials for trials in session.repeats(tier) if len(trials) >= _REPEATS)


def responses_of(session: Session, trials: Sequence[int]) -> np.ndarray:
    """Recorded responses (trials, N, T) float64, T the frames that all have."""
    frames = min(session.duration(t) for t in trials)
    return np.stack([session.read("response", t)[:, :frames].astype(np.float64) for t in trials])


def film_of(session: Session, trial: int) -> np.ndarray:
    """A trial's movie in grey levels 0 to 255, (T, H, W) uint8.

    Raises:
        DataError: the movie is missing or damaged, or holds something else than grey levels.
    """
    video = np.moveaxis(session.read("video", trial)[..., : session.duration(trial)], -1, 0)
    if video.dtype == np.uint8:
        return np.ascontiguousarray(video)
    low, high = float(video.min()), float(video.max())
    if low < -0.5 or high > 255.5:
        raise DataError(
            f"mouse {session.mouse.id}, trial {trial}: a film has grey levels of 0 to 255, but this movie has values "
            f"from {low:g} to {high:g}"
        )
    levels = video * 255.0 if 0 < high <= 1 else video
    return np.clip(np.rint(levels), 0, 255).astype(np.uint8)


def states_of(session: Session, trial: int) -> dict[str, np.ndarray]:
    """Behavior and gaze of a trial as recorded, (2, T) each."""
    return {n: session.read(n, trial)[:, : session.duration(trial)].astype(np.float64) for n in STATES}


def reliability(session: Session, tiers: Sequence[str] = TIERS) -> dict[str, np.ndarray]:
    """How well recorded responses to a repeated movie agree.

    Args:
        session: the recording.
        tiers: whose repeats are compared.

    Returns:
        `reliability` (N,), the correlation of two repeats, mean over pairs, then over movies; NaN where a neuron is
        constant; `movies` and `repeats`, how many there were, () each.

    Raises:
        DataError: no movie was shown twice.
    """
    total, count = np.zeros(session.mouse.neurons), np.zeros(session.mouse.neurons)
    movies, fewest = 0, 0
    for trials in repeated(session, tiers):
        responses = responses_of(session, trials)
        centred = responses - responses.mean(-1, keepdims=True)
        length = np.sqrt((centred**2).sum(-1, keepdims=True))
        with np.errstate(invalid="ignore", divide="ignore"):
            unit = np.where(length > 0, centred / length, np.nan)
        # The sum over all ordered pairs is the square of the sum, less each with itself.
        n = len(responses)
        pairs = ((unit.sum(0) ** 2).sum(-1) - n) / (n * (n - 1))
        known = np.isfinite(pairs)
        total, count = total + np.where(known, pairs, 0), count + known
        movies, fewest = movies + 1, min(fewest or n, n)
    if not movies:
        raise DataError(
            f"mouse {session.mouse.id}: no movie of {', '.join(tiers)} was shown twice with its responses given: "
            "nothing says how reliable its neurons are"
        )
    with np.errstate(invalid="ignore", divide="ignore"):
        value = np.where(count > 0, total / count, np.nan)
    return {"reliability": value, "movies": np.array(movies), "repeats": np.array(fewest)}
