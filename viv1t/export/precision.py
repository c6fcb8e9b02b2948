"""Smaller weights: float16, or int8 with products of integers."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

# Fewer values are not worth a conversion.
_SMALL = 1024


def convert(source: Path, target: Path, precision: str) -> None:
    """Writes a float32 file anew in another precision.

    fp16: weights are stored in half the bytes, and computed with in float32. int8: weights of products are stored as
    7-bit integers with a scale per column, and their inputs are rounded to 8 bits with a scale per call, as ONNX
    Runtime's dynamic quantisation does.
    """
    if precision == "fp16":
        _to_half(source, target)
    else:
        _to_integers(source, target)


def _to_half(source: Path, target: Path) -> None:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.load(source)
    casts = []
    for weight in model.graph.initializer:
        values = numpy_helper.to_array(weight) if weight.data_type == TensorProto.FLOAT else np.empty(0)
        if values.size < _SMALL or np.abs(values).max() > np.finfo(np.float16).max:
            continue
        name = weight.name
        weight.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f"{name}_half"))
        casts.append(helper.make_node("Cast", [f"{name}_half"], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, target)


def _to_integers(source: Path, target: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # it advises a preparation that an exported model does not need
    try:
        quantize_dynamic(
            source,
            target,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            weight_type=QuantType.QInt8,
            # To 7 bits: processors without VNNI add pairs of products in 16 bits, where those of 8 would not fit.
            reduce_range=True,
            extra_options={"EnableSubgraph": True, "MatMulConstBOnly": True},
        )
    finally:
        logging.disable(before)
