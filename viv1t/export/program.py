"""From a module to an ONNX model, and from there to a file."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from viv1t.errors import ConfigError
from viv1t.onnx_model import INSTALL
from viv1t.onnx_model import OPSET as OPSET

if TYPE_CHECKING:
    import onnx_ir

# The version of ONNX's operators that is written: the first with an operator for attention, of 2025.
# One file of Protocol Buffers holds at most 2 GiB.
FILE_BYTES = 2_000_000_000

# Axes that may have any length, by the name they get in the file.
_AXES = {
    "video": {0: "trials", 2: "frames"},
    "behavior": {0: "trials", 2: "frames"},
    "pupil_center": {0: "trials", 2: "frames"},
    "maps": {0: "trials", 2: "predicted_frames"},
    "response": {0: "trials", 2: "predicted_frames"},
}


def check_packages() -> None:
    """Raises a ConfigError where a package that exporting needs is missing."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        try:
            __import__(package)
        except ImportError as error:
            raise ConfigError(f"exporting needs the package {package}: {INSTALL}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps advice to developers from the user."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(before)


def to_onnx(module: nn.Module, inputs: Mapping[str, Tensor], output: str, opset: int) -> onnx_ir.Model:
    """Exports a module in evaluation mode.

    Args:
        module: what is exported.
        inputs: by name, an example of each of its forward's arguments, of 2 trials or more.
        output: `maps` or `response`.
        opset: version of the operators.

    Raises:
        ConfigError: its weights are too large for one file.
    """
    size = sum(values.nbytes for values in (*module.parameters(), *module.buffers()))
    if size > FILE_BYTES:
        raise ConfigError(
            f"the weights take {size / 1e9:.1f} GB, and one ONNX file holds 2 GB: export fewer runs together, or the "
            "core and the readouts on their own, with --split"
        )
    dynamic = {name: dict.fromkeys(_AXES[name], torch.export.Dim.DYNAMIC) for name in inputs}
    model = trace(module, inputs, dynamic, [output], opset)
    for value in (*model.graph.inputs, *model.graph.outputs):
        assert value.shape is not None
        assert value.name is not None
        for axis, name in _AXES[value.name].items():
            value.shape[axis] = name
    return model


def trace(
    module: nn.Module, inputs: Mapping[str, Any], dynamic: Mapping[str, Any], outputs: Sequence[str], opset: int
) -> onnx_ir.Model:
    """The graph of a module.

    Args:
        module: in evaluation mode.
        inputs: by name, an example of each of its forward's arguments.
        dynamic: of each, which axes may have any length.
        outputs: their names.
        opset: version of the operators.
    """
    with _quiet(), torch.no_grad():
        program = torch.export.export(module, (), dict(inputs), dynamic_shapes=dict(dynamic))
        exported = torch.onnx.export(
            program, dynamo=True, opset_version=opset, output_names=list(outputs), verbose=False
        )
    assert exported is not None
    return exported.model


def save(model: onnx_ir.Model, path: Path, metadata: Mapping[str, str]) -> None:
    """Writes a model with its metadata."""
    import onnx_ir

    model.producer_name = "viv1t"
    model.metadata_props.update(metadata)
    onnx_ir.save(model, path)
