"""A CUDA that does nothing, built once; what steps on it launch, and what that compiles to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from viv1t.kernels.ahead_of_time import Compilers
from viv1t.kernels.common.variant import Usage, Variant

HERE = Path(__file__).parent

Steps = Callable[..., list[dict[str, Any]]]


@pytest.fixture(scope="session")
def device_guard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library made of `device_guard.cpp`."""
    if torch.version.cuda is not None:
        pytest.skip("PyTorch has a CUDA of its own")
    library = tmp_path_factory.mktemp("guard") / "guard.so"
    folder = Path(torch.__file__).parent
    include, lib = folder / "include", folder / "lib"
    command = [
        os.environ.get("CXX", "g++"), "-std=c++20", "-O1", "-shared", "-fPIC", HERE / "device_guard.cpp", "-o", library,
        f"-I{include}", f"-I{include / 'torch/csrc/api/include'}", f"-L{lib}", f"-Wl,-rpath,{lib}", "-lc10",
        "-ltorch_cpu",
    ]  # fmt: skip
    subprocess.run(command, check=True)
    return library


@pytest.fixture(scope="session")
def steps(device_guard: Path) -> Steps:
    """Runs scenarios of `fake_steps.py`; what it prints of each."""
    pytest.importorskip("triton", reason="Triton is not installed")
    known: dict[str, dict[str, Any]] = {}  # each is run once in a session

    def run(*scenarios: str) -> list[dict[str, Any]]:
        if new := [name for name in scenarios if name not in known]:
            command = [sys.executable, HERE / "fake_steps.py", device_guard, *new]
            environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr[-2000:]
            known.update(zip(new, map(json.loads, done.stdout.splitlines()), strict=True))
        return [known[name] for name in scenarios]

    return run


@pytest.fixture(scope="session")
def usage() -> Iterator[Callable[[list[Variant], tuple[int, ...]], list[Usage]]]:
    """What variants need on architectures; each is compiled once in a session."""
    known: dict[tuple[Variant, int], Usage] = {}
    with Compilers() as compilers:

        def compiled(variants: list[Variant], archs: tuple[int, ...]) -> list[Usage]:
            pairs = [(variant, arch) for variant in variants for arch in archs]
            new = [pair for pair in pairs if pair not in known]
            known.update(zip(new, (found.usage for found in compilers.compile(new)), strict=True))
            return [known[pair] for pair in pairs]

        yield compiled
