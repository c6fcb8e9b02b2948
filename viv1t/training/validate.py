"""Predicting whole trials and scoring them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from viv1t.data.inspect.finding import WITHHELD
from viv1t.data.recordings import Recordings
from viv1t.data.session import missing_tier
from viv1t.errors import ConfigError, DataError
from viv1t.model.twin import ViV1T
from viv1t.scoring.correlation import CorrelationAccumulator
from viv1t.scoring.criterion import TrainingLoss
from viv1t.training.ranks import Ranks
from viv1t.types import MAX_FRAMES, UNSCORED_FRAMES, Batch

log = logging.getLogger("viv1t.train")


def check_every_frame(config: Any) -> None:
    """Raises a ConfigError for a core that does not predict every frame."""
    if getattr(config.core, "temporal_patch_stride", 1) > 1:
        raise ConfigError(
            "--core_temporal_patch_stride above 1 predicts only every stride-th frame, and scores need every frame: "
            "use 1 (models with a larger stride can still be loaded and run)"
        )


def ensemble_prediction(models: Sequence[ViV1T], batch: Batch) -> Tensor:
    """Mean prediction (B, N, t) of several models for one batch, on the models' device, over the frames all predict."""
    frames = min(batch.video.shape[2], MAX_FRAMES)
    device = next(models[0].parameters()).device
    batch = batch.to(device)
    inputs = (
        batch.video[:, :, :frames],
        batch.mouse_id,
        batch.behavior[..., :frames],
        batch.pupil_center[..., :frames],
    )
    total = models[0](*inputs)
    for model in models[1:]:
        prediction = model(*inputs)
        common = min(total.shape[2], prediction.shape[2])
        total = total[..., -common:] + prediction[..., -common:]
    return total / len(models)


Predict = Callable[[Sequence[ViV1T], Batch], Tensor]


def check_length(models: Sequence[ViV1T], batch: Batch) -> None:
    """Raises a DataError that names the trial of a batch of one if it is too short to be scored."""
    frames = min(batch.video.shape[2], MAX_FRAMES)
    if frames <= UNSCORED_FRAMES or any(model.core.output_frames(frames) < 1 for model in models):
        raise DataError(
            f"mouse {batch.mouse_id}, trial {batch.trial_ids[0]}: {frames} frames are too short to be scored: scores "
            f"leave out the first {UNSCORED_FRAMES}, and a core predicts nothing before its temporal extent; set the "
            "trial's tier to 'none'"
        )


@torch.no_grad()
def scored_trials(
    models: Sequence[ViV1T],
    recordings: Recordings,
    mouse_id: str,
    tier: str,
    order: Sequence[int] | None = None,
    predict: Predict = ensemble_prediction,
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(trial id, prediction (N, s), response (N, s)) of every trial: the last T - 50 of its first 300 frames.

    Trials come ascending, or in the `order` given; `predict` gives their predictions.

    Raises:
        ConfigError: a model does not predict every frame.
        DataError: a trial is too short to be scored.
    """
    for model in models:
        check_every_frame(model.config)
    for batch in recordings.trials(mouse_id, tier, order):
        check_length(models, batch)
        frames = min(batch.video.shape[2], MAX_FRAMES)
        prediction = predict(models, batch)[0]
        scored = min(frames - UNSCORED_FRAMES, prediction.shape[1])
        response = batch.response[0, :, :frames]
        yield batch.trial_ids[0], prediction[:, -scored:].float().cpu(), response[:, -scored:]


@dataclass(frozen=True)
class Validation:
    """Scores of the tier `validation` after an epoch.

    Attributes:
        correlation: single-trial correlation of each mouse, mean over its neurons.
        loss: summed over trials, mean over mice.
        loss_size: what `loss` is divided by to be read, see `TrainingLoss.step_size`.
    """

    correlation: dict[str, float]
    loss: float
    loss_size: float = 1.0

    @property
    def mean(self) -> float:
        """Mean correlation over mice."""
        return float(np.mean(list(self.correlation.values())))


def validate(
    model: ViV1T,
    recordings: Recordings,
    loss: TrainingLoss,
    advance: Callable[[], None] | None = None,
    ranks: Ranks | None = None,
    predict: Predict = ensemble_prediction,
) -> Validation:
    """Scores `model` on whole trials of the tier `validation`, with batch 1.

    Args:
        model: on any device.
        recordings: its mice; processes that share them score those they serve.
        loss: written down of every trial.
        advance: called after every trial.
        ranks: the processes that share the mice; each gets all scores.
        predict: gives the predictions.
    """
    training = model.training
    model.eval()
    scores = torch.zeros(3, len(recordings.mice), dtype=torch.float64)
    try:
        for i, mouse_id in enumerate(recordings.mice):
            if mouse_id not in recordings.served:
                continue
            accumulator = CorrelationAccumulator()
            total = size = 0.0
            for _, prediction, response in scored_trials([model], recordings, mouse_id, "validation", None, predict):
                accumulator.update(prediction, response)
                total += float(loss.of_trial(mouse_id, response[None], prediction[None]))
                size += loss.trial_size(mouse_id, *prediction.shape)
                if advance is not None:
                    advance()
            scores[:, i] = torch.tensor([float(accumulator.result().mean()), total, size], dtype=torch.float64)
    finally:
        model.train(training)
    if ranks is not None:
        scores = ranks.sum(scores)
    correlation, losses, sizes = scores.tolist()
    by_mouse = dict(zip(recordings.mice, correlation, strict=True))
    return Validation(by_mouse, float(np.mean(losses)), float(np.mean(sizes)))


def check_recordings(recordings: Recordings) -> None:
    """Raises the first error of recordings that cannot be trained on, and logs what is to be known of others.

    Raises:
        DataError: a mouse cannot be trained or scored.
    """
    for mouse_id, size in recordings.train_sizes.items():
        session = recordings.session(mouse_id)
        if not size:
            raise missing_tier(session, "train").error
        if not recordings.trial_ids(mouse_id, "validation"):
            raise missing_tier(session, "validation").error
        if recordings.hidden(mouse_id, "validation"):
            raise WITHHELD.found(mouse_id, tier="validation", how="zero, NaN or absent").error
        if mouse_id in recordings.served:
            for finding in recordings.notices(mouse_id):
                log.warning("%s", finding.line)
