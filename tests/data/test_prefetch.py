"""The C++ prefetcher delivers what the plain reader delivers, bit for bit, and fails as it does."""

from __future__ import annotations

import gc
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from growth import assert_no_growth, held

from viv1t.config.data import DataConfig
from viv1t.data.mice import open_recording
from viv1t.data.reading.prefetch import Prefetcher
from viv1t.data.reading.reader import BatchPlan, PlainReader, Sample
from viv1t.data.recordings import Recordings
from viv1t.data.session import VARIABLES, Session
from viv1t.data.statistics import compute_statistics
from viv1t.data.transform import Transform
from viv1t.errors import DataError
from viv1t.types import Batch

Make = Callable[..., Path]
MODES = ("none", "standardize_per_frame", "published", "standardize", "min_max", "balanced")
DURATIONS = (24, 24, 8, 24, 21, 24, 20, 24, 17, 24)


def mouse(folder: Path, mode: str, center_crop: float = 1.0) -> tuple[dict[str, Session], dict[str, Transform]]:
    session = open_recording(folder)
    statistics = None if mode == "none" else compute_statistics(session, session.trials("train"))
    transform = Transform(session.mouse.id, mode, statistics, center_crop, session.frame_size)
    return {session.mouse.id: session}, {session.mouse.id: transform}


def strict(
    sessions: dict[str, Session], transforms: dict[str, Transform], workers: int, compact: bool = False
) -> Prefetcher:
    """A prefetcher that cannot fall back to the plain way."""
    prefetcher = Prefetcher(sessions, transforms, workers, compact=compact)
    prefetcher._plain = PlainReader({}, {})
    return prefetcher


def plans(sessions: dict[str, Session], count: int = 12, crop: int = 9) -> list[BatchPlan]:
    """Crops of every kind: padded and not, at the start, in the middle and at the end of a trial."""
    rng = np.random.default_rng(3)
    made = []
    for _ in range(count):
        name = str(rng.choice(list(sessions)))
        samples = []
        for trial in rng.choice(10, int(rng.integers(1, 5))):
            frames = min(crop, sessions[name].duration(trial))
            start = int(rng.integers(0, sessions[name].duration(trial) - frames + 1))
            samples.append(Sample(int(trial), start, frames))
        made.append(BatchPlan(name, tuple(samples), crop if rng.integers(2) else None))
    return made


def assert_equal(a: Iterable[Batch], b: Iterable[Batch], *, rounded: bool = False) -> None:
    """Byte by byte; `rounded`: the responses of `a` are those of `b` rounded to bf16."""
    for x, y in zip(a, b, strict=True):
        assert (x.mouse_id, x.trial_ids) == (y.mouse_id, y.trial_ids)
        assert torch.equal(x.frames, y.frames)
        for variable in VARIABLES:
            mine, reference = getattr(x, variable), getattr(y, variable)
            if rounded and variable == "response":
                reference = reference.bfloat16().float()
            assert mine.dtype == torch.float32
            assert mine.is_contiguous() or (variable == "response" and mine.transpose(1, 2).is_contiguous())
            assert mine.shape == reference.shape
            assert mine.numpy().tobytes() == reference.numpy().tobytes(), variable


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("workers", [1, 2, 4, 8])
@pytest.mark.parametrize("compact", [False, True])
def test_batches_equal_those_of_the_plain_reader(make_session: Make, mode: str, workers: int, compact: bool) -> None:
    sessions, transforms = mouse(make_session(durations=DURATIONS), mode)
    second = mouse(make_session("b", neurons=37, durations=DURATIONS, video_type="float64", fortran=True, seed=1), mode)
    sessions, transforms = sessions | second[0], transforms | second[1]
    todo = plans(sessions)
    plain = PlainReader(sessions, transforms).read(todo)
    assert_equal(strict(sessions, transforms, workers, compact).read(todo), plain, rounded=compact)


