"""Predictions in Python: movies and behaviour as recorded in, responses out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from viv1t.errors import ConfigError, DataError, check_choice
from viv1t.inputs import STATES, UNITS, as_array, as_inputs, check_levels
from viv1t.prediction.film import movie_windows, predict_movie
from viv1t.prediction.sources import mouse_of, opened_subjects
from viv1t.prediction.subject import Subject, SubjectModel, predict_long
from viv1t.runs.ensemble import load_models
from viv1t.runs.folder import RunFolder
from viv1t.stimuli.film import Movie

_PIECE = 64  # frames of a movie in memory that are handed on at a time


class Predictor:
    """Runs that predict responses to movies as they are: the transform of training is inside.

    What must be known of the recordings comes from the run, which keeps it; for published runs, from `statistics` or
    from the recordings themselves.

    Args:
        runs: a run folder, ours or published, or several as an ensemble, whose predictions are averaged.
        data: folder of recordings, for what is known of the mice; default what the run keeps.
        statistics: a file of `viv1t-data statistics` or `viv1t-export`, or the authors' published metadata folder.
        device: of the models.
        mouse_ids: these mice only; default all of the run.
        units: of responses: `scaled`, divided by their standard deviation, as the model was trained, or `recorded`.

    Attributes:
        models: the models.
        mouse_ids: the mice.
        frame_size: (H, W) of movies in pixels.
        subjects: what is known of each mouse, by id.

    Raises:
        viv1t.errors.Viv1tError: a run, its statistics or recordings are missing, damaged, or do not fit each other.
    """

    def __init__(
        self,
        runs: str | Path | Sequence[str | Path],
        *,
        data: str | Path | None = None,
        statistics: str | Path | Sequence[str | Path] = (),
        device: str | torch.device = "cpu",
        mouse_ids: str | Sequence[str] | None = None,
        units: str = "scaled",
    ) -> None:
        check_choice("units", units, UNITS)
        folders = [RunFolder(run) for run in _several(runs)]
        if not folders:
            raise ConfigError("runs is empty: give a run folder, or several")
        wanted = None if mouse_ids is None else _several(mouse_ids)
        self.units = units
        self.models, self.mouse_ids = load_models(folders, torch.device(device), wanted)
        self.frame_size = self.models[0].frame_size
        place = None if data is None else str(data)
        with ExitStack() as stack:
            source = opened_subjects(folders, self.models, self.mouse_ids, place, _several(statistics))
            self.subjects: dict[str, Subject] = stack.enter_context(source)
            self._stack = stack.pop_all()
        self._mice = {id: SubjectModel(self.models, subject, units) for id, subject in self.subjects.items()}

    def predict(
        self, video: Any, behavior: Any = None, pupil_center: Any = None, *, mouse_id: str | None = None
    ) -> np.ndarray:
        """Responses to movies as recorded, of any length.

        Longer ones than 300 frames are predicted in windows.

        Args:
            video: (T, H, W), (1, T, H, W) or (B, 1, T, H, W) grey levels in the range of the recordings, of any type
                of number, in NumPy arrays, tensors or lists.
            behavior: (2,), (2, T) or (B, 2, T), pupil dilation and running speed; default the median of training.
            pupil_center: the same of horizontal and vertical gaze.
            mouse_id: whose responses; may be left out where there is one mouse.

        Returns:
            (B, N, t) float32, of the last t frames of each movie: all but those before the core's reach.

        Raises:
            ConfigError: no such mouse, or an array that does not fit; names the argument.
            DataError: a movie is too short, medians are not known, or a prediction is not finite.
        """
        model = self._mice[mouse_of(self.mouse_ids, mouse_id)]
        given = {"behavior": behavior, "pupil_center": pupil_center}
        given = {name: values for name, values in given.items() if values is not None}
        movies, states = as_inputs(video, given, self.frame_size)
        check_levels(movies, model.subject.unit_levels)
        responses = []
        for index, movie in enumerate(movies[:, 0]):
            state = {name: values[index] for name, values in states.items()}
            responses.append(np.concatenate([*predict_long(model, _pieces(movie), len(movie), state)], axis=1))
        return np.stack(responses)[:, :, model.unpredicted :]

    def predict_film(
        self,
        path: str | Path,
        behavior: Any = None,
        pupil_center: Any = None,
        *,
        mouse_id: str | None = None,
        fit: str = "crop",
    ) -> np.ndarray:
        """Responses to a video file, resampled to 30 Hz and resized, as `viv1t-predict --movie` gives them.

        Args:
            path: mp4, mkv, webm, avi or mov.
            behavior: as recorded, (2,) or (2, T); default the median of training.
            pupil_center: likewise.
            mouse_id: as for `predict`.
            fit: how the film gets the model's proportions: crop, pad or stretch.

        Returns:
            (N, T) float32, T frames of 30 Hz; NaN before the core's reach.

        Raises:
            ConfigError: as for `predict`, or the recordings hold no grey levels.
            DataError: as for `predict`, or the file is missing or damaged.
        """
        if not Path(path).is_file():
            raise DataError(f"{path}: no such file")
        chosen = mouse_of(self.mouse_ids, mouse_id)
        film = Movie(path, self.frame_size, fit, self._mice[chosen].device)
        given = {"behavior": behavior, "pupil_center": pupil_center}
        states = {name: as_array(given[name], name) for name in STATES if given[name] is not None}
        subjects = {chosen: self.subjects[chosen]}
        windows = movie_windows(self.models, subjects, film.frames)
        parts = predict_movie(self.models, subjects, film.chunks(), windows, states, self.units)
        return np.concatenate([part for _, part in parts], axis=1)

    def close(self) -> None:
        """Closes recordings, where they were opened."""
        self._stack.close()

    def __enter__(self) -> Predictor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _several(given: str | Path | Sequence[str | Path]) -> list[Any]:
    return [given] if isinstance(given, str | Path) else list(given)


def _pieces(movie: np.ndarray) -> Iterator[Tensor]:
    """(T, H, W) in float32 pieces."""
    for first in range(0, len(movie), _PIECE):
        yield torch.from_numpy(np.array(movie[first : first + _PIECE], np.float32))
