"""Predicting one trial on two CPU cores: our exported file in ONNX Runtime, the published model's plain way, and ours.

All have the weights of the published default model and 8,000 neurons, and see the same trial.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.baseline.model import PlainViV1T
from benchmarks.harness import Report, peak_bytes, seconds, torch_threads
from benchmarks.test_step import MOUSE, Size
from viv1t.export.graph import GraphModel
from viv1t.export.precision import PRECISIONS, convert
from viv1t.export.program import OPSET, save, to_onnx
from viv1t.memory import available_bytes
from viv1t.model.published import to_published
from viv1t.onnx_model import open_session, run_session

pytest.importorskip("onnxruntime", reason="needs viv1t[onnx]")

THREADS, NEEDED_BYTES = 2, 8e9
LENGTHS = (140, 300)


class Exported:
    """The file in ONNX Runtime."""

    def __init__(self, size: Size, path: Path) -> None:
        batch = size.batch()
        self.feed = {name: getattr(batch, name).numpy() for name in ("video", "behavior", "pupil_center")}
        self.session = open_session(path, THREADS)

    def __call__(self) -> np.ndarray:
        return run_session(self.session, self.feed)


class Eager:
    """Ours in PyTorch."""

    def __init__(self, size: Size) -> None:
        self.batch, self.model = size.batch(), size.model().eval()

    @torch.inference_mode()
    def __call__(self) -> np.ndarray:
        batch = self.batch
        return self.model(batch.video, MOUSE, batch.behavior, batch.pupil_center).numpy()


class Published(Eager):
    """The published model's plain way."""

    def __init__(self, size: Size) -> None:
        super().__init__(size)
        plain = PlainViV1T(size.config, {MOUSE: size.neurons}, size.frame_size)
        plain.load_state_dict(to_published(self.model))
        self.model = plain.eval()


@pytest.fixture(scope="module", autouse=True)
def enough_memory() -> None:
    if available_bytes() < NEEDED_BYTES:
        pytest.skip(f"needs {NEEDED_BYTES / 1e9:.0f} GB of memory, {available_bytes() / 1e9:.1f} GB are available")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The exported model in every precision."""
    folder = tmp_path_factory.mktemp("onnx")
    paths = {precision: folder / f"{precision}.onnx" for precision in PRECISIONS}
    example = Size(trials=2, frames=40).batch()
    inputs = {name: getattr(example, name) for name in ("video", "behavior", "pupil_center")}
    save(to_onnx(GraphModel([Size().model().eval()], MOUSE).eval(), inputs, "response", OPSET), paths["fp32"], {})
    for precision in PRECISIONS[1:]:
        convert(paths["fp32"], paths[precision], precision)
    return paths


# Relative, against the published way.
TOLERANCES = {"peer:viv1t-pytorch": 1e-4, "fp32": 1e-4, "fp16": 1e-3, "int8": 0.05}


def add(report: Report, frames: int, metric: str, unit: str, samples: dict[str, list[float]]) -> None:
    """A case per precision, each beside the same measurements of PyTorch in float32."""
    for precision in (p for p in PRECISIONS if p in samples):
        variants = {"viv1t": samples[precision]} | {k: v for k, v in samples.items() if k not in PRECISIONS}
        case = f"{precision.replace('fp', 'float')}-{frames}-frames-{Size().neurons}-neurons"
        report.add("onnx", case, metric, unit, variants)


@pytest.mark.parametrize("frames", LENGTHS)
def test_onnx_seconds(report: Report, files: dict[str, Path], frames: int) -> None:
    size = Size(frames=frames)
    works = {"published": Published(size), "peer:viv1t-pytorch": Eager(size)}
    works |= {precision: Exported(size, path) for precision, path in files.items()}
    with torch_threads(THREADS):
        results = {name: work() for name, work in works.items()}  # which also warms up
    expected = results["published"]
    for name, tolerance in TOLERANCES.items():
        assert np.linalg.norm(results[name] - expected) < tolerance * np.linalg.norm(expected), name
    add(report, frames, "seconds", "s", seconds(works, repeats=3, warmup=0, threads=THREADS))


@pytest.mark.parametrize("frames", LENGTHS)
def test_onnx_peak_bytes(report: Report, files: dict[str, Path], frames: int) -> None:
    size = Size(frames=frames)
    makes = {"published": (Published, size), "peer:viv1t-pytorch": (Eager, size)}
    makes |= {precision: (Exported, size, path) for precision, path in files.items()}
    add(report, frames, "peak_bytes", "B", {n: [peak_bytes(*make, threads=THREADS)] for n, make in makes.items()})
