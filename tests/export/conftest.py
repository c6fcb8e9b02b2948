"""Mice and runs to export, and files exported from them."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_fixtures import mice, run, torch_settings

__all__ = ["mice", "run", "torch_settings"]

for package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(package, reason=f"the extra [onnx] is not installed: {package}")


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for files that several tests use."""
    return tmp_path_factory.mktemp("exported")
