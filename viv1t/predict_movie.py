"""Responses to a movie of any length, of all mice of a run together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from torch import Tensor

from viv1t.model.twin import ViV1T
from viv1t.subject import Subject, SubjectModel, fitting, predict_together


def predict_movie(
    models: Sequence[ViV1T],
    subjects: Mapping[str, Subject],
    stimulus: Iterable[Tensor],
    frames: int,
    states: Mapping[str, np.ndarray] | None = None,
    units: str = "scaled",
    window: int | None = None,
    passes: int | None = None,
) -> Iterator[tuple[str, np.ndarray]]:
    """The mean prediction of `models` for a film, mouse by mouse and piece by piece; memory is that of a window.

    Each window is transformed like a trial that begins with it: by statistics of each frame, where the run has such.
    Grey levels are brought to the range of the recordings, 0 to 255 or 0 to 1.

    Args:
        models: in evaluation mode, made for the mice.
        subjects: the mice that are predicted, by id.
        stimulus: (n, H, W) grey levels of 0 to 255, in order.
        frames: T, of all pieces together.
        states: raw `behavior` and `pupil_center`, (2,) or (2, T); the recording's medians where missing.
        units: `scaled`: as the model was trained, responses divided by their standard deviation; `recorded`: those of
            the recording.
        window, passes: as for `fitting`.

    Yields:
        mouse and (N, n) float32, the frames that follow those given before, together T; NaN before the core's reach.

    Raises:
        ConfigError: a model does not predict every frame, or the recordings do not hold grey levels.
        DataError: the movie is too short, states do not fit it, or a prediction is not finite.
    """
    mice = {id: SubjectModel(models, subject, units) for id, subject in subjects.items()}
    scales = {id: subject.film_scale() for id, subject in subjects.items()}
    given = dict.fromkeys(mice, states or {})
    yield from predict_together(mice, stimulus, given, fitting(mice, frames, window, passes), scales=scales)
