"""A stream gives what the model gives for the whole movie at once."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from closed_loop_cases import closed_loop_folder, model_case, required

from viv1t.errors import ConfigError, DataError
from viv1t.model.twin import ViV1T
from viv1t.stream import Stream

STRIDE = "05_separate_stride2"


def causal_cases(*quick: str) -> list[Any]:
    """Every golden case of a causal model; all but the `quick` ones are slow."""
    paths = sorted((closed_loop_folder() / "model").glob("*/config.json"))
    names = [p.parent.name for p in paths if json.loads(p.read_text()).get("core_use_causal_attention")]
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names]


SMALL = ("02_default_small", "07_dyt_swiglu_identity", "08_learned_spatial_rotary_time")


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


@pytest.mark.parametrize("name", causal_cases(*SMALL, STRIDE))
def test_a_stream_equals_the_published_responses(name: str) -> None:
    case = model_case(name)
    model = case.model().eval()
    steps = case.options["core_temporal_patch_stride"]
    chunks = [(case.mice[0], 1), (case.mice[1], 2), (case.mice[0], 7)]
    for mouse, chunk in chunks[: 1 if name == "01_published" else None]:
        video, _, behavior, pupil = case.inputs(mouse)
        stream = Stream(model, [mouse])
        frames = video.shape[2]
        parts = [
            stream.push(video[0, 0, s : s + chunk], behavior[0, :, s : s + chunk], pupil[0, :, s : s + chunk])
            for s in range(0, frames, chunk)
        ]
        found = np.concatenate([part[mouse] for part in parts if part], axis=1)
        expected = case.tensors[f"outputs/{mouse}"][0].numpy()
        if steps > 1:
            # Which frame's gaze a response goes with depends on the movie's end: it is that of the frames so far.
            now = [
                end for end in range(1, frames + 1) if model.core.output_frames(end) > model.core.output_frames(end - 1)
            ]
            so_far = [whole(model, mouse, video[0, 0, :e], behavior[0, :, :e], pupil[0, :, :e]) for e in now]
            expected = np.stack([response[:, -1] for response in so_far], axis=1)
            assert found.shape[1] == case.tensors[f"outputs/{mouse}"].shape[2]
        assert distance(found, expected) < 1e-5
        assert stream.frame == frames


def test_maps_of_a_stride_in_time_are_the_published_ones() -> None:
    required()
    case = model_case(STRIDE)
    stream = Stream(case.model())
    for mouse in case.mice:
        video, _, behavior, pupil = case.inputs(mouse)
        past, state = stream._new_past(), torch.cat((behavior[0], pupil[0])).numpy()
        steps = [past.step(video[0, 0, i].numpy(), state[:, i]) for i in range(video.shape[2])]
        maps = torch.cat([step for step in steps if step is not None], dim=2)
        expected = case.tensors[f"core_outputs/{mouse}"][:1]
        found = maps[:, :, case.tensors["core_outputs_t_index"].long()]
        assert distance(found.numpy(), expected.numpy()) < 1e-5


@pytest.mark.parametrize("name", causal_cases("08_learned_spatial_rotary_time", STRIDE))
def test_three_hundred_frames_equal_the_batch(name: str) -> None:
    if name == "01_published":
        pytest.skip("its 300 frames take minutes; the other cases have its options")
    model = model_case(name).model().eval()
    video, behavior, pupil = movie(model, 300)
    pupil = pupil[:, :1].expand(-1, 300)  # so that it does not matter which frame's gaze a response goes with
    mouse = model.mouse_ids[0]
    assert (
        distance(
            Stream(model, [mouse]).push(video, behavior, pupil)[mouse], whole(model, mouse, video, behavior, pupil)
        )
        < 1e-5
    )


def test_rewound_streams_go_on_as_if_nothing_had_come(small: ViV1T) -> None:
    inputs, other = movie(small, 70), movie(small, 30, seed=1)
    stream = Stream(small, ["A"])
    stream.push(*inputs)
    stream.rewind(40)
    found = stream.push(*other)["A"]
    joined = [torch.cat((a[..., :40], b), -1) for a, b in zip(inputs[1:], other[1:], strict=True)]
    expected = whole(small, "A", torch.cat((inputs[0][:40], other[0])), *joined)
    assert distance(found, expected[:, 40:]) < 1e-5
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
    reasons = {"03_rotary_all_frames": "not causal", "11_fcnn": "convolutional core"}
    for name, reason in reasons.items():
        with pytest.raises(ConfigError, match=reason):
            Stream(model_case(name).model())


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"frame": np.zeros((3, 4))}, r"frame: \(16, 28\) values were expected, not \(3, 4\)"),
        ({"behavior": [0.0, np.nan]}, "behavior: values that are not finite, at frame 0"),
        ({"pupil_center": {"A": [0.0, 0.0]}}, "pupil_center: nothing is given for mouse F"),
        ({"behavior": None}, r"behavior: nothing is given for mouse A, \(2,\) values were expected"),
        ({"frame": "a picture"}, "frame must be an array of numbers"),
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


def test_arrays_of_a_chunk_fit_each_other_or_nothing_is_taken(small: ViV1T) -> None:
    video, behavior, pupil = movie(small, 5)
    stream = Stream(small, ["A"])
    with pytest.raises(ConfigError, match=r"behavior must be \(2, 5\), as the video has 5 frames"):
        stream.push(video, behavior[:, :4], pupil)
    with pytest.raises(ConfigError, match=r"video must be \(T, 16, 28\)"):
        stream.push(video[0], behavior, pupil)
    assert stream.frame == 0


def test_a_response_that_is_not_finite_is_an_error_that_names_mouse_and_frame() -> None:
    required()
    model = model_case("02_default_small").model()
    with torch.no_grad():
        model.readouts["F"].features[0, 0, 0] = torch.nan
    stream = Stream(model)
    with pytest.raises(DataError, match="mouse F, frame 0: a response is not finite"):
        stream.step(np.ones((16, 28)), [0.0, 0.0], [0.0, 0.0])
