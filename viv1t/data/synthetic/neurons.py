"""The neurons of a synthetic mouse: receptive fields, tuning, gains and noise, all known.

A neuron's response at frame t is, in this order, a function of

1. the movie up to t, shifted by the gaze of each frame and averaged over 2 x 2 pixels: a pair of Gabors in quadrature;
2. biphasic temporal kernels over the last `LAGS` frames, combined so that a neuron may prefer a direction of motion;
3. division by the contrast of the last frames, then a mixture of a rectified (simple) and an energy (complex) term,
   above a threshold;
4. a gain from running speed and pupil dilation: the expected spikes of the frame;
5. private noise: slow fluctuations of gain (mean 1), Poisson spikes of random size (mean 1), the blur of the
   imaging over `BLUR` frames and a small positive floor.

Step 5 keeps the mean, so `expected` is exactly the conditional mean of `observe` given movie, behavior and gaze.
The response depends on the movie at frames t - `MEMORY` + 1 to t. Before a trial the screen is grey.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from viv1t.data.synthetic.movies import (
    F32,
    GREY,
    HEIGHT,
    WIDTH,
    Rng,
    behave,
    gaze,
    naturalistic_movie,
    smooth_noise,
)

LAGS = 12  # frames of the temporal kernels
BLUR = np.array([0.2, 0.35, 0.3, 0.15], dtype=F32)  # deconvolved activity sampled at the imaging rate, on movie frames
MEMORY = LAGS + len(BLUR) - 1
_BLOCK = 512  # neurons computed at once: what fits in a core's cache
_ROWS, _COLUMNS = HEIGHT // 2, WIDTH // 2
_FLOOR = 0.05  # standard deviation of the floor before rectification, in units of a spike


@dataclass(frozen=True)
class Population:
    """The neurons of one mouse.

    Attributes:
        coordinates: (N, 3) int64, cortical x, y, z in micrometres.
        positions: (N, 2) float32, receptive field centres x, y at the mean gaze, pixel centres of the frame's borders
            at -1 and 1 (the convention of grid_sample with align_corners=True).
        bank: (2, N, 576) float32 of whole numbers, even and odd Gabors on the 18 x 32 grid of averaged pixels.
        kernels: (2, N, LAGS) float32, temporal kernels of the two phases.
        direction: (N,) float32, -1 to 1, how much the neuron prefers one direction.
        complexity: (N,) float32, 0 simple to 1 complex.
        threshold: (N,) float32, in standard deviations of the linear response.
        scale: (N,) float32, spikes a frame per unit of drive.
        spontaneous: (N,) float32, spikes a frame without a stimulus.
        gains: (N, 2) float32, of pupil dilation and running speed.
        amplitude: (N,) float32, response per spike.
        fluctuation: (N,) float32, standard deviation of the logarithm of the private gain.
        eye: (2, 2) float32, pixels of the screen (x, y) per pixel of the eye camera.
        gaze_center: (2,) float64, mean pupil position.
    """

    coordinates: np.ndarray
    positions: np.ndarray
    bank: np.ndarray
    kernels: np.ndarray
    direction: np.ndarray
    complexity: np.ndarray
    threshold: np.ndarray
    scale: np.ndarray
    spontaneous: np.ndarray
    gains: np.ndarray
    amplitude: np.ndarray
    fluctuation: np.ndarray
    eye: np.ndarray
    gaze_center: np.ndarray

    def expected(self, video: np.ndarray, behavior: np.ndarray, pupil_center: np.ndarray) -> np.ndarray:
        """The conditional mean of the response, (N, T) float32.

        Args:
            video: (T, H, W), grey levels 0 to 255.
            behavior: (2, T), pupil dilation and running speed.
            pupil_center: (2, T).
        """
        return self.response(self.spikes(video, behavior, pupil_center))

    def response(self, spikes: np.ndarray) -> np.ndarray:
        """The mean response to expected spikes (N, T): the mean over `observe`, (N, T) float32."""
        return np.asarray(self.amplitude[:, None] * (_blur(spikes) + F32(_FLOOR / np.sqrt(2 * np.pi))))

    def spikes(self, video: np.ndarray, behavior: np.ndarray, pupil_center: np.ndarray) -> np.ndarray:
        """Expected spikes of each frame, (N, T) float32; arguments as of `expected`."""
        state = _state(behavior)
        rates = np.empty((len(self.scale), video.shape[0]), dtype=F32)
        for block, drive in self._drives(video, pupil_center):
            rates[block] = self.spontaneous[block, None] + self.scale[block, None] * drive
            rates[block] *= _gain(self.gains[block], state)
        return rates

    def observe(self, spikes: np.ndarray, rng: Rng) -> np.ndarray:
        """One recording of a trial whose expected spikes are `spikes` (N, T): (N, T) float32, at least 0."""
        response = np.empty_like(spikes)
        for start in range(0, len(spikes), _BLOCK):
            block = slice(start, start + _BLOCK)
            slow = smooth_noise(rng, spikes[block].shape[0], spikes.shape[1], 1.0) * self.fluctuation[block, None]
            counts = rng.poisson(spikes[block] * np.exp(slow - self.fluctuation[block, None] ** 2 / 2))
            sizes = np.zeros(counts.shape, dtype=F32)
            fired = np.nonzero(counts)
            sizes[fired] = rng.standard_gamma(2 * counts[fired].astype(F32), dtype=F32) / 2
            floor = np.maximum(rng.standard_normal(counts.shape, dtype=F32), 0) * F32(_FLOOR)
            response[block] = self.amplitude[block, None] * (_blur(sizes) + floor)
        return response

    def _drives(self, video: np.ndarray, pupil_center: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
        """Blocks of neurons with their stimulus drive (n, T), at least 0."""
        frames, contrast = self._seen(video, pupil_center)
        for start in range(0, len(self.scale), _BLOCK):
            block = slice(start, start + _BLOCK)
            first, second = self._linear(frames, block)
            energy = np.sqrt((first * first + second * second) * F32(0.5))
            c = self.complexity[block, None]
            drive = ((1 - c) * np.maximum(first, 0) + c * energy) / contrast - self.threshold[block, None]
            drive = np.maximum(drive, 0)
            yield block, drive * np.sqrt(drive)

    def _linear(self, frames: np.ndarray, block: slice) -> tuple[np.ndarray, np.ndarray]:
        """Two spatiotemporal filters in quadrature applied to averaged frames (576, T): (n, T) each."""
        even, odd = self.bank[0, block] @ frames, self.bank[1, block] @ frames
        early, late = self.kernels[0, block], self.kernels[1, block]
        turn = self.direction[block, None]
        return (
            _convolve(even, early) + turn * _convolve(odd, late),
            _convolve(odd, early) - turn * _convolve(even, late),
        )

    def _seen(self, video: np.ndarray, pupil_center: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The movie as it falls on the retina: frames (576, T) of whole numbers, and their contrast (T,)."""
        moved = (pupil_center - self.gaze_center[:, None]).astype(F32)
        offset = self.eye[:, :1] * moved[0] + self.eye[:, 1:] * moved[1]
        shifted = shift_frames(video - F32(GREY), offset)
        pooled = shifted.reshape(-1, _ROWS, 2, _COLUMNS, 2).sum(axis=(2, 4))
        # Whole numbers times whole numbers below 2**24 in all add up exactly in float32, in whatever order a matrix
        # product takes them: the same bytes for any number of threads.
        frames = np.rint(pooled * F32(0.5)).reshape(len(video), -1)
        contrast = np.sqrt(np.mean(frames * frames, axis=1))
        weights = np.exp(-np.arange(6, dtype=F32) / 2)
        recent = _convolve(contrast[None], (weights / weights.sum())[None])[0]
        return np.ascontiguousarray(frames.T), F32(0.4) + recent * F32(0.6 / 80)


