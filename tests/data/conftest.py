"""Small recordings to read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

TIERS = ("train", "oracle", "train", "live_test_main", "train", "none", "oracle", "final_test_bonus", "train", "train")
FOLDERS = ("videos", "responses", "behavior", "pupil_center")


def write_session(
    folder: Path,
    name: str = "mouse-1",
    *,
    tiers: Sequence[str] = TIERS,
    neurons: int = 5,
    size: tuple[int, int] = (6, 8),
    frames: int = 24,
    durations: Sequence[int] | None = None,
    video_type: str = "float32",
    seed: int = 0,
    fortran: bool = False,
) -> Path:
    """A session whose trials last `durations` frames (default: all recorded ones), padded with NaN."""
    rng = np.random.default_rng(seed)
    session = folder / name
    for kind in FOLDERS:
        (session / "data" / kind).mkdir(parents=True)
    for trial in range(len(tiers)):
        shown = durations[trial] if durations else frames
        arrays = {
            "videos": rng.integers(0, 256, (*size, frames)).astype(video_type),
            "responses": rng.exponential(2.0, (neurons, frames)).astype(np.float32),
            "behavior": rng.normal(5.0, 1.0, (2, frames)),
            "pupil_center": rng.normal(50.0, 3.0, (2, frames)),
        }
        for kind, array in arrays.items():
            if array.dtype.kind == "f":
                array[..., shown:] = np.nan
            np.save(session / "data" / kind / f"{trial}.npy", np.asfortranarray(array) if fortran else array)
    meta = {
        "trials/tiers": np.array(tiers),
        "neurons/cell_motor_coordinates": rng.integers(-300, 300, (neurons, 3)),
        "neurons/unit_ids": np.arange(1, neurons + 1),
    }
    for file, array in meta.items():
        (session / "meta" / file).parent.mkdir(parents=True, exist_ok=True)
        np.save(session / "meta" / f"{file}.npy", array)
    return session


@pytest.fixture
def make_session(tmp_path: Path) -> Callable[..., Path]:
    """Writes a session below `tmp_path`; keyword arguments as for `write_session`."""

    def make(name: str = "mouse-1", **kwargs: object) -> Path:
        return write_session(tmp_path, name, **kwargs)  # type: ignore[arg-type]

    return make


@pytest.fixture(autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keeps the user's cache out of the tests."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder
