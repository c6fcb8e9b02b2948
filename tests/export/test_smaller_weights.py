"""Files of less precision give what their integers say, on every processor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from viv1t.export.precision import convert

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_sums_of_the_largest_products_are_not_cut_off(precision: str, tmp_path: Path) -> None:
    """Without VNNI a processor adds pairs of products of bytes in 16 bits, which 255 times 127 twice does not fit."""
    weight = onnx.numpy_helper.from_array(np.ones((64, 32), np.float32), "w")
    shapes = {name: onnx.helper.make_tensor_value_info(name, 1, [4, n]) for name, n in (("x", 64), ("y", 32))}
    product = onnx.helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = onnx.helper.make_graph([product], "g", [shapes["x"]], [shapes["y"]], [weight])
    opset = [onnx.helper.make_opsetid("", 18)]
    source, target = tmp_path / "source.onnx", tmp_path / "target.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=9), source)
    convert(source, target, precision)
    session = onnxruntime.InferenceSession(target, providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"x": np.ones((4, 64), np.float32)})
    assert y == pytest.approx(np.full((4, 32), 64.0), rel=1e-3)