def _state(behavior: np.ndarray) -> np.ndarray:
    """Pupil dilation and running speed on scales near one, (2, T) float32, bounded."""
    dilation = np.clip(np.log(behavior[0] / 35) * 3, -2, 2)
    speed = np.clip(np.log1p(behavior[1]) - 1, -1, 2)
    return np.stack([dilation, speed]).astype(F32)


def _gain(gains: np.ndarray, state: np.ndarray) -> np.ndarray:
    return np.asarray(np.exp(gains[:, :1] * state[0] + gains[:, 1:] * state[1]))


def _convolve(series: np.ndarray, kernels: np.ndarray) -> np.ndarray:
    """Causal convolution of each row of (n, T) with its kernel of (n, lags); nothing before the first frame."""
    out = kernels[:, :1] * series
    for lag in range(1, min(kernels.shape[1], series.shape[1])):
        out[:, lag:] += kernels[:, lag, None] * series[:, :-lag]
    return np.asarray(out)


def _blur(series: np.ndarray) -> np.ndarray:
    return _convolve(series, BLUR[None])


def shift_frames(video: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """Each frame of `video` (T, H, W) read at x + offset[0, t], y + offset[1, t], bilinear, borders repeated."""
    for axis, size, step in ((1, video.shape[1], offset[1]), (2, video.shape[2], offset[0])):
        at = np.clip(np.arange(size, dtype=F32) + step[:, None], 0, size - 1)
        low = np.minimum(at.astype(np.int64), size - 2)
        part = (at - low).astype(F32)
        shape = (-1, size, 1) if axis == 1 else (-1, 1, size)
        below = np.take_along_axis(video, low.reshape(shape), axis=axis)
        above = np.take_along_axis(video, (low + 1).reshape(shape), axis=axis)
        video = below + part.reshape(shape) * (above - below)
    return video


def _retinotopy(rng: Rng, coordinates: np.ndarray) -> np.ndarray:
    """Receptive field centres (N, 2) in pixels: a smooth, slightly curved map of cortical x, y, with local scatter."""
    x, y = coordinates[:, 0] / 350, coordinates[:, 1] / 350
    turn = rng.uniform(-0.35, 0.35)
    u, v = x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)
    u, v = u + 0.12 * v * v, v + 0.1 * u * v
    center = np.array([(WIDTH - 1) / 2, (HEIGHT - 1) / 2]) + rng.normal(0, 1, 2) * (2.0, 1.0)
    pixels = center + np.stack([u * 23, v * 12], axis=1) + rng.normal(0, 1.5, (len(x), 2))
    return np.clip(pixels, 2, np.array([WIDTH - 3, HEIGHT - 3]))


