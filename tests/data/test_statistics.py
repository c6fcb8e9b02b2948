from __future__ import annotations

import logging
import os
import shutil
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from viv1t.data import statistics
from viv1t.data.mice import open_recording
from viv1t.data.session import FOLDERS, VARIABLES, Session
from viv1t.data.statistics import (
    compute_statistics,
    computed_statistics,
    medians,
    provided_statistics,
    response_precision,
)
from viv1t.errors import DataError

Make = Callable[..., Path]
DURATIONS = [24, 24, 20, 24, 17, 24, 24, 24, 22, 24]


def stacked(session: Session, variable: str) -> np.ndarray:
    """All training trials in float64, NaN where there is no frame."""
    arrays = [session.read(variable, trial).astype(np.float64) for trial in session.trials("train")]
    frames = max(array.shape[-1] for array in arrays)
    out = np.full((len(arrays), *arrays[0].shape[:-1], frames), np.nan)
    for row, array in zip(out, arrays, strict=True):
        row[..., : array.shape[-1]] = array
    return out


REFERENCE = {"min": np.nanmin, "max": np.nanmax, "mean": np.nanmean, "std": np.nanstd, "median": np.nanmedian}


def longer(path: Path, trial: int) -> None:
    for folder in FOLDERS.values():
        file = path / "data" / folder / f"{trial}.npy"
        array = np.load(file)
        np.save(file, np.concatenate([array[..., :10], array], -1))


@pytest.mark.filterwarnings("ignore:All-NaN", "ignore:Mean of empty", "ignore:Degrees of freedom")
@pytest.mark.parametrize("blocks", [1, 1 << 20])
def test_statistics_of_trials_of_several_lengths(
    make_session: Make, monkeypatch: pytest.MonkeyPatch, blocks: int
) -> None:
    monkeypatch.setattr(statistics, "MEDIAN_BYTES", blocks)
    path = make_session(durations=DURATIONS)
    longer(path, 4)
    session = open_recording(path)
    actual = compute_statistics(session, session.trials("train"))
    assert actual.counts.tolist() == [5] * 20 + [4] * 2 + [3] * 2 + [1] * 3 + [0] * 7
    for variable in VARIABLES:
        values = stacked(session, variable)
        for name, reference in REFERENCE.items():
            for family, axis in (("trial", 0), ("time", (0, -1))):
                moments = getattr(actual, family)[variable]
                found = medians(session, variable, family) if name == "median" else getattr(moments, name)
                assert found.dtype == np.float32
                np.testing.assert_allclose(found, reference(values, axis=axis), rtol=3e-7, atol=1e-7, err_msg=name)


def test_constant_values_have_exactly_no_deviation(make_session: Make) -> None:
    path = make_session()
    for trial in range(10):
        np.save(path / "data" / "behavior" / f"{trial}.npy", np.full((2, 24), 1e8 / 3))
    session = open_recording(path)
    actual = compute_statistics(session, session.trials("train"))
    assert actual.time is not None
    assert not actual.trial["behavior"].std.any()
    assert not actual.time["behavior"].std.any()


def test_no_cancellation_where_values_are_large(make_session: Make) -> None:
    path = make_session()
    for trial in range(10):
        np.save(path / "data" / "pupil_center" / f"{trial}.npy", np.full((2, 24), 1e7) + trial)
    session = open_recording(path)
    deviation = np.std(session.trials("train"))
    actual = compute_statistics(session, session.trials("train"))
    assert actual.time is not None
    np.testing.assert_allclose(actual.trial["pupil_center"].std, deviation, rtol=1e-6)
    np.testing.assert_allclose(actual.time["pupil_center"].std, deviation, rtol=1e-6)


def test_memory_does_not_grow_with_trials(make_session: Make) -> None:
    few = open_recording(make_session("few", tiers=["train"] * 3, neurons=200, frames=100))
    many = open_recording(make_session("many", tiers=["train"] * 30, neurons=200, frames=100))
    peaks = []
    for session in (few, many):
        tracemalloc.start()
        compute_statistics(session, session.trials("train"))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


