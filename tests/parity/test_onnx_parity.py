"""Exported files in ONNX Runtime against the published code's numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from test_model_parity import case_names, load_case

pytest.importorskip("onnxruntime", reason="the extra [onnx] is not installed")

from viv1t.export.graph import GraphModel
from viv1t.export.program import OPSET, save, to_onnx
from viv1t.onnx_model import open_session, run_session

NAMES = ("video", "behavior", "pupil_center")
QUICK = ("23_fb_behavior6_factorized",)
CASES = case_names()
SLOW = tuple(name for name in CASES if isinstance(name, str) and name not in QUICK)


@pytest.mark.parametrize("name", case_names(slow=SLOW))
def test_responses_are_the_published_ones(name: str, tmp_path: Path) -> None:
    case = load_case(name)
    if case.random:
        pytest.skip("random outputs cannot be compared, and are not exported")
    model = case.model().eval()
    for mouse in case.mice if name == "07_sequential_behavior5_nopos_mod2" else case.mice[:1]:
        given = {key: case.tensors[f"inputs/{key}/{mouse}"] for key in NAMES}
        assert len(given["video"]) > 1
        save(to_onnx(GraphModel([model], mouse).eval(), given, "response", OPSET), tmp_path / "m.onnx", {})
        session = open_session(tmp_path / "m.onnx", 1)
        for inputs, outputs in (("inputs", "outputs"), ("long_inputs", "long_outputs")):
            if f"{outputs}/{mouse}" not in case.tensors:
                continue
            found = run_session(session, {key: case.tensors[f"{inputs}/{key}/{mouse}"].numpy() for key in NAMES})
            expected = case.tensors[f"{outputs}/{mouse}"].numpy()
            assert found.shape == expected.shape
            assert np.linalg.norm(found - expected) < 1e-5 * np.linalg.norm(expected), (outputs, mouse)
