"""The transform of a recording in NumPy and in a graph, against the one that models are trained with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from viv1t.data.mice import open_recording
from viv1t.data.session import VARIABLES, Session
from viv1t.data.statistics import compute_statistics
from viv1t.data.transform import Transform
from viv1t.export.program import OPSET, save, to_onnx
from viv1t.export.transform import GraphTransform, input_transform
from viv1t.onnx_model import InputTransform, open_session
from viv1t.types import SENSORIUM_SESSIONS

NAMES = ("video", "behavior", "pupil_center")
MODES = ("none", "standardize_per_frame", "published", "standardize", "min_max")


@pytest.fixture(scope="module")
def session(mice: Path) -> Session:
    return open_recording(mice / SENSORIUM_SESSIONS["F"])


def recorded(session: Session, trial: int, frames: int) -> dict[str, np.ndarray]:
    raw = {name: session.read(name, trial)[None, ..., :frames].astype(np.float32) for name in NAMES}
    raw["video"] = np.ascontiguousarray(raw["video"][:, None].transpose(0, 1, 4, 2, 3))
    return raw


@pytest.mark.parametrize("crop", [1.0, 0.7])
@pytest.mark.parametrize("mode", MODES)
def test_is_what_models_are_trained_with(session: Session, mode: str, crop: float) -> None:
    statistics = compute_statistics(session, session.trials("train"))
    own = Transform("F", mode, statistics, crop, session.frame_size)
    stored = input_transform(own, session.frame_size)
    read = InputTransform.from_text(stored.to_text())
    assert read.arrays.keys() == stored.arrays.keys()
    assert read.frames == (70 if mode in ("standardize_per_frame", "published") else None)
    graph = GraphTransform(read)
    trial = session.trials("validation")[0]
    for frames in (session.duration(trial), 9):  # and where statistics per frame reach further
        raw = recorded(session, trial, frames)
        expected = own.apply(trial, {v: session.read(v, trial) for v in VARIABLES}, 0, frames)
        in_graph = graph(**{name: torch.from_numpy(values) for name, values in raw.items()})
        for name, in_numpy, tensor in zip(NAMES, read(**raw), in_graph, strict=True):
            wanted = getattr(expected, name)
            assert in_numpy.dtype == np.float32
            for found in (in_numpy, tensor.numpy()):
                np.testing.assert_allclose(found[0], wanted, rtol=2e-5, atol=2e-5 * np.abs(wanted).max())


def test_a_trial_is_left_as_it_was(session: Session) -> None:
    statistics = compute_statistics(session, session.trials("train"))
    transform = input_transform(Transform("F", "published", statistics, 1.0, session.frame_size), session.frame_size)
    raw = recorded(session, 0, 20)
    before = {name: values.copy() for name, values in raw.items()}
    done = dict(zip(NAMES, transform(**raw), strict=True))
    for name in NAMES:
        np.testing.assert_array_equal(raw[name], before[name])
        np.testing.assert_allclose(transform.undone(name, done[name]), raw[name], rtol=1e-4, atol=1e-3)


def test_in_onnx_runtime(session: Session, tmp_path: Path) -> None:
    statistics = compute_statistics(session, session.trials("train"))
    own = Transform("F", "published", statistics, 0.6, session.frame_size)
    transform = input_transform(own, session.frame_size)

    class Video(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.transform = GraphTransform(transform)

        def forward(self, video: torch.Tensor, behavior: torch.Tensor, pupil_center: torch.Tensor) -> torch.Tensor:
            video, behavior, pupil_center = self.transform(video, behavior, pupil_center)
            return video.flatten(3).mean(-1) * behavior[:, :1] + pupil_center[:, 1:]

    module = Video().eval()
    raw = recorded(session, 0, 20)
    example = {name: torch.from_numpy(values).repeat_interleave(2, 0) for name, values in raw.items()}
    save(to_onnx(module, example, "response", OPSET), tmp_path / "t.onnx", {})
    for frames in (7, 63):
        raw = recorded(session, 0, frames)
        found = open_session(tmp_path / "t.onnx", 1).run(None, raw)[0]
        video, behavior, pupil_center = transform(**raw)
        expected = video.reshape(1, 1, frames, -1).mean(-1) * behavior[:, :1] + pupil_center[:, 1:]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
