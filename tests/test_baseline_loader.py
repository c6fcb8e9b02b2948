"""The loaders that benchmarks compare with deliver the engine's batches."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks import test_loader as benchmark
from viv1t.data.session import VARIABLES

SIZE = benchmark.Size(neurons=20, trials=7, frames=30, frame_size=(4, 6), crop=9, batch_size=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("recordings")
    benchmark.write_recordings(place, SIZE)
    return place


@pytest.mark.parametrize("case", benchmark.CASES)
@pytest.mark.parametrize("variant", [v for v in benchmark.LOADERS if not v.startswith("peer:pread")])
def test_equal_batches(folder: Path, case: str, variant: str) -> None:
    engine = benchmark.Epoch("viv1t", folder, case, SIZE)
    other = benchmark.Epoch(variant, folder, case, SIZE)
    try:
        for _ in range(2):  # every epoch starts anew
            for mine, theirs in zip(engine.batches(), other.batches(), strict=True):
                for variable in VARIABLES:
                    assert getattr(mine, variable).equal(theirs[variable])
    finally:
        other.close()


@pytest.mark.parametrize("case", benchmark.CASES)
@pytest.mark.parametrize("variant", ["peer:pread", "peer:pread-slots"])
def test_bare_reads_take_the_bytes_of_the_batches(folder: Path, case: str, variant: str) -> None:
    epoch = benchmark.Epoch(variant, folder, case, SIZE)
    found = sum(count for reads in epoch.loader.reads for _, _, count in reads)
    pixels = 4 * 6
    if case == "packed":
        per_trial = SIZE.crop * (pixels + 4 * SIZE.neurons + 4 * 4)
        assert len(list(epoch.batches())) == 6
    else:
        per_trial = SIZE.frames * 4 * (pixels + SIZE.neurons) + 2 * SIZE.frames * 2 * 8 + 4 * 128
    assert found == SIZE.epoch_trials * per_trial


def test_processors_and_memory_of_children_count(folder: Path) -> None:
    assert set(benchmark.family()) >= {os.getpid()}
    epoch = benchmark.Epoch("peer:dataloader", folder, "raw", SIZE)
    epoch()
    before = set(benchmark.family())
    assert len(before) >= 1 + SIZE.threads
    assert benchmark.cpu_seconds() > 0
    assert benchmark.memory_bytes() > 10e6
    epoch.close()
