"""Makes films more exciting step by step, by the gradient of a model's responses."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from viv1t.errors import ConfigError
from viv1t.lab.exciting import Film, blur, in_range, smooth_spectrum, total_variation

# What films (T, H, W), one each, are worth: (b,) numbers of the b that are asked for by their places.
Objective = Callable[[Sequence[Tensor], Sequence[int]], Tensor]


@dataclass(frozen=True)
class Search:
    """How films are found.

    Attributes:
        steps: at most.
        lr: of AdamW, without decay.
        patience: steps without a gain of `gain` after which it ends.
        gain: relative.
        smooth_time: weight of the mean squared difference of frames following each other, in grey levels.
        tv: weight of the total variation a pixel.
        precondition: `none`; `blur`, which smooths the gradient by a Gaussian of `precondition_by` pixels; `fft`, which
            multiplies its Fourier amplitudes by a falling power, `precondition_by`, of the frequency.
        precondition_by: as said.
        blur: sigmas in pixels from which, and to which, a film's pixels are blurred after each step; None does not.
        jitter: pixels and frames by which films are shifted at random before each step, and back after it.
    """

    steps: int = 1000
    lr: float = 0.05
    patience: int = 100
    gain: float = 1e-3
    smooth_time: float = 0.0
    tv: float = 0.0
    precondition: str = "none"
    precondition_by: float = 0.0
    blur: tuple[float, float] | None = None
    jitter: int = 0

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("patience", 1), ("jitter", 0), ("tv", 0), ("smooth_time", 0)):
            if not getattr(self, name) >= least:
                raise ConfigError(f"--{name} must be at least {least}, not {getattr(self, name)}")
        if not 0 < self.lr < math.inf:
            raise ConfigError(f"--lr must be above 0, not {self.lr}")
        if self.precondition not in ("none", "blur", "fft"):
            raise ConfigError(f"--precondition must be none, blur:S or fft:A, not {self.precondition!r}")
        if self.precondition != "none" and not 0 < self.precondition_by < 20:
            raise ConfigError(f"--precondition {self.precondition} takes a number above 0, not {self.precondition_by}")
        if self.blur is not None and (len(self.blur) != 2 or not all(0 < s < 20 for s in self.blur)):
            raise ConfigError(f"--blur takes two sigmas in pixels, as 1.5:0.01, not {self.blur}")


@dataclass
class Found:
    """What a search found.

    Attributes:
        film: (T, H, W) uint8.
        value: the objective of the film before it was rounded.
        history: the objective at each step.
        facts: contrast and range of the film: rms, mean, min, max, share of saturated pixels.
    """

    film: np.ndarray
    value: float
    history: list[float] = field(default_factory=list)
    facts: dict[str, float] = field(default_factory=dict)


def describe(film: np.ndarray, mask: np.ndarray | None = None) -> dict[str, float]:
    """Contrast and range of grey levels, under a mask (H, W) if there is one."""
    seen = (film if mask is None else film[:, mask]).astype(np.float64)
    return {
        "rms": float(seen.std()), "mean": float(seen.mean()), "min": float(seen.min()), "max": float(seen.max()),
        "saturated": float(((seen <= 0) | (seen >= 255)).mean()),
    }  # fmt: skip


class Climber:
    """One film on its way up, which goes on from its state where it was interrupted.

    Args:
        film: parametrised; its parameters are changed.
        levels: from the film to grey levels, such as `with_rms` or `in_range`, masks included.
        search: steps and rates.
        penalty: of grey levels (T, H, W); is added to what is minimised.
        seed: of what is drawn at random.

    Raises:
        ConfigError: the search blurs pixels, and the film is not given by pixels.
    """

    def __init__(
        self,
        film: Film,
        levels: Callable[[Tensor], Tensor],
        search: Search,
        penalty: Callable[[Tensor], Tensor] | None = None,
        seed: int = 0,
    ) -> None:
        if search.blur is not None and film.parameters[0].is_complex():
            raise ConfigError("--blur smooths pixels: give --method pixel, too")
        self.film, self.levels, self.search, self.penalty, self.seed = film, levels, search, penalty, seed
        self.optimizer = torch.optim.AdamW(film.parameters, lr=search.lr, weight_decay=0)
        self.history: list[float] = []
        self.value = self._reached = -math.inf
        self._best: Tensor | None = None
        self._since = 0

    @property
    def steps(self) -> int:
        """Steps that were made."""
        return len(self.history)

    @property
    def stopped(self) -> str:
        """Why it is done: `converged` or `steps`; empty where it is not."""
        if self._since >= self.search.patience:
            return "converged"
        return "steps" if self.steps >= self.search.steps else ""

    def shown(self) -> tuple[Tensor, Tensor]:
        """Grey levels now, and the same shifted at random where the search says so."""
        field = self.film()
        if self.search.precondition != "none" and field.requires_grad:
            field.register_hook(self._preconditioned)
        grey = self.levels(field)
        if not self.search.jitter:
            return grey, grey
        rng = np.random.default_rng([self.seed, self.steps])
        most = (min(self.search.jitter, len(grey) - 1), self.search.jitter, self.search.jitter)
        shifts = [int(rng.integers(-m, m + 1)) for m in most]
        return grey, torch.roll(grey, shifts, (0, 1, 2))

    def _preconditioned(self, gradient: Tensor) -> Tensor:
        by = self.search.precondition_by
        if self.search.precondition == "blur":
            return blur(gradient[:, None], by)[:, 0]
        return smooth_spectrum(gradient, by)

    def loss(self, grey: Tensor, value: Tensor, score: float) -> Tensor:
        """Takes note of what the film was worth, and says what is to be minimised.

        Raises:
            ConfigError: its worth is not finite.
        """
        if not math.isfinite(score):
            raise ConfigError(f"the objective is {score} at step {self.steps}: the model's responses are not finite")
        gained = not self.history or score > self._reached + self.search.gain * abs(self._reached)
        self._since = 0 if gained else self._since + 1
        if gained:
            self._reached = score
        self.history.append(score)
        if score > self.value:
            self.value, self._best = score, grey.detach().clone()
        loss = -value
        if self.search.smooth_time and len(grey) > 1:
            loss = loss + self.search.smooth_time * grey.diff(dim=0).square().mean()
        if self.search.tv:
            loss = loss + self.search.tv * total_variation(grey) / grey.numel()
        if self.penalty is not None:
            loss = loss + self.penalty(grey)
        return loss

    def move(self) -> None:
        """One step along the gradient."""
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.search.blur is not None:
            first, last = self.search.blur
            sigma = first + (last - first) * min(1.0, self.steps / max(self.search.steps - 1, 1))
            with torch.no_grad():
                for pixels in self.film.parameters:
                    pixels.copy_(blur(pixels[:, None], sigma)[:, 0])

    def found(self) -> Found:
        """The best film so far."""
        assert self._best is not None
        grey = self._best.round().clamp(0, 255).to(torch.uint8).cpu().numpy()
        return Found(film=grey, value=self.value, history=list(self.history), facts=describe(grey))

    def state(self) -> dict[str, np.ndarray]:
        """All that it needs to go on, as arrays."""
        arrays: dict[str, np.ndarray] = {"history": np.array(self.history), "since": np.array(self._since)}
        arrays["reached"], arrays["value"] = np.array(self._reached), np.array(self.value)
        if self._best is not None:
            arrays["best"] = self._best.cpu().numpy()
        for i, parameter in enumerate(self.film.parameters):
            arrays[f"parameter_{i}"] = parameter.detach().cpu().numpy()
            for name, value in self.optimizer.state.get(parameter, {}).items():
                arrays[f"{name}_{i}"] = value.cpu().numpy()
        return arrays

    def resume(self, arrays: Any) -> None:
        """Goes on from what `state` gave.

        Raises:
            KeyError, RuntimeError: the arrays are not those of such a film.
        """
        for i, parameter in enumerate(self.film.parameters):
            with torch.no_grad():
                parameter.copy_(torch.from_numpy(arrays[f"parameter_{i}"]))
            names = [name for name in ("step", "exp_avg", "exp_avg_sq") if f"{name}_{i}" in arrays]
            kept = {n: torch.from_numpy(np.array(arrays[f"{n}_{i}"])) for n in names}
            if kept:
                device = {n: torch.device("cpu") if n == "step" else parameter.device for n in kept}
                self.optimizer.state[parameter] = {n: value.to(device[n]) for n, value in kept.items()}
        self.history, self._since = arrays["history"].tolist(), int(arrays["since"])
        self._reached, self.value = float(arrays["reached"]), float(arrays["value"])
        if "best" in arrays:
            self._best = torch.from_numpy(arrays["best"]).to(self.film.parameters[0].device)


def climb(objective: Objective, climbers: Sequence[Climber]) -> bool:
    """One step of all films that are not done, together; whether one is left that is not.

    Raises:
        ConfigError: an objective is not finite, or does not depend on the film.
    """
    places = [i for i, climber in enumerate(climbers) if not climber.stopped]
    if not places:
        return False
    shown = [climbers[i].shown() for i in places]
    values = objective([moved for _, moved in shown], places)
    scores = values.detach().cpu().tolist()
    losses = [
        climbers[i].loss(grey, value, score)
        for i, (grey, _), value, score in zip(places, shown, values, scores, strict=True)
    ]
    going = [(i, loss) for i, loss in zip(places, losses, strict=True) if climbers[i].stopped != "converged"]
    if going:
        total = torch.stack([loss for _, loss in going]).sum()
        if not total.requires_grad:
            raise ConfigError("the objective does not depend on the film: the model gives no gradient to its input")
        total.backward()
        for i, _ in going:
            climbers[i].move()
    return any(not climber.stopped for climber in climbers)


def most_exciting(
    objective: Callable[[Tensor], Tensor],
    film: Film,
    levels: Callable[[Tensor], Tensor] = in_range,
    search: Search = Search(),
    report: Callable[[int, float], None] = lambda step, value: None,
) -> Found:
    """The film whose objective is largest.

    Args:
        objective: of grey levels (T, H, W); one number. To find what inhibits, give its negative.
        film: parametrised; its parameters are changed.
        levels: from the film to grey levels, such as `with_rms` or `in_range`, masks included.
        search: steps and rates.
        report: called with each step's number and objective.

    Raises:
        ConfigError: the objective is not finite, or does not depend on the film.
    """
    climber = Climber(film, levels, search)
    more = True
    while more:
        more = climb(lambda films, _: objective(films[0])[None], [climber])
        report(climber.steps - 1, climber.history[-1])
    return climber.found()
