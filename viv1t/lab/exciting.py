"""Most exciting stimuli: films that a model's neurons answer most, or least, found by gradient.

A film of T frames is a function of parameters; the model is fixed. Grey levels go from 0 to 255.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from viv1t.errors import ConfigError
from viv1t.stimuli.parametric import GREY

MIDDLE = 127.5


def low_pass(size: int, cutoff: float) -> Tensor:
    """(size,) 1 for the Fourier frequencies of at most `cutoff` times the largest, 0 for the others."""
    frequency = torch.fft.fftfreq(size).abs()
    return (frequency <= cutoff * frequency.max()).float()


class Film(Protocol):
    """A film as a function of parameters."""

    @property
    def parameters(self) -> list[Tensor]: ...
    def __call__(self) -> Tensor:
        """(T, H, W) without bounds; 0 is grey."""
        ...


class FourierFilm:
    """A film given by its frequencies below a cutoff in space and time (Li et al. 2025).

    Args:
        start: (T, H, W) the film to start from, in the units before the sigmoid; (1, H, W) is a still.
        frames: length of the film; a still is shown throughout.
        spatial_cutoff: share of the largest frequency of rows and of columns that is kept, above 0 to 1.
        temporal_cutoff: the same of frames.
    """

    def __init__(
        self, start: Tensor, frames: int, *, spatial_cutoff: float = 0.5, temporal_cutoff: float = 1.0
    ) -> None:
        for name, cutoff in (("spatial_cutoff", spatial_cutoff), ("temporal_cutoff", temporal_cutoff)):
            if not 0 < cutoff <= 1:
                raise ConfigError(f"{name} must be above 0 and at most 1, not {cutoff}")
        if len(start) not in (1, frames):
            raise ConfigError(f"a start needs 1 or {frames} frames, not {len(start)}")
        self.frames = frames
        self.spectrum = torch.fft.fftn(start, norm="ortho").requires_grad_()
        filters = [low_pass(n, c) for n, c in zip(start.shape, (temporal_cutoff, *[spatial_cutoff] * 2), strict=True)]
        self.filter = (filters[0][:, None, None] * filters[1][:, None] * filters[2]).to(start.device)

    @property
    def parameters(self) -> list[Tensor]:
        return [self.spectrum]

    def __call__(self) -> Tensor:
        film = torch.fft.ifftn(self.spectrum * self.filter, norm="ortho").real
        return film.expand(self.frames, *film.shape[1:])


class PixelFilm:
    """A film given pixel by pixel; `start` (T, H, W), or (1, H, W) for a still of `frames`."""

    def __init__(self, start: Tensor, frames: int) -> None:
        if len(start) not in (1, frames):
            raise ConfigError(f"a start needs 1 or {frames} frames, not {len(start)}")
        self.frames = frames
        self.pixels = start.clone().requires_grad_()

    @property
    def parameters(self) -> list[Tensor]:
        return [self.pixels]

    def __call__(self) -> Tensor:
        return self.pixels.expand(self.frames, *self.pixels.shape[1:])


def in_range(film: Tensor) -> Tensor:
    """Grey levels 255 sigmoid(film): nothing but the range is held."""
    return 255 * torch.sigmoid(film)


def with_rms(film: Tensor, rms: float, mask: Tensor | None = None) -> Tensor:
    """Grey levels of a fixed contrast: 127.5 + rms (film less its mean) / its standard deviation, clipped to 0..255.

    Args:
        film: (T, H, W).
        rms: standard deviation of the clipped grey levels, to a hundredth of it where clipping allows.
        mask: (H, W) pixels whose mean and deviation count; None is all.

    Raises:
        ConfigError: the film is constant under the mask.
    """
    seen = film if mask is None else film[:, mask]
    spread = seen.std(correction=0)
    if not spread > 0:
        raise ConfigError("a film without contrast cannot be given one")
    unit = (film - seen.mean()) / spread
    gain = torch.tensor(float(rms), device=film.device)
    with torch.no_grad():  # how much more it takes after clipping
        inside = unit.detach() if mask is None else unit.detach()[:, mask]
        for _ in range(30):
            reached = (MIDDLE + gain * inside).clamp(0, 255).std(correction=0)
            if abs(float(reached) / rms - 1) < 1e-3:
                break
            gain = gain * (rms / reached).clamp(max=2)
    return (MIDDLE + gain * unit).clamp(0, 255)


def composed(film: Tensor, mask: Tensor | None, around: Tensor | float = float(GREY)) -> Tensor:
    """`film` (T, H, W) where the mask (H, W) is, `around` elsewhere."""
    if mask is None:
        return film
    return torch.where(mask, film, torch.as_tensor(around, dtype=film.dtype, device=film.device))


_FLOOR = 1e-8  # under powers and probabilities, as published


def log_spectrum(film: Tensor) -> Tensor:
    """Log power over spatial frequencies, averaged over the frames: (T, H, W) to (H W,)."""
    power = torch.fft.fft2(film, norm="ortho").abs() ** 2
    return torch.log(power + _FLOOR).mean(0).flatten()


def divergence(own: Tensor, natural: Tensor) -> Tensor:
    """KL(softmax(natural) || softmax(own)) of two log spectra (K,), 1e-8 added to the latter as published."""
    log_p = natural.log_softmax(0)
    return (log_p.exp() * (log_p - torch.log(own.softmax(0) + _FLOOR))).sum()


def blur(images: Tensor, sigma: float) -> Tensor:
    """(B, C, H, W) blurred by a Gaussian of `sigma` pixels, reflecting at the borders."""
    reach = max(1, int(4 * sigma + 0.5))
    place = torch.arange(-reach, reach + 1, dtype=images.dtype, device=images.device)
    kernel = torch.exp(-(place**2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    flat = images.reshape(-1, 1, *images.shape[2:])
    for dim in (2, 3):
        shape = [1, 1, 1, 1]
        shape[dim] = len(kernel)
        pad = (0, 0, reach, reach) if dim == 2 else (reach, reach, 0, 0)
        flat = functional.conv2d(functional.pad(flat, pad, mode="reflect"), kernel.view(shape))
    return flat.reshape(images.shape)


def total_variation(film: Tensor) -> Tensor:
    """Sum of the absolute differences of neighbouring pixels of every frame."""
    return film.diff(dim=-1).abs().sum() + film.diff(dim=-2).abs().sum()


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
    """

    steps: int = 1000
    lr: float = 0.05
    patience: int = 100
    gain: float = 1e-3
    smooth_time: float = 0.0
    tv: float = 0.0


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
    """Contrast and range of grey levels, under a mask if there is one."""
    seen = (film if mask is None else film[:, mask]).astype(np.float64)
    return {
        "rms": float(seen.std()), "mean": float(seen.mean()), "min": float(seen.min()), "max": float(seen.max()),
        "saturated": float(((seen <= 0) | (seen >= 255)).mean()),
    }  # fmt: skip


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
    optimizer = torch.optim.AdamW(film.parameters, lr=search.lr, weight_decay=0)
    best = reached = -math.inf
    best_film, since, history = None, 0, []
    for step in range(search.steps):
        optimizer.zero_grad(set_to_none=True)
        shown = levels(film())
        value = objective(shown)
        score = float(value.detach())
        if not math.isfinite(score):
            raise ConfigError(f"the objective is {score} at step {step}: the model's responses are not finite")
        history.append(score)
        report(step, score)
        since = 0 if step == 0 or score > reached + search.gain * abs(reached) else since + 1
        if since == 0:
            reached = score
        if score > best:
            best, best_film = score, shown.detach().clone()
        if since >= search.patience:
            break
        loss = -value
        if search.smooth_time and len(shown) > 1:
            loss = loss + search.smooth_time * shown.diff(dim=0).square().mean()
        if search.tv:
            loss = loss + search.tv * total_variation(shown) / shown.numel()
        if not loss.requires_grad:
            raise ConfigError("the objective does not depend on the film: the model gives no gradient to its input")
        loss.backward()
        optimizer.step()
    assert best_film is not None
    grey = best_film.round().clamp(0, 255).to(torch.uint8).cpu().numpy()
    return Found(film=grey, value=best, history=history, facts=describe(grey))
