"""The C++ threads under ThreadSanitizer and AddressSanitizer, without Python in the process."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [
    *(ROOT / "csrc" / f"{n}.cpp" for n in ("npy", "read", "ring", "prefetcher")),
    Path(__file__).with_name("stress.cpp"),
]
SANITIZERS = {"thread": "-fsanitize=thread", "address": "-fsanitize=address,undefined"}


def build(sanitizer: str, folder: Path) -> Path:
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        pytest.skip("no C++ compiler")
    flags = ["-std=c++20", "-O1", "-g", "-pthread", "-fno-sanitize-recover=all", SANITIZERS[sanitizer]]
    probe, program = folder / "probe.cpp", folder / "stress"
    probe.write_text("int main() {}\n")
    if subprocess.run([compiler, *flags, str(probe), "-o", str(program)], capture_output=True, check=False).returncode:
        pytest.skip(f"{compiler} cannot link the {sanitizer} sanitizer")
    built = subprocess.run(
        [compiler, *flags, f"-I{ROOT / 'csrc'}", *map(str, SOURCES), "-o", str(program)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    return program


def stress(sanitizer: str, folder: Path, rounds: int) -> None:
    program = build(sanitizer, folder)
    done = subprocess.run([program, str(rounds), str(folder)], capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stderr[-5000:]
    assert done.stdout == f"{rounds} rounds\n"


@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_threads_and_memory_stay_in_order(sanitizer: str, tmp_path: Path) -> None:
    stress(sanitizer, tmp_path, rounds=40)


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_threads_and_memory_stay_in_order_for_long(sanitizer: str, tmp_path: Path) -> None:
    stress(sanitizer, tmp_path, rounds=5000)
