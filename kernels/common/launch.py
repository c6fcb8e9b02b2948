"""How every GPU kernel is launched."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .tiles import Tile

# Programs along the second and third axis of a grid; the first takes 2**31 - 1.
_MOST_PROGRAMS = 65_535


def launch(kernel: Any, grid: tuple[int, ...], tile: Tile, *arguments: Any) -> None:
    """Runs a kernel on the device of its tensors, whichever device is the current one.

    Raises:
        ValueError: the grid is larger than a device takes.
    """
    if any(programs > _MOST_PROGRAMS for programs in grid[1:]):
        raise ValueError(f"a grid has at most {_MOST_PROGRAMS} programs along its later axes, not {grid}")
    tensor = next(argument for argument in arguments if isinstance(argument, Tensor))
    with torch.cuda.device_of(tensor):
        kernel[grid](*arguments, num_warps=tile.warps, num_stages=tile.stages)
