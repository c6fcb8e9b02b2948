"""Resizing and resampling, against their definitions in float64."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from viv1t.errors import ConfigError
from viv1t.stimuli.frames import BACKGROUND, Resize, resample, resampled_length, tick


def area_means(image: np.ndarray, axis: int, start: float, stop: float, parts: int) -> np.ndarray:
    """Means over equal parts of [start, stop] of an axis, by the integral from its beginning."""
    integral = np.insert(np.cumsum(np.moveaxis(image.astype(np.float64), axis, 0), axis=0), 0, 0, axis=0)
    edges = np.linspace(start, stop, parts + 1)
    whole = np.clip(np.floor(edges).astype(int), 0, image.shape[axis] - 1)
    share = (edges - whole).reshape(-1, *[1] * (image.ndim - 1))
    at_edges = integral[whole] * (1 - share) + integral[whole + 1] * share
    return np.moveaxis(np.diff(at_edges, axis=0) / ((stop - start) / parts), 0, axis)


def luma(frames: int, height: int, width: int, dtype: type = np.uint8, high: int = 256) -> np.ndarray:
    return np.random.default_rng(0).integers(0, high, (frames, height, width)).astype(dtype)


@pytest.mark.parametrize("size", [(36, 64), (72, 128), (144, 144), (37, 61), (1080, 1920), (1, 1), (18, 32), (5, 300)])
def test_stretching_takes_the_mean_of_the_area_that_a_pixel_covers(size: tuple[int, int]) -> None:
    frames = luma(2, *size)
    expected = area_means(area_means(frames, 1, 0, size[0], 36), 2, 0, size[1], 64)
    found = Resize(size, (36, 64), "stretch")(torch.from_numpy(frames))
    assert found.dtype == torch.float32
    assert np.abs(found.numpy() - expected).max() < 1e-3


def test_the_same_size_is_the_same_frame() -> None:
    frames = luma(3, 36, 64)
    for fit in ("crop", "pad", "stretch"):
        assert np.array_equal(Resize((36, 64), (36, 64), fit)(torch.from_numpy(frames)).numpy(), frames)


@pytest.mark.parametrize(
    ("size", "rows", "columns"),
    [
        ((100, 300), (0, 100), (150 - 100 * 64 / 72, 150 + 100 * 64 / 72)),  # too wide
        ((300, 100), (150 - 50 * 36 / 64, 150 + 50 * 36 / 64), (0, 100)),  # too high
    ],
)
def test_cropping_cuts_around_the_centre(
    size: tuple[int, int], rows: tuple[float, float], columns: tuple[float, float]
) -> None:
    frames = luma(1, *size)
    expected = area_means(area_means(frames, 1, *rows, 36), 2, *columns, 64)
    assert np.abs(Resize(size, (36, 64), "crop")(torch.from_numpy(frames)).numpy() - expected).max() < 1e-3


def test_padding_shows_everything_on_grey() -> None:
    frames = luma(1, 36, 36)
    found = Resize((36, 36), (36, 64), "pad")(torch.from_numpy(frames)).numpy()
    assert np.array_equal(found[:, :, 14:50], frames)
    assert (np.delete(found, np.s_[14:50], axis=2) == BACKGROUND).all()
    high = luma(1, 72, 8)
    found = Resize((72, 8), (36, 64), "pad")(torch.from_numpy(high)).numpy()
    assert np.abs(found[:, :, 30:34] - area_means(area_means(high, 1, 0, 72, 36), 2, 0, 8, 4)).max() < 1e-3
    assert (np.delete(found, np.s_[30:34], axis=2) == BACKGROUND).all()


def test_pixels_that_are_not_square_are_shown_in_their_proportions() -> None:
    frames = luma(1, 36, 32)
    wide = Resize((36, 32), (36, 64), "crop", pixel_aspect=2)(torch.from_numpy(frames)).numpy()
    assert np.array_equal(wide, frames.repeat(2, axis=2))
    turned = Resize((32, 36), (36, 64), "crop", pixel_aspect=0.5, rotation=90)(torch.from_numpy(luma(1, 32, 36)))
    assert np.array_equal(turned.numpy(), np.rot90(luma(1, 32, 36), 1, (1, 2)).repeat(2, axis=2))


@pytest.mark.parametrize(("bits", "dtype"), [(8, np.uint8), (8, np.float32), (10, np.float32), (12, np.float32)])
def test_limited_range_becomes_full(bits: int, dtype: type) -> None:
    frames = luma(1, 36, 64, dtype, 2**bits)
    step = 2 ** (bits - 8)
    expected = ((frames.astype(np.float64) / step - 16) * 255 / 219).clip(0, 255)
    found = Resize((36, 64), (36, 64), bits=bits, full_range=False)(torch.from_numpy(frames)).numpy()
    assert np.abs(found - expected).max() < 1e-3
    full = Resize((36, 64), (36, 64), bits=bits, full_range=True)(torch.from_numpy(frames)).numpy()
    assert np.abs(full - frames.astype(np.float64) * 255 / (2**bits - 1)).max() < 1e-3


def test_levels_beyond_the_limited_range_are_cut_before_they_are_averaged() -> None:
    frames = np.array([[[0, 235], [16, 255]]], np.uint8)  # black, white, black, white
    found = Resize((2, 2), (1, 1), "stretch", full_range=False)(torch.from_numpy(frames))
    assert found.item() == pytest.approx(127.5, abs=1e-4)


def test_an_unknown_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match="--fit must be one of crop, pad, stretch, not 'fill'"):
        Resize((2, 2), (1, 1), "fill")


def shown(times: np.ndarray, end: float, chunk: int = 7) -> list[int]:
    """Which frame each 30 Hz frame shows, as `resample` has it."""

    def chunks() -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        for first in range(0, len(times), chunk):
            part = times[first : first + chunk]
            yield part, torch.arange(first, first + len(part), dtype=torch.float32)[:, None, None]

    pieces = list(resample(chunks(), end, lambda frames: frames))  # type: ignore[arg-type]
    return torch.cat(pieces).flatten().int().tolist()


def by_definition(times: np.ndarray, end: float) -> list[int]:
    """The last frame that starts before 0.47 of the way to the next 30 Hz frame."""
    length = max(1, round(end * 30 + 0.03 - 1e-9))
    return [max(0, int(np.flatnonzero(times < (k + 0.47) / 30).max(initial=0))) for k in range(length)]


@pytest.mark.parametrize("rate", [1, 10, 15, 24, 25, 24000 / 1001, 30000 / 1001, 30, 48, 50, 60000 / 1001, 60, 120])
@pytest.mark.parametrize("milliseconds", [False, True])
def test_resampling_shows_the_frame_of_the_time(rate: float, milliseconds: bool) -> None:
    times = np.arange(int(rate * 4)) / rate
    times = np.round(times, 3) if milliseconds else times
    end = len(times) / rate
    found = shown(times, end)
    assert found == by_definition(times, end)
    assert len(found) == resampled_length(end)
    assert abs(len(found) - end * 30) < 1
    for k, frame in enumerate(found[:-1]):
        late = k / 30 - times[frame]  # a frame is shown when it is due, or up to half a frame early or late
        assert -0.5 / 30 - 1e-3 < late < 1 / rate + 0.5 / 30 + 1e-3


def test_common_rates_are_taken_as_they_should() -> None:
    for step in (1, 2, 4):  # 30, 60 and 120 Hz, of exact times and of rounded ones
        for decimals in (3, 9):
            times = np.round(np.arange(400) / (30 * step), decimals)
            first = step // 4  # of 120 Hz, a quarter of the way is nearer too
            assert shown(times, 400 / (30 * step)) == list(range(first, 400, step))
    ntsc = shown(np.arange(300) * 1.001 / 30, 300 * 1.001 / 30)
    assert ntsc == list(range(300))  # no frame is shown twice within ten seconds


def test_varying_rates_and_long_stills() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        times = np.cumsum(rng.exponential(rng.choice([0.005, 0.03, 0.3]), 40))
        times -= times[0]
        end = float(times[-1]) + 0.1
        assert shown(times, end) == by_definition(times, end)
    still = shown(np.array([0.0, 100.0]), 100.1)
    assert still == [0] * 3000 + [1] * 3


def test_a_piece_is_never_longer_than_ten_seconds() -> None:
    chunks = [(np.array([0.0, 50.0]), torch.zeros(2, 1, 1)), (np.array([50.1]), torch.ones(1, 1, 1))]
    pieces = list(resample(iter(chunks), 90.0, lambda frames: frames))  # type: ignore[arg-type]
    assert max(len(piece) for piece in pieces) <= 300
    assert sum(map(len, pieces)) == 2700


def test_a_single_frame_and_a_late_first_frame() -> None:
    assert shown(np.array([0.0]), 0.001) == [0]
    assert shown(np.array([0.5, 0.6]), 0.7) == [0] * 18 + [1] * 3  # what comes before shows the first
    assert tick(0.0) == 0
