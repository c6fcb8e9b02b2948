"""Responses to a movie of any length, of all mice of a run together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from torch import Tensor

from viv1t.model.twin import ViV1T
from viv1t.prediction.subject import Subject, SubjectModel, fitting, predict_together
from viv1t.prediction.windows import Windows


def movie_windows(
    models: Sequence[ViV1T],
    subjects: Mapping[str, Subject],
    frames: int,
    window: int | None = None,
    passes: int | None = None,
) -> Windows:
    """The windows in which the mice see a movie of T `frames`; see `viv1t.prediction.subject.fitting`."""
    return fitting({id: SubjectModel(models, subject) for id, subject in subjects.items()}, frames, window, passes)


def predict_movie(
    models: Sequence[ViV1T],
    subjects: Mapping[str, Subject],
    stimulus: Iterable[Tensor],
    windows: Windows,
    states: Mapping[str, np.ndarray] | None = None,
    units: str = "scaled",
) -> Iterator[tuple[str, np.ndarray]]:
    """The mean prediction of `models` for a film, mouse by mouse and piece by piece; memory is that of a window.

    Each window is transformed like a trial that begins with it: by statistics of each frame, where the run has such.
    Grey levels are brought to the range of the recordings, 0 to 255 or 0 to 1.

    Args:
        models: in evaluation mode, made for the mice.
        subjects: the mice that are predicted, by id.
        stimulus: (n, H, W) grey levels of 0 to 255, in order.
        windows: as `movie_windows` gives them.
        states: raw `behavior` and `pupil_center`, (2,) or (2, T); the recording's medians where missing.
        units: `scaled`: as the model was trained, responses divided by their standard deviation; `recorded`: those of
            the recording.

    Yields:
        mouse and (N, n) float32, the frames that follow those given before, together T; NaN before the core's reach.

    Raises:
        ConfigError: a model does not predict every frame, or the recordings do not hold grey levels.
        DataError: the movie is of another length, states do not fit it, or a prediction is not finite.
    """
    mice = {id: SubjectModel(models, subject, units) for id, subject in subjects.items()}
    scales = {id: subject.film_scale() for id, subject in subjects.items()}
    yield from predict_together(mice, stimulus, dict.fromkeys(mice, states or {}), windows, scales=scales)