@pytest.mark.parametrize("video_type", ["uint8", "int16", "float16", "float64", ">f4", ">i8", "bool"])
@pytest.mark.parametrize("fortran", [False, True])
@pytest.mark.parametrize("compact", [False, True])
def test_every_type_of_movie(make_session: Make, video_type: str, fortran: bool, compact: bool) -> None:
    sessions, transforms = mouse(make_session(video_type=video_type, fortran=fortran), "standardize")
    todo = plans(sessions)
    plain = PlainReader(sessions, transforms).read(todo)
    assert_equal(strict(sessions, transforms, 2, compact).read(todo), plain, rounded=compact)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("compact", [False, True])
def test_center_crops(make_session: Make, mode: str, compact: bool) -> None:
    sessions, transforms = mouse(make_session(durations=DURATIONS, size=(11, 13)), mode, center_crop=0.7)
    todo = plans(sessions)
    plain = list(PlainReader(sessions, transforms).read(todo))
    assert_equal(strict(sessions, transforms, 2, compact).read(todo), plain, rounded=compact)
    whole = PlainReader(sessions, {"mouse-1": transforms["mouse-1"].without_center_crop()}).read(todo)
    assert mode == "none" or not any(torch.equal(a.video, b.video) for a, b in zip(plain, whole, strict=True))


@pytest.mark.parametrize("odd", [0.5, 256.0, -1.0])
def test_movies_that_uint8_cannot_hold_come_as_float32(
    make_session: Make, caplog: pytest.LogCaptureFixture, odd: float
) -> None:
    sessions, transforms = mouse(make_session(), "published")
    path = sessions["mouse-1"].file("video", 4)
    movie = np.load(path)
    movie[2, 3, 7] = odd
    np.save(path, movie)
    todo = [BatchPlan("mouse-1", (Sample(trial, 2, 10), Sample(9, 0, 9)), None) for trial in (0, 4, *range(8))]
    prefetcher = Prefetcher(sessions, transforms, 2, compact=True)
    for _ in range(2):
        assert_equal(prefetcher.read(todo), PlainReader(sessions, transforms).read(todo), rounded=True)
        prefetcher._plain = PlainReader({}, {})  # once known, no movie of this mouse is read the plain way
    assert not caplog.records


@pytest.mark.parametrize(
    ("source", "mode"), [*(("provided", mode) for mode in MODES[:3]), *(("computed", mode) for mode in MODES)]
)
@pytest.mark.parametrize("mouse_id", ["B", "F"])
def test_recordings_deliver_the_same_with_and_without_it(golden: Path, source: str, mode: str, mouse_id: str) -> None:
    options = {
        "path": str(golden / "data" / "sensorium"), "mice": "all", "mouse_ids": (mouse_id,), "statistics": source,
        "transform": mode, "batch_size": 3, "crop_frame": 60,
    }  # fmt: skip
    plain, fast = (Recordings.open(DataConfig(**options, num_workers=n), seed=5) for n in (0, 3))  # type: ignore[arg-type]
    assert_equal(fast.train_batches(1), plain.train_batches(1))
    for name in plain.mice:
        assert_equal(fast.trials(name, "validation"), plain.trials(name, "validation"))


def test_batches_that_are_kept_are_never_written_again(make_session: Make) -> None:
    sessions, transforms = mouse(make_session(), "published")
    todo = plans(sessions, count=40)
    kept = list(Prefetcher(sessions, transforms, 2).read(todo))
    assert_equal(kept, PlainReader(sessions, transforms).read(todo))


def test_a_view_keeps_the_memory_of_its_batch(make_session: Make) -> None:
    sessions, transforms = mouse(make_session(), "published")
    todo = plans(sessions, count=30)
    views = [batch.response[0, 1:3] for batch in Prefetcher(sessions, transforms, 2).read(todo)]
    for view, batch in zip(views, PlainReader(sessions, transforms).read(todo), strict=True):
        assert torch.equal(view, batch.response[0, 1:3])