def _gabors(rng: Rng, pixels: np.ndarray) -> np.ndarray:
    """Even and odd Gabors (2, N, 576) of whole numbers around `pixels`."""
    n = len(pixels)
    y, x = np.mgrid[:_ROWS, :_COLUMNS].astype(F32) * 2 + F32(0.5)
    x, y = x.ravel() - pixels[:, :1].astype(F32), y.ravel() - pixels[:, 1:].astype(F32)
    angle = rng.uniform(0, np.pi, (n, 1)).astype(F32)
    sigma = np.clip(np.exp(rng.normal(np.log(3.3), 0.2, (n, 1))), 2.4, 4.6).astype(F32)
    frequency = np.clip(np.exp(rng.normal(np.log(0.065), 0.35, (n, 1))), 0.025, 0.13).astype(F32)
    phase = rng.uniform(0, 2 * np.pi, (n, 1)).astype(F32)
    stretch = np.exp(rng.normal(0, 0.15, (n, 1))).astype(F32)
    across = x * np.cos(angle) + y * np.sin(angle)
    along = y * np.cos(angle) - x * np.sin(angle)
    envelope = np.exp(-((across * stretch) ** 2 + (along / stretch) ** 2) / (2 * sigma**2))
    carrier = F32(2 * np.pi) * frequency * across + phase
    bank = np.stack([envelope * np.cos(carrier), envelope * np.sin(carrier)])
    # Frames are whole numbers up to 256; see `Population._seen`.
    largest = np.abs(bank).sum(axis=2, keepdims=True).max(axis=0)
    return np.asarray(np.rint(bank * (60_000 / largest)), dtype=F32)


