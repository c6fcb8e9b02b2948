"""Where a prediction gets what it must know of mice: their recordings, or what was kept of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import numpy as np

from viv1t.config.data import DataConfig
from viv1t.data.formats.sensorium.recorded import Recorded, RecordedMouse, other_neurons
from viv1t.data.metadata import has_statistics, read_metadata
from viv1t.data.statistics import movie_levels
from viv1t.data.survey import LETTERS
from viv1t.data.transform import Affine, Transform, family_of
from viv1t.errors import ConfigError, DataError
from viv1t.inputs import STATES
from viv1t.model.twin import ViV1T
from viv1t.onnx_model import OnnxModel
from viv1t.prediction.subject import Subject
from viv1t.runs.ensemble import data_config, open_recordings
from viv1t.runs.folder import RunFolder
from viv1t.types import SENSORIUM_SESSIONS, Mouse

ADVICE = "viv1t-data statistics DIR FILE writes one where the recordings are"


@contextmanager
def opened_subjects(
    folders: Sequence[RunFolder],
    models: Sequence[ViV1T],
    mice: Sequence[str],
    data: str | None = None,
    statistics: Sequence[str | Path] = (),
) -> Iterator[dict[str, Subject]]:
    """The mice of runs, from files of statistics, recordings, or what the first run keeps, in this order.

    Args:
        folders: the runs.
        models: of the runs.
        mice: ids of the mice.
        data: folder of recordings.
        statistics: files that `viv1t-data statistics` or `viv1t-export` wrote, or the authors' published folder.

    Raises:
        CheckpointError: a file is damaged.
        ConfigError: the runs were trained on differently transformed data, or statistics do not serve their transform.
        DataError: a mouse is in none of the files, is another than the model's, or there is nothing to read.
    """
    config, family = data_config(folders, data, mice), folders[0].family()
    if not family.from_statistics and (statistics or (data is None and folders[0].recorded() is not None)):
        raise ConfigError(
            f"{folders[0].path} is of the family of {family.name}, whose transforms are made of recordings alone here: "
            "leave out --statistics and give --data"
        )
    if statistics:
        files = [Path(file) for file in statistics]
        yield {mouse: _from_files(files, models, mouse, config) for mouse in mice}
        return
    kept = None if data is not None else folders[0].recorded()
    if kept is not None:
        yield {mouse: _from_recorded(kept, models, mouse, config) for mouse in mice}
        return
    if data is None and not Path(config.path).is_dir():
        raise DataError(
            f"{folders[0].path} does not keep the statistics of its recordings, as published runs, and {config.path} "
            f"is not there: give the recordings with --data DIR, or what is known of them with --statistics FILE: "
            f"{ADVICE}; an exported .onnx file and the authors' published metadata folder will do as well"
        )
    with closing(open_recordings(folders, models, data, mice)) as recordings:
        yield {mouse: Subject.of(recordings, mouse) for mouse in mice}


def _from_files(files: Sequence[Path], models: Sequence[ViV1T], mouse: str, config: DataConfig) -> Subject:
    """A mouse in the first file that knows it."""
    known: list[str] = []
    for file in files:
        if not file.exists():
            raise DataError(f"--statistics {file}: no such file or folder; {ADVICE}")
        if file.is_dir():
            found = read_metadata(file, mouse, models[0].neurons[mouse], models[0].frame_size)
            if found is not None:
                return _from_published(found, file, models, mouse, config)
        elif file.suffix == ".onnx":
            exported = OnnxModel(file)
            if exported.mouse_id == mouse:
                return _from_export(exported, models, config)
            known.append(exported.mouse_id)
        else:
            recorded = Recorded(file)
            if mouse in recorded.mice:
                return _from_recorded(recorded, models, mouse, config)
            known += recorded.mice
    words = f"they know {', '.join(known)}" if known else f"no published folder of statistics of it; {ADVICE}"
    raise DataError(f"--statistics {' '.join(map(str, files))}: nothing of mouse {mouse}: {words}")


def _from_recorded(recorded: Recorded, models: Sequence[ViV1T], mouse: str, config: DataConfig) -> Subject:
    _check(models, recorded.mice[mouse], recorded.frame_size, recorded.path)
    transform, median = recorded.transform(mouse, config), partial(recorded.median, mouse)
    return Subject(recorded.mice[mouse], transform, median, recorded.levels(mouse))


def _from_published(
    found: RecordedMouse, folder: Path, models: Sequence[ViV1T], mouse: str, config: DataConfig
) -> Subject:
    statistics, frame_size = found.statistics, models[0].frame_size
    assert statistics is not None
    if not has_statistics(statistics, family_of(config.transform)):
        which = "of each frame" if family_of(config.transform) == "trial" else "over all frames"
        raise ConfigError(
            f"--statistics {folder}: has no statistics {which}, which the run's --transform_mode needs; {ADVICE}"
        )
    _check(models, found.mouse, frame_size, folder)

    def median(name: str) -> np.ndarray:
        if name not in found.medians:
            raise DataError(f"{folder}: does not hold the median {name} of mouse {mouse}: give --{name}")
        return found.medians[name]

    transform = Transform(
        mouse, config.transform, None if config.transform == "none" else statistics, config.center_crop, frame_size,
        config.response_scale,
    )  # fmt: skip
    return Subject(found.mouse, transform, median, movie_levels(statistics))


def _from_export(exported: OnnxModel, models: Sequence[ViV1T], config: DataConfig) -> Subject:
    known = exported.recorded_transform
    if known is None:
        raise DataError(
            f"--statistics {exported.path}: does not hold the statistics of the recordings: export it again where they "
            "are, with --data"
        )
    if exported.transform_mode != config.transform:
        raise ConfigError(
            f"--statistics {exported.path}: was made for the transform {exported.transform_mode}, the run for "
            f"{config.transform}: give the file of this run"
        )
    name = exported.session or SENSORIUM_SESSIONS.get(exported.mouse_id, exported.mouse_id)
    ids = np.empty(0, np.int64) if exported.neuron_ids is None else exported.neuron_ids
    mouse = Mouse(exported.mouse_id, name, np.full((models[0].neurons[exported.mouse_id], 3), np.nan, np.float32), ids)
    _check(models, mouse, exported.frame_size, exported.path)
    affine = {}
    for variable in ("video", *STATES) if known.arrays else ():
        parts = [known.arrays[f"{variable}_{part}"] for part in ("offset", "scale")]
        affine[variable] = Affine(*(np.moveaxis(a, 0, -1) if variable == "video" else a for a in parts))
    transform = Transform.of(mouse.id, affine, config.center_crop, exported.frame_size)

    def median(name: str) -> np.ndarray:
        if (values := exported.medians.get(name)) is None:
            raise DataError(f"{exported.path}: does not hold the median {name} of mouse {mouse.id}: give --{name}")
        return values

    return Subject(mouse, transform, median, exported.levels)


def _check(models: Sequence[ViV1T], mouse: Mouse, frame_size: tuple[int, int], path: Path) -> None:
    """Raises a DataError if what a file knows is not of the mouse that the models were trained on."""
    for model in models:
        if model.neurons[mouse.id] != mouse.neurons:
            raise DataError(
                f"{path}: mouse {mouse.id} has {mouse.neurons} neurons there, but {model.neurons[mouse.id]} in the "
                "model: give the statistics of the recordings that it was trained on"
            )
        trained = model.unit_ids.get(mouse.id)
        if trained is not None and len(mouse.unit_ids) and (words := other_neurons(trained, mouse.unit_ids)):
            raise DataError(f"{path}: mouse {mouse.id} has other neurons there than the model was trained on: {words}")
        if model.frame_size != frame_size:
            found, expected = (f"{h} x {w}" for h, w in (frame_size, model.frame_size))
            raise DataError(f"{path}: is about movies of {found} pixels, but the model was trained on {expected}")


def mouse_of(mouse_ids: Sequence[str], mouse_id: str | None) -> str:
    """The mouse that is meant: by its letter or session's name; the only one where none is said.

    Raises:
        ConfigError: it is not among the mice, or there are several.
    """
    if mouse_id is None and len(mouse_ids) == 1:
        return mouse_ids[0]
    chosen = LETTERS.get(mouse_id or "", mouse_id or "")
    if chosen not in mouse_ids:
        what = "say which mouse with mouse_id" if mouse_id is None else f"mouse_id {mouse_id!r} is not in this model"
        raise ConfigError(f"{what}; it has {', '.join(mouse_ids)}")
    return chosen
