"""What the synthetic mice see and do: movies, running, pupil dilation and gaze.

Everything is drawn from the generator it is given, so a movie or a behavior is a pure function of its seed.
"""

from __future__ import annotations

import numpy as np

from viv1t.types import FRAME_RATE

HEIGHT, WIDTH = 36, 64
GREY = 128  # level of the screen outside a movie
_TEXTURE = 128  # side of the periodic textures that scenes are cut from, in pixels

F32 = np.float32
Rng = np.random.Generator


def smooth_noise(rng: Rng, series: int, frames: int, seconds: float) -> np.ndarray:
    """Stationary Gaussian noise, (series, frames) float32 of unit variance, correlated over about `seconds`."""
    decay = float(np.exp(-1 / (seconds * FRAME_RATE)))
    drive = rng.standard_normal((frames, series), dtype=F32) * F32(np.sqrt(1 - decay**2))
    noise = np.empty((frames, series), dtype=F32)
    noise[0] = rng.standard_normal(series, dtype=F32)
    for t in range(1, frames):
        noise[t] = noise[t - 1] * F32(decay) + drive[t]
    return noise.T


def _texture(rng: Rng, slope: float) -> np.ndarray:
    """A periodic texture of zero mean and unit variance whose amplitude spectrum falls as 1 / frequency ** slope."""
    frequency = np.hypot(np.fft.fftfreq(_TEXTURE)[:, None], np.fft.rfftfreq(_TEXTURE)[None, :])
    frequency[0, 0] = np.inf
    spectrum = np.fft.rfft2(rng.standard_normal((_TEXTURE, _TEXTURE))) / frequency**slope
    texture = np.fft.irfft2(spectrum, s=(_TEXTURE, _TEXTURE))
    return np.asarray(texture / texture.std(), dtype=F32)


def _path(rng: Rng, frames: int, speed: float) -> np.ndarray:
    """A smooth random path, (frames, 2) rows and columns in pixels, of about `speed` pixels a frame."""
    velocity = smooth_noise(rng, 2, frames, 1.0).T * F32(0.6 * speed) + rng.normal(0, 0.6 * speed, 2).astype(F32)
    return np.asarray(rng.uniform(0, _TEXTURE, 2).astype(F32) + np.cumsum(velocity, axis=0, dtype=F32), dtype=F32)


def _view(texture: np.ndarray, path: np.ndarray) -> np.ndarray:
    """The texture seen through a moving screen: (frames, H, W), bilinear between pixels."""
    whole = np.floor(path).astype(np.int64)
    part = (path - whole).astype(F32)[:, :, None, None]
    rows = (whole[:, 0, None] + np.arange(HEIGHT + 1)) % _TEXTURE
    columns = (whole[:, 1, None] + np.arange(WIDTH + 1)) % _TEXTURE
    window = texture[rows[:, :, None], columns[:, None, :]]
    window = window[:, :-1] + part[:, 0] * (window[:, 1:] - window[:, :-1])
    return np.asarray(window[:, :, :-1] + part[:, 1] * (window[:, :, 1:] - window[:, :, :-1]))


def _shot(rng: Rng, frames: int) -> np.ndarray:
    """One shot of a moving scene, (frames, H, W), in grey levels around its own luminance and contrast."""
    scene = _view(_texture(rng, rng.uniform(1.0, 1.4)), _path(rng, frames, rng.uniform(0.1, 1.2)))
    if rng.random() < 0.6:
        # Objects in front of the scene: a second texture, seen where a third, smooth one is high, moving on its own.
        path = _path(rng, frames, rng.uniform(0.3, 1.8))
        shape = _view(_texture(rng, 2.0), path)
        cover = 1 / (1 + np.exp(-12 * (shape - F32(rng.uniform(0.3, 1.0)))))
        shade = F32(rng.normal(0, 1.0))
        scene = scene + cover * (_view(_texture(rng, rng.uniform(0.9, 1.3)), path) * F32(0.8) + shade - scene)
    contrast = rng.uniform(28, 62) * np.exp(F32(0.15) * smooth_noise(rng, 1, frames, 1.0)[0])
    luminance = rng.uniform(85, 150) + 8 * smooth_noise(rng, 1, frames, 1.0)[0]
    return np.asarray(luminance[:, None, None] + contrast[:, None, None] * scene, dtype=F32)


