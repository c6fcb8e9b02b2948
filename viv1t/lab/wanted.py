"""What is looked for in most exciting films: for whom, in which area of the frame, with which contrast."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from viv1t.errors import ConfigError
from viv1t.lab.ascent import Job
from viv1t.lab.climb import Climber, Search
from viv1t.lab.exciting import (
    MIDDLE,
    Film,
    FourierFilm,
    PixelFilm,
    composed,
    divergence,
    in_range,
    log_spectrum,
    with_norm,
    with_rms,
)
from viv1t.lab.gratings import Responses, wave
from viv1t.lab.observers import digest_of
from viv1t.lab.protocols import Layout
from viv1t.stimuli.parametric import GREY

RMS = 38.0  # grey levels of contrast where no natural clip says how much is natural
SIZE = 20.0  # degrees of a centre where nothing else is said
TEMPERATURE = 1.6  # of the contrast between groups
GRATINGS = 24
NATURAL = 12


@dataclass(frozen=True)
class Wanted:
    """What is looked for, and how.

    Attributes:
        inhibit: the least response, in place of the largest.
        over: `sum` or `max` over the film's frames.
        surround: `exciting` or `inhibiting`: the film lies around a centre; empty for a film of its own.
        centre: of a surround: `grating`, `natural` (the best of each) or `optimised`.
        method: `cutoff` (frequencies below a cutoff), `kl` (all, held near natural spectra) or `pixel`.
        still: one frame throughout.
        spatial_cutoff, temporal_cutoff: shares of the largest frequency that are kept.
        alpha: weight of the divergence from natural spectra, of `kl`.
        start: `noise`, or `natural`, the best clips.
        constraint: `rms` (contrast), `norm` (of each frame about grey), `range` or `none`.
        contrast: of `rms` the standard deviation, of `norm` the norm, grey levels; None is that of natural clips.
        starts: films found from different starts.
        dropout: each step asks one model of an ensemble.
        search: steps and rates.
        seed: of starts.
    """

    inhibit: bool = False
    over: str = "sum"
    surround: str = ""
    centre: str = "grating"
    method: str = "cutoff"
    still: bool = False
    spatial_cutoff: float = 0.5
    temporal_cutoff: float = 1.0
    alpha: float = 1.0
    start: str = "noise"
    constraint: str = "rms"
    contrast: float | None = None
    starts: int = 3
    dropout: bool = False
    search: Search = field(default_factory=Search)
    seed: int = 1234

    def __post_init__(self) -> None:
        known = {
            "over": ("sum", "max"), "surround": ("", "exciting", "inhibiting"),
            "centre": ("grating", "natural", "optimised"), "method": ("cutoff", "kl", "pixel"),
            "start": ("noise", "natural"), "constraint": ("rms", "norm", "range", "none"),
        }  # fmt: skip
        for name, values in known.items():
            if getattr(self, name) not in values:
                raise ConfigError(
                    f"--{name} must be one of {', '.join(v for v in values if v)}, not {getattr(self, name)!r}"
                )
        if self.starts < 1:
            raise ConfigError(f"--starts must be at least 1, not {self.starts}")
        if self.contrast is not None and not 0 < self.contrast < math.inf:
            raise ConfigError(f"--contrast must be above 0 grey levels, not {self.contrast}")
        if self.contrast is not None and self.constraint in ("range", "none"):
            raise ConfigError(f"--contrast has no effect with --constraint {self.constraint}: leave one out")
        if self.inhibit and self.surround:
            raise ConfigError("--inhibit says nothing of a surround: give --surround inhibiting")

    @property
    def sign(self) -> int:
        """-1 where less is better."""
        return -1 if self.inhibit or self.surround == "inhibiting" else 1


@dataclass(frozen=True)
class Case:
    """A film to be found.

    Attributes:
        name: of its file.
        neurons: (k,) whom it is to drive.
        weights: (k,) of their responses in the models' own units.
        against: other groups of neurons whose mean responses are to be smaller; empty for none.
        area: (H, W) pixels of the film; None is the frame.
        around: (T, H, W) uint8 elsewhere; None is grey.
        contrast: of the constraint, grey levels.
    """

    name: str
    neurons: np.ndarray
    weights: np.ndarray
    against: tuple[np.ndarray, ...] = ()
    area: np.ndarray | None = None
    around: np.ndarray | None = None
    contrast: float = RMS

    def reached(self, values: np.ndarray) -> np.ndarray:
        """Weighted mean of responses (N, ...) over its neurons."""
        share = self.weights / max(self.weights.sum(), np.finfo(float).tiny)
        return np.asarray(np.tensordot(share, values[self.neurons], axes=(0, 0)))


def levels_of(wanted: Wanted, case: Case, device: torch.device) -> Callable[[Tensor], Tensor]:
    """From a film without bounds to grey levels, in its area."""
    area = None if case.area is None else torch.from_numpy(case.area).to(device)
    around = float(GREY) if case.around is None else torch.from_numpy(case.around).to(device, torch.float32)

    def levels(film: Tensor) -> Tensor:
        if wanted.constraint == "rms":
            grey = with_rms(film, case.contrast, area)
        elif wanted.constraint == "norm":
            grey = with_norm(film, case.contrast, area)
        else:
            grey = in_range(film) if wanted.constraint == "range" else MIDDLE * (1 + film)
        return composed(grey, area, around)

    return levels


def like(wanted: Wanted, case: Case, film: np.ndarray) -> np.ndarray | None:
    """A film (T, H, W) in the area and with the contrast of a case, uint8; None where it has no contrast there."""
    area = None if case.area is None else torch.from_numpy(case.area)
    around = float(GREY) if case.around is None else torch.from_numpy(case.around).float()
    grey = torch.from_numpy(np.asarray(film, np.float32))
    if wanted.constraint in ("rms", "norm"):
        try:
            hold = with_rms if wanted.constraint == "rms" else with_norm
            grey = hold(grey - MIDDLE, case.contrast, area)
        except ConfigError:
            return None
    return composed(grey, area, around).round().clamp(0, 255).to(torch.uint8).numpy()


def gratings_for(responses: Responses, case: Case, frame_size: tuple[int, int], sign: int = 1) -> list[np.ndarray]:
    """The gratings of a grid that a case's neurons answer most (or least), of all phases."""
    grid = responses.grid
    mean = sign * case.reached(responses.mean).reshape(-1)
    order = np.argsort(np.where(np.isnan(mean), np.inf, -mean), kind="stable")[:GRATINGS]
    films = []
    for d, f, g, p in zip(*np.unravel_index(order, grid.shape), strict=True):
        films.append(
            wave(float(grid.angles[d]), grid.frequencies[f], grid.hertz[g], 360 * float(p) / grid.phases, frame_size)
        )
    return films


