"""Where Triton kernels run: on the GPU where there is one, else in Triton's interpreter; and memory full of NaN."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from packaging.version import Version
from poison import poisoned_memory


@pytest.fixture(scope="session")
def kernel_device() -> torch.device:
    """The GPU, or the CPU in whose memory the interpreter works (see `TRITON_INTERPRET` in tests/conftest.py)."""
    triton = pytest.importorskip("triton", reason="Triton is not installed")
    if torch.cuda.is_available():
        return torch.device("cuda")
    if Version(triton.__version__) < Version("3.7") and Version(np.__version__) >= Version("2.4"):
        pytest.skip("Triton's interpreter runs with NumPy 2.4 and newer from Triton 3.7 on")
    return torch.device("cpu")


@pytest.fixture
def poisoned() -> Iterator[None]:
    """New tensors hold NaN until they are written."""
    with poisoned_memory():
        assert torch.empty(3).isnan().all()
        yield
