"""What is predicted for one mouse: recorded values in, responses out, for a window and for any length."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import torch
from torch import Tensor

from viv1t.data.reading.device import MovieTransform
from viv1t.data.recordings import Recordings
from viv1t.data.transform import Transform
from viv1t.errors import ConfigError, DataError
from viv1t.inputs import OVERSHOOT, STATES
from viv1t.model.twin import ViV1T
from viv1t.prediction.files import check_finite
from viv1t.prediction.windows import Joint, Windows
from viv1t.training.validate import check_every_frame, ensemble_prediction
from viv1t.types import MAX_FRAMES, Batch, Mouse


@dataclass(frozen=True)
class Subject:
    """What a prediction needs of a mouse beside the model: who it is, and how it was recorded.

    Attributes:
        mouse: its identity and neurons.
        transform: from values as recorded to those that the model takes.
        median: gives (2,) float32, the median `behavior` or `pupil_center` as recorded.
        levels: the smallest and the largest value of the recorded movies; None where they are not known.
    """

    mouse: Mouse
    transform: Transform
    median: Callable[[str], np.ndarray]
    levels: tuple[float, float] | None = None

    @property
    def unit_levels(self) -> bool:
        """Whether movies were recorded in grey levels of 0 to 1, instead of 0 to 255."""
        return self.levels is not None and self.levels[1] <= 1 + OVERSHOOT

    @classmethod
    def of(cls, recordings: Recordings, mouse_id: str) -> Subject:
        """A mouse whose recordings are there."""
        return cls(
            recordings.mice[mouse_id], recordings.transform(mouse_id), partial(recordings.state_median, mouse_id),
            recordings.movie_levels(mouse_id),
        )  # fmt: skip

    def film_scale(self) -> float:
        """What the grey levels of a film, 0 to 255, are multiplied by to be like those of the recordings.

        Raises:
            ConfigError: the recordings hold something else than grey levels.
        """
        if self.levels is None:
            return 1.0
        low, high = self.levels
        if low < -OVERSHOOT * high or high > 255 * (1 + OVERSHOOT):
            raise ConfigError(
                f"mouse {self.mouse.id}: a film has grey levels of 0 to 255, but the recorded movies have values from "
                f"{low:g} to {high:g}: predict with viv1t.Predictor, which takes movies as they were recorded"
            )
        return 1 / 255 if self.unit_levels else 1.0


class SubjectModel:
    """The models of one mouse: values as recorded in, responses out.

    Args:
        models: in evaluation mode, with this mouse.
        subject: the mouse.
        units: `scaled`, as the model was trained, or `recorded`.

    Attributes:
        longest: frames of the longest window that the models and the mouse's statistics know.
        unpredicted: first frames of a window for which the core predicts nothing.
        trained: frames of a window that the models, if they know where in it a frame lies, were trained on.

    Raises:
        ConfigError: a model does not predict every frame, or the deviations for recorded units are not known.
    """

    def __init__(self, models: Sequence[ViV1T], subject: Subject, units: str = "scaled") -> None:
        for model in models:
            check_every_frame(model.config)
        if units == "recorded" and subject.transform.affine and "response" not in subject.transform.affine:
            raise ConfigError(
                f"mouse {subject.mouse.id}: --units recorded needs the responses' deviations, which an exported file "
                "does not hold: give the recordings with --data, or --statistics that viv1t-data statistics wrote"
            )
        self.models, self.subject, self.units = models, subject, units
        self.mouse = subject.mouse
        self.longest = known_frames(subject.transform)
        self.unpredicted = max(self.longest - model.core.output_frames(self.longest) for model in models)
        crops = [model.config.data.crop_frame for model in models if knows_places(model)]
        self.trained = min([self.longest, *(crop for crop in crops if crop > 0)])
        self.device = models[0].device

    @cached_property
    def _movie(self) -> MovieTransform:
        return MovieTransform(self.subject.transform, self.device)

    @torch.no_grad()
    def window(
        self, video: Tensor, states: Mapping[str, np.ndarray], start: int = 0, trial: int | None = None
    ) -> np.ndarray:
        """Predicted responses (N, t) float32 of a window's last t frames; it is transformed like a trial of its own.

        Args:
            video: (L, H, W) grey levels as recorded, L at most `longest`.
            states: raw `behavior` and `pupil_center`, (2, L).
            start: first frame of the window, for errors.
            trial: whose window it is, for errors.

        Raises:
            DataError: a prediction is not finite.
        """
        transform, frames = self.subject.transform, len(video)
        movie = torch.empty(video.shape, device=self.device)
        self._movie.write(movie, video.to(self.device), 0)
        state = {n: torch.from_numpy(transform.state(n, values)).to(self.device)[None] for n, values in states.items()}
        batch = Batch(
            self.mouse.id, (0,), movie[None, None], torch.empty(1, 0, 0), state["behavior"], state["pupil_center"],
            torch.tensor([frames]),
        )  # fmt: skip
        response = ensemble_prediction(self.models, batch)[0].float().cpu().numpy()
        if self.units == "recorded":
            response = transform.recorded_units(response, frames)
        check_finite(response, self.mouse.id, trial, start + frames - response.shape[1])
        return response

    def states(self, given: Mapping[str, np.ndarray], frames: int) -> dict[str, np.ndarray]:
        """Raw states (2, frames): those given, (2,) or (2, frames), and the recording's medians in place of others.

        Raises:
            DataError: a state does not fit, or its median is not known.
        """
        return {n: state_of(given[n] if n in given else self.subject.median(n), n, frames) for n in STATES}


def predict_long(
    model: SubjectModel,
    video: Iterable[Tensor],
    frames: int,
    states: Mapping[str, np.ndarray],
    *,
    trial: int | None = None,
    window: int | None = None,
    passes: int | None = None,
) -> Iterator[np.ndarray]:
    """The responses of one mouse to a movie or a trial of any length; memory is that of a window.

    Args:
        model: of the mouse.
        video: (n, H, W) grey levels as recorded, in order, in pieces of any size.
        frames: T, of all pieces together.
        states: raw `behavior` and `pupil_center`, (2,) or (2, T); the recording's medians where missing.
        trial: whose movie it is, for errors.
        window, passes: as for `fitting`.

    Yields:
        (N, n) float32, the frames that follow those given before, together T; NaN before the core's reach.

    Raises:
        ConfigError: `window` is longer than the model knows.
        DataError: the movie is too short, or not of T frames; states do not fit it; a prediction is not finite.
    """
    mice, given = {model.mouse.id: model}, {model.mouse.id: states}
    for _, part in predict_together(mice, video, given, fitting(mice, frames, window, passes), trial=trial):
        yield part


def fitting(
    mice: Mapping[str, SubjectModel], frames: int, window: int | None = None, passes: int | None = None
) -> Windows:
    """The windows in which the models predict a movie well.

    What is not longer than the longest window is one window, predicted like a trial. Models with positions in time know
    those that they were trained on, the first `--crop_frame`; later ones are noise to them, which longer windows would
    repeat as their rhythm. So windows reach no further.

    Args:
        mice: the models of the mice that see it.
        frames: T.
        window: frames of a window of a movie that needs several.
        passes: how many times as many windows as the fewest; default 1.

    Raises:
        ConfigError: `window` is longer than the models know.
        DataError: the movie or the windows are too short.
    """
    longest = min(model.longest for model in mice.values())
    unpredicted = max(model.unpredicted for model in mice.values())
    if window is not None and window > longest:
        raise ConfigError(f"windows of {window} frames are longer than the model and its statistics know: {longest}")
    if frames <= longest:
        return Windows.of(frames, longest, unpredicted)
    trained = min(model.trained for model in mice.values())
    long = window or longest
    if window is None and trained < longest and Windows.fit(trained, unpredicted):
        long = trained
    return Windows.of(frames, long, unpredicted, passes or 1)


def predict_together(
    mice: Mapping[str, SubjectModel],
    video: Iterable[Tensor],
    states: Mapping[str, Mapping[str, np.ndarray]],
    windows: Windows,
    *,
    scales: Mapping[str, float] | None = None,
    trial: int | None = None,
) -> Iterator[tuple[str, np.ndarray]]:
    """As `predict_long` for several mice that see one movie; yields the mouse beside each part.

    Args:
        states: by mouse.
        windows: as `fitting` gives them.
        scales: by mouse, what grey levels are multiplied by first.
    """
    given = {id: model.states(states[id], windows.total) for id, model in mice.items()}
    joints = {id: Joint(windows) for id in mice}
    device = next(iter(mice.values())).device
    for start, piece in _windows(video, windows, device):
        seen = slice(start, start + windows.length)
        for id, model in mice.items():
            scale = 1.0 if scales is None else scales[id]
            movie = piece if scale == 1 else piece * scale
            state = {name: values[:, seen] for name, values in given[id].items()}
            yield id, joints[id].add(model.window(movie, state, start, trial))


def knows_places(model: ViV1T) -> bool:
    """Whether a model has positions in time: its predictions depend on where in a window a frame lies."""
    return model.core.most_frames is not None


def known_frames(transform: Transform) -> int:
    """The longest window that a mouse's statistics allow."""
    affine = [transform.affine[v].frames for v in ("video", *STATES)] if transform.affine else []
    return min([MAX_FRAMES, *(frames for frames in affine if frames is not None)])


