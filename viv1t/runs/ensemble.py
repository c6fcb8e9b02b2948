"""Runs used together: their models, and the recordings that all of them were made for."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from viv1t.data.recordings import Recordings
from viv1t.data.formats.sensorium.recorded import other_neurons
from viv1t.data.session import Session
from viv1t.errors import ConfigError, DataError
from viv1t.model.twin import ViV1T
from viv1t.runs.folder import RunFolder

log = logging.getLogger("viv1t")


def open_ensemble(
    runs: Sequence[str | Path], device: torch.device, data: str | None = None, mouse_ids: Sequence[str] | None = None
) -> tuple[list[ViV1T], Recordings]:
    """The best model of every run, in evaluation mode, and the recordings to use them on, to be closed.

    Args:
        runs: run folders, ours or published.
        device: of the models.
        data: folder of recordings; default the one the first run was trained on.
        mouse_ids: use these mice only.

    Raises:
        CheckpointError: a folder is no run, or its checkpoint is damaged.
        ConfigError: a mouse is not in every run, or the runs were trained on differently transformed data.
        DataError: the recordings are missing, damaged or not those of the models.
    """
    folders = [RunFolder(run) for run in runs]
    models, mice = load_models(folders, device, mouse_ids)
    return models, open_recordings(folders, models, data, mice)


def load_models(
    folders: Sequence[RunFolder], device: torch.device, mouse_ids: Sequence[str] | None = None
) -> tuple[list[ViV1T], list[str]]:
    """The best model of every run, in evaluation mode, and the mice to use; arguments and errors as above."""
    models = [folder.load_model(device) for folder in folders]
    for folder, model in zip(folders[1:], models[1:], strict=True):
        for mouse in mouse_ids or models[0].mouse_ids:
            ids, others = models[0].unit_ids.get(mouse), model.unit_ids.get(mouse)
            if ids is not None and others is not None and (words := other_neurons(ids, others)):
                raise ConfigError(
                    f"{folders[0].path} and {folder.path} cannot form an ensemble: they were trained on different "
                    f"neurons of mouse {mouse} ({words}; see {folder.recordings}); choose with --mouse_ids"
                )
    known = [m for m in models[0].mouse_ids if all(m in model.neurons for model in models)]
    mice = list(mouse_ids or models[0].mouse_ids)
    if unknown := [m for m in mice if m not in known]:
        raise ConfigError(f"--mouse_ids {' '.join(unknown)}: not in every run; they have {', '.join(known) or 'none'}")
    return models, mice


def open_recordings(
    folders: Sequence[RunFolder], models: Sequence[ViV1T], data: str | None, mice: Sequence[str]
) -> Recordings:
    """The recordings that all of the runs were made for, to be closed; arguments and errors as above."""
    if nameless := [str(folder.path) for folder in folders if not folder.recordings.is_file()]:
        log.warning(
            "%s: does not say which neurons it was trained on (there is no %s), as published runs: that they are those "
            "of the recordings, in the same order, cannot be checked", ", ".join(nameless), folders[0].recordings.name,
        )  # fmt: skip
    config, seed = data_config(folders, data, mice), folders[0].config().train.seed
    recordings = folders[0].family().open_recordings(config, seed)
    try:
        check_fit(models, recordings)
    except DataError:
        recordings.close()
        raise
    return recordings


def data_config(runs: Sequence[RunFolder], path: str | None, mouse_ids: Sequence[str]) -> Any:
    """The data options shared by all runs, reading from `path` when given.

    Raises:
        ConfigError: the runs were trained on differently transformed data.
    """
    family = runs[0].family()
    if others := [run for run in runs[1:] if run.family() is not family]:
        raise ConfigError(
            f"{runs[0].path} and {others[0].path} cannot form an ensemble: they are of the families of {family.name} "
            f"and {others[0].family().name}, which see recordings differently"
        )
    configs = [run.config().data for run in runs]
    first = configs[0]
    for run, other in zip(runs[1:], configs[1:], strict=True):
        for name in family.same_data:
            if getattr(first, name) != getattr(other, name):
                raise ConfigError(
                    f"{runs[0].path} and {run.path} cannot form an ensemble: they differ in {name} "
                    f"({getattr(first, name)} and {getattr(other, name)})"
                )
    return family.reading(first, path, mouse_ids)


def check_neurons(trained: np.ndarray | None, session: Session, what: str = "the model") -> None:
    """Raises a DataError if a session's neurons are not those that `what` was `trained` on, in order, where known."""
    if trained is not None and (words := other_neurons(trained, session.mouse.unit_ids)):
        raise DataError(
            f"mouse {session.mouse.id}: {session.neurons_file}: not the neurons that {what} was trained on: {words}; "
            "give the recordings it was trained on with --data, or train on these anew"
        )


def check_fit(models: Sequence[ViV1T], recordings: Recordings) -> None:
    """Raises a DataError if the recordings are not those of the models: other mice, neurons or frames."""
    for mouse_id, mouse in recordings.mice.items():
        for model in models:
            if model.neurons.get(mouse_id) != mouse.neurons:
                raise DataError(
                    f"mouse {mouse_id} has {mouse.neurons} neurons, but {model.neurons.get(mouse_id, 'none')} in the "
                    f"model, which knows {', '.join(f'{m} ({n})' for m, n in model.neurons.items())}: give the "
                    "recordings it was trained on with --data, or choose with --mouse_ids"
                )
            check_neurons(model.unit_ids.get(mouse_id), recordings.session(mouse_id))
    for model in models:
        if recordings.frame_size != model.frame_size:
            found, expected = (f"{h} x {w}" for h, w in (recordings.frame_size, model.frame_size))
            raise DataError(
                f"the movies have frames of {found} pixels, but the model was trained on {expected}: give the "
                "recordings it was trained on with --data"
            )
