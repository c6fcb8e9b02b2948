"""Predicting one trial on two CPU cores: our exported file in ONNX Runtime, the published model's plain way, and ours.

All have the weights of the published default model and 8,000 neurons, and see the same trial.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.harness import Report, peak_bytes, seconds, torch_threads
from benchmarks.published import AGREEMENT, Published
from benchmarks.test_inference import EngineInference, PublishedInference
from benchmarks.workload import MOUSE, Size
from viv1t.export.graph import GraphModel
from viv1t.export.precision import convert
from viv1t.export.program import OPSET, save, to_onnx
from viv1t.onnx_model import PRECISIONS, open_session, run_session
from viv1t.system.memory import available_bytes

pytest.importorskip("onnxruntime", reason="needs viv1t[onnx]")

THREADS, NEEDED_BYTES = 2, 8e9
CPU = Size(device="cpu")
LENGTHS = (140, 300)
EAGER = "peer:viv1t-pytorch"


class Exported:
    """The file in ONNX Runtime."""

    def __init__(self, size: Size, path: Path) -> None:
        batch = size.batch()
        self.feed = {name: getattr(batch, name).numpy() for name in ("video", "behavior", "pupil_center")}
        self.session = open_session(path, THREADS)

    def __call__(self) -> np.ndarray:
        return run_session(self.session, self.feed)


@pytest.fixture(scope="module", autouse=True)
def enough_memory() -> None:
    if available_bytes() < NEEDED_BYTES:
        pytest.skip(f"needs {NEEDED_BYTES / 1e9:.0f} GB of memory, {available_bytes() / 1e9:.1f} GB are available")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The exported model in every precision."""
    folder = tmp_path_factory.mktemp("onnx")
    paths = {precision: folder / f"{precision}.onnx" for precision in PRECISIONS}
    example = replace(CPU, trials=2, frames=40).batch()
    inputs = {name: getattr(example, name) for name in ("video", "behavior", "pupil_center")}
    save(to_onnx(GraphModel([CPU.model().eval()], MOUSE).eval(), inputs, "response", OPSET), paths["fp32"], {})
    for precision in PRECISIONS[1:]:
        convert(paths["fp32"], paths[precision], precision)
    return paths


# Relative, against ours in PyTorch.
TOLERANCES = {"published": AGREEMENT, "fp32": 1e-4, "fp16": 1e-3, "int8": 0.05}


def add(report: Report, frames: int, metric: str, unit: str, samples: dict[str, list[float]]) -> None:
    """A case per precision, each beside the same measurements of PyTorch in float32."""
    for precision in (p for p in PRECISIONS if p in samples):
        variants = {"viv1t": samples[precision]} | {k: v for k, v in samples.items() if k not in PRECISIONS}
        case = f"{precision.replace('fp', 'float')}-{frames}-frames-{CPU.neurons}-neurons"
        report.add("onnx", case, metric, unit, variants)


@pytest.mark.parametrize("frames", LENGTHS)
def test_onnx_seconds(report: Report, published: Published, files: dict[str, Path], frames: int) -> None:
    size = replace(CPU, frames=frames)
    works = {"published": published.work(PublishedInference, size, THREADS), EAGER: EngineInference(size)}
    works |= {precision: Exported(size, path) for precision, path in files.items()}
    with torch_threads(THREADS):
        results = {name: np.asarray(work()) for name, work in works.items()}  # which also warms up
    expected = results[EAGER]
    for name, tolerance in TOLERANCES.items():
        assert np.linalg.norm(results[name] - expected) < tolerance * np.linalg.norm(expected), name
    add(report, frames, "seconds", "s", seconds(works, repeats=3, warmup=0, threads=THREADS))


@pytest.mark.parametrize("frames", LENGTHS)
def test_onnx_peak_bytes(report: Report, published: Published, files: dict[str, Path], frames: int) -> None:
    size = replace(CPU, frames=frames)
    makes = {EAGER: (EngineInference, size)} | {p: (Exported, size, path) for p, path in files.items()}
    samples = {"published": [published.peak_bytes(PublishedInference, size, THREADS)]}
    samples |= {name: [peak_bytes(*make, threads=THREADS)] for name, make in makes.items()}
    add(report, frames, "peak_bytes", "B", samples)
