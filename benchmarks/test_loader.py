"""Training batches delivered from a warm page cache: recorded sessions and packed ones, on two CPU cores.

All variants read the same files, cut the same crops and apply the same transform; nothing is done with the batches.
Of packed recordings, the engine and its peers hand out responses as they lie, a (B, N, T) view of (B, T, N), which the
criterion makes contiguous. The published way knows recorded sessions only, and stands beside packed ones as what they
replace. Worker processes are started before the clock.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.baseline.loader import SLOTS, DaliLoader, Pread, PublishedLoader, SpdlLoader, TunedLoader
from benchmarks.harness import Report, seconds, torch_threads
from benchmarks.parent import end_with_parent
from viv1t.config.data import DataConfig
from viv1t.data.mice import open_recording
from viv1t.data.order import crop_start, training_order
from viv1t.data.reading.reader import BatchPlan, Sample
from viv1t.data.recordings import Recordings
from viv1t.data.session import Session
from viv1t.data.statistics import computed_statistics
from viv1t.data.store.pack import pack
from viv1t.data.transform import Transform
from viv1t.system.memory import available_bytes

SEED, EPOCH = 1, 0
NEEDED_BYTES = 6e9  # two sets of recordings in the page cache, and the published way's processes
LOADERS: dict[str, Callable[..., Any]] = {
    "published": PublishedLoader, "published:no-workers": partial(PublishedLoader, processes=0),
    "peer:dataloader": TunedLoader, "peer:pread": Pread, "peer:pread-slots": partial(Pread, slots=SLOTS),
}  # fmt: skip
if importlib.util.find_spec("spdl"):
    LOADERS["peer:spdl"] = SpdlLoader
if importlib.util.find_spec("nvidia") and importlib.util.find_spec("nvidia.dali"):
    LOADERS["peer:dali"] = DaliLoader
VARIANTS = ("viv1t", *LOADERS)
CASES = ("raw", "packed")


@dataclass(frozen=True)
class Size:
    """How much is read."""

    mice: int = 2
    neurons: int = 8000
    trials: int = 48
    frames: int = 300
    frame_size: tuple[int, int] = (36, 64)
    crop: int = 140
    batch_size: int = 6
    threads: int = 2

    @property
    def epoch_trials(self) -> int:
        return self.mice * self.trials

    @property
    def trial_bytes(self) -> int:
        """Of a delivered crop."""
        return 4 * self.crop * (self.frame_size[0] * self.frame_size[1] + self.neurons + 4)

    def config(self, folder: Path) -> DataConfig:
        return DataConfig(
            path=str(folder), mice="all", transform="published", crop_frame=self.crop, batch_size=self.batch_size,
            num_workers=self.threads,
        )  # fmt: skip


def write_recordings(folder: Path, size: Size) -> None:
    """Mice as recorded in `folder/raw`, and packed in `folder/packed`."""
    rng = np.random.default_rng(0)
    for mouse in range(size.mice):
        session = folder / "raw" / f"mouse-{mouse}"
        meta = {
            "trials/tiers": np.array(["train"] * size.trials),
            "neurons/cell_motor_coordinates": rng.integers(-300, 300, (size.neurons, 3)),
            "neurons/unit_ids": np.arange(size.neurons),
        }
        for name, array in meta.items():
            (session / "meta" / name).parent.mkdir(parents=True, exist_ok=True)
            np.save(session / "meta" / f"{name}.npy", array)
        for name in ("videos", "responses", "behavior", "pupil_center"):
            (session / "data" / name).mkdir(parents=True)
        for trial in range(size.trials):
            arrays = {
                "videos": rng.integers(0, 256, (*size.frame_size, size.frames), np.uint8).astype(np.float32),
                "responses": rng.random((size.neurons, size.frames), np.float32),
                "behavior": rng.random((2, size.frames)),
                "pupil_center": rng.random((2, size.frames)),
            }
            for name, array in arrays.items():
                np.save(session / "data" / name / f"{trial}.npy", array)
    list(pack(folder / "raw", folder / "packed"))


def plans(sessions: Mapping[str, Session], size: Size) -> list[BatchPlan]:
    """What the engine reads in an epoch."""
    trials = {mouse: session.trials("train") for mouse, session in sessions.items()}

    def sample(mouse: str, trial: int) -> Sample:
        start = crop_start(SEED, EPOCH, mouse, trial, size.frames - size.crop + 1)
        return Sample(trial, start, size.crop)

    return [
        BatchPlan(mouse, tuple(sample(mouse, trial) for trial in batch), size.crop)
        for mouse, batch in training_order(SEED, EPOCH, trials, size.batch_size)
    ]


class Epoch:
    """An epoch of one variant; the batches are dropped as they come."""

    def __init__(self, variant: str, folder: Path, case: str, size: Size) -> None:
        self.recordings = self.loader = None
        if variant == "viv1t":
            self.recordings = Recordings.open(size.config(folder / case), SEED)
            return
        place = folder / ("raw" if variant.startswith("published") else case)
        sessions = {path.name: open_recording(path) for path in sorted(place.iterdir())}
        transforms = {
            mouse: Transform(mouse, "published", computed_statistics(session), 1.0, session.frame_size)
            for mouse, session in sessions.items()
        }
        self.loader = LOADERS[variant](sessions, transforms, plans(sessions, size), size.threads)

    def batches(self) -> Iterable[Any]:
        return self.loader if self.recordings is None else self.recordings.train_batches(EPOCH)

    def __call__(self) -> None:
        for _ in self.batches():
            pass

    def close(self) -> None:
        (self.loader or self.recordings).close()


def family() -> Iterator[int]:
    """This process and all that descend from it."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and (status := _read(entry / "stat")):
            children.setdefault(int(status.rpartition(") ")[2].split()[1]), []).append(int(entry.name))
    waiting = [os.getpid()]
    while waiting:
        yield (process := waiting.pop())
        waiting += children.get(process, [])


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # the process has ended
        return ""


