"""Kernels are launched on the device of their tensors, in grids that devices take."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from viv1t.kernels.common import launch as module
from viv1t.kernels.common.launch import launch
from viv1t.kernels.common.tiles import Tile
from viv1t.kernels.readout.settings import Places

KERNELS = Path(module.__file__).parents[1]
TILE = Tile(16, 16, 0, 4, 2)


class Recorder:
    """In place of a kernel: the grids of its launches."""

    def __init__(self) -> None:
        self.grids: list[tuple[int, ...]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        self.grids.append(grid)
        return lambda *_, **__: None


def test_kernels_are_launched_in_one_place() -> None:
    """Which sets the device: elsewhere a kernel would run in the context of whichever is current."""
    found = []
    for path in sorted(KERNELS.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            indexed = isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript)
            if indexed and "kernel" in ast.unparse(node.func.value):  # type: ignore[attr-defined]
                found.append(path.name)
    assert found == ["launch.py"]


def test_the_device_of_the_tensors_is_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    current = "cuda:0"

    @contextmanager
    def device_of(tensor: torch.Tensor) -> Iterator[None]:
        nonlocal current
        before, current = current, str(tensor.device)
        yield
        current = before

    seen = []
    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    recorder = Recorder()
    monkeypatch.setattr(Recorder, "__getitem__", lambda *_: lambda *_, **__: seen.append(current))
    launch(recorder, (1,), TILE, 3, None, torch.empty(2, device="meta"))
    assert seen == ["meta"]
    assert current == "cuda:0"


def test_a_grid_that_no_device_takes_is_refused() -> None:
    recorder = Recorder()
    launch(recorder, (70_000, 65_535), TILE, torch.empty(2))
    with pytest.raises(ValueError, match=r"at most 65535 programs along its later axes, not \(3, 65536\)"):
        launch(recorder, (3, 65_536), TILE, torch.empty(2))
    assert recorder.grids == [(70_000, 65_535)]


def test_maps_of_any_number_of_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    from viv1t.kernels.readout import triton

    recorders = {name: Recorder() for name in ("sample_kernel", "neurons_kernel", "map_kernel")}
    for name, recorder in recorders.items():
        monkeypatch.setattr(triton, name, recorder)
    with torch.device("meta"):
        maps, features = torch.empty(600, 116, 3, 4, 8), torch.empty(8, 5)
        places = Places(torch.empty(5, 2), torch.empty(5, 2, 2), None, None, torch.empty(1, dtype=torch.int64))
        grad = torch.empty(600, 116, 5)
    triton.sample(maps, features, places)
    found = triton.sample_backward(grad, maps, features, places)
    assert found.maps.shape == maps.shape
    ((frames, *_),) = recorders["map_kernel"].grids
    assert frames == 600 * 116 > 65_535
