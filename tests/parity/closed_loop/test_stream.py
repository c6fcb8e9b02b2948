"""A stream gives what the model gives for the whole movie at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from closed_loop_cases import model_case, required

from viv1t.errors import ConfigError
from viv1t.model.twin import ViV1T
from viv1t.stream import Stream

CAUSAL = ("02_default_small", "07_dyt_swiglu_identity", "08_learned_spatial_rotary_time")


@pytest.fixture(scope="module")
def small() -> ViV1T:
    required()
    return model_case("02_default_small").model().eval()


def movie(model: ViV1T, frames: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    video = torch.randn(frames, *model.frame_size, generator=generator)
    behavior, pupil = torch.randn(2, 2, frames, generator=generator)
    return video, behavior, pupil


def whole(model: ViV1T, mouse: str, video: torch.Tensor, behavior: torch.Tensor, pupil: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        return model(video[None, None], mouse, behavior[None], pupil[None])[0].numpy()


def distance(a: np.ndarray, b: np.ndarray) -> float:
    assert a.shape == b.shape
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("chunk", [1, 7])
def test_a_stream_equals_the_batch(name: str, chunk: int) -> None:
    required()
    case = model_case(name)
    model = case.model().eval()
    for mouse in case.mice:
        video, _, behavior, pupil = case.inputs(mouse)
        stream = Stream(model, [mouse])
        frames = video.shape[2]
        parts = [
            stream.push(video[0, 0, s : s + chunk], behavior[0, :, s : s + chunk], pupil[0, :, s : s + chunk])[mouse]
            for s in range(0, frames, chunk)
        ]
        found, expected = np.concatenate(parts, axis=1), case.tensors[f"outputs/{mouse}"][0].numpy()
        assert distance(found, expected) < 1e-5
        assert stream.frame == frames


def test_three_hundred_frames_equal_the_batch_and_rewind(small: ViV1T) -> None:
    inputs = movie(small, 300)
    expected = whole(small, "A", *inputs)
    stream = Stream(small, ["A"])
    found = stream.push(*inputs)["A"]
    assert distance(found, expected) < 1e-5
    stream.rewind(120)
    other = movie(small, 30, seed=1)
    found = stream.push(*other)["A"]
    joined = [torch.cat((a[..., :120], b), -1) for a, b in zip(inputs[1:], other[1:], strict=True)]
    expected = whole(small, "A", torch.cat((inputs[0][:120], other[0])), *joined)
    assert distance(found, expected[:, 120:]) < 1e-5
    stream.reset()
    assert distance(stream.push(*other)["A"], whole(small, "A", *other)) < 1e-5
    with pytest.raises(ConfigError, match="frame must be from 0 to 30"):
        stream.rewind(31)


def test_after_300_frames_windows_overlap(small: ViV1T) -> None:
    video, behavior, pupil = movie(small, 330)
    found = Stream(small, ["A"]).push(video, behavior, pupil)["A"]
    second = whole(small, "A", video[250:], behavior[:, 250:], pupil[:, 250:])
    assert distance(found[:, :300], whole(small, "A", video[:300], behavior[:, :300], pupil[:, :300])) < 1e-5
    assert distance(found[:, 300:], second[:, 50:]) < 1e-5
    restarted = Stream(small, ["A"], after="restart").push(video, behavior, pupil)["A"]
    assert distance(restarted[:, 300:], whole(small, "A", video[300:], behavior[:, 300:], pupil[:, 300:])) < 1e-5
    stopped = Stream(small, ["A"], after="stop")
    stopped.push(video[:300], behavior[:, :300], pupil[:, :300])
    with pytest.raises(ConfigError, match="positions for 300 frames"):
        stopped.step(video[300], behavior[:, 300], pupil[:, 300])


def test_mice_share_the_core_until_their_inputs_differ(small: ViV1T) -> None:
    video, behavior, pupil = movie(small, 20)
    other = behavior.clone()
    other[:, 10:] += 1
    stream, found = Stream(small), []
    assert stream.lanes == 1
    for i in range(20):
        by_mouse = {"A": behavior[:, i], "F": other[:, i]}
        found.append(stream.step(video[i], by_mouse, pupil[:, i]))
        assert stream.lanes == (1 if i < 10 else 2)
    for mouse, state in (("A", behavior), ("F", other)):
        steps = np.stack([step[mouse] for step in found], axis=1)
        assert distance(steps, whole(small, mouse, video, state, pupil)) < 1e-5


def test_a_frame_costs_a_frame(small: ViV1T) -> None:
    stream, seen = Stream(small, ["A"]), []
    core: Any = small.core
    hooks = [
        core.spatial.blocks[0].register_forward_pre_hook(lambda _, args: seen.append(("spatial", args[0].shape[0]))),
        core.temporal.blocks[0].fused_linear.register_forward_pre_hook(
            lambda _, args: seen.append(("temporal", args[0].shape[1]))
        ),
    ]
    stream.push(*movie(small, 100))
    for hook in hooks:
        hook.remove()
    assert seen == [("spatial", 1), ("temporal", 1)] * 100  # one frame, and one new token of each patch


def test_a_model_that_is_not_causal_is_refused() -> None:
    required()
    reasons = {
        "03_rotary_all_frames": "not causal", "11_fcnn": "convolutional core", "05_separate_stride2": "every frame",
    }  # fmt: skip
    for name, reason in reasons.items():
        with pytest.raises(ConfigError, match=reason):
            Stream(model_case(name).model())


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"frame": np.zeros((3, 4))}, r"frame: \(16, 28\) values were expected, not \(3, 4\)"),
        ({"behavior": [0.0, np.nan]}, "behavior: values that are not finite, at frame 0"),
        ({"pupil_center": {"A": [0.0, 0.0]}}, "pupil_center: nothing is given for mouse F"),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(small: ViV1T, changed: dict[str, Any], words: str) -> None:
    stream = Stream(small)
    given: dict[str, Any] = {"frame": np.zeros((16, 28)), "behavior": [0.0, 0.0], "pupil_center": [0.0, 0.0]}
    with pytest.raises(ConfigError, match=words):
        stream.step(**(given | changed))
    assert stream.frame == 0
    with pytest.raises(ConfigError, match="mouse Z is not in this model"):
        Stream(small, ["Z"])