def test_memory_is_used_again_once_it_is_free(make_session: Make) -> None:
    sessions, transforms = mouse(make_session(), "published")
    prefetcher = Prefetcher(sessions, transforms, 1)
    plan = BatchPlan("mouse-1", (Sample(0, 0, 9),) * 4, None)
    places = set()
    for _ in range(3):
        for batch in prefetcher.read([plan] * 20):
            places.add(batch.video.data_ptr())
            del batch
    assert len(places) <= 6


def test_no_further_ahead_than_needed(make_session: Make) -> None:
    sessions, transforms = mouse(make_session(), "none")
    asked = itertools.count()

    def endless() -> Iterator[BatchPlan]:
        while True:
            next(asked)
            yield BatchPlan("mouse-1", (Sample(0, 0, 5),), None)

    batches = Prefetcher(sessions, transforms, 2).read(endless())
    for _ in range(10):
        next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert next(asked) <= 10 + 2 * 2 + 1


def damage(path: Path, how: str) -> None:
    if how == "missing":
        path.unlink()
    elif how == "truncated":
        path.write_bytes(path.read_bytes()[:-4])
    elif how == "text":
        path.write_text("no array")
    else:
        array = np.load(path)
        if how == "nan":
            array[..., 5] = np.nan if path.parent.name in ("videos", "responses") else np.inf  # NaN there is filled
        np.save(path, array[1:] if how == "shape" else array)


@pytest.mark.parametrize("variable", VARIABLES)
@pytest.mark.parametrize("how", ["missing", "truncated", "text", "nan", "shape"])
def test_an_error_surfaces_at_its_batch_as_the_plain_readers(make_session: Make, variable: str, how: str) -> None:
    sessions, transforms = mouse(make_session(), "published")
    session = sessions["mouse-1"]
    assert [session.duration(trial) for trial in range(10)] == [24] * 10
    assert session.frame_size == (6, 8)
    damage(session.file(variable, 4), how)
    todo = [BatchPlan("mouse-1", (Sample(trial, 2, 10), Sample(9, 0, 9)), None) for trial in range(8)]
    messages = []
    for reader in (Prefetcher(sessions, transforms, 3), PlainReader(sessions, transforms)):
        batches = reader.read(todo)
        for _ in range(4):
            next(batches)
        with pytest.raises(DataError) as raised:
            next(batches)
        messages.append(str(raised.value))
    assert messages[0] == messages[1]
    assert "mouse mouse-1, trial 4" in messages[0]
    assert str(session.file(variable, 4)) in messages[0]


@pytest.mark.parametrize("variable", ["behavior", "pupil_center"])
def test_blinks_are_filled_as_by_the_plain_reader(make_session: Make, variable: str) -> None:
    sessions, transforms = mouse(make_session(), "published")
    path = sessions["mouse-1"].file(variable, 4)
    np.save(path, np.where(np.arange(24) == 5, np.nan, np.load(path)))
    todo = [BatchPlan("mouse-1", (Sample(4, 2, 10), Sample(9, 0, 9)), None)]
    fast, plain = (
        next(reader.read(todo)) for reader in (Prefetcher(sessions, transforms, 3), PlainReader(sessions, transforms))
    )
    assert torch.equal(getattr(fast, variable), getattr(plain, variable))
    assert torch.isfinite(getattr(fast, variable)).all()


def test_frames_past_the_statistics_are_refused_at_their_batch(make_session: Make) -> None:
    sessions, transforms = mouse(make_session(durations=[9] * 9 + [24]), "published")
    transforms = {"mouse-1": mouse(make_session("short", frames=9), "published")[1]["short"]}
    batches = Prefetcher(sessions, transforms, 2).read(
        [BatchPlan("mouse-1", (Sample(0, 0, 9),), None), BatchPlan("mouse-1", (Sample(9, 5, 9),), None)]
    )
    next(batches)
    with pytest.raises(DataError, match="the statistics of video reach frame 9 only"):
        next(batches)