def state_of(values: np.ndarray, name: str, frames: int) -> np.ndarray:
    """(2, frames) of a state that is given as (2,) for all frames, or for each.

    Raises:
        DataError: another shape, or values that are not finite.
    """
    if values.shape not in ((2,), (2, frames)) or values.dtype.kind not in "fiu":
        raise DataError(f"--{name}: expected (2,) or (2, {frames}) numbers, as the movie has, found {values.shape}")
    if not np.isfinite(values).all():
        raise DataError(f"--{name}: holds values that are not finite")
    return np.broadcast_to(values.reshape(2, -1), (2, frames))


def _windows(stimulus: Iterable[Tensor], windows: Windows, device: torch.device) -> Iterator[tuple[int, Tensor]]:
    """First frame and (length, H, W) of every window."""
    pieces = iter(stimulus)
    held, first = torch.empty(0), 0  # frames that are still needed, and where they begin
    for start in windows.starts:
        held, first = held[start - first :], start
        waiting = [held] if len(held) else []
        count = len(held)
        while count < windows.length:
            piece = next(pieces, None)
            if piece is None:
                raise DataError(f"the movie ended after {start + count} frames of {windows.total}")
            waiting.append(piece.to(device))
            count += len(piece)
        held = torch.cat(waiting)
        yield start, held[: windows.length]
    if any(len(piece) for piece in pieces) or len(held) > windows.length:
        raise DataError(f"the movie has more than the {windows.total} frames that were expected")