def naturalistic_movie(rng: Rng, frames: int) -> np.ndarray:
    """Scenes of 1/f textures that drift, occlude each other and are cut every second or few.

    Returns:
        (frames, H, W) float32, whole grey levels 0 to 255.
    """
    movie = np.empty((frames, HEIGHT, WIDTH), dtype=F32)
    start = 0
    while start < frames:
        stop = min(start + int(rng.uniform(1.0, 4.0) * FRAME_RATE), frames)
        movie[start:stop] = _shot(rng, stop - start)
        start = stop
    return np.asarray(np.clip(np.rint(movie), 0, 255))


def parametric_movie(rng: Rng, frames: int) -> np.ndarray:
    """Drifting gratings and Gabors, each of half a second to two, of random orientation, frequencies, place and size.

    Returns:
        (frames, H, W) float32, whole grey levels 0 to 255.
    """
    movie = np.empty((frames, HEIGHT, WIDTH), dtype=F32)
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(F32)
    start = 0
    while start < frames:
        stop = min(start + int(rng.uniform(0.5, 2.0) * FRAME_RATE), frames)
        angle, phase = rng.uniform(0, 2 * np.pi, 2)
        cycles_per_pixel = np.exp(rng.uniform(np.log(0.02), np.log(0.16)))
        cycles_per_second = np.exp(rng.uniform(np.log(0.5), np.log(6.0)))
        carrier = 2 * np.pi * cycles_per_pixel * (x * np.cos(angle) + y * np.sin(angle)) + phase
        drift = 2 * np.pi * cycles_per_second / FRAME_RATE * np.arange(stop - start, dtype=F32)
        patch = np.cos(carrier[None] - drift[:, None, None])
        if rng.random() < 0.5:
            at_y, at_x, size = rng.uniform(0, HEIGHT), rng.uniform(0, WIDTH), rng.uniform(4, 14)
            patch = patch * np.exp(-((y - at_y) ** 2 + (x - at_x) ** 2) / (2 * size**2))
        movie[start:stop] = GREY + rng.uniform(30, 120) * patch
        start = stop
    return np.asarray(np.clip(np.rint(movie), 0, 255))


def behave(rng: Rng, frames: int) -> np.ndarray:
    """What the animal does in one trial.

    Returns:
        (2, frames) float64: pupil dilation (pixels of the eye camera, about 15 to 60) and running speed (cm/s, at
        least 0, bouts and long rests).
    """
    drive = smooth_noise(rng, 1, frames, 1.5)[0] + F32(1.3) * rng.standard_normal(dtype=F32)
    wobble = smooth_noise(rng, 1, frames, 0.3)[0]
    speed = np.expm1(2.2 * np.maximum(drive - 0.4, 0)) * np.exp(0.15 * wobble) + 0.15 * np.abs(wobble)
    # The pupil widens with running, late, and on its own.
    late = np.empty(frames)
    level = float(np.log1p(speed[0]))
    for t, now in enumerate(np.log1p(speed)):
        level += (float(now) - level) / (0.8 * FRAME_RATE)
        late[t] = level
    own = smooth_noise(rng, 1, frames, 3.0)[0] + rng.standard_normal()
    dilation = 30 * np.exp(0.13 * late + 0.14 * own)
    return np.stack([dilation, np.minimum(speed, 90)]).astype(np.float64)


def gaze(rng: Rng, frames: int, center: np.ndarray) -> np.ndarray:
    """Where the pupil is: slow drift and saccades about `center` (2,).

    Returns:
        (2, frames) float64, horizontal and vertical, in pixels of the eye camera.
    """
    spread = np.array([3.2, 1.8])
    position = rng.normal(0, 1, 2) * spread
    target = np.empty((2, frames))
    until = 0
    for t in range(frames):
        if t >= until:
            position = 0.45 * position + rng.normal(0, 1, 2) * spread * 0.9
            until = t + 1 + int(rng.exponential(1.6) * FRAME_RATE)
        target[:, t] = position
    # A saccade takes about three frames of the eye camera.
    padded = np.concatenate([target[:, :1], target[:, :1], target], axis=1)
    smooth = (padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]) / 3
    return np.asarray(center[:, None] + smooth + 0.35 * smooth_noise(rng, 2, frames, 0.5))
