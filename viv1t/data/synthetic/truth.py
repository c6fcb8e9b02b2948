"""What is known of a synthetic session beside its data: its neurons, and what a perfect model would score."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import numpy as np

from viv1t.data.synthetic.movies import HEIGHT, WIDTH
from viv1t.data.synthetic.neurons import Population
from viv1t.errors import DataError
from viv1t.system.files import write_text
from viv1t.types import MAX_FRAMES, UNSCORED_FRAMES

_BLOCK = 512  # neurons whose Gabors are transformed at once
EVALUATION_TIERS = ("oracle", "live_test_main", "live_test_bonus", "final_test_main", "final_test_bonus")


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
    import torch  # which looking at data does without

    from viv1t.scoring.correlation import CorrelationAccumulator

    truth = session / "truth"
    if not (truth / "trials.json").is_file():
        raise DataError(f"{session} is not a synthetic session: it has no truth/trials.json")
    tier = "oracle" if tier == "validation" else tier
    plans = [p for p in json.loads((truth / "trials.json").read_text()) if p["tier"] == tier]
    if not plans or tier == "train":
        raise DataError(f"{session} has no expected responses of the tier {tier}")
    score = CorrelationAccumulator()
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
            score.update(torch.from_numpy(rates), torch.from_numpy(response))
    if not score.frames:
        what = "no movie is repeated in" if to_average and skip < MAX_FRAMES else "no frame is left of"
        raise DataError(f"{session}: {what} the tier {tier} after the first {skip} frames")
    return score.result().numpy().astype(np.float32)


def tuning(cells: Population) -> dict[str, np.ndarray]:
    """What the neurons are tuned to, from their Gabors: (N,) float64 of each name.

    x, y: field centre, pixels from the middle of the frame's first pixel. sigma: of the envelope, pixels, the geometric
    mean of both axes. orientation: axis of motion, degrees from 0 to below 180 in the directions of stimuli (0 left, 90
    down). frequency: cycles a pixel. phase: of the even Gabor at its centre, degrees. direction: -1 to 1, how much one
    direction is preferred, and preferred_direction, degrees, which. complexity: 0 simple to 1 complex.

    Even + i odd is an envelope times a wave: the centroid of its spectrum's power is the wave's frequency, however the
    frame's border cuts the envelope.
    """
    x, y = ((cells.positions.astype(np.float64) + 1) / 2 * [WIDTH - 1, HEIGHT - 1]).T
    blocks = [slice(first, first + _BLOCK) for first in range(0, len(x), _BLOCK)]
    waves = [_wave(cells.bank[:, block], x[block], y[block]) for block in blocks]
    sigma, fx, fy, phase = np.concatenate(waves, axis=1)
    # The first wave moves along -(fx, fy) to the right and down; in stimuli 0 is left and 90 down.
    angle = np.degrees(np.arctan2(-fy, fx))
    return {
        "x": x, "y": y, "sigma": sigma, "orientation": angle % 180, "frequency": np.hypot(fx, fy), "phase": phase,
        "direction": cells.direction.astype(np.float64),
        "preferred_direction": np.where(cells.direction > 0, angle, angle + 180) % 360,
        "complexity": cells.complexity.astype(np.float64),
    }  # fmt: skip


def _wave(bank: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Of (2, n, 576) Gabors about x, y: sigma, frequency to the right and down, and phase in degrees, (4, n)."""
    wave = (bank[0] + 1j * bank[1]).reshape(-1, HEIGHT // 2, WIDTH // 2)
    power = np.abs(np.fft.fft2(wave)) ** 2
    total = power.sum(axis=(1, 2))
    down, right = (
        np.fft.fftfreq(size) / 2 for size in wave.shape[1:]
    )  # pixels of the bank are two of the movie's wide
    fy, fx = power.sum(axis=2) @ down / total, power.sum(axis=1) @ right / total
    rows, columns = np.mgrid[: HEIGHT // 2, : WIDTH // 2] * 2 + 0.5
    at = (columns - x[:, None, None]) * fx[:, None, None] + (rows - y[:, None, None]) * fy[:, None, None]
    phase = np.degrees(np.angle((wave * np.exp(-2j * np.pi * at)).sum(axis=(1, 2)))) % 360
    return np.stack([[_sigma(envelope) for envelope in np.abs(wave)], fx, fy, phase])


def _sigma(envelope: np.ndarray) -> float:
    """Of a Gaussian (rows, columns) in whole numbers, in pixels of the movie: its logarithm is a quadratic form."""
    y, x = np.nonzero(envelope > 0.05 * envelope.max())
    level = envelope[y, x]
    terms = np.stack([np.ones(len(x)), x, y, x * x, x * y, y * y], axis=1)
    _, _, _, xx, xy, yy = np.linalg.lstsq(terms * level[:, None], np.log(level) * level, rcond=None)[0]
    return float(2 * (4 * xx * yy - xy**2) ** -0.25)


def write_tuning(path: Path, cells: Population) -> None:
    """Writes `tuning` as a CSV, a row a neuron: `neuron`, from 0, and its columns."""
    columns = tuning(cells)
    lines = [",".join(["neuron", *columns])]
    for n, row in enumerate(zip(*columns.values(), strict=True)):
        lines.append(",".join([str(n), *(f"{value:.6g}" for value in row)]))
    write_text(path, "\n".join(lines) + "\n")


def _recorded(session: Path, trial: int) -> np.ndarray:
    withheld = session / "truth" / "withheld" / f"{trial}.npy"
    return np.asarray(np.load(withheld if withheld.exists() else session / "data" / "responses" / f"{trial}.npy"))


def load_population(session: Path) -> Population:
    """The neurons of a synthetic session."""
    folder = session / "truth" / "neurons"
    return Population(**{f.name: np.load(folder / f"{f.name}.npy") for f in fields(Population)})
