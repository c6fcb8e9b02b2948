"""Tiny runs that know windows of 62 frames, which hold a pattern and the grey around it."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_fixtures import mice, torch_settings
from tiny_runs import script_validation, train

__all__ = ["mice", "torch_settings"]


@pytest.fixture(scope="session")
def runs(mice: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs on F and G, not to be changed: `one`, and `two` with another seed and a longer reach."""
    folder = tmp_path_factory.mktemp("lab-runs")
    with pytest.MonkeyPatch.context() as patch:
        script_validation(patch, [0.3])
        train(mice, folder / "one", epochs=1, transform_mode=3, crop_frame=62)
        train(mice, folder / "two", epochs=1, transform_mode=3, crop_frame=62, seed=5, core_temporal_patch_size=9)
    return folder
