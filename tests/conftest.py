"""Fixtures shared by the whole suite."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch
from golden_files import golden_folder

# Without a GPU, kernels run in Triton's interpreter. Triton looks when it is imported, which parts of PyTorch do too.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# The benchmarks are tested too, and are not installed.
sys.path.append(str(Path(__file__).resolve().parents[1]))


@pytest.fixture(scope="session")
def golden() -> Path:
    folder = golden_folder()
    if not (folder / "README.md").exists():
        pytest.skip(f"golden numbers not found at {folder}; set VIV1T_GOLDEN to their folder")
    return folder


def _neighbour(golden: Path, name: str) -> Path:
    folder = golden.parent / name
    if not (folder / "README.md").exists():
        pytest.skip(f"golden numbers not found at {folder}; they are looked for beside VIV1T_GOLDEN")
    return folder


@pytest.fixture(scope="session")
def golden_in_silico(golden: Path) -> Path:
    """Numbers that published code computed in in-silico experiments, beside those of the models."""
    return _neighbour(golden, "golden_in_silico")


@pytest.fixture(scope="session")
def golden_experanto(golden: Path) -> Path:
    """Recordings in the experanto format and what its package reads in them, beside the models' numbers."""
    return _neighbour(golden, "golden_experanto")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")
