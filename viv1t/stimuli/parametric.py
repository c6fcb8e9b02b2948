"""Stimuli as functions of their parameters: films in grey levels on the frame.

Conventions: row 0 is on top, pixel centres are at whole numbers, grey is 127. A direction of 0 degrees moves left, 90
down, 180 right and 270 up. Sizes are diameters in degrees of visual angle on the given monitor. Films are (T, H, W)
uint8 at 30 frames a second.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from viv1t.errors import ConfigError
from viv1t.stimuli.geometry import FRAME_SIZE, SENSORIUM, Monitor, circle

GREY = 127
CONTEXTS = ("center", "iso", "cross", "shift")
# Degrees a pixel of the Sensorium screen; the published gratings keep it for every screen.
_DEGREES_PER_PIXEL = SENSORIUM.degrees_per_pixel()


def grey(frames: int, frame_size: tuple[int, int] = FRAME_SIZE) -> np.ndarray:
    """The grey screen, (T, H, W) uint8."""
    return np.full((frames, *frame_size), GREY, dtype=np.uint8)


def _wave(
    direction: float,
    cpd: float,
    cpf: float,
    frames: int,
    phase: float,
    frame_size: tuple[int, int],
    degrees_per_pixel: float,
) -> np.ndarray:
    """cos of a grating's phase, (T, H, W) from -1 to 1."""
    rows, columns = frame_size
    theta = math.radians(direction)
    y, x = np.mgrid[:rows, :columns]
    place = math.cos(theta) * (x - columns // 2) - math.sin(theta) * (y - rows // 2)
    time = cpf * np.arange(frames)
    return np.cos(2 * np.pi * (cpd * degrees_per_pixel * place + time[:, None, None]) + math.radians(phase))


def _levels(signal: np.ndarray) -> np.ndarray:
    """Grey levels of a signal from -1 to 1."""
    return np.clip(np.floor(127.5 * (1 + signal)), 0, 255).astype(np.uint8)


def _check_contrast(contrast: float) -> None:
    if not 0 <= contrast <= 1:
        raise ConfigError(f"contrast goes from 0 to 1, not {contrast}")


def grating(
    direction: float,
    *,
    cpd: float = 0.04,
    cpf: float = 1 / 15,
    frames: int = 30,
    contrast: float = 1.0,
    phase: float = 0.0,
    frame_size: tuple[int, int] = FRAME_SIZE,
    degrees_per_pixel: float = _DEGREES_PER_PIXEL,
) -> np.ndarray:
    """A drifting grating over the whole frame: floor(127.5 (1 + contrast cos(phase(x, y, n)))).

    Args:
        direction: of motion, degrees: 0 left, 90 down, 180 right, 270 up.
        cpd: cycles a degree.
        cpf: cycles a frame; 1/15 is 2 Hz.
        frames: length.
        contrast: 0 to 1.
        phase: at the frame's middle in the first frame, degrees.
        frame_size: (H, W).
        degrees_per_pixel: turns cycles a degree into cycles a pixel.

    Returns:
        (T, H, W) uint8.

    Raises:
        ConfigError: the contrast is not from 0 to 1.
    """
    _check_contrast(contrast)
    return _levels(contrast * _wave(direction, cpd, cpf, frames, phase, frame_size, degrees_per_pixel))


def plaid(
    direction: float,
    angle: float = 90.0,
    *,
    cpd: float = 0.04,
    cpf: float = 1 / 15,
    frames: int = 30,
    contrast: float = 1.0,
    phase: float = 0.0,
    frame_size: tuple[int, int] = FRAME_SIZE,
    degrees_per_pixel: float = _DEGREES_PER_PIXEL,
) -> np.ndarray:
    """The sum of two gratings of half the contrast whose directions lie `angle` / 2 to both sides of `direction`."""
    _check_contrast(contrast)
    waves = [
        _wave(direction + turn, cpd, cpf, frames, phase, frame_size, degrees_per_pixel)
        for turn in (-angle / 2, angle / 2)
    ]
    return _levels(contrast * (waves[0] + waves[1]) / 2)


def inside(film: np.ndarray, mask: np.ndarray, outside: np.ndarray | int = GREY) -> np.ndarray:
    """`film` where the mask (H, W) is, `outside` (a film or a grey level) elsewhere: (T, H, W) uint8."""
    return np.where(mask, film, outside).astype(np.uint8)


def masked(
    film: np.ndarray,
    size: float,
    center: tuple[float, float] | None = None,
    *,
    inverse: bool = False,
    monitor: Monitor = SENSORIUM,
) -> np.ndarray:
    """A film in a circle with grey around it or, `inverse`, around a grey circle.

    Args:
        film: (T, H, W) grey levels.
        size: diameter of the circle, degrees. An inverse of size 0 is the whole film.
        center: (x, y) in pixels; None is the frame's middle.
        inverse: swaps inside and outside.
        monitor: turns degrees into pixels.

    Returns:
        (T, H, W) uint8.
    """
    mask = circle(size, center, monitor=monitor, frame_size=(film.shape[1], film.shape[2]))
    return inside(film, ~mask if inverse else mask)


def in_context(
    center_film: np.ndarray,
    size: float,
    center: tuple[float, float] | None = None,
    *,
    context: str = "center",
    cross: np.ndarray | None = None,
    monitor: Monitor = SENSORIUM,
) -> np.ndarray:
    """A film in a circle, and around it what `context` says.

    Args:
        center_film: (T, H, W) grey levels.
        size: diameter of the circle, degrees.
        center: (x, y) in pixels; None is the frame's middle.
        context: `center` (grey around), `iso` (the film goes on), `cross` (the film `cross` around), `shift` (255 less
            the film: half a cycle of phase away).
        cross: (T, H, W) the surround of `cross`.
        monitor: turns degrees into pixels.

    Raises:
        ConfigError: an unknown context, or `cross` without its film.
    """
    mask = circle(size, center, monitor=monitor, frame_size=(center_film.shape[1], center_film.shape[2]))
    if context == "center":
        return inside(center_film, mask)
    if context == "iso":
        return center_film.astype(np.uint8)
    if context == "shift":
        return inside(center_film, mask, 255 - center_film.astype(np.int16))
    if context != "cross":
        raise ConfigError(f"context must be one of {', '.join(CONTEXTS)}, not {context!r}")
    if cross is None:
        raise ConfigError("context cross needs the film around it")
    return inside(center_film, mask, cross)


def gabor_film(
    direction: float, wavelength: float, frequency: float, *, sigma: float = 0.3, frames: int = 25
) -> np.ndarray:
    """A block of Sensorium's drifting Gabors, (T, 36, 64) float64 grey levels 0 to 255.

    127.5 (1 + exp(-(X^2 + Y^2) / (2 sigma^2)) cos(2 pi ((X cos th - Y sin th) / wavelength + 64 frequency s))) with X
    from -16/9 to 16/9 over the columns, Y from -1 to 1 over the rows, and s from 0 to 1 over the frames.
    """
    rows, columns = FRAME_SIZE
    y, x = np.meshgrid(np.linspace(-1, 1, rows), np.linspace(-16 / 9, 16 / 9, columns), indexing="ij")
    theta = math.radians(direction)
    place = (x * math.cos(theta) - y * math.sin(theta)) / wavelength
    time = 64 * frequency * np.linspace(0, 1, frames)
    envelope = np.exp(-(x**2 + y**2) / (2 * sigma**2))
    return np.asarray(127.5 * (1 + envelope * np.cos(2 * np.pi * (place + time[:, None, None]))))


def dot(
    center: tuple[float, float],
    *,
    on: bool = True,
    sigma: float = 2.5,
    frames: int = 6,
    frame_size: tuple[int, int] = FRAME_SIZE,
) -> np.ndarray:
    """A Gaussian spot, 127 +- 128 exp(-r^2 / (2 sigma^2)), (T, H, W) uint8.

    Args:
        center: (x, y) in pixels.
        on: brighter than grey; else darker.
        sigma: in pixels.
        frames: length.
        frame_size: (H, W).
    """
    rows, columns = frame_size
    y, x = np.mgrid[:rows, :columns]
    bump = 128 * np.exp(-((x - center[0]) ** 2 + (y - center[1]) ** 2) / (2 * sigma**2))
    frame = np.clip(np.rint(GREY + (bump if on else -bump)), 0, 255).astype(np.uint8)
    return np.repeat(frame[None], frames, axis=0)


def dot_centers(step: int, frame_size: tuple[int, int] = FRAME_SIZE) -> np.ndarray:
    """Places of dots every `step` pixels, as far from one border as from the other: (K, 2) columns and rows."""
    rows, columns = frame_size
    ys = np.arange((rows - 1) % step / 2, rows, step)
    xs = np.arange((columns - 1) % step / 2, columns, step)
    return np.stack(np.meshgrid(xs, ys), axis=-1).reshape(-1, 2)


def white_noise(rng: np.random.Generator, images: int, frame_size: tuple[int, int] = FRAME_SIZE) -> np.ndarray:
    """Images of independent pixels, uniform in [0, 255): (images, H, W) uint8."""
    return rng.integers(0, 255, (images, *frame_size), dtype=np.uint8)


def smooth_images(
    rng: np.random.Generator,
    images: int,
    *,
    sigma: float = 2.0,
    rms: float = 60.0,
    frame_size: tuple[int, int] = FRAME_SIZE,
) -> np.ndarray:
    """Images of Gaussian noise smoothed over `sigma` pixels, `rms` grey levels about grey: (images, H, W) uint8."""
    fy = np.fft.fftfreq(frame_size[0])[:, None]
    fx = np.fft.rfftfreq(frame_size[1])[None]
    response = np.exp(-2 * (np.pi * sigma) ** 2 * (fx**2 + fy**2))
    noise = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((images, *frame_size))) * response, s=frame_size)
    noise *= rms / noise.std(axis=(1, 2), keepdims=True)
    return np.clip(np.rint(GREY + noise), 0, 255).astype(np.uint8)


def blocks(patterns: Sequence[np.ndarray], *, lead: int = 60, before: int = 15, after: int = 15) -> np.ndarray:
    """One trial: grey, then each pattern framed by grey.

    Args:
        patterns: films (T, H, W) of one frame size.
        lead: grey frames before everything.
        before: grey frames before each pattern.
        after: grey frames after each pattern.

    Returns:
        (lead + sum of (before + T + after), H, W) uint8.
    """
    size = (patterns[0].shape[1], patterns[0].shape[2])
    parts = [grey(lead, size)]
    for pattern in patterns:
        parts += [grey(before, size), pattern.astype(np.uint8), grey(after, size)]
    return np.concatenate(parts)
