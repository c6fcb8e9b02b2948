from __future__ import annotations

import logging
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from viv1t.config.data import DataConfig
from viv1t.data.recordings import Recordings
from viv1t.data.session import VARIABLES
from viv1t.errors import ConfigError, DataError
from viv1t.types import SENSORIUM_SESSIONS, Batch

Make = Callable[..., Path]


def run(folder: Path, seed: int = 1, **options: object) -> Recordings:
    defaults = {"mice": "all", "transform": "published", "crop_frame": 10, "batch_size": 2}
    return Recordings.open(DataConfig(path=str(folder), **(defaults | options)), seed)  # type: ignore[arg-type]


def equal(a: Iterable[Batch], b: Iterable[Batch]) -> bool:
    return all(
        x.mouse_id == y.mouse_id
        and x.trial_ids == y.trial_ids
        and torch.equal(x.frames, y.frames)
        and all(torch.equal(getattr(x, v), getattr(y, v)) for v in VARIABLES)
        for x, y in zip(a, b, strict=True)
    )


@pytest.fixture
def two(tmp_path: Path, make_session: Make) -> Path:
    """A mouse with five training trials and one with two, of which several are short."""
    make_session("alpha", durations=[24, 24, 8, 24, 21, 24, 20, 24, 24, 24])
    make_session("beta", tiers=["train", "oracle", "train"], neurons=3, seed=1)
    return tmp_path


def test_an_epoch(two: Path) -> None:
    recordings = run(two)
    assert list(recordings.mice) == ["alpha", "beta"]
    assert recordings.frame_size == (6, 8)
    assert recordings.train_sizes == {"alpha": 5, "beta": 2}
    assert recordings.batches_per_epoch == 6
    batches = list(recordings.train_batches(0))
    assert [batch.mouse_id for batch in batches] == ["alpha", "beta"] * 3
    assert [len(batch) for batch in batches] == [2, 2, 2, 2, 1, 2]
    seen = Counter(trial for batch in batches if batch.mouse_id == "alpha" for trial in batch.trial_ids)
    assert seen == Counter([0, 2, 4, 8, 9])
    for batch in batches:
        n = recordings.mice[batch.mouse_id].neurons
        assert batch.video.shape == (len(batch), 1, 10, 6, 8)
        assert batch.response.shape == (len(batch), n, 10)
        assert batch.behavior.shape == batch.pupil_center.shape == (len(batch), 2, 10)
        assert batch.frames.tolist() == [8 if (batch.mouse_id, t) == ("alpha", 2) else 10 for t in batch.trial_ids]
        assert all(getattr(batch, variable).dtype == torch.float32 for variable in VARIABLES)


def test_short_trials_are_padded_with_zeros(two: Path) -> None:
    batch = next(b for b in run(two, batch_size=5).train_batches(0) if b.mouse_id == "alpha")
    row = batch.trial_ids.index(2)
    assert batch.frames[row] == 8 < batch.video.shape[2]
    for variable in VARIABLES:
        values = getattr(batch, variable)[row]  # frames are the second axis
        assert values[:, :8].any()
        assert not values[:, 8:].any()
        assert values.isfinite().all()


def test_whole_trials_are_padded_to_the_longest_of_the_batch(two: Path) -> None:
    recordings = run(two, crop_frame=-1, batch_size=2)
    for batch in recordings.train_batches(3):
        assert batch.video.shape[2] == batch.response.shape[2] == batch.frames.max()
    alpha = [b for b in recordings.train_batches(0) if b.mouse_id == "alpha"]
    lengths = {trial: n for b in alpha for trial, n in zip(b.trial_ids, b.frames.tolist(), strict=True)}
    assert lengths == {0: 24, 2: 8, 4: 21, 8: 24, 9: 24}


@pytest.mark.parametrize(("mode", "length"), [("published", 300), ("none", 310)])
def test_crops_beyond_300_frames(tmp_path: Path, make_session: Make, mode: str, length: int) -> None:
    make_session(tiers=["train", "train", "oracle"], frames=320, size=(2, 3))
    (batch,) = run(tmp_path, crop_frame=310, transform=mode).train_batches(0)
    assert batch.video.shape[2] == length
    (batch,) = run(tmp_path, transform=mode).trials("mouse-1", "validation")
    assert batch.video.shape[2] == (300 if mode == "published" else 320)