def cpu_seconds() -> float:
    """What this process and its children have used of the processors."""
    spent = [_read(Path(f"/proc/{process}/stat")).rpartition(") ")[2].split()[11:15] for process in family()]
    return sum(int(ticks) for times in spent for ticks in times) / os.sysconf("SC_CLK_TCK")


def memory_bytes() -> int:
    """Memory of this process and its children, each page once; the page cache does not count."""
    texts = [_read(Path(f"/proc/{process}/smaps_rollup")) for process in family()]
    return sum(int(kb) * 1024 for text in texts for kb in re.findall(r"^Pss_(?:Anon|Shmem):\s+(\d+) kB", text, re.M))


def peak_bytes(variant: str, folder: Path, case: str, size: Size) -> int:
    """Memory that a variant adds at its highest, while it is made and delivers an epoch, in a fresh process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), end_with_parent) as pool:
        return pool.submit(_peak_bytes, variant, folder, case, size).result()


def _peak_bytes(variant: str, folder: Path, case: str, size: Size) -> int:
    with torch_threads(1):
        before = highest = memory_bytes()
        done = threading.Event()

        def watch() -> None:
            nonlocal highest
            while not done.wait(0.02):
                highest = max(highest, memory_bytes())

        watcher = threading.Thread(target=watch)
        watcher.start()
        epoch = Epoch(variant, folder, case, size)
        epoch()
        done.set()
        watcher.join()
        epoch.close()
        return highest - before


FULL = Size()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if available_bytes() < NEEDED_BYTES:
        pytest.skip(f"needs {NEEDED_BYTES / 1e9:.0f} GB of memory, {available_bytes() / 1e9:.1f} GB are available")
    place = tmp_path_factory.mktemp("recordings")
    write_recordings(place, FULL)
    return place


def measure(report: Report, folder: Path, case: str, size: Size, repeats: int) -> None:
    epochs = {variant: Epoch(variant, folder, case, size) for variant in VARIANTS}
    try:
        wall = seconds(epochs, repeats=repeats)
        speed = {variant: [size.epoch_trials / s for s in samples] for variant, samples in wall.items()}
        report.add("loader", case, "trials_per_s", "1/s", speed)
        moved = {variant: [rate * size.trial_bytes for rate in rates] for variant, rates in speed.items()}
        report.add("loader", case, "bytes_per_s", "B/s", moved)
        spent: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
        with torch_threads(1):
            for _ in range(repeats):
                for variant, epoch in epochs.items():
                    before = cpu_seconds()
                    epoch()
                    spent[variant].append((cpu_seconds() - before) / size.epoch_trials)
        report.add("loader", case, "cpu_seconds_per_trial", "s", spent)
    finally:
        for epoch in epochs.values():
            epoch.close()


@pytest.mark.parametrize("case", CASES)
def test_loader_speed(report: Report, folder: Path, case: str) -> None:
    measure(report, folder, case, FULL, repeats=3)


@pytest.mark.parametrize("case", CASES)
def test_loader_peak_bytes(report: Report, folder: Path, case: str) -> None:
    samples = {variant: [peak_bytes(variant, folder, case, FULL)] for variant in VARIANTS}
    report.add("loader", case, "peak_bytes", "B", samples)
