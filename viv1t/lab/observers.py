"""Who sees the patterns of an experiment: the digital twin of a mouse, or the true neurons of a synthetic one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import fields
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from viv1t.data.reading.device import MovieTransform
from viv1t.data.synthetic.neurons import Population
from viv1t.data.transform import Transform
from viv1t.errors import ConfigError, DataError
from viv1t.inputs import STATES
from viv1t.model.twin import ViV1T
from viv1t.prediction.subject import Subject, SubjectModel, predict_long, state_of
from viv1t.stimuli.geometry import FRAME_SIZE
from viv1t.training.validate import ensemble_prediction
from viv1t.types import MAX_FRAMES, Batch, Mouse


class Observer(Protocol):
    """Whoever answers films.

    Attributes:
        mouse: whose neurons answer.
        frame_size: (H, W) of films.
        longest: frames of the longest trial that it answers well.
        causal: whether an answer depends on the frames up to it alone.
        identity: a digest of all that answers depend on beside the films.
        facts: what the record of an experiment says of it.
    """

    mouse: Mouse
    frame_size: tuple[int, int]
    longest: int
    causal: bool

    @property
    def identity(self) -> str: ...

    @property
    def facts(self) -> dict[str, Any]: ...

    def answer(self, films: np.ndarray) -> np.ndarray:
        """(B, T, H, W) uint8 grey levels to (B, N, t) float32, recorded units of the last t frames."""

    def answer_long(self, film: np.ndarray, states: Mapping[str, np.ndarray] | None = None) -> np.ndarray:
        """Responses to a film of any length.

        Args:
            film: (T, H, W) grey levels 0 to 255.
            states: (2, T) `behavior` and `pupil_center` as recorded, in place of those that stay the same.

        Returns:
            (N, T) float32; NaN where nothing is predicted.
        """


@runtime_checkable
class Differentiable(Observer, Protocol):
    """An observer through which gradients flow to films.

    Attributes:
        models: that are asked, an ensemble's members.
        device: where they compute.
        factor: (N,) or (1,), recorded units of one of the models' own.
    """

    models: Sequence[Any]
    device: torch.device
    factor: np.ndarray

    def drive(self, films: Sequence[Tensor] | Tensor, member: int | None = None) -> Tensor:
        """B films (T, H, W) of grey levels to (B, N, t), the models' own units, of the last t frames."""

    def still(self) -> AbstractContextManager[None]:
        """The weights ask for no gradient, so that only films do."""