def job(
    wanted: Wanted, case: Case, start: int, twin: Any, layout: Layout, naturals: Sequence[np.ndarray],
    spectrum: Tensor | None,
) -> Job:  # fmt: skip
    """How a film of a case is found from one of its starts."""
    frames, device = layout.pattern, twin.device
    levels, shape = levels_of(wanted, case, device), (1 if wanted.still else frames, *twin.frame_size)
    rng = np.random.default_rng([wanted.seed, start, int(case.neurons[0])])
    first = 0.01 * rng.standard_normal(shape)
    if wanted.start == "natural" and naturals:
        clip = naturals[start % len(naturals)].astype(np.float64)[: shape[0]]
        spread = clip.std()
        first = first + (clip - clip.mean()) / (spread if spread > 0 else 1)
    begin = torch.from_numpy(first.astype(np.float32)).to(device)

    def make() -> Climber:
        film: Film
        if wanted.method == "pixel":
            film = PixelFilm(begin, frames)
        else:
            cutoff = 1.0 if wanted.method == "kl" else wanted.spatial_cutoff
            film = FourierFilm(begin, frames, spatial_cutoff=cutoff, temporal_cutoff=wanted.temporal_cutoff)
        penalty = None
        if wanted.method == "kl" and spectrum is not None:
            natural = spectrum.to(device)
            penalty = lambda grey: wanted.alpha * divergence(log_spectrum(grey), natural)  # noqa: E731
        return Climber(film, levels, wanted.search, penalty, seed=wanted.seed + start)

    of, weights = torch.from_numpy(case.neurons).to(device), torch.from_numpy(case.weights).float().to(device)
    others = [torch.from_numpy(group).to(device) for group in case.against]

    def worth(responses: Tensor) -> Tensor:
        if others:
            means = responses.mean(-1)
            groups = torch.stack([means[of].mean(), *(means[group].mean() for group in others)]) / TEMPERATURE
            return wanted.sign * (groups[0] - groups.logsumexp(0) + math.log(len(groups)))
        own = responses[of]
        value = own.amax(-1) if wanted.over == "max" else own.sum(-1)
        return wanted.sign * (weights * value).sum()

    arrays = [case.neurons, case.weights, *case.against, case.area, case.around]
    search = {k: v for k, v in vars(wanted.search).items() if k not in ("steps", "patience", "gain")}
    options = {k: v for k, v in vars(wanted).items() if k not in ("starts", "search")}
    said = repr((search, options, case.contrast, layout, start))
    parts = [
        twin.identity.encode(),
        said.encode(),
        *(b"" if a is None else np.ascontiguousarray(a).tobytes() for a in arrays),
    ]
    parts += [] if spectrum is None else [spectrum.numpy().tobytes()]
    return Job(digest_of([*parts, first.tobytes()]), make, worth)