def test_crops_are_parts_of_whole_trials(two: Path) -> None:
    recordings = run(two)
    whole = {(m, b.trial_ids[0]): b for m in recordings.mice for b in recordings.trials(m, "train")}
    starts = set()
    for epoch in range(6):
        for batch in recordings.train_batches(epoch):
            for row, trial in enumerate(batch.trial_ids):
                n, reference = int(batch.frames[row]), whole[batch.mouse_id, trial].response[0]
                crop = batch.response[row, :, :n]
                windows = reference.shape[1] - n + 1
                fits = [s for s in range(windows) if torch.equal(reference[:, s : s + n], crop)]
                assert len(fits) == 1
                if trial == 0:
                    starts.add(fits[0])
                video = whole[batch.mouse_id, trial].video[0, :, fits[0] : fits[0] + n]
                assert torch.equal(video, batch.video[row, :, :n])
    assert len(starts) > 5


@pytest.mark.parametrize("options", [{"num_workers": 1}, {"num_workers": 5}, {"cache_data": "cpu"}])
@pytest.mark.parametrize("center_crop", [1.0, 0.8])
@pytest.mark.parametrize("crop_frame", [10, -1])
def test_neither_threads_nor_the_cache_change_anything(
    two: Path, options: dict[str, object], center_crop: float, crop_frame: int
) -> None:
    common = {"center_crop": center_crop, "crop_frame": crop_frame}
    reference, other = run(two, num_workers=0, **common), run(two, **common, **options)
    for epoch in (0, 1):
        assert equal(reference.train_batches(epoch), other.train_batches(epoch))
    for mouse in reference.mice:
        assert equal(reference.trials(mouse, "validation"), other.trials(mouse, "validation"))


@pytest.mark.parametrize("options", [{}, {"num_workers": 1}, {"num_workers": 5}, {"cache_data": "cpu"}])
@pytest.mark.parametrize("center_crop", [1.0, 0.8])
def test_compact_transfer_rounds_training_responses_alone(
    two: Path, options: dict[str, object], center_crop: float
) -> None:
    plain = run(two, num_workers=0, center_crop=center_crop)
    compact = run(two, transfer="compact", center_crop=center_crop, **options)
    rounded = [replace(b, response=b.response.bfloat16().float()) for b in plain.train_batches(0)]
    assert equal(rounded, compact.train_batches(0))
    assert not equal(rounded, plain.train_batches(0))
    assert equal(plain.trials("alpha", "validation"), compact.trials("alpha", "validation"))


def test_compact_transfer_needs_reader_threads(two: Path) -> None:
    with pytest.raises(ConfigError, match=r"--transfer compact .* set --num_workers"):
        run(two, transfer="compact", num_workers=0)


def test_seed_and_epoch_decide(two: Path) -> None:
    batches = list(run(two).train_batches(4))
    assert equal(batches, run(two).train_batches(4))
    assert not equal(batches, run(two).train_batches(5))
    assert not equal(batches, run(two, seed=2).train_batches(4))


@pytest.mark.parametrize("first", [0, 1, 4, 6])
def test_an_epoch_resumes_at_any_batch(two: Path, first: int) -> None:
    recordings = run(two)
    assert equal(list(recordings.train_batches(2))[first:], recordings.train_batches(2, first))


def test_trials_seen_twice_in_an_epoch_get_another_crop(tmp_path: Path, make_session: Make) -> None:
    make_session("alpha", tiers=["train"] * 8)
    make_session("beta", tiers=["train"] * 2, seed=1)
    rows = [
        (trial, row)
        for b in run(tmp_path, crop_frame=4).train_batches(0)
        if b.mouse_id == "beta"
        for trial, row in zip(b.trial_ids, b.response, strict=True)
    ]
    crops = [row for trial, row in rows if trial == 0]
    assert len(crops) == 4
    assert not all(torch.equal(crops[0], other) for other in crops[1:])


def test_evaluation_reads_whole_trials_in_ascending_order(two: Path) -> None:
    recordings = run(two)
    batches = list(recordings.trials("alpha", "validation"))
    assert [batch.trial_ids for batch in batches] == [(1,), (6,)]
    assert [batch.video.shape[2] for batch in batches] == [24, 20]
    assert [batch.frames.tolist() for batch in batches] == [[24], [20]]
    assert recordings.trial_ids("alpha", "validation") == [1, 6]
    assert list(recordings.trials("alpha", "final_test_main")) == []
    assert recordings.repeats("alpha", "validation") == [[1], [6]]
    assert not recordings.hidden("alpha", "validation")


def test_mean_response_is_that_of_the_training_set(two: Path) -> None:
    recordings = run(two)
    for mouse in recordings.mice:
        values = np.concatenate([b.response[0].numpy() for b in recordings.trials(mouse, "train")], -1)
        np.testing.assert_allclose(recordings.mean_response(mouse), values.mean(-1), rtol=1e-5)
        assert recordings.mean_response(mouse).dtype == np.float32


