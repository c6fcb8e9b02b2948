"""Predictions of recorded trials, one at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from viv1t.data.loader import Recordings
from viv1t.model.twin import ViV1T
from viv1t.prediction import TrialPrediction
from viv1t.train.validate import check_every_frame, check_length, ensemble_prediction
from viv1t.types import MAX_FRAMES

UNITS = ("scaled", "recorded")


@torch.no_grad()
def predict(
    models: Sequence[ViV1T], recordings: Recordings, mouse_id: str, tier: str, units: str = "scaled"
) -> Iterator[TrialPrediction]:
    """The mean prediction of `models` for every trial of a tier, ascending; only one trial is held in memory.

    Args:
        models: in evaluation mode, made for the recordings.
        recordings: whose trials are predicted; responses need not be known.
        mouse_id: which mouse.
        tier: name, as `live_test_main`.
        units: `scaled`: as the model was trained, responses divided by their standard deviation; `recorded`: those of
            the recording.

    Raises:
        ConfigError: a model does not predict every frame.
        DataError: a trial is damaged, or too short to be scored.
    """
    for model in models:
        check_every_frame(model.config)
    for batch in recordings.trials(mouse_id, tier, responses=False):
        check_length(models, batch)
        frames = min(batch.video.shape[2], MAX_FRAMES)
        response = ensemble_prediction(models, batch)[0].float().cpu().numpy()
        if units == "recorded":
            response = recordings.recorded_units(mouse_id, response, frames)
        yield TrialPrediction(recordings.mice[mouse_id], batch.trial_ids[0], response, frames)
