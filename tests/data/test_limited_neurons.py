"""`--limit_neurons` on reading, and the authors' folder of statistics beside recordings of 2025."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_runs import make_mice

from viv1t.data.mice import open_recording
from viv1t.data.recordings import Recordings
from viv1t.data.store.pack import pack
from viv1t.errors import DataError
from viv1t.families.closed_loop.data import limited_neurons, open_recordings
from viv1t.families.closed_loop.options import ClosedLoopDataConfig
from viv1t.types import SENSORIUM_SESSIONS

NEURONS = 6  # of each tiny mouse


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny mice G, as recorded, and F, packed."""
    made = make_mice(tmp_path_factory.mktemp("made"))
    folder = tmp_path_factory.mktemp("data")
    shutil.copytree(made / SENSORIUM_SESSIONS["G"], folder / SENSORIUM_SESSIONS["G"])
    assert list(pack(made, folder, ["F"]))
    return folder


def opened(folder: Path, limit: int | None, workers: int = 1, seed: int = 3, **more: object) -> Recordings:
    config = ClosedLoopDataConfig(
        path=str(folder), mouse_ids=("F", "G"), limit_neurons=limit, num_workers=workers, **more  # type: ignore[arg-type]
    )  # fmt: skip
    return open_recordings(config, seed)


@pytest.mark.parametrize("outputs", ["none", "deviation", "min_max"])
def test_a_few_neurons_are_read_as_among_all(folder: Path, outputs: str) -> None:
    whole = opened(folder, None, outputs=outputs)
    kept = limited_neurons(NEURONS, 3, 3)
    assert len(kept) == 3
    for workers in (0, 2):
        few = opened(folder, 3, workers, outputs=outputs, crop_frame=60)
        for mouse in ("F", "G"):
            assert np.array_equal(few.mice[mouse].unit_ids, whole.mice[mouse].unit_ids[kept])
            assert np.array_equal(few.mice[mouse].coordinates, whole.mice[mouse].coordinates[kept])
            np.testing.assert_allclose(few.mean_response(mouse), whole.mean_response(mouse)[kept], rtol=1e-6)
            assert np.array_equal(few.recorded(mouse).statistics.time["response"].std,  # type: ignore[index, union-attr]
                                  whole.recorded(mouse).statistics.time["response"].std[kept])  # type: ignore[index, union-attr]  # fmt: skip
            for a, b in zip(few.trials(mouse, "validation"), whole.trials(mouse, "validation"), strict=True):
                assert torch.equal(a.response, b.response[:, torch.from_numpy(kept)])
                assert torch.equal(a.video, b.video)
                response = b.response[0].numpy()
                recorded = few.recorded_units(mouse, response[kept], response.shape[1])
                assert np.array_equal(recorded, whole.recorded_units(mouse, response, response.shape[1])[kept])
        plain = opened(folder, 3, 0, outputs=outputs, crop_frame=60)
        read = 0
        for a, b in zip(few.train_batches(1), plain.train_batches(1), strict=True):
            assert a.trial_ids == b.trial_ids
            assert a.first_frames == b.first_frames
            assert torch.equal(a.response, b.response)
            read += len(a)
        assert read == sum(few.train_sizes.values())


def test_more_than_there_are_means_all(folder: Path) -> None:
    assert opened(folder, 100).mice["F"].neurons == NEURONS


def test_silent_neurons_do_not_hide_a_tier(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / SENSORIUM_SESSIONS["G"], tmp_path / SENSORIUM_SESSIONS["G"])
    session = open_recording(tmp_path / SENSORIUM_SESSIONS["G"], "G")
    (kept,) = limited_neurons(NEURONS, 1, 3)
    for trial in session.trials("validation"):
        response = np.load(session.file("response", trial))
        response[kept] = 0
        np.save(session.file("response", trial), response)
    recordings = open_recordings(ClosedLoopDataConfig(path=str(tmp_path), mouse_ids=("G",), limit_neurons=1), 3)
    assert recordings.mice["G"].neurons == 1
    assert not recordings.hidden("G", "validation")


