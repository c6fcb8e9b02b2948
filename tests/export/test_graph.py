"""Every module's exported form, in ONNX Runtime, against PyTorch, for other numbers of trials and frames."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from viv1t.export.core import largest_divisor
from viv1t.export.graph import GraphCore, GraphModel, GraphReadout
from viv1t.export.program import OPSET, save, to_onnx
from viv1t.model.twin import ViV1T
from viv1t.onnx_model import open_session, run_session

sys.path.append(str(Path(__file__).resolve().parents[1] / "model"))

from small_models import small_inputs, small_model

ONE = {"core_temporal_depth": 1}
FB = {"core": "factorized_baseline"}
CASES: dict[str, dict[str, Any]] = {
    "sequential, state encoding, gru modulator": {
        **ONE, "core_behavior_mode": 4, "core_ff_activation": "swiglu", "core_norm_qk": True, "modulator_mode": 2,
        "shifter_mode": 2, "output_mode": 1,
    },
    "factorized, gru, positions, mlp modulator": {**FB, "core_behavior_mode": 9, "modulator_mode": 1, "output_mode": 2},
}  # fmt: skip
MORE: dict[str, dict[str, Any]] = {
    "parallel": {"core_parallel_attention": True, "core_norm_qk": True},
    "parallel, swiglu, encoder per mouse": {
        **ONE, "core_parallel_attention": True, "core_ff_activation": "swiglu", "core_behavior_mode": 5,
        "core_pos_encoding": 5, "modulator_mode": 3, "shifter_mode": 0,
    },
    "generated positions, convolution": {"core_patch_mode": 2, "core_pos_encoding": 2, "core_behavior_mode": 0},
    "joint positions, strides": {**ONE, "core_pos_encoding": 1, "core_temporal_patch_stride": 2, "modulator_mode": 4},
    "half sinusoidal, behavior encoding": {**ONE, "core_behavior_mode": 3, "core_pos_encoding": 4},
    "no blocks, no positions": {
        "core_pos_encoding": 0, "core_spatial_depth": 0, "core_temporal_depth": 0, "core_behavior_mode": 1,
        "readout_grid_mode": 0, "readout_bias_mode": 0,
    },
    "factorized readout": {**ONE, "readout": "factorized", "core_flash_attention": 0},
    **{f"factorized core, behavior {mode}": {**FB, "core_behavior_mode": mode} for mode in (0, 1, 2, 6, 7, 8)},
    "factorized core and readout, history alone": {
        **FB, "readout": "factorized", "modulator_mode": 1, "modulator_include_behaviors": 0,
    },
}  # fmt: skip


def as_arrays(inputs: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: values.numpy() for name, values in inputs.items()}


def inputs(batch: int, frames: int) -> dict[str, torch.Tensor]:
    video, _, behavior, pupil_center = small_inputs(batch=batch, frames=frames, seed=frames)
    return {"video": video, "behavior": behavior, "pupil_center": pupil_center}


@torch.no_grad()
def check(models: list[ViV1T], path: Path, opset: int = OPSET) -> None:
    save(to_onnx(GraphModel(models, "B").eval(), inputs(2, 20), "response", opset), path, {})
    session = open_session(path, 1)
    shortest = max(model.core.fewest_frames for model in models)
    for batch, frames in ((1, shortest), (3, 33), (2, 300)):
        given = inputs(batch, frames)
        responses = [model(mouse_id="B", **given) for model in models]
        t = min(r.shape[2] for r in responses)
        expected = torch.stack([r[..., -t:] for r in responses]).mean(0).numpy()
        found = run_session(session, as_arrays(given))
        assert found.shape == expected.shape
        assert np.linalg.norm(found - expected) < 1e-5 * np.linalg.norm(expected), (batch, frames)


@pytest.mark.parametrize("name", [*CASES, *(pytest.param(n, marks=pytest.mark.slow) for n in MORE)])
def test_equals_pytorch_for_any_trials_and_frames(name: str, tmp_path: Path) -> None:
    check([small_model(**(CASES | MORE)[name])], tmp_path / "m.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("opset", [18, 20])
def test_older_operators(opset: int, tmp_path: Path) -> None:
    check([small_model(core_parallel_attention=True, modulator_mode=2)], tmp_path / "m.onnx", opset)


@pytest.mark.slow
def test_an_ensemble_is_the_mean_where_all_predict(tmp_path: Path) -> None:
    check([small_model(**FB), small_model(seed=3, **FB, core_temporal_input_kernel=9)], tmp_path / "m.onnx")


@torch.no_grad()
@pytest.mark.slow
def test_parts_together_are_the_whole(tmp_path: Path) -> None:
    model, given = small_model(modulator_mode=1, **ONE), inputs(2, 20)
    core, readout = GraphCore(model).eval(), GraphReadout(model, "B").eval()
    maps = model.core_output(mouse_id="B", **given)
    save(to_onnx(core, given, "maps", OPSET), tmp_path / "core.onnx", {})
    rest = {"maps": maps, "behavior": given["behavior"], "pupil_center": given["pupil_center"]}
    save(to_onnx(readout, rest, "response", OPSET), tmp_path / "readout.onnx", {})
    other = inputs(1, 37)
    feed = as_arrays(other)
    feed["maps"] = run_session(open_session(tmp_path / "core.onnx", 1), feed)
    found = run_session(open_session(tmp_path / "readout.onnx", 1), feed)
    assert found == pytest.approx(model(mouse_id="B", **other).numpy(), rel=1e-5, abs=1e-6)


def test_largest_divisor() -> None:
    assert [largest_divisor(n, 32) for n in (1, 435, 437, 64, 31, 37)] == [1, 29, 23, 32, 31, 1]
