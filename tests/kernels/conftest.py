"""Where Triton kernels run: on the GPU where there is one, else in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(scope="session")
def kernel_device() -> torch.device:
    """The GPU, or the CPU in whose memory the interpreter works (see `TRITON_INTERPRET` in tests/conftest.py)."""
    pytest.importorskip("triton", reason="Triton is not installed")
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