def test_the_bias_starts_from_the_first_trials(folder: Path) -> None:
    for outputs in ("deviation", "min_max"):
        recordings = opened(folder, None, outputs=outputs)
        for most in (2, 16):
            trials = recordings.trial_ids("G", "train")[:most]
            batches = list(recordings.trials("G", "train", trials))
            together = np.concatenate([b.response[0].numpy() for b in batches], axis=1)
            np.testing.assert_allclose(recordings.mean_response("G", most), together.mean(1), rtol=1e-5, atol=1e-6)


def write_metadata(folder: Path, mouse: str, shift: float = 0.0, neurons: int = NEURONS) -> None:
    known = opened(folder, None).recorded(mouse).statistics
    assert known is not None
    assert known.time is not None
    root = folder / "metadata"
    for variable in ("video", "response", "behavior", "pupil_center"):
        target = root / "statistics" / f"mouse{mouse}" / variable
        target.mkdir(parents=True)
        for name in ("min", "max", "mean", "std", "median"):
            value = getattr(known.time[variable], "mean" if name == "median" else name)
            value = value.mean() if variable == "video" else value[:neurons] if variable == "response" else value
            np.save(target / f"{name}.npy", np.float32(value + shift))
    (root / "neuron_coordinates").mkdir(exist_ok=True)
    np.save(root / "neuron_coordinates" / f"mouse{mouse}.npy", np.zeros((neurons, 3), np.float32))


def test_the_published_folder_of_statistics_is_used_where_it_is_there(folder: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(folder, tmp_path / "data"))
    write_metadata(data, "G", shift=0.25)
    with_folder, without = opened(data, 3), opened(folder, 3)
    kept = limited_neurons(NEURONS, 3, 3)
    std = np.load(data / "metadata" / "statistics" / "mouseG" / "response" / "std.npy")
    np.testing.assert_allclose(with_folder.transform("G").affine["response"].scale[:, 0], 1 / std[kept], rtol=1e-6)
    mean = np.load(data / "metadata" / "statistics" / "mouseG" / "video" / "mean.npy")
    assert np.array_equal(np.unique(with_folder.transform("G").affine["video"].offset), np.unique(mean))
    for variable in ("video", "response"):  # of the mouse that is not in it, nothing changes
        a, b = (r.transform("F").affine[variable].scale for r in (with_folder, without))
        assert np.array_equal(a, b)
    assert with_folder.mice["G"].coordinates.any()
    assert len(list(with_folder.train_batches(1))) == with_folder.batches_per_epoch
    with_folder.recorded("G")


def test_a_published_folder_of_other_neurons_is_named(folder: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(folder, tmp_path / "data"))
    write_metadata(data, "G", neurons=NEURONS - 1)
    with pytest.raises(DataError, match=r"mouseG/response/\w+\.npy: expected \(6,\)"):
        opened(data, None)


def test_published_numbers_of_videos_say_which_trials_repeat(folder: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(folder, tmp_path / "data"))
    recordings = opened(data, None)
    trials = recordings.trial_ids("G", "validation")
    compared = recordings.repeats("G", "validation")
    path = data / "metadata" / "video_ids" / "mouseG.npy"
    path.parent.mkdir(parents=True)
    ids = np.arange(len(recordings.session("G").tiers))
    np.save(path, ids)
    assert opened(data, None).repeats("G", "validation") == [[trial] for trial in trials] != compared
    ids[trials] = 7
    np.save(path, ids)
    assert opened(data, None).repeats("G", "validation") == [trials]
    np.save(path, ids[:-1])
    with pytest.raises(DataError, match=r"mouseG\.npy: expected \d+ whole numbers, one for each trial"):
        opened(data, None)
