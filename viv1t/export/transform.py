"""The transform of a mouse's recording, as it is stored with an exported model, and as part of its graph."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from viv1t.data.transform import Transform
from viv1t.onnx_model import InputTransform


def input_transform(transform: Transform, frame_size: tuple[int, int]) -> InputTransform:
    """What a transform does to everything but responses."""
    arrays: dict[str, np.ndarray] = {}
    for name in ("video", "behavior", "pupil_center") if transform.affine else ():
        affine = transform.affine[name]
        for part, values in (("offset", affine.offset), ("scale", affine.scale)):
            arrays[f"{name}_{part}"] = np.moveaxis(values, -1, 0) if name == "video" else values
    if transform.center is not None:
        # It is linear and separable: what it makes of frames that are 1 in a single row or column are its matrices.
        height, width = frame_size
        rows = torch.eye(height)[:, :, None].expand(-1, -1, width)
        columns = torch.eye(width)[:, None].expand(-1, height, -1)
        arrays["crop_rows"] = transform.center(rows)[:, :, 0].T.numpy()
        arrays["crop_columns"] = transform.center(columns)[:, 0].T.numpy()
    return InputTransform({name: np.ascontiguousarray(array, np.float32) for name, array in arrays.items()})


class GraphTransform(nn.Module):
    """The same as a module: video (B, 1, T, H, W), behavior and pupil_center (B, 2, T), each to its like."""

    def __init__(self, transform: InputTransform) -> None:
        super().__init__()
        self.arrays = nn.ParameterDict(
            {name: nn.Parameter(torch.from_numpy(array), False) for name, array in transform.arrays.items()}
        )

    def forward(self, video: Tensor, behavior: Tensor, pupil_center: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a, frames = self.arrays, video.shape[2]
        if "video_scale" in a:
            video = (video - _first(a["video_offset"], 0, frames)) * _first(a["video_scale"], 0, frames)
            behavior = (behavior - _first(a["behavior_offset"], 1, frames)) * _first(a["behavior_scale"], 1, frames)
            pupil_center = pupil_center - _first(a["pupil_center_offset"], 1, frames)
            pupil_center = pupil_center * _first(a["pupil_center_scale"], 1, frames)
        if "crop_rows" in a:
            video = a["crop_rows"] @ video @ a["crop_columns"].T
        return video, behavior, pupil_center


def _first(array: Tensor, axis: int, frames: int) -> Tensor:
    """The first frames; all of one value for every frame."""
    return array if array.shape[axis] == 1 else array.narrow(axis, 0, frames)
