"""Predictions of recorded trials, one at a time."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from viv1t.data.recordings import Recordings
from viv1t.data.session import Session
from viv1t.inputs import STATES
from viv1t.model.twin import ViV1T
from viv1t.prediction.files import TrialPrediction
from viv1t.prediction.subject import Subject, SubjectModel, predict_long
from viv1t.training.validate import check_every_frame, check_length, ensemble_prediction
from viv1t.types import MAX_FRAMES

logger = logging.getLogger("viv1t")



@torch.no_grad()
def predict(
    models: Sequence[ViV1T],
    recordings: Recordings,
    mouse_id: str,
    tier: str,
    units: str = "scaled",
    *,
    whole: bool = True,
) -> Iterator[TrialPrediction]:
    """The mean prediction of `models` for every trial of a tier, ascending; only one trial is held in memory.

    Args:
        models: in evaluation mode, made for the recordings.
        recordings: whose trials are predicted; responses are not read.
        mouse_id: which mouse.
        tier: name, as `live_test_main`.
        units: `scaled`: as the model was trained, responses divided by their standard deviation; `recorded`: those of
            the recording.
        whole: predict trials of more than 300 frames whole, in windows as films are; else their first 300 frames, which
            is what scores are of.

    Raises:
        ConfigError: a model does not predict every frame.
        DataError: a trial is damaged, or too short to be scored.
    """
    for model in models:
        check_every_frame(model.config)
    session = recordings.session(mouse_id)
    trials = sorted(recordings.trial_ids(mouse_id, tier))
    if not whole and (cut := recordings.long_trials(mouse_id, trials)):
        logger.warning("%s: %s", tier, cut.line)
    long = {trial for trial in trials if whole and session.duration(trial) > MAX_FRAMES}
    batches = recordings.trials(mouse_id, tier, [trial for trial in trials if trial not in long], responses=False)
    in_windows = SubjectModel(models, Subject.of(recordings, mouse_id), units) if long else None
    for trial in trials:
        if in_windows is not None and trial in long:
            yield _predict_long(in_windows, session, trial)
            continue
        batch = next(batches)
        check_length(models, batch)
        frames = batch.used_frames
        response = ensemble_prediction(models, batch)[0].float().cpu().numpy()
        if units == "recorded":
            response = recordings.recorded_units(mouse_id, response, frames)
        yield TrialPrediction(recordings.mice[mouse_id], trial, response, frames)


def _predict_long(model: SubjectModel, session: Session, trial: int) -> TrialPrediction:
    """A trial that is longer than the model can see at once."""
    frames = session.duration(trial)
    video = np.moveaxis(session.read("video", trial)[..., :frames], -1, 0)
    states = {name: session.read(name, trial)[:, :frames] for name in STATES}
    pieces = (torch.from_numpy(np.ascontiguousarray(part, np.float32)) for part in _parts(video))
    response = np.concatenate(list(predict_long(model, pieces, frames, states, trial=trial)), axis=1)
    known = np.flatnonzero(~np.isnan(response).all(axis=0))
    return TrialPrediction(model.mouse, trial, response[:, known[0] :], frames)


def _parts(video: np.ndarray) -> Iterator[np.ndarray]:
    """A movie in pieces, so that little of it is there as float32."""
    for start in range(0, len(video), MAX_FRAMES):
        yield video[start : start + MAX_FRAMES]
