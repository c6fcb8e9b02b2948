"""DALI's decoding: for real on the CPU, on what it takes there; on a GPU where there is one."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from small_videos import LOSSY, moving_pattern, write_video

from viv1t.data.formats.sensorium.trial_video import read_array, write_trial
from viv1t.errors import ConfigError, DataError
from viv1t.stimuli import dali
from viv1t.stimuli.decode import probe
from viv1t.stimuli.film import Movie

if importlib.util.find_spec("nvidia.dali") is None:
    pytest.skip("DALI is not here: pip install 'viv1t[dali]'", allow_module_level=True)

SIZE = (36, 64)
CPU, GPU = torch.device("cpu"), torch.device("cuda")


def both(path: Path, device: str = "cpu", frame_size: tuple[int, int] = SIZE) -> tuple[torch.Tensor, torch.Tensor]:
    """The stimulus through DALI and through PyAV."""
    found = Movie(path, frame_size, device=device, decoder="dali")
    assert found.decoder == "dali"
    assert found.reason == ""
    reference = Movie(path, frame_size, device=device, decoder="pyav")
    assert reference.decoder == "pyav"
    return found.read(), reference.read()


@pytest.mark.parametrize(("frames", "size"), [(1, (36, 64)), (64, (35, 63)), (131, (36, 64)), (70, (90, 160))])
def test_lossless_films_are_the_same_through_dali_and_pyav(frames: int, size: tuple[int, int], tmp_path: Path) -> None:
    path = write_video(tmp_path / "film.mp4", moving_pattern(frames, *size))
    found, reference = both(path)
    assert torch.equal(found, reference)
    assert torch.equal(both(path, frame_size=size)[0], torch.from_numpy(moving_pattern(frames, *size)).float())


@pytest.mark.parametrize("container", ["mp4", "mkv", "webm"])
def test_varying_rates_and_other_rates_are_the_same(container: str, tmp_path: Path) -> None:
    luma = moving_pattern(70, *SIZE)
    times = np.cumsum(np.random.default_rng(2).integers(5, 90, 70)).tolist()
    for number, options in enumerate(({"milliseconds": times}, {"rate": 60}, {"rate": Fraction(24000, 1001)})):
        found, reference = both(write_video(tmp_path / f"{number}.{container}", luma, **options))
        assert torch.equal(found, reference)


def test_a_film_that_was_replaced_is_not_mistaken_for_the_one_before(tmp_path: Path) -> None:
    path = write_video(tmp_path / "film.mp4", moving_pattern(9, *SIZE))
    both(path)
    write_video(path, moving_pattern(9, *SIZE, seed=1), rate=20)
    with contextlib.suppress(DataError):  # that it knew another file of this name: whether it does is up to DALI
        found, reference = both(path)
        assert torch.equal(found, reference)


def test_frames_at_other_times_than_pyav_finds_are_refused(tmp_path: Path) -> None:
    info = probe(write_video(tmp_path / "film.mp4", moving_pattern(9, *SIZE)))
    for times in (info.times * 1.1, info.times[:-1]):
        with pytest.raises(DataError, match="DALI finds other frames than PyAV"):
            list(dali.chunks(dataclasses.replace(info, times=times), 4, CPU))


def test_rotation_is_applied_once(tmp_path: Path) -> None:
    for rotation in (90, 180, 270):
        path = write_video(tmp_path / f"{rotation}.mp4", moving_pattern(3, *SIZE), rotation=rotation)
        found, reference = both(path)
        assert torch.equal(found, reference)


def test_grey_mjpeg_is_within_one_grey_level(tmp_path: Path) -> None:
    path = write_video(tmp_path / "film.mp4", moving_pattern(20, 72, 128), "mjpeg")
    found, reference = both(path)
    assert (found - reference).abs().max() <= 1


def test_hidden_frames_do_not_upset_the_order(tmp_path: Path) -> None:
    options = {"lossless": "1", "cpu-used": "8", "auto-alt-ref": "1", "lag-in-frames": "16"}
    path = write_video(tmp_path / "film.webm", moving_pattern(80, *SIZE), options=options)
    found, reference = both(path)
    assert torch.equal(found, reference)
    assert torch.equal(found, torch.from_numpy(moving_pattern(80, *SIZE)).float())


def test_packed_trials_are_films_that_dali_takes(tmp_path: Path) -> None:
    movie = moving_pattern(33, *SIZE)
    write_trial(tmp_path / "3.mp4", movie)
    assert np.array_equal(np.moveaxis(read_array(tmp_path / "3.mp4"), -1, 0), movie)
    found, reference = both(tmp_path / "3.mp4", frame_size=(144, 144))
    assert torch.equal(found, reference)
    assert torch.equal(found[:, :36, :64], torch.from_numpy(movie).float())


def test_what_dali_cannot_take_is_named_and_goes_through_pyav(tmp_path: Path) -> None:
    luma = moving_pattern(3, *SIZE)
    cases = {
        "it does not decode h264 on the CPU": write_video(tmp_path / "h264.mp4", luma, "libx264"),
        "the pixel format is yuv444p": write_video(tmp_path / "444.mp4", luma, pixel_format="yuv444p"),
        "its CPU decoder gives no luma of videos of limited range": write_video(
            tmp_path / "limited.mp4", luma, full_range=False
        ),
    }
    for reason, path in cases.items():
        with pytest.raises(ConfigError, match=f"DALI cannot decode it: {reason}.*; use --decoder pyav"):
            Movie(path, SIZE, decoder="dali")
        assert Movie(path, SIZE).decoder == "pyav"


@pytest.mark.parametrize(
    ("codec", "pixel_format", "options", "reason"),
    [
        ("libx265", "yuv420p10le", {"x265-params": "log-level=none"}, "the pixel format is yuv420p10le"),
        ("libx264", "yuv444p", {"qp": "0"}, "the pixel format is yuvj444p"),
        ("ffv1", "yuv420p", {}, "it does not decode ffv1 on the GPU"),
        ("libx264", "yuv420p", {"x264-params": "interlaced=1", "flags": "+ildct+ilme"}, "the video is interlaced"),
        ("libx264", "yuv420p", {}, ""),
        ("libsvtav1", "yuv420p", {}, ""),
    ],
)
def test_what_goes_to_a_gpu(
    codec: str, pixel_format: str, options: dict[str, str], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dali, "missing", lambda device: "")  # as on a machine with a GPU
    kind = np.uint16 if "10" in pixel_format else np.uint8
    path = write_video(
        tmp_path / "film.mkv", moving_pattern(3, 64, 64).astype(kind), codec, options, pixel_format=pixel_format
    )
    found = dali.obstacle(probe(path), GPU)
    assert found.startswith(reason) if reason else found == ""


def test_films_in_colour_are_refused_on_the_cpu(tmp_path: Path) -> None:
    path = write_video(tmp_path / "film.mp4", moving_pattern(3, *SIZE), chroma=90)
    with pytest.raises(DataError, match=r"film\.mp4: is in colour, .*; use --decoder pyav"):
        Movie(path, SIZE, decoder="dali").read()


def test_a_film_that_ends_early_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "film.mp4", moving_pattern(9, *SIZE))
    info = probe(path)
    longer = dataclasses.replace(info, times=np.append(info.times, 1.0))
    with pytest.raises(DataError, match=r"damaged: its last frame is at 1\.00 s, but decoding ended at 0\.27 s"):
        list(dali.chunks(longer, 4, CPU))


def test_a_file_that_dali_cannot_open_is_one_error(tmp_path: Path) -> None:
    path = write_video(tmp_path / "film.mp4", moving_pattern(9, *SIZE))
    info = probe(path)
    path.write_bytes(b"gone")
    with pytest.raises(DataError, match=r"film\.mp4: DALI cannot decode it"):
        list(dali.chunks(info, 4, CPU))


def test_a_missing_or_other_dali_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(package: str) -> str:
        raise dali.importlib.metadata.PackageNotFoundError(package)

    for version, reason in ((absent, "it is not installed"), (lambda _: "1.9", "its version is 1.9, and not 2")):
        monkeypatch.setattr(dali.importlib.metadata, "version", version)
        assert dali.missing.__wrapped__("cpu").startswith(reason)


@pytest.mark.skipif(torch.cuda.is_available(), reason="of machines without a GPU")
def test_without_a_gpu_the_missing_decoder_is_named() -> None:
    assert dali.missing("cpu") == ""
    assert dali.missing("cuda") == "this machine has no video decoder (libnvcuvid.so.1)"


@pytest.mark.gpu
@pytest.mark.parametrize("codec", ["libvpx-vp9", "libx264", "libx265", "libsvtav1", "mjpeg"])
@pytest.mark.parametrize("full_range", [True, False])
def test_nvdec_gives_the_luma_of_pyav(codec: str, full_range: bool, tmp_path: Path) -> None:
    if codec == "mjpeg" and not full_range:
        pytest.skip("MJPEG is of full range")
    luma = moving_pattern(70, 180, 320, low=0 if full_range else 16, high=255 if full_range else 235)
    options = LOSSY.get(codec) if codec in ("libx264", "libx265") else None  # NVDEC takes no lossless H.264
    path = write_video(tmp_path / "film.mp4", luma, codec, options, full_range=full_range, chroma=90)
    found, reference = both(path, "cuda")
    assert found.device.type == "cuda"
    assert (found - reference).abs().max() <= (1e-3 if codec == "libvpx-vp9" else 1)


@pytest.mark.gpu
def test_nvdec_decodes_packed_trials_exactly(tmp_path: Path) -> None:
    movie = moving_pattern(300, *SIZE)
    write_trial(tmp_path / "3.mp4", movie)
    found = Movie(tmp_path / "3.mp4", (144, 144), device="cuda", decoder="dali").read()
    assert torch.equal(found[:, :36, :64].cpu(), torch.from_numpy(movie).float())
