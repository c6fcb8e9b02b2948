"""Predictions of recorded trials by exported models, with NumPy and ONNX Runtime alone."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from viv1t.data.mice import discover, open_recording
from viv1t.data.session import Session
from viv1t.errors import ConfigError, DataError, missing_folder
from viv1t.onnx_model import OnnxModel
from viv1t.prediction.files import TrialPrediction
from viv1t.types import MAX_FRAMES, used_frames

logger = logging.getLogger("viv1t")


def open_models(
    files: Sequence[str | Path], data: str, mouse_ids: Sequence[str] | None = None
) -> dict[str, tuple[OnnxModel, Session]]:
    """Exported models and the recordings of their mice, by mouse.

    Args:
        files: one per mouse.
        data: folder of recordings.
        mouse_ids: these mice only.

    Raises:
        CheckpointError: a file is missing, damaged or not an exported model.
        ConfigError: two files are of one mouse, or a mouse has none.
        DataError: the recordings are missing, damaged, or not those of the models.
    """
    models: dict[str, OnnxModel] = {}
    for file in files:
        model = OnnxModel(file)
        if other := models.get(model.mouse_id):
            raise ConfigError(f"{other.path} and {file} are both of mouse {model.mouse_id}: give one file per mouse")
        models[model.mouse_id] = model
    chosen = list(mouse_ids or models)
    if unknown := [m for m in chosen if m not in models]:
        raise ConfigError(f"--mouse_ids {' '.join(unknown)}: no file of these mice; there are {', '.join(models)}")
    folder = Path(data)
    if not folder.is_dir():
        raise missing_folder(folder, "give the folder that holds the recording sessions", option="--data ")
    found = discover(folder)
    if missing := [m for m in chosen if m not in found]:
        there = ", ".join(found) or "none"
        raise DataError(f"--data {folder}: holds no recording of mouse {', '.join(missing)}; it has {there}")
    opened = {}
    for mouse in chosen:
        opened[mouse] = models[mouse], open_recording(found[mouse], mouse)
        _check_fit(*opened[mouse])
    return opened


def _check_fit(model: OnnxModel, session: Session) -> None:
    if session.frame_size != model.frame_size:
        sizes = [f"{h} x {w}" for h, w in (session.frame_size, model.frame_size)]
        raise DataError(f"mouse {model.mouse_id}: frames of {sizes[0]} pixels, but {model.path} takes {sizes[1]}")
    if model.neuron_ids is not None and not np.array_equal(model.neuron_ids, session.mouse.unit_ids):
        raise DataError(f"mouse {model.mouse_id}: {session.path} has other neurons than {model.path} was made for")


def predict_files(model: OnnxModel, session: Session, tier: str) -> Iterator[TrialPrediction]:
    """The prediction for every trial of a tier, ascending, scaled as the model was trained.

    Raises:
        DataError: a trial is damaged or too short, or the file does not say how recorded values are transformed.
    """
    longest = max((session.duration(trial) for trial in session.trials(tier)), default=0)
    if longest > MAX_FRAMES:
        logger.warning(
            "%s: mouse %s: up to %d frames: exported files predict the first %d of a trial; predict with the run to "
            "have all", tier, model.mouse_id, longest, MAX_FRAMES,
        )  # fmt: skip
    for trial in session.trials(tier):
        duration = session.duration(trial)
        frames = used_frames(duration)
        if frames < model.fewest_frames or (model.most_frames is not None and frames > model.most_frames):
            most = model.most_frames or "any number of"
            raise DataError(
                f"mouse {model.mouse_id}, trial {trial}: {frames} frames, but {model.path} takes "
                f"{model.fewest_frames} to {most}; set the trial's tier to 'none'"
            )
        video, behavior, pupil_center = (
            session.read(name, trial)[..., :frames][None] for name in ("video", "behavior", "pupil_center")
        )
        response = model.predict(video.transpose(0, 3, 1, 2)[:, None], behavior, pupil_center)[0]
        yield TrialPrediction(session.mouse, trial, response, frames)
