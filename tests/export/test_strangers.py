"""Exported files that anybody may have made: one line for what is wrong, and no more memory than a model takes."""

from __future__ import annotations

import base64
import io
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from viv1t.errors import CheckpointError
from viv1t.onnx_model import FORMAT, OnnxModel

GOOD = {
    "format": FORMAT, "part": "model", "mouse": "F", "session": "F", "neuron_ids": "[1, 2]", "frame_rate": "30.0",
    "frame_size": "[4, 6]", "frames": "[1, null]", "transform": '{"mode": "none", "in_graph": false}',
    "transform_arrays": "",
}  # fmt: skip


def written(path: Path, inputs: tuple[str, ...] = ("behavior",), **metadata: str) -> Path:
    """A model that gives its first input back, with these metadata."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", 2, "T"]) for name in inputs]
    out = helper.make_tensor_value_info("response", TensorProto.FLOAT, ["B", 2, "T"])
    graph = helper.make_graph([helper.make_node("Identity", [inputs[0]], ["response"])], "g", values, [out])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(model, GOOD | metadata)
    onnx.save(model, path)
    return path


def packed(arrays: dict[str, Any]) -> str:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return base64.b64encode(file.getvalue()).decode()


def arrays(**changes: np.ndarray) -> dict[str, np.ndarray]:
    video = {f"video_{part}": np.ones((1, 4, 6), np.float32) for part in ("offset", "scale")}
    others = {
        f"{v}_{p}": np.ones((2, 1), np.float32) for v in ("behavior", "pupil_center") for p in ("offset", "scale")
    }
    return video | others | changes


def bomb() -> str:
    """An archive of a gigabyte of zeros, and of a name that is expected."""
    file, header = io.BytesIO(), io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (1 << 28,)})
    with (
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("video_offset.npy", "w", force_zip64=True) as entry,
    ):
        entry.write(header.getvalue())
        for _ in range(64):
            entry.write(bytes(1 << 24))
    return base64.b64encode(file.getvalue()).decode()


def test_the_file_itself_is_good(tmp_path: Path) -> None:
    model = OnnxModel(written(tmp_path / "m.onnx", transform_arrays=packed(arrays())))
    assert model.transform is not None
    assert (model.frame_size, model.most_frames) == ((4, 6), None)
    state = np.ones((1, 2, 5), np.float32)
    assert model(np.zeros((1, 1, 5, 4, 6), np.float32), state, state).shape == (1, 2, 5)


@pytest.mark.parametrize(
    "metadata",
    [
        {"neuron_ids": "[1, 2"}, {"neuron_ids": "{}"}, {"neuron_ids": '["a"]'}, {"neuron_ids": "[1e99]"},
        {"neuron_ids": "[" * 100_000}, {"neuron_ids": "[" + "9" * 50 + "]"}, {"neuron_ids": "[[1], [2]]"},
        {"frame_rate": "fast"}, {"frame_rate": "nan"}, {"frame_rate": "-1"},
        {"frame_size": "[4]"}, {"frame_size": "null"}, {"frame_size": "[0, 6]"}, {"frame_size": "[1e9, 6]"},
        {"frame_size": "[4000000, 6]"}, {"frames": "[]"}, {"frames": "3"}, {"frames": '["a", null]'},
        {"transform": "[]"}, {"transform": "3"}, {"transform": "{}"}, {"medians": "[1]"},
        {"medians": '{"behavior": 1}'},
        {"levels": "[1]"}, {"levels": "[NaN, 1]"}, {"session": "../../etc"}, {"session": ".."}, {"mouse": "a/b"},
        {"core": "../core.onnx"}, {"core": "absent.onnx"}, {"transform_arrays": "not base64"},
        {"transform_arrays": base64.b64encode(b"nothing").decode()},
        {"transform_arrays": packed({"a": np.ones(3)})},
        {"transform_arrays": packed({"video_offset": np.ones((1, 4, 6), np.float32)})},
        {"transform_arrays": packed(arrays(video_scale=np.full((1, 4, 6), np.nan)))},
        {"transform_arrays": packed(arrays(video_scale=np.ones(3)))},
        {"transform_arrays": packed(arrays(behavior_scale=np.ones((2, 1), int)))},
    ],
    ids=lambda m: " ".join(f"{k}={v}"[:40] for k, v in m.items()),
)  # fmt: skip
def test_metadata_of_any_kind_are_one_line(tmp_path: Path, metadata: dict[str, str]) -> None:
    path = written(tmp_path / "m.onnx", **metadata)
    with pytest.raises(CheckpointError) as refusal:
        OnnxModel(path)
    line = str(refusal.value)
    assert str(tmp_path) in line
    assert line.isprintable()
    assert len(line) < 600


def test_every_entry_that_is_missing_is_one_line(tmp_path: Path) -> None:
    for name in GOOD.keys() - {"part"}:
        path = written(tmp_path / "m.onnx")
        model = onnx.load(path)
        kept = [entry for entry in model.metadata_props if entry.key != name]
        del model.metadata_props[:]
        model.metadata_props.extend(kept)
        onnx.save(model, path)
        with pytest.raises(CheckpointError):
            OnnxModel(path)


def test_text_that_is_none_is_one_line(tmp_path: Path) -> None:
    path = written(tmp_path / "m.onnx", mouse="MOUSEMOUSE")
    path.write_bytes(path.read_bytes().replace(b"MOUSEMOUSE", b"\xff\xfe\xfd\xfc\xff\xfe\xfd\xfc\xff\xfe"))
    with pytest.raises(CheckpointError, match=r"m\.onnx: "):
        OnnxModel(path)


def test_inputs_that_no_model_takes_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="it takes sound, which no exported model does"):
        OnnxModel(written(tmp_path / "m.onnx", inputs=("behavior", "sound")))


def test_a_graph_that_fails_is_one_line(tmp_path: Path) -> None:
    path = written(tmp_path / "m.onnx")
    model = onnx.load(path)
    model.graph.node[0].op_type = "Reshape"
    model.graph.node[0].input.append("shape")
    model.graph.initializer.append(helper.make_tensor("shape", TensorProto.INT64, [1], [7]))
    onnx.save(model, path)
    state = np.ones((1, 2, 5), np.float32)
    with pytest.raises(CheckpointError, match="ONNX Runtime cannot run the model"):
        OnnxModel(path)(np.zeros((1, 1, 5, 4, 6), np.float32), state, state)


def test_what_would_unpack_to_a_gigabyte_is_refused_before_it_is(tmp_path: Path) -> None:
    path = written(tmp_path / "m.onnx", transform_arrays=bomb())
    assert path.stat().st_size < 10_000_000
    code = f"""
from pathlib import Path
from viv1t.errors import CheckpointError
from viv1t.onnx_model import OnnxModel
try:
    OnnxModel({str(path)!r})
except CheckpointError as error:
    print(error)
print(next(w for w in Path("/proc/self/status").read_text().splitlines() if w.startswith("VmHWM")).split()[1])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    line, kilobytes = done.stdout.splitlines()
    assert "the transform would unpack to 107374" in line
    assert int(kilobytes) < 500_000