@pytest.mark.parametrize("options", [{"limit_data": 2}, {"mice": "all_with_test"}, {"transform": "none"}])
def test_mean_response_of_other_selections(tmp_path: Path, make_session: Make, options: dict[str, object]) -> None:
    make_session(SENSORIUM_SESSIONS["B"], durations=[24, 24, 8, 24, 21, 24, 20, 24, 24, 24])
    recordings = run(tmp_path, **options)
    values = np.concatenate([b.response[0].numpy() for b in recordings.trials("B", "train")], -1)
    np.testing.assert_allclose(recordings.mean_response("B"), values.mean(-1), rtol=1e-5)


class TestSelection:
    def test_test_tiers_are_merged_for_old_mice_only(self, tmp_path: Path, make_session: Make) -> None:
        make_session(SENSORIUM_SESSIONS["B"])
        make_session(SENSORIUM_SESSIONS["F"])
        make_session("other")
        recordings = run(tmp_path, mice="all_with_test")
        assert recordings.trial_ids("B", "train") == [0, 2, 3, 4, 7, 8, 9]
        assert recordings.trial_ids("B", "live_test_main") == [3]
        for mouse in ("F", "other"):
            assert recordings.trial_ids(mouse, "train") == [0, 2, 4, 8, 9]
        assert recordings.train_sizes == {"B": 7, "F": 5, "other": 5}

    def test_merging_withheld_responses_warns(
        self, tmp_path: Path, make_session: Make, caplog: pytest.LogCaptureFixture
    ) -> None:
        path = make_session(SENSORIUM_SESSIONS["B"])
        np.save(path / "data" / "responses" / "7.npy", np.zeros((5, 24)))
        with caplog.at_level(logging.WARNING, "viv1t"):
            recordings = run(tmp_path, mice="all_with_test")
        assert "final_test_bonus" in caplog.text
        assert "live_test_main" not in caplog.text
        assert recordings.train_sizes == {"B": 7}
        assert recordings.hidden("B", "final_test_bonus")

    def test_statistics_come_from_the_tier_train_whatever_is_selected(self, two: Path) -> None:
        plain, limited = run(two), run(two, limit_data=1)
        assert limited.train_sizes == {"alpha": 1, "beta": 1}
        assert equal(plain.trials("alpha", "validation"), limited.trials("alpha", "validation"))

    def test_limit_above_the_number_of_trials(self, two: Path, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.WARNING, "viv1t"):
            recordings = run(two, limit_data=3)
        assert recordings.train_sizes == {"alpha": 3, "beta": 2}
        assert "mouse beta: all 2 trials are used" in caplog.text
        assert "alpha" not in caplog.text


class TestErrors:
    @pytest.mark.parametrize("options", [{"num_workers": 0}, {"num_workers": 3}, {"center_crop": 0.9}])
    def test_a_damaged_trial_surfaces_at_its_batch(self, two: Path, options: dict[str, object]) -> None:
        recordings, before = run(two, **options), _threads()
        order = [b.trial_ids for b in recordings.train_batches(0)]
        bad = next(i for i, trials in enumerate(order) if i % 2 == 0 and 8 in trials)
        (two / "alpha" / "data" / "responses" / "8.npy").write_bytes(b"\x93NUMPY")
        batches = recordings.train_batches(0)
        for _ in range(bad):
            next(batches)
        with pytest.raises(DataError, match=r"mouse alpha, trial 8: .*responses/8\.npy"):
            next(batches)
        assert _threads() == before

    def test_closing_early_leaves_no_thread(self, two: Path) -> None:
        recordings, before = run(two, num_workers=3), _threads()
        batches = recordings.train_batches(0)
        next(batches)
        assert _threads() == before + 3
        batches.close()  # type: ignore[attr-defined]
        assert _threads() == before

    def test_frame_sizes_must_agree(self, two: Path, make_session: Make) -> None:
        make_session("gamma", size=(6, 9))
        with pytest.raises(DataError, match=r"alpha has 6 x 8 pixels and gamma 6 x 9.*--mouse_ids"):
            run(two)

    def test_no_training_trial(self, tmp_path: Path, make_session: Make) -> None:
        make_session(tiers=["oracle", "oracle"])
        recordings = run(tmp_path, transform="none")
        assert len(list(recordings.trials("mouse-1", "validation"))) == 2
        for use in (lambda: recordings.train_batches(0), lambda: recordings.mean_response("mouse-1")):
            with pytest.raises(DataError, match="mouse mouse-1: no trial of the tier train"):
                use()


def _threads() -> int:
    """Of this process, those of C++ among them."""
    return len(os.listdir("/proc/self/task"))


def test_kept_trials_are_read_once_and_freed(two: Path) -> None:
    recordings = run(two, cache_data="cpu")
    first = list(recordings.train_batches(0))
    shutil.rmtree(two / "alpha" / "data")
    assert equal(first, recordings.train_batches(0))
    recordings.close()
    with pytest.raises(DataError):
        list(recordings.train_batches(0))