class Twin:
    """The models of one mouse, their mean prediction.

    Films pass the mouse's transform as a trial does, from frame 0. Behavior and gaze stay the same over a film.
    Responses are divided by one precision of each neuron, not by those of each frame: indices need one scale over time.

    Args:
        models: in evaluation mode, with this mouse.
        subject: what is known of the mouse.
        states: (2,) `behavior` and `pupil_center` as recorded; the training medians in place of others.

    Raises:
        ConfigError: a model does not predict every frame, the units of responses are not known, or a state is not (2,).
        DataError: a median is not known.
    """

    def __init__(
        self, models: Sequence[ViV1T], subject: Subject, states: Mapping[str, np.ndarray] | None = None
    ) -> None:
        self._long = SubjectModel(models, subject)
        self.longest = self._long.trained
        self.causal = all(bool(getattr(model.core, "causal", False)) for model in models)
        self.models: Sequence[Any] = models
        self.subject, self.mouse = subject, subject.mouse
        self.frame_size = models[0].frame_size
        self.device = next(models[0].parameters()).device
        self.states = {
            n: state_of(np.asarray(states[n] if states and n in states else subject.median(n)), n, 1)[:, 0]
            for n in STATES
        }
        self._level = subject.film_scale()
        self.factor, self._offset = recorded_units(subject.transform, subject.mouse.id)

    @cached_property
    def _movie(self) -> MovieTransform:
        return MovieTransform(self.subject.transform, self.device)

    @cached_property
    def checksum(self) -> str:
        """Of the models: their weights and what they are made of."""
        digest = hashlib.blake2b(digest_size=16)
        for model in self.models:
            digest.update(repr((model, getattr(model.config, "core", None), model.autocast)).encode())
            for name, value in sorted(model.state_dict().items()):
                array = value.detach().cpu().contiguous()
                digest.update(f"{name} {array.dtype} {tuple(array.shape)}".encode())
                digest.update(array.reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    @cached_property
    def identity(self) -> str:
        transform, parts = self.subject.transform, []
        for name, affine in sorted(transform.affine.items()):
            parts += [name.encode(), affine.offset.tobytes(), affine.scale.tobytes()]
        if transform.center is not None:
            parts += [transform.center.rows.numpy().tobytes(), transform.center.columns.numpy().tobytes()]
        states = [self.states[n].astype(np.float64).tobytes() for n in STATES]
        return digest_of([self.mouse.id.encode(), self.checksum.encode(), repr(self._level).encode(), *parts, *states])

    @property
    def facts(self) -> dict[str, Any]:
        config = self.models[0].config
        return {
            "model": self.checksum, "models": len(self.models), "transform": getattr(config.data, "transform", None),
            "units": "recorded, one scale of each neuron", "states": {n: v.tolist() for n, v in self.states.items()},
        }  # fmt: skip

    @torch.no_grad()
    def answer(self, films: np.ndarray) -> np.ndarray:
        response = self.drive([torch.from_numpy(np.ascontiguousarray(film)) for film in films])
        return self.recorded(response.float().cpu().numpy())

    def drive(self, films: Sequence[Tensor] | Tensor, member: int | None = None) -> Tensor:
        """Responses in the models' own units, through which gradients flow to the films.

        Args:
            films: B of (T, H, W) grey levels 0 to 255, of any type.
            member: of an ensemble, one model alone; None is the mean of all.

        Returns:
            (B, N, t) of the last t frames.

        Raises:
            ConfigError: the films are longer than the statistics of the recordings.
        """
        count, frames = len(films), len(films[0])
        if frames > self._long.longest:
            raise ConfigError(
                f"mouse {self.mouse.id}: a trial of {frames} frames is longer than the statistics of its recordings, "
                f"{self._long.longest}"
            )
        movies = []
        for film in films:
            raw, movie = film.to(self.device), torch.empty(film.shape, device=self.device)
            self._movie.write(movie, raw if self._level == 1 else raw * self._level, 0)
            movies.append(movie)
        states = {}
        for name, values in self.states.items():
            state = self.subject.transform.state(name, np.broadcast_to(values[:, None], (2, frames)))
            states[name] = torch.from_numpy(state).to(self.device).expand(count, -1, -1)
        batch = Batch(
            self.mouse.id, tuple(range(count)), torch.stack(movies)[:, None], torch.empty(count, 0, 0),
            states["behavior"], states["pupil_center"], torch.full((count,), frames),
        )  # fmt: skip
        return ensemble_prediction(self.models if member is None else [self.models[member]], batch)

    @contextmanager
    def still(self) -> Iterator[None]:
        """The weights ask for no gradient, so that only films do."""
        asked = [p for model in self.models for p in model.parameters() if p.requires_grad]
        for parameter in asked:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in asked:
                parameter.requires_grad_(True)

    def answer_long(self, film: np.ndarray, states: Mapping[str, np.ndarray] | None = None) -> np.ndarray:
        pieces = (
            torch.from_numpy(np.array(film[i : i + 64], np.float32) * self._level) for i in range(0, len(film), 64)
        )
        parts = [*predict_long(self._long, pieces, len(film), {**self.states, **(states or {})})]
        return self.recorded(np.concatenate(parts, axis=1))

    def recorded(self, response: np.ndarray) -> np.ndarray:
        """Responses (..., N, t) in the models' own units, in recorded units."""
        return np.asarray(response * self.factor[:, None] + self._offset[:, None], np.float32)


class TrueNeurons:
    """The neurons of a synthetic mouse themselves: what a perfect model would answer.

    Args:
        mouse: whose they are.
        cells: the neurons.
        states: (2,) `behavior` and `pupil_center`; by default those at which no gain and no shift is added.
    """

    frame_size = FRAME_SIZE
    longest = MAX_FRAMES
    causal = True

    def __init__(self, mouse: Mouse, cells: Population, states: Mapping[str, np.ndarray] | None = None) -> None:
        self.mouse, self.cells = mouse, cells
        neutral = {"behavior": np.array([35.0, np.e - 1]), "pupil_center": cells.gaze_center}
        self.states = neutral | dict(states or {})

    @cached_property
    def identity(self) -> str:
        arrays = [getattr(self.cells, field.name) for field in fields(self.cells)]
        return digest_of(
            [self.mouse.id.encode(), *(a.tobytes() for a in arrays), *(self.states[n].tobytes() for n in STATES)]
        )

    @property
    def facts(self) -> dict[str, Any]:
        return {"model": self.identity, "true_neurons": True, "states": {n: v.tolist() for n, v in self.states.items()}}

    def answer(self, films: np.ndarray) -> np.ndarray:
        return np.stack([self.answer_long(film) for film in films])

    def answer_long(self, film: np.ndarray, states: Mapping[str, np.ndarray] | None = None) -> np.ndarray:
        own = {n: np.broadcast_to(self.states[n][:, None], (2, len(film))) for n in STATES} | dict(states or {})
        behavior, gaze = (own[n] for n in STATES)
        return self.cells.expected(film, behavior, gaze)


def recorded_units(transform: Transform, mouse_id: str) -> tuple[np.ndarray, np.ndarray]:
    """Factor and offset, (N,) each, that bring a model's output to recorded units, the same over time.

    They are the means over frames of what responses were divided by, and of what was taken from them before.

    Raises:
        ConfigError: they are not known.
    """
    if not transform.affine:
        return np.ones(1), np.zeros(1)
    if "response" not in transform.affine:
        raise ConfigError(
            f"mouse {mouse_id}: responses in recorded units need their deviations, which an exported file does not "
            "hold: give the recordings with --data, or --statistics that viv1t-data statistics wrote"
        )
    affine = transform.affine["response"]
    scale, offset = affine.scale.astype(np.float64), affine.offset.astype(np.float64)
    return (1 / np.where(scale, scale, np.inf)).mean(axis=-1), offset.mean(axis=-1)


def digest_of(parts: Iterable[bytes]) -> str:
    """A digest of byte strings, each with its length."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(f"{len(part)} ".encode())
        digest.update(part)
    return digest.hexdigest()


def check_answer(response: np.ndarray, observer: Observer) -> None:
    """Raises a DataError where no neuron's answer is finite."""
    if response.size and not np.isfinite(response).any():
        raise DataError(
            f"mouse {observer.mouse.id}: no predicted response is finite: behavior, gaze or the statistics lie far "
            "outside what the model was trained on"
        )
