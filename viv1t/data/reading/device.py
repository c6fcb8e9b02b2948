"""A movie's transform where the movie lies: on the device that computes with it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from viv1t.data.transform import Transform


class MovieTransform:
    """One mouse's transform of movies in PyTorch, equal to that of `Transform.apply`.

    Args:
        transform: of the mouse.
        device: where the movies lie.

    Attributes:
        center: the center crop, on the device; None without one.
    """

    def __init__(self, transform: Transform, device: torch.device) -> None:
        self.center = None if transform.center is None else transform.center.to(device)
        self._tables: tuple[Tensor, Tensor] | None = None
        if (affine := transform.affine.get("video")) is not None:
            offset, scale = (np.ascontiguousarray(np.moveaxis(a, -1, 0)) for a in (affine.offset, affine.scale))
            self._tables = torch.from_numpy(offset).to(device), torch.from_numpy(scale).to(device)

    def write(self, out: Tensor, raw: Tensor, first_frame: int) -> None:
        """Transforms the grey levels of some frames.

        Args:
            out: (frames, H, W) float32, written to.
            raw: (frames, H, W) uint8 or float32, as recorded.
            first_frame: index in the recording of the first of them.
        """
        out.copy_(raw)
        if self._tables is not None:
            offset, scale = self._tables
            known = slice(first_frame, first_frame + len(raw)) if len(scale) > 1 else slice(None)
            out.sub_(offset[known]).mul_(scale[known])
        if self.center is not None:
            out.copy_(self.center(out))
