"""Inference: the responses of a mouse's neurons to whole trials, with the published default model.

In evaluation mode; on two CPU cores, or on a GPU.
"""

from __future__ import annotations

from benchmarks.baseline.step import Prediction
from benchmarks.harness import Report
from benchmarks.published import Published
from benchmarks.workload import InPrecision, Size, Subject, full_size

FRAMES = 300


class EngineInference(InPrecision, Prediction):
    """The engine's model, as it predicts."""

    def __init__(self, size: Size) -> None:
        self.size = size
        super().__init__(size.model(), size.batch())


class PublishedInference(InPrecision, Prediction):
    """The same the published model's plain way."""

    def __init__(self, size: Size) -> None:
        self.size = size
        super().__init__(size.plain_model(), size.batch())


INFERENCE = Subject("inference", EngineInference, PublishedInference, gradients=False)


def test_inference_seconds(report: Report, published: Published) -> None:
    INFERENCE.add_seconds(report, full_size(FRAMES), published, repeats=3)


def test_inference_peak_bytes(report: Report, published: Published) -> None:
    INFERENCE.add_peak_bytes(report, full_size(FRAMES), published)
