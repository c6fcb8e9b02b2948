"""PyTorch's compiler writes CUDA code for the whole step: two graphs, our operators in them, nothing on the host."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


def test_the_compiled_step_is_written_for_cuda(device_guard: Path) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    command = [sys.executable, Path(__file__).with_name("fake_inductor.py"), device_guard]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    forward, backward = map(json.loads, done.stdout.splitlines())
    names = ["parallel_block", "patch_embed", "readout"]
    assert (forward["backward"], forward["operators"]) == (False, names)
    assert (backward["backward"], backward["operators"]) == (True, [f"{name}_backward" for name in names])
    for graph in (forward, backward):
        assert 0 < graph["kernels"] <= graph["launches"] < 50
        assert not graph["host"]