def test_what_only_numpy_reads_is_read_all_the_same(make_session: Make, caplog: pytest.LogCaptureFixture) -> None:
    sessions, transforms = mouse(make_session(), "published")
    path = sessions["mouse-1"].file("response", 3)
    np.save(path, np.load(path).astype(np.longdouble))
    todo = [BatchPlan("mouse-1", (Sample(trial, 2, 10),), None) for trial in (0, 3, 3, 4)]
    with caplog.at_level(logging.WARNING, "viv1t"):
        assert_equal(
            Prefetcher(sessions, transforms, 2).read(todo), PlainReader(sessions, transforms).read(todo)
        )
    (record,) = caplog.records
    assert str(path) in record.getMessage()
    assert "not supported" in record.getMessage()


def test_stopping_at_any_moment_leaves_nothing_behind(make_session: Make) -> None:
    sessions, transforms = mouse(make_session(), "published")
    todo = plans(sessions, count=6)
    before = held()
    prefetcher = Prefetcher(sessions, transforms, 4)
    for taken in [0, 1, 3, 6] * 12:
        batches = prefetcher.read(todo)
        for _ in range(taken):
            next(batches)
        if taken == 3:
            batches.close()  # type: ignore[attr-defined]
        del batches
    prefetcher.close()
    gc.collect()
    assert held() == before


def read_epochs(folder: Path, epochs: int) -> None:
    """Whole epochs and epochs that are left early; a batch has 1.5 MB."""
    config = DataConfig(path=str(folder), mice="all", transform="published", crop_frame=140, batch_size=5)
    recordings = Recordings.open(config, seed=1)

    def epoch(i: int) -> None:
        for taken, _ in enumerate(recordings.train_batches(i)):
            if taken == 2 and i % 3 == 0:
                break

    assert_no_growth(epoch, epochs, allowed=4 << 20)
    recordings.close()


def test_epochs_leave_nothing_behind(tmp_path: Path, make_session: Make) -> None:
    make_session(tiers=["train"] * 20, neurons=500, frames=150)
    read_epochs(tmp_path, 10)


@pytest.mark.slow
def test_fifty_epochs_leave_nothing_behind(tmp_path: Path, make_session: Make) -> None:
    for name in ("alpha", "beta"):
        make_session(name, tiers=["train"] * 40, neurons=500, frames=150)
    read_epochs(tmp_path, 50)


def test_an_error_in_the_plans_is_passed_on(make_session: Make) -> None:
    sessions, transforms = mouse(make_session(), "none")

    def broken() -> Iterator[BatchPlan]:
        yield from plans(sessions, count=3)
        raise DataError("trial 7 is missing")

    with pytest.raises(DataError, match="trial 7 is missing"):
        list(Prefetcher(sessions, transforms, 2).read(broken()))


@pytest.mark.gpu
@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("center_crop", [1.0, 0.7])
def test_batches_on_the_gpu_equal_those_on_the_cpu(make_session: Make, compact: bool, center_crop: float) -> None:
    sessions, transforms = mouse(make_session(neurons=500), "published", center_crop)
    todo = plans(sessions, count=100)
    prefetcher = Prefetcher(sessions, transforms, 2, torch.device("cuda"), compact)
    kept = []
    for batch in prefetcher.read(todo):
        assert batch.video.is_cuda
        kept.append(batch)
    assert all(block.is_pinned() for block in prefetcher._memory._free)
    plain = PlainReader(sessions, transforms).read(todo)
    if center_crop == 1:
        assert_equal((batch.to("cpu") for batch in kept), plain, rounded=compact)
    for a, b in zip(kept, plain, strict=True):
        torch.testing.assert_close(a.video.cpu(), b.video, rtol=1e-6, atol=1e-6)