def test_no_training_trial(make_session: Make) -> None:
    session = open_recording(make_session(tiers=["oracle"] * 3))
    with pytest.raises(DataError, match=r"no trial of the tier train.*--stat_mode 0"):
        computed_statistics(session)


class TestResponsePrecision:
    def test_threshold_is_one_per_mouse(self) -> None:
        std = np.array([[2.0, 1e-9, np.nan], [4.0, 0.0, 2.0]], np.float32)
        h = 0.01 * np.nanmean(std)
        np.testing.assert_allclose(response_precision(std), [[0.5, 1 / h, 1 / h], [0.25, 1 / h, 0.5]], rtol=1e-6)

    def test_only_the_first_300_frames_count(self) -> None:
        std = np.full((2, 324), 1e6, np.float32)
        std[:, :300] = 2
        np.testing.assert_array_equal(response_precision(std), np.full((2, 300), 0.5))

    def test_per_neuron(self) -> None:
        np.testing.assert_array_equal(response_precision(np.array([2.0, 4.0])), [[0.5], [0.25]])

    @pytest.mark.parametrize("value", [0.0, np.nan])
    def test_constant_responses(self, value: float) -> None:
        with pytest.raises(ValueError, match="same in every trial"):
            response_precision(np.full((2, 5), value))


class TestProvided:
    def write(self, path: Path, response_shape: tuple[int, ...] = (5, 24)) -> None:
        shapes = {"videos": (6, 8, 24), "responses": response_shape, "behavior": (2, 24), "pupil_center": (2, 24)}
        for number, (folder, shape) in enumerate(shapes.items()):
            (path / "meta" / "statistics" / folder / "all").mkdir(parents=True, exist_ok=True)
            for name in ("min", "max", "mean", "std"):
                np.save(path / "meta" / "statistics" / folder / "all" / f"{name}.npy", np.full(shape, number + 1.5))

    @pytest.mark.parametrize("shape", [(5, 24), (5,)])
    def test_read(self, make_session: Make, shape: tuple[int, ...]) -> None:
        path = make_session()
        self.write(path, shape)
        actual = provided_statistics(open_recording(path))
        assert actual.time is None
        assert actual.trial["response"].std.shape == shape
        assert actual.trial["behavior"].max[0, 0] == 3.5

    def test_missing_and_misshapen(self, make_session: Make) -> None:
        path = make_session()
        with pytest.raises(DataError, match=r"videos.*missing.*--stat_mode 1"):
            provided_statistics(open_recording(path))
        self.write(path, (4, 24))
        with pytest.raises(DataError, match=r"responses.*expected \(5, 'T'\), found \(4, 24\)"):
            provided_statistics(open_recording(path))


