"""Where Triton kernels run: on the GPU where there is one, else in Triton's interpreter; and memory full of NaN."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from poison import poisoned_memory


@pytest.fixture(scope="session")
def kernel_device() -> torch.device:
    """The GPU, or the CPU in whose memory the interpreter works (see `TRITON_INTERPRET` in tests/conftest.py)."""
    pytest.importorskip("triton", reason="Triton is not installed")
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def poisoned() -> Iterator[None]:
    """New tensors hold NaN until they are written."""
    with poisoned_memory():
        assert torch.empty(3).isnan().all()
        yield
