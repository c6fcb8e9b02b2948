"""The C++ threads, and reading of damaged files, under sanitizers, without Python in the process."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [ROOT / "csrc" / f"{name}.cpp" for name in ("npy", "read", "ring", "prefetcher")]
SANITIZERS = {"thread": "-fsanitize=thread", "address": "-fsanitize=address,undefined"}


def build(name: str, sanitizer: str, folder: Path) -> Path:
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        pytest.skip("no C++ compiler")
    flags = ["-std=c++20", "-O1", "-g", "-pthread", "-fno-sanitize-recover=all", SANITIZERS[sanitizer]]
    probe, program = folder / "probe.cpp", folder / name
    probe.write_text("int main() {}\n")
    if subprocess.run([compiler, *flags, str(probe), "-o", str(program)], capture_output=True, check=False).returncode:
        pytest.skip(f"{compiler} cannot link the {sanitizer} sanitizer")
    sources = map(str, [*SOURCES, Path(__file__).with_name(f"{name}.cpp")])
    built = subprocess.run(
        [compiler, *flags, f"-I{ROOT / 'csrc'}", *sources, "-o", str(program)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    return program


def run(name: str, sanitizer: str, folder: Path, rounds: int) -> None:
    program = build(name, sanitizer, folder)
    command = [program, str(rounds), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stderr[-5000:]
    assert done.stdout.startswith(f"{rounds} rounds")
    print(done.stdout)


@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_threads_and_memory_stay_in_order(sanitizer: str, tmp_path: Path) -> None:
    run("stress", sanitizer, tmp_path, rounds=40)


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_threads_and_memory_stay_in_order_for_long(sanitizer: str, tmp_path: Path) -> None:
    run("stress", sanitizer, tmp_path, rounds=3000)


def test_damaged_files_are_refused_or_read_within_bounds(tmp_path: Path) -> None:
    run("fuzz", "address", tmp_path, rounds=10_000)


@pytest.mark.slow
def test_damaged_files_are_refused_or_read_within_bounds_for_long(tmp_path: Path) -> None:
    run("fuzz", "address", tmp_path, rounds=300_000)
