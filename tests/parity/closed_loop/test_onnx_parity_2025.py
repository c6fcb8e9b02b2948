"""Exported files of the family of 2025 in ONNX Runtime against the published code's numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from closed_loop_cases import case_names, error, model_case

pytest.importorskip("onnxruntime", reason="the extra [onnx] is not installed")

from viv1t.export import core, readout
from viv1t.export.graph import GraphCore, GraphModel, GraphReadout
from viv1t.export.program import OPSET, save, to_onnx
from viv1t.onnx_model import open_session, run_session

NAMES = ("video", "behavior", "pupil_center")
QUICK = ("02_default_small",)  # padding, state in the border, registers, rotary positions and a causal mask
SLOW = tuple(name for name in case_names("model") if isinstance(name, str) and name not in QUICK)


@pytest.mark.parametrize("name", case_names("model", slow=SLOW))
def test_responses_are_the_published_ones(name: str, tmp_path: Path) -> None:
    case = model_case(name)
    model = case.model().eval()
    for mouse in case.mice[:1]:
        given = {key: case.tensors[f"inputs/{key}/{mouse}"] for key in NAMES}
        twice = {key: torch.cat((values, values)) for key, values in given.items()}
        save(to_onnx(GraphModel([model], mouse).eval(), twice, "response", OPSET), tmp_path / "m.onnx", {})
        session = open_session(tmp_path / "m.onnx", 1)
        for inputs, outputs in (("inputs", "outputs"), ("long_inputs", "long_outputs")):
            if f"{outputs}/{mouse}" not in case.tensors:
                continue
            found = run_session(session, {key: case.tensors[f"{inputs}/{key}/{mouse}"].numpy() for key in NAMES})
            expected = case.tensors[f"{outputs}/{mouse}"].numpy()
            assert found.shape == expected.shape
            assert np.linalg.norm(found - expected) < 1e-5 * np.linalg.norm(expected), (outputs, mouse)


@pytest.mark.parametrize("name", [n for n in case_names("model") if n not in ("01_published",)])
def test_what_is_exported_is_the_published_model_in_pytorch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (core, readout):  # as written, PyTorch would compile every loop
        monkeypatch.setattr(
            module, "loop", lambda body, *items: torch.stack([body(*x) for x in zip(*items, strict=True)])
        )
    case = model_case(name)
    model = case.model().eval()
    for mouse in case.mice:
        video, _, behavior, pupil_center = case.inputs(mouse)
        with torch.no_grad():
            maps = GraphCore(model).eval()(video, behavior, pupil_center)
            found = GraphReadout(model, mouse).eval()(maps, behavior, pupil_center)
        assert error(found, case.tensors[f"outputs/{mouse}"]) < 1e-5, mouse