class TestCache:
    @pytest.fixture
    def path(self, make_session: Make) -> Path:
        return make_session(durations=DURATIONS)

    @pytest.fixture
    def computed(self, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        """Grows by one each time statistics are computed."""
        calls: list[int] = []
        original = compute_statistics

        def counted(session: Session, trials: list[int]) -> statistics.MouseStatistics:
            calls.append(1)
            return original(session, trials)

        monkeypatch.setattr(statistics, "compute_statistics", counted)
        return calls

    def cache(self, path: Path) -> Path:
        return path / "meta" / "viv1t_statistics.safetensors"

    def test_second_time_reads_the_same(self, path: Path, computed: list[int]) -> None:
        first = computed_statistics(open_recording(path))
        second = computed_statistics(open_recording(path))
        assert len(computed) == 1
        assert (first.trial_ids, first.counts.tolist()) == (second.trial_ids, second.counts.tolist())
        for family in ("trial", "time"):
            for variable in VARIABLES:
                for name in ("min", "max", "mean", "std"):
                    a, b = (getattr(getattr(s, family)[variable], name) for s in (first, second))
                    np.testing.assert_array_equal(a, b)
        assert sorted(file.name for file in (path / "meta").iterdir()) == [
            "neurons", "trials", "viv1t_statistics.safetensors",
        ]  # fmt: skip

    def test_changed_recordings_are_computed_anew(
        self, path: Path, computed: list[int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        computed_statistics(open_recording(path))
        tiers = np.load(path / "meta" / "trials" / "tiers.npy")
        tiers[5] = "train"
        np.save(path / "meta" / "trials" / "tiers.npy", tiers)
        computed_statistics(open_recording(path))
        assert len(computed) == 2
        changed = path / "data" / "behavior" / "0.npy"
        os.utime(changed, ns=(0, changed.stat().st_mtime_ns + 1))
        computed_statistics(open_recording(path))
        assert len(computed) == 3
        monkeypatch.setattr(statistics, "VERSION", statistics.VERSION + 1)
        computed_statistics(open_recording(path))
        assert len(computed) == 4
        computed_statistics(open_recording(path))
        assert len(computed) == 4

    @pytest.mark.parametrize("damage", [b"", b"x" * 100, None])
    def test_damaged_cache_is_computed_anew_with_a_warning(
        self, path: Path, computed: list[int], damage: bytes | None, caplog: pytest.LogCaptureFixture
    ) -> None:
        computed_statistics(open_recording(path))
        cache = self.cache(path)
        cache.write_bytes(cache.read_bytes()[:-50] if damage is None else damage)
        with caplog.at_level(logging.WARNING, "viv1t"):
            computed_statistics(open_recording(path))
        assert len(computed) == 2
        assert "damaged cache" in caplog.text
        computed_statistics(open_recording(path))
        assert len(computed) == 2

    def test_unwritable_recordings_use_the_cache_folder(
        self, path: Path, computed: list[int], cache_folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        save = statistics._save

        def refuse(target: Path, *rest: object) -> None:
            if target.is_relative_to(path):
                raise PermissionError(13, "Permission denied", str(target))
            save(target, *rest)  # type: ignore[arg-type]

        monkeypatch.setattr(statistics, "_save", refuse)
        computed_statistics(open_recording(path))
        computed_statistics(open_recording(path))
        assert len(computed) == 1
        assert [file.suffix for file in (cache_folder / "viv1t").iterdir()] == [".safetensors"]
        assert not self.cache(path).exists()

    @pytest.mark.parametrize("home", ["cache", "home", "none", "relative", "root", "unwritable"])
    def test_without_leave_to_write_statistics_are_computed_all_the_same(
        self, make_session: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, home: str
    ) -> None:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            folder.chmod(0o777)
            session = shutil.copytree(make_session(), folder / "mouse")
            locked = folder / "locked"
            locked.mkdir()
            for path in (session / "meta", locked):
                path.chmod(0o555)
            monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
            monkeypatch.delenv("HOME", raising=False)
            if home == "none":
                monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
            elif home in ("cache", "relative"):
                monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache") if home == "cache" else "~/cache")
            if home in ("home", "root", "unwritable", "relative"):
                place = {"root": "/", "unwritable": str(locked)}.get(home, str(folder / "cache"))
                monkeypatch.setenv("HOME", place)
            kept = folder / "cache" if home == "cache" else folder / "cache" / ".cache"
            with caplog.at_level(logging.WARNING, "viv1t"), ordinary_user():
                assert computed_statistics(open_recording(session)).trial_ids == (0, 2, 4, 8, 9)
            if home in ("cache", "home", "relative"):
                assert [file.suffix for file in (kept / "viv1t").iterdir()] == [".safetensors"]
                assert not caplog.text
            else:
                assert "not kept, and computed each time" in caplog.text
                assert "Permission denied" in caplog.text
            for path in (session / "meta", locked):
                path.chmod(0o755)


@contextmanager
def ordinary_user() -> Iterator[None]:
    """As root, which may write anywhere, acts as another user."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
