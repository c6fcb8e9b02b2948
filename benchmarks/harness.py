"""Measuring variants of the same work side by side, and recording what was found.

Times: all variants in one process, in turns, so that a busy neighbour hits all of them alike. Peak memory: every
variant in a fresh process, because an allocator that has grown hides what comes later.
"""

from __future__ import annotations

import csv
import datetime
import gc
import io
import json
import multiprocessing
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.baseline.step import cuda_peak_added_bytes
from benchmarks.figure import draw
from benchmarks.parent import end_with_parent
from viv1t.system.files import write_text
from viv1t.system.memory import peak_added_bytes, total_bytes

ROOT = Path(__file__).resolve().parents[1]
BASELINE: Mapping[str, Any] = {"name": "benchmarks/baseline"}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
Work = Callable[[], object]


@dataclass(frozen=True)
class Row:
    """One measured quantity; its fields are the CSV's columns."""

    benchmark: str
    case: str
    variant: str  # viv1t, published, or peer:<name>
    metric: str
    unit: str
    median: float
    p20: float
    p80: float


class Report:
    """What a session measured."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.published: dict[str, Mapping[str, Any]] = {}  # by benchmark, where it is not our plain version
        self.texts: dict[str, str] = {}  # by file name, written beside the rows

    def add(
        self, benchmark: str, case: str, metric: str, unit: str, samples: Mapping[str, float | Sequence[float]]
    ) -> None:
        """Adds the samples of each variant."""
        for variant, values in samples.items():
            p20, median, p80 = (float(x) for x in np.percentile(values, (20, 50, 80)))
            self.rows.append(Row(benchmark, case, variant, metric, unit, median, p20, p80))

    def sources(self) -> dict[str, Mapping[str, Any]]:
        """What the variant `published` was, of every benchmark that has it."""
        benchmarks = dict.fromkeys(row.benchmark for row in self.rows if row.variant == "published")
        return {benchmark: self.published.get(benchmark, BASELINE) for benchmark in benchmarks}

    def table(self) -> str:
        """The rows as aligned text."""
        header = [f.name for f in fields(Row)]
        cells = [header] + [[x if isinstance(x, str) else f"{x:.4g}" for x in astuple(row)] for row in self.rows]
        widths = [max(len(line[i]) for line in cells) for i in range(len(header))]
        return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in cells)

    def write(self, folder: Path) -> None:
        """Replaces `<benchmark>.csv`, `.json` and `.png` of every benchmark that was measured."""
        for benchmark in dict.fromkeys(row.benchmark for row in self.rows):
            rows = [row for row in self.rows if row.benchmark == benchmark]
            text = io.StringIO()
            writer = csv.writer(text, lineterminator="\n")
            writer.writerow(f.name for f in fields(Row))
            writer.writerows(astuple(row) for row in rows)
            write_text(folder / f"{benchmark}.csv", text.getvalue())
            found = facts() | {"published": self.sources().get(benchmark)}
            write_text(folder / f"{benchmark}.json", json.dumps(found, indent=2) + "\n")
            draw(rows, folder / f"{benchmark}.png")
        for name, content in self.texts.items():
            write_text(folder / name, content)


def seconds(variants: Mapping[str, Work], repeats: int, *, warmup: int = 1, threads: int = 1) -> dict[str, list[float]]:
    """Wall-clock seconds of each call; the variants take turns, and every other round goes backwards."""
    samples: dict[str, list[float]] = {name: [] for name in variants}
    with torch_threads(threads):
        for i in range(warmup + repeats):
            for name in list(variants)[:: -1 if i % 2 else 1]:
                gc.collect()
                _synchronize()
                start = time.perf_counter()
                variants[name]()
                _synchronize()
                if i >= warmup:
                    samples[name].append(time.perf_counter() - start)
    return samples


def peak_bytes(make: Callable[..., Work], *args: Any, threads: int = 1) -> int:
    """Memory that the first call of `make(*args)()` adds at its highest, measured in a fresh process.

    Counts resident memory, or CUDA's allocations once CUDA is in use. `make` is a module's function or class.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), end_with_parent) as pool:
        return pool.submit(_peak_bytes, make, args, threads).result()


def _peak_bytes(make: Callable[..., Work], args: tuple[Any, ...], threads: int) -> int:
    with torch_threads(threads):
        work = make(*args)
        gc.collect()
        return cuda_peak_added_bytes(work) if torch.cuda.is_initialized() else peak_added_bytes(work)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Lets PyTorch's operators use `count` threads."""
    previous = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(previous)


@contextmanager
def float32_products(tf32: bool) -> Iterator[None]:
    """Has float32 multiplied on tensor cores, or not."""
    previous = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(previous)


def _synchronize() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def machine() -> dict[str, Any]:
    """What this machine is, in facts that bear on speed."""
    model = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    cpu = model[1] if model else platform.machine()
    return {"cpu": cpu, "cores": len(os.sched_getaffinity(0)), "memory_bytes": total_bytes(), "gpu": gpu}


def machine_name() -> str:
    """A folder name for results of this kind of machine, such as `amd-epyc-2-cores`."""
    found = machine()
    parts = [found["cpu"], f"{found['cores']} cores", *([found["gpu"]] if found["gpu"] else [])]
    return re.sub(r"[^a-z0-9]+", "-", " ".join(parts).lower()).strip("-")


def facts() -> dict[str, Any]:
    """What results depend on: machine, versions, commit, date."""
    versions = {"python": platform.python_version(), "numpy": np.__version__, "torch": torch.__version__}
    if "onnxruntime" in sys.modules:
        versions["onnxruntime"] = sys.modules["onnxruntime"].__version__
    return {
        "machine": machine(),
        "versions": versions,
        **commit_facts(ROOT),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def commit_facts(repository: Path) -> dict[str, Any]:
    """The commit that a repository's folder is at, None for any other folder."""
    if _git(repository, "rev-parse", "--show-prefix") != "":  # not the top of a repository
        return {"commit": None, "uncommitted_changes": None}
    changes = _git(repository, "status", "--porcelain", "--untracked-files=no")
    return {"commit": _git(repository, "rev-parse", "HEAD"), "uncommitted_changes": bool(changes)}


def _git(repository: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(("git", *arguments), cwd=repository, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