def _temporal(rng: Rng, n: int) -> np.ndarray:
    """Biphasic kernels (2, N, LAGS), the second a little later than the first, of unit norm."""
    tau = rng.uniform(0.6, 0.9, (n, 1))
    latency = rng.uniform(0.6, 1.6, (n, 1))
    rebound = rng.uniform(0.3, 0.9, (n, 1))
    lags = np.arange(LAGS)
    kernels = []
    for delay in (0.0, 1.2):
        s = np.maximum(lags - latency - delay, 0) / tau
        kernel = np.exp(-s) * (s**3 / 6 - rebound * s**5 / 120)
        kernels.append(kernel / np.linalg.norm(kernel, axis=1, keepdims=True))
    return np.asarray(kernels, dtype=F32)


def draw_population(rng: Rng, neurons: int) -> Population:
    """Draws `neurons` neurons and sets their scales on a few movies, so that rates are realistic."""
    coordinates = np.stack([*rng.integers(-350, 351, (2, neurons)), 150 + 25 * rng.integers(0, 10, neurons)], axis=1)
    pixels = _retinotopy(rng, coordinates)
    complex_cell = rng.random(neurons) < 0.45
    ones = np.ones(neurons, dtype=F32)
    cells = Population(
        coordinates=coordinates,
        positions=(pixels / [(WIDTH - 1) / 2, (HEIGHT - 1) / 2] - 1).astype(F32),
        bank=_gabors(rng, pixels),
        kernels=_temporal(rng, neurons),
        direction=(rng.choice([-1, 1], neurons) * rng.beta(1.2, 2.0, neurons)).astype(F32),
        complexity=np.where(complex_cell, rng.uniform(0.6, 1, neurons), rng.uniform(0, 0.2, neurons)).astype(F32),
        threshold=rng.uniform(0.2, 0.9, neurons).astype(F32),
        scale=ones,
        spontaneous=ones,
        gains=(rng.normal(0, 1, (neurons, 2)) * (0.15, 0.2) + (0.1, 0.15)).astype(F32),
        amplitude=np.exp(rng.normal(np.log(25), 0.5, neurons)).astype(F32),
        fluctuation=rng.uniform(0.3, 0.7, neurons).astype(F32),
        eye=np.array([[0.55, rng.normal(0, 0.05)], [rng.normal(0, 0.05), 0.5]], dtype=F32),
        gaze_center=np.array([rng.uniform(120, 150), rng.uniform(95, 125)]),
    )
    return _calibrate(cells, rng)


def _calibrate(cells: Population, rng: Rng, movies: int = 4, frames: int = 120) -> Population:
    """Scales kernels to linear responses of unit variance, then spikes to each neuron's own mean rate."""
    n = len(cells.scale)
    shown = [(naturalistic_movie(rng, frames), gaze(rng, frames, cells.gaze_center)) for _ in range(movies)]
    power = np.zeros(n, dtype=F32)
    for video, pupil_center in shown:
        seen, contrast = cells._seen(video, pupil_center)
        for start in range(0, n, _BLOCK):
            block = slice(start, start + _BLOCK)
            first, second = cells._linear(seen, block)
            power[block] += np.mean((first**2 + second**2) / (2 * contrast**2), axis=1)
    kernels = cells.kernels / np.sqrt(power / movies)[None, :, None]
    cells = replace(cells, kernels=kernels)
    mean = np.zeros(n, dtype=F32)
    for video, pupil_center in shown:
        for block, drive in cells._drives(video, pupil_center):
            mean[block] += drive.mean(axis=1) / movies
    state = np.concatenate([_state(behave(rng, frames)) for _ in range(20)], axis=1)
    gain = _gain(cells.gains, state).mean(axis=1)
    rate = np.exp(rng.normal(np.log(0.045), 0.6, n)).astype(F32)
    share = rng.uniform(0.05, 0.3, n).astype(F32)
    scale = rate * (1 - share) / (gain * np.maximum(mean, F32(0.02)))
    return replace(cells, scale=scale, spontaneous=rate * share / gain)
