"""Trials held in memory give the batches of trials on disk; what does not fit is refused before it is read."""

from __future__ import annotations

import gc
import logging
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from viv1t.config.data import DataConfig
from viv1t.data.mice import open_recording
from viv1t.data.reading import resident
from viv1t.data.reading.reader import BatchPlan, PlainReader, Sample
from viv1t.data.reading.resident import DeviceCache
from viv1t.data.recordings import Recordings
from viv1t.data.session import VARIABLES, Session
from viv1t.data.statistics import compute_statistics
from viv1t.data.store.pack import pack
from viv1t.data.transform import Transform
from viv1t.errors import ConfigError, DataError
from viv1t.types import Batch

Make = Callable[..., Path]
MODES = ("none", "standardize_per_frame", "published", "standardize", "min_max", "balanced")
DURATIONS = (24, 24, 8, 24, 21, 24, 20, 24, 17, 24)


def run(folder: Path, device: torch.device | None = None, **options: object) -> Recordings:
    defaults = {"mice": "all", "transform": "published", "crop_frame": 10, "batch_size": 2}
    config = DataConfig(path=str(folder), **(defaults | options))  # type: ignore[arg-type]
    return Recordings.open(config, seed=1, device=device)


def content(batch: Batch) -> tuple[object, ...]:
    arrays = [(getattr(batch, v).shape, getattr(batch, v).numpy().tobytes()) for v in VARIABLES]
    return batch.mouse_id, batch.trial_ids, batch.frames.tolist(), arrays


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here outlives a crash of the machine."""
    monkeypatch.setattr("os.fsync", lambda _: None)


@pytest.fixture
def data(tmp_path: Path, make_session: Make) -> Path:
    """Two mice: odd sizes, trials of several lengths, one with movies that uint8 cannot hold."""
    make_session("raw/alpha", durations=DURATIONS, size=(5, 7))
    path = make_session("raw/beta", neurons=37, size=(5, 7), durations=DURATIONS, fortran=True, seed=1)
    movie = path / "data" / "videos" / "8.npy"  # not the first: it turns up while the others are held already
    np.save(movie, np.load(movie) + np.float32(0.25))
    return tmp_path / "raw"


def files_in_memory() -> int:
    folder = Path("/proc/self/fd")
    links = (os.readlink(folder / name) for name in os.listdir(folder) if (folder / name).is_symlink())
    return sum(link.startswith("/memfd:viv1t") for link in links)


class TestCpu:
    @pytest.mark.parametrize("mode", MODES)
    @pytest.mark.parametrize("crop_frame", [10, -1])
    @pytest.mark.parametrize("other", [{}, {"num_workers": 0}, {"center_crop": 0.8}, {"limit_data": 2}])
    def test_batches_equal_those_from_disk(
        self, data: Path, mode: str, crop_frame: int, other: dict[str, object]
    ) -> None:
        options = {"transform": mode, "crop_frame": crop_frame, **other}
        disk, held = run(data, **{**options, "num_workers": 0}), run(data, **options, cache_data="cpu")
        for epoch in (0, 1):
            for a, b in zip(disk.train_batches(epoch), held.train_batches(epoch), strict=True):
                assert content(a) == content(b)
        for a, b in zip(disk.trials("beta", "validation"), held.trials("beta", "validation"), strict=True):
            assert content(a) == content(b)

    def test_of_a_store(self, data: Path) -> None:
        list(pack(data, data.parent / "packed"))
        disk, held = run(data), run(data.parent / "packed", cache_data="cpu")
        for a, b in zip(disk.train_batches(0), held.train_batches(0), strict=True):
            assert content(a) == content(b)

    def test_is_read_once_and_freed(self, data: Path) -> None:
        gc.collect()
        before = files_in_memory()
        recordings = run(data, cache_data="cpu")
        assert files_in_memory() == before  # nothing until it is used
        first = [content(batch) for batch in recordings.train_batches(0)]
        assert files_in_memory() == before + 8
        for mouse in ("alpha", "beta"):
            shutil.rmtree(data / mouse / "data")
        assert first == [content(batch) for batch in recordings.train_batches(0)]
        recordings.close()
        assert files_in_memory() == before

    def test_damage_is_named(self, data: Path) -> None:
        recordings = run(data, cache_data="cpu")
        (data / "alpha" / "data" / "behavior" / "4.npy").unlink()
        with pytest.raises(DataError, match=r"mouse alpha, trial 4: .*behavior/4\.npy.*missing"):
            next(recordings.train_batches(0))

    def test_says_what_it_needs(self, data: Path, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.INFO, "viv1t"):
            next(run(data, cache_data="cpu").train_batches(0))
        assert "--cache_data cpu: holds 10 training trials of 2 mice in memory: 0.00 GiB" in caplog.text

    def test_is_refused_when_it_does_not_fit(self, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def needed() -> float:
            with pytest.raises(ConfigError, match=r"--cache_data cpu: the training trials need .*--mouse_ids") as error:
                run(data, cache_data="cpu")
            return float(re.findall(r"need ([\d.]+) GiB", str(error.value))[0])

        monkeypatch.setattr(resident, "available_bytes", lambda: 4096)
        assert needed() == 0.0
        original = open_recording(data / "alpha").duration(0)
        assert original == 24
        # As if there were a million times as many neurons.
        rows = Session.rows
        monkeypatch.setattr(Session, "rows", lambda self, v: (5 * 10**7,) if v == "response" else rows(self, v))
        assert needed() == pytest.approx(2 * 5 * 24 * 5e7 * 4 / 2**30, rel=1e-3)

    def test_movies_that_turn_out_larger_are_checked_again(self, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        recordings = run(data, cache_data="cpu")
        monkeypatch.setattr(resident, "available_bytes", lambda: 4096)
        with pytest.raises(ConfigError, match="--cache_data cpu: the training trials need"):
            next(recordings.train_batches(0))


class TestDevice:
    """The GPU's way, on the CPU."""

    @staticmethod
    def held(data: Path, mode: str, center_crop: float, names: tuple[str, ...] = ("alpha", "beta")):  # type: ignore
        sessions = {name: open_recording(data / name) for name in names}
        transforms = {}
        for name, session in sessions.items():
            statistics = None if mode == "none" else compute_statistics(session, session.trials("train"))
            transforms[name] = Transform(name, mode, statistics, center_crop, session.frame_size)
        trials = {name: session.trials("train") for name, session in sessions.items()}
        return sessions, transforms, DeviceCache(sessions, transforms, trials, 2, torch.device("cpu"))

    @pytest.mark.parametrize("mode", MODES)
    @pytest.mark.parametrize("center_crop", [1.0, 0.8])
    def test_batches_equal_those_from_disk(self, data: Path, mode: str, center_crop: float) -> None:
        sessions, transforms, cache = self.held(data, mode, center_crop)
        plans = [
            BatchPlan(name, (Sample(4, 3, 9), Sample(2, 0, 8), Sample(0, 15, 9)), frames)
            for name in sessions
            for frames in (9, None, 12)
        ]
        disk = PlainReader(sessions, transforms).read(plans)
        for a, b in zip(disk, cache.read(plans), strict=True):
            assert (a.mouse_id, a.trial_ids, a.frames.tolist()) == (b.mouse_id, b.trial_ids, b.frames.tolist())
            for variable in ("video", "behavior", "pupil_center"):
                assert torch.equal(getattr(a, variable), getattr(b, variable))
            assert torch.equal(a.response.bfloat16().float(), b.response)

    def test_elements_take_as_little_room_as_promised(self, data: Path) -> None:
        _, _, cache = self.held(data, "published", 1.0)
        next(cache.read([BatchPlan("alpha", (Sample(0, 0, 5),), None)]))
        kinds = {name: (a["video"].dtype, a["response"].dtype) for name, a in
                 ((name, held.arrays) for name, held in cache._held.items())}  # fmt: skip
        assert kinds == {"alpha": (torch.uint8, torch.bfloat16), "beta": (torch.float32, torch.bfloat16)}
        for name, held in cache._held.items():
            size = sum(a.numel() * a.element_size() for a in held.arrays.values())
            assert 0 <= cache._layouts[name].total_bytes - size <= 4 * 128
        cache.close()
        assert not cache._held

    def test_is_refused_when_it_does_not_fit(self, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(resident, "available_bytes", lambda: 4096)
        with pytest.raises(ConfigError, match="--cache_data gpu: the training trials need"):
            self.held(data, "none", 1.0)

    def test_needs_a_gpu(self, data: Path) -> None:
        with pytest.raises(ConfigError, match=r"--cache_data gpu needs a CUDA GPU.*use --cache_data cpu"):
            run(data, cache_data="gpu")

    @pytest.mark.gpu
    def test_batches_are_cut_on_the_gpu(self, data: Path) -> None:
        disk, held = run(data), run(data, device=torch.device("cuda"), cache_data="gpu")
        for a, b in zip(disk.train_batches(0), held.train_batches(0), strict=True):
            assert (a.mouse_id, a.trial_ids) == (b.mouse_id, b.trial_ids)
            assert b.video.is_cuda
            for variable in ("video", "behavior", "pupil_center"):
                assert torch.equal(getattr(a, variable), getattr(b, variable).cpu())
            assert torch.equal(a.response.bfloat16().float(), b.response.cpu())


class TestOption:
    def test_other_words(self) -> None:
        with pytest.raises(ConfigError, match="--cache_data must be one of cpu, gpu, not 'disk'"):
            DataConfig(mice="all", transform="none", cache_data="disk")
