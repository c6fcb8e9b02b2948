"""What the commands do, as functions: `viv1t.train`, `viv1t.evaluate`, `viv1t.predict` and their neighbours.

Each takes run folders by their paths and opens what it needs. The commands' options keep their names here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from viv1t.errors import check_choice, check_run_folders
from viv1t.inputs import UNITS
from viv1t.recipes.configuration import configuration
from viv1t.recipes.train import run
from viv1t.types import TIERS

if TYPE_CHECKING:
    import numpy as np

    from viv1t.data.session import Session
    from viv1t.families.known import AnyConfig
    from viv1t.prediction.files import TrialPrediction

Runs = str | Path | Sequence[str | Path]


def _several(runs: Runs) -> list[str]:
    return [str(runs)] if isinstance(runs, str | Path) else [str(run) for run in runs]


def train(options: AnyConfig | Mapping[str, Any] | None = None, **more: Any) -> Path:
    """Trains a model of either family, or continues its run, as `viv1t-train` does.

    Args:
        options: a configuration, or options by their published names, as in a `--config` file.
        more: further options by name, which win; `family` ("2023" or "2025") where no option tells it.

    Returns:
        The run folder.

    Raises:
        viv1t.errors.Viv1tError: an option, a recording or the run folder cannot be used.
    """
    if options is None or isinstance(options, Mapping):
        config = configuration({**(options or {}), **more})
    else:
        config = type(options).from_options(options.to_options() | more) if more else options
    run(config)
    return Path(config.train.output_dir)


def evaluate(
    runs: Runs,
    *,
    tiers: str | Sequence[str] = "validation",
    data: str | Path | None = None,
    mouse_ids: Sequence[str] | None = None,
    device: str | None = None,
) -> dict[str, dict[str, object]]:
    """Scores of a run, or of several as an ensemble, as `viv1t-evaluate` writes them; nothing is written.

    Args:
        runs: run folders, ours or published.
        tiers: one name or several, as `validation`.
        data: folder of recordings; default the one the first run was trained on.
        mouse_ids: these mice only.
        device: cpu, cuda or mps; default the best there is.

    Returns:
        By tier, then by score, what `evaluation.yaml` holds.

    Raises:
        viv1t.errors.Viv1tError: a run or its recordings are missing, damaged, or do not fit each other.
    """
    names = [tiers] if isinstance(tiers, str) else list(tiers)
    for tier in names:
        check_choice("tier", tier, TIERS)
    folders = _several(runs)
    check_run_folders(folders)
    from viv1t.prediction.evaluate import as_mapping
    from viv1t.prediction.evaluate import evaluate as scored
    from viv1t.runs.ensemble import open_ensemble
    from viv1t.system.device import best_device

    place = None if data is None else str(data)
    models, recordings = open_ensemble(folders, best_device(device), place, mouse_ids)
    with closing(recordings):
        return as_mapping(scored(models, recordings, names))


def predict(
    runs: Runs,
    *,
    tier: str = "validation",
    data: str | Path | None = None,
    mouse_ids: Sequence[str] | None = None,
    units: str = "scaled",
    device: str | None = None,
) -> Iterator[TrialPrediction]:
    """Predictions of a tier's trials, one at a time, as `viv1t-predict` writes them; nothing is written.

    Args:
        runs: run folders, ours or published; several are an ensemble, whose predictions are averaged.
        tier: name, as `live_test_main`.
        data: folder of recordings; default the one the first run was trained on.
        mouse_ids: these mice only.
        units: `scaled`, as the model was trained, or `recorded`.
        device: cpu, cuda or mps; default the best there is.

    Yields:
        `TrialPrediction`: its `mouse`, `trial_id`, and `response`, (N, t) of the last t of the trial's `frames`.

    Raises:
        viv1t.errors.Viv1tError: a run or its recordings are missing, damaged, or do not fit each other.
    """
    check_choice("tier", tier, TIERS)
    check_choice("units", units, UNITS)
    folders = _several(runs)
    check_run_folders(folders)
    return _predictions(folders, tier, None if data is None else str(data), mouse_ids, units, device)


def _predictions(
    folders: list[str], tier: str, data: str | None, mouse_ids: Sequence[str] | None, units: str, device: str | None
) -> Iterator[TrialPrediction]:
    from viv1t.prediction.trials import predict as predicted
    from viv1t.runs.ensemble import open_ensemble
    from viv1t.system.device import best_device

    models, recordings = open_ensemble(folders, best_device(device), data, mouse_ids)
    with closing(recordings):
        for mouse_id in recordings.mice:
            yield from predicted(models, recordings, mouse_id, tier, units)


def predict_film(runs: Runs, film: str | Path, *, mouse_id: str | None = None, **known: Any) -> np.ndarray:
    """Responses of a mouse to a video file; `viv1t.Predictor` does the same for many films.

    Args:
        runs: run folders, ours or published; several are an ensemble.
        film: mp4, mkv, webm, avi or mov.
        mouse_id: which mouse; may be left out where there is one.
        known: `statistics`, `data`, `units` and `device`, as for `viv1t.Predictor`.

    Returns:
        (N, T) float32, T frames of 30 Hz; NaN before the core's reach.
    """
    from viv1t.prediction.predictor import Predictor

    mice = None if mouse_id is None else [mouse_id]
    return Predictor(_several(runs), mouse_ids=mice, **known).predict_film(film, mouse_id=mouse_id)


def open_recordings(folder: str | Path, *, mouse_ids: Sequence[str] | None = None) -> dict[str, Session]:
    """The recordings in a data folder by mouse, to look at: `session.read("video", trial)`, `.trials(tier)`, `.mouse`.

    Args:
        folder: of recordings, as for `--data`.
        mouse_ids: these mice only, by letter or by the name of their session; default all.

    Raises:
        viv1t.errors.DataError: the folder or a recording is missing or damaged.
        viv1t.errors.ConfigError: a mouse is not there.
    """
    from viv1t.data.mice import choose_sessions

    return choose_sessions(Path(folder).expanduser(), mouse_ids)
