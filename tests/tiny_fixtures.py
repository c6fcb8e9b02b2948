"""Fixtures of the tests that train, shared by their folders."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny_runs import make_mice, script_validation, train


@pytest.fixture(scope="session")
def mice(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny mice F, G and A; not to be changed."""
    return make_mice(tmp_path_factory.mktemp("mice"))


@pytest.fixture(scope="module")
def run(mice: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; not to be changed."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as patch:
        script_validation(patch, [0.25])
        train(mice, folder, epochs=1)
    return folder


@pytest.fixture(scope="session")
def runs(mice: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Finished runs, not to be changed.

    `one` and `two` (another seed and a longer reach) are on F and G, `old` is on A, `all` on A, F and G.
    """
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        script_validation(patch, [0.3])
        train(mice, folder / "one", epochs=1)
        train(mice, folder / "two", epochs=1, seed=5, core_temporal_patch_size=9)
        script_validation(patch, [0.3], mice=("A",))
        train(mice, folder / "old", epochs=1, ds_mode=3, mouse_ids=["A"])
        script_validation(patch, [0.3], mice=("A", "F", "G"))
        train(mice, folder / "all", epochs=1, ds_mode=2, mouse_ids=None)
    return folder


@pytest.fixture(autouse=True)
def torch_settings() -> Iterator[None]:
    """One thread, which is fastest for what is tiny; puts PyTorch's global settings back."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)
