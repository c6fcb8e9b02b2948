"""Decoding of films into stimuli through PyAV and DALI, and trials read as video and as uint8 arrays.

One PyTorch thread; decoders take what they like. DALI decodes on the GPU where there is one; on a CPU only what it
takes there, lossless VP9. The stimulus (30 Hz, 36 x 64) is made by the same code in both.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.harness import DEVICE, Report, peak_bytes, seconds
from viv1t.data.formats.sensorium.trial_video import read_array, write_trial
from viv1t.stimuli import dali
from viv1t.stimuli.decode import probe
from viv1t.stimuli.film import Movie

av = pytest.importorskip("av", reason="needs viv1t[video]")

FRAME_SIZE = (36, 64)
THREADS = 1
_LOSSLESS = {"lossless": "1", "cpu-used": "8", "auto-alt-ref": "0", "lag-in-frames": "0", "g": "30"}
# Per case: codec, its options, frames, height and width.
FILMS = {
    "vp9-lossless-144p": ("libvpx-vp9", _LOSSLESS, 300, 144, 256),
    "h264-1080p": ("libx264", {"crf": "20", "preset": "veryfast"}, 120, 1080, 1920),
}
TRIALS, TRIAL_FRAMES = 10, 300


def natural(frames: int, height: int, width: int) -> np.ndarray:
    """(frames, height, width) uint8: a texture that pans, its amplitude 1/f like that of natural scenes, and noise."""
    rng = np.random.default_rng(0)
    tall, wide = height + 64, width + frames
    frequency = np.hypot(np.fft.fftfreq(tall)[:, None], np.fft.rfftfreq(wide))
    frequency[0, 0] = np.inf
    phases = np.exp(2j * np.pi * rng.random(frequency.shape))
    scene = np.fft.irfft2(phases / frequency, s=(tall, wide))
    scene = 127 + 45 * scene / scene.std()
    rows = (32 + 30 * np.sin(np.arange(frames) / 40)).astype(int)
    noise = rng.normal(0, 1, scene.shape)
    film = np.empty((frames, height, width), np.uint8)
    for i, row in enumerate(rows):
        own = noise[rng.integers(64) :, rng.integers(frames) :][:height, :width]
        film[i] = (scene[row : row + height, i : i + width] + own).clip(0, 255)
    return film


def write_film(path: Path, case: str) -> None:
    codec, options, *shape = FILMS[case]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=30, options=dict(options))
        stream.height, stream.width, stream.pix_fmt = *shape[1:], "yuv420p"
        stream.codec_context.color_range = 2
        for index, luma in enumerate(natural(*shape)):
            picture = av.VideoFrame(shape[2], shape[1], "yuv420p")
            picture.pts, picture.color_range = index, 2
            for number, plane in enumerate(picture.planes):
                rows = np.full((plane.height, plane.line_size), 128, np.uint8)
                if number == 0:
                    rows[:, : shape[2]] = luma
                plane.update(rows)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


def decoding(path: str, decoder: str) -> Callable[[], object]:
    """A pass over the film, of which nothing is kept."""
    movie = Movie(path, FRAME_SIZE, device=DEVICE, decoder=decoder)

    def work() -> None:
        for _ in movie.chunks():
            pass

    return work


def reading(folder: str, suffix: str) -> Callable[[], object]:
    """A pass over the trials of a folder."""
    files = sorted(Path(folder).glob(f"*{suffix}"))

    def work() -> None:
        for file in files:
            read_array(file)

    return work


@pytest.mark.parametrize("case", FILMS)
def test_decoding(case: str, report: Report, tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"
    write_film(path, case)
    info = probe(path)
    decoders = ["pyav"] if dali.obstacle(info, torch.device(DEVICE)) else ["pyav", "dali"]
    times = seconds({name: decoding(str(path), name) for name in decoders}, 5, threads=THREADS)
    speeds = {name: [info.frames / t for t in values] for name, values in times.items()}
    report.add("movie", case, "frames_per_s", "1/s", speeds)
    peaks = {name: peak_bytes(decoding, str(path), name, threads=THREADS) for name in decoders}
    report.add("movie", case, "peak_bytes", "B", peaks)


def test_trials(report: Report, tmp_path: Path) -> None:
    film = natural(TRIALS * TRIAL_FRAMES, *FRAME_SIZE)
    for trial in range(TRIALS):
        movie = film[trial * TRIAL_FRAMES : (trial + 1) * TRIAL_FRAMES]
        write_trial(tmp_path / f"{trial}.mp4", movie)
        np.save(tmp_path / f"{trial}.npy", np.ascontiguousarray(np.moveaxis(movie, 0, -1)))
    kinds = {"video": ".mp4", "array": ".npy"}
    times = seconds({name: reading(str(tmp_path), suffix) for name, suffix in kinds.items()}, 7, threads=THREADS)
    speeds = {name: [len(film) / t for t in values] for name, values in times.items()}
    report.add("movie", "trial", "frames_per_s", "1/s", speeds)
    sizes = {name: sum(f.stat().st_size for f in tmp_path.glob(f"*{s}")) / len(film) for name, s in kinds.items()}
    report.add("movie", "trial", "bytes_per_frame", "B", sizes)
