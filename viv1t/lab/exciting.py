"""Films as functions of parameters, what holds their contrast, and what is asked of them.

Most exciting stimuli are films that a model's neurons answer most, or least. Grey levels go from 0 to 255.
"""

from __future__ import annotations

from typing import Protocol

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


def total_variation(film: Tensor, *, published: bool = False) -> Tensor:
    """Sum of the absolute differences of neighbouring pixels of every frame.

    `published`: the mean over images (B, C, H, W), whose rows are taken from the last row, not from the one before.
    """
    across = film.diff(dim=-1).abs().sum()
    if published:
        return (across + (film[..., 1:, :] - film[..., -1:, :]).abs().sum()) / len(film)
    return across + film.diff(dim=-2).abs().sum()


def with_norm(film: Tensor, norm: float, mask: Tensor | None = None) -> Tensor:
    """Grey levels whose every frame has the norm `norm` about 127.5, clipped to 0..255; `mask` as for `with_rms`."""
    seen = film if mask is None else film * mask
    return (MIDDLE + scaled(seen[:, None], norm)[:, 0]).clamp(0, 255)


def scaled(images: Tensor, norm: float) -> Tensor:
    """(B, C, H, W), each image brought to the Euclidean norm `norm`."""
    length = images.square().sum((1, 2, 3), keepdim=True).sqrt()
    return images * (norm / length.clamp(min=1e-12))


def with_deviation(images: Tensor, deviation: float) -> Tensor:
    """(B, C, H, W), each image brought to the standard deviation `deviation` about the mean that it has."""
    mean = images.mean((1, 2, 3), keepdim=True)
    spread = (images - mean).std((1, 2, 3), correction=1, keepdim=True)
    return mean + (images - mean) * (deviation / spread.clamp(min=1e-12))


def smooth_spectrum(images: Tensor, power: float, *, published: bool = False) -> Tensor:
    """Multiplies an image's Fourier amplitudes by 1 / max(1, (fx^2 + fy^2)^power), scaled to a mean of 1.

    Args:
        images: (..., H, W).
        power: 0 leaves them as they are.
        published: counts a frequency of -k as k - 1, which makes the filter asymmetric; of the result the real part.
    """

    def cycles(size: int) -> Tensor:
        if published:
            places = torch.arange(size, dtype=images.dtype, device=images.device)
            return torch.minimum(places, size - 1 - places)
        return torch.fft.fftfreq(size, 1 / size, dtype=images.dtype, device=images.device)

    rows, columns = images.shape[-2:]
    kept = 1 / (cycles(columns) ** 2 + cycles(rows)[:, None] ** 2).pow(power).clamp(min=1)
    return torch.fft.ifft2(torch.fft.fft2(images) * (kept / kept.mean())).real


def published_loss(
    response: Tensor, film: Tensor, natural: Tensor, *, largest: bool = False, alpha: float = 0.0, inhibit: bool = False
) -> tuple[Tensor, Tensor]:
    """What is minimised to find a film, and the divergence in it (Li et al. 2025).

    Args:
        response: (T,) during the film.
        film: (T, H, W).
        natural: (H W,) log spectrum of natural clips.
        largest: the largest response counts; else their sum.
        alpha: weight of the divergence of the film's spectrum from the natural one.
        inhibit: the response is to be small.
    """
    reached = response.max() if largest else response.sum()
    apart = divergence(log_spectrum(film), natural)
    return (reached if inhibit else -reached) + alpha * apart, apart
