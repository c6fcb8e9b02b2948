"""How every GPU kernel is launched, or written down instead."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .tiles import Tile

# Programs along the second and third axis of a grid; the first takes 2**31 - 1.
_MOST_PROGRAMS = 65_535


class Launch(NamedTuple):
    """A launch that was written down: what the kernel would have been given."""

    kernel: Any
    grid: tuple[int, ...]
    tile: Tile
    arguments: tuple[Any, ...]


_recording: list[Launch] | None = None


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """While entered, launches are written down in the list that is given, and nothing runs."""
    global _recording
    before, _recording = _recording, []
    try:
        yield _recording
    finally:
        _recording = before


def launch(kernel: Any, grid: tuple[int, ...], tile: Tile, *arguments: Any) -> None:
    """Runs a kernel on the device of its tensors, whichever device is the current one.

    Raises:
        ValueError: the grid is larger than a device takes.
    """
    if any(programs > _MOST_PROGRAMS for programs in grid[1:]):
        raise ValueError(f"a grid has at most {_MOST_PROGRAMS} programs along its later axes, not {grid}")
    if _recording is not None:
        _recording.append(Launch(kernel, grid, tile, arguments))
        return
    tensor = next(argument for argument in arguments if isinstance(argument, Tensor))
    with torch.cuda.device_of(tensor):
        kernel[grid](*arguments, num_warps=tile.warps, num_stages=tile.stages)
