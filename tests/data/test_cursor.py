"""Positions in training: saved, restored, shared between processes."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from viv1t.config.data import DataConfig
from viv1t.data.order import Cursor, order_digest, share
from viv1t.data.recordings import Recordings
from viv1t.data.session import VARIABLES
from viv1t.data.store.pack import pack
from viv1t.errors import CheckpointError, ConfigError
from viv1t.types import Batch

Make = Callable[..., Path]


def run(folder: Path, seed: int = 1, rank: int = 0, ranks: int = 1, **options: object) -> Recordings:
    defaults = {"mice": "all", "transform": "published", "crop_frame": 10, "batch_size": 2}
    return Recordings.open(DataConfig(path=str(folder), **(defaults | options)), seed, rank, ranks)  # type: ignore


def content(batch: Batch) -> tuple[object, ...]:
    return batch.mouse_id, batch.trial_ids, *(getattr(batch, v).numpy().tobytes() for v in VARIABLES)


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here outlives a crash of the machine."""
    monkeypatch.setattr("os.fsync", lambda _: None)


@pytest.fixture
def data(tmp_path: Path, make_session: Make) -> Path:
    """A mouse with five training trials and one with two, of which several are short."""
    make_session("raw/alpha", durations=[24, 24, 8, 24, 21, 24, 20, 24, 24, 24])
    make_session("raw/beta", tiers=["train", "oracle", "train"], neurons=3, seed=1)
    return tmp_path / "raw"


@pytest.fixture(params=["raw", "packed"])
def folder(request: pytest.FixtureRequest, data: Path) -> Path:
    if request.param == "packed":
        list(pack(data, data.parent / "packed"))
    return data.parent / request.param


@pytest.mark.parametrize("workers", [1, 2, 4, 8])
@pytest.mark.parametrize("crop_frame", [10, -1])
def test_every_position_continues_with_the_same_batches(folder: Path, workers: int, crop_frame: int) -> None:
    whole = [content(batch) for batch in run(folder, num_workers=0, crop_frame=crop_frame).train_batches(2)]
    assert len(whole) == 6
    for position in range(len(whole) + 1):
        first = run(folder, num_workers=workers, crop_frame=crop_frame)
        batches = first.train_batches(2)
        before = [content(next(batches)) for _ in range(position)]
        saved = json.dumps(dataclasses.asdict(first.cursor(2, position)))
        batches.close()  # type: ignore[attr-defined]
        second = run(folder, num_workers=workers, crop_frame=crop_frame)
        assert before + [content(batch) for batch in second.resume(Cursor(**json.loads(saved)))] == whole


@pytest.mark.parametrize("cache", ["cpu", None])
def test_a_position_does_not_depend_on_how_trials_are_read(folder: Path, data: Path, cache: str | None) -> None:
    cursor = run(data).cursor(0, 3)
    whole = [content(batch) for batch in run(data).train_batches(0)]
    assert [content(batch) for batch in run(folder, cache_data=cache, num_workers=3).resume(cursor)] == whole[3:]


@pytest.mark.parametrize(
    "options", [{"batch_size": 3}, {"crop_frame": 9}, {"seed": 2}, {"mouse_ids": ("alpha",)}, {"limit_data": 2}]
)
def test_a_position_of_another_order_is_refused(data: Path, options: dict[str, int]) -> None:
    cursor = run(data).cursor(0, 3)
    with pytest.raises(CheckpointError, match=r"the position \(epoch 0, batch 3\) was saved with other"):
        run(data, **options).resume(cursor)


@pytest.mark.parametrize("batch", [-1, 7])
def test_a_position_outside_the_epoch_is_refused(data: Path, batch: int) -> None:
    recordings = run(data)
    with pytest.raises(CheckpointError, match=f"no batch {batch} in an epoch of 6"):
        recordings.resume(recordings.cursor(0, batch))


def test_the_digest_never_changes() -> None:
    """A position saved by another release is still good."""
    for trials in ([3, 1, 2], (1, 2, 3)):
        assert order_digest(1234, {"A": trials, "F": [0]}, 6, 140) == "a242980c010420ff"


class TestSharing:
    @pytest.mark.parametrize("mice", [1, 2, 3, 10])
    @pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8, 16])
    def test_every_mouse_belongs_to_one_process(self, mice: int, ranks: int) -> None:
        neurons = {f"mouse-{i}": 7000 + 977 * (i * i % 7) for i in range(mice)}
        if ranks > mice:
            with pytest.raises(ConfigError, match=f"{ranks} processes cannot share {mice} mice"):
                share(neurons, 0, ranks)
            return
        shares = [share(neurons, rank, ranks) for rank in range(ranks)]
        assert sorted(m for served in shares for m in served) == sorted(neurons)
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
        assert all(list(served) == [m for m in neurons if m in served] for served in shares)

    def test_mice_with_many_neurons_are_kept_apart(self) -> None:
        neurons = {"A": 9, "B": 8, "C": 2, "D": 1}
        assert [share(neurons, rank, 2) for rank in range(2)] == [("A", "D"), ("B", "C")]
        assert share(neurons, 0, 1) == ("A", "B", "C", "D")

    @pytest.mark.parametrize("ranks", [1, 2])
    @pytest.mark.parametrize("cache", ["cpu", None])
    def test_processes_read_the_batches_of_one_between_them(self, folder: Path, ranks: int, cache: str | None) -> None:
        def rows(recordings: Recordings, first: int) -> Counter[tuple[object, ...]]:
            return Counter(
                (batch.mouse_id, trial, *(getattr(batch, v)[i].numpy().tobytes() for v in VARIABLES))
                for batch in recordings.train_batches(1, first)
                for i, trial in enumerate(batch.trial_ids)
            )

        for first in (0, 3):
            parts = [run(folder, rank=rank, ranks=ranks, cache_data=cache) for rank in range(ranks)]
            assert sum((rows(part, first) for part in parts), Counter()) == rows(run(folder), first)
            assert {mouse for part in parts for mouse in part.served} == {"alpha", "beta"}
            assert {part.cursor(1, 3) for part in parts} == {run(folder).cursor(1, 3)}
