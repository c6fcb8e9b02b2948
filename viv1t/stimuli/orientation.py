"""Which way up the frames of a video are shown: its display matrix, as ISO 14496-12 (6.2.2) has it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from viv1t.errors import DataError

if TYPE_CHECKING:
    import av

_TURNS = {(1, 0, 0, 1): 0, (0, -1, 1, 0): 90, (-1, 0, 0, -1): 180, (0, 1, -1, 0): 270}


def orientation(path: Path, frame: av.VideoFrame) -> tuple[int, bool]:
    """By how many degrees a frame is turned counterclockwise to be shown, and whether it is mirrored before that.

    Raises:
        DataError: its display matrix is none of the eight that keep pixels pixels.
    """
    data: Any = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return 0, False
    matrix = np.frombuffer(bytes(data), "=i4")[:9].astype(np.float64) / 65536
    scale = float(np.abs(matrix[[0, 1, 3, 4]]).max())
    entries = matrix[[0, 1, 3, 4]] / (scale or 1)
    a, b, c, d = np.rint(entries).astype(int).tolist()  # a pixel at (x, y) is shown at (a x + c y, b x + d y)
    mirrored = a * d - b * c < 0
    turn = _TURNS.get((-a, -b, c, d) if mirrored else (a, b, c, d))
    if turn is None or np.abs(entries - (a, b, c, d)).max() > 1e-3 or matrix[2] or matrix[5] or matrix[8] <= 0:
        a, b, c, d = matrix[[0, 1, 3, 4]]
        if a == d and b == -c and scale:
            angle = round(float(np.degrees(np.arctan2(c, a)))) % 360
            raise DataError(f"{path}: is to be turned by {angle} degrees; convert it to upright frames")
        words = ", ".join(f"{x:.4g}" for x in (a, b, c, d))
        raise DataError(
            f"{path}: its display matrix ({words}) does more than turning by right angles and mirroring; convert it to "
            "upright frames"
        )
    return turn, mirrored
