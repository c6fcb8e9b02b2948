"""Inference on two CPU cores: the responses of a mouse's neurons to a whole trial, with the published default model.

Both variants have the same weights and see the same trial, in evaluation mode.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from benchmarks.baseline.model import PlainViV1T
from benchmarks.baseline.step import Prediction
from benchmarks.harness import Report, peak_bytes, seconds
from benchmarks.published import Published
from benchmarks.test_step import MOUSE, THREADS, Size, add_cases
from viv1t.memory import available_bytes
from viv1t.model.published import to_published

NEEDED_BYTES = 12e9  # the published way writes out 2.9 GB of patches, more than once
FRAMES = 300


class EngineInference(Prediction):
    """The engine's model, as it predicts."""

    def __init__(self, size: Size) -> None:
        super().__init__(size.model(), size.batch())


class PublishedInference(Prediction):
    """The same the published model's plain way."""

    def __init__(self, size: Size) -> None:
        model = PlainViV1T(size.config, {MOUSE: size.neurons}, size.frame_size)
        model.load_state_dict(to_published(size.model()))
        super().__init__(model, size.batch())


VARIANTS = {"viv1t": EngineInference, "published": PublishedInference}
# Options of the engine's model; the published way knows float32 alone.
CASES: Mapping[str, Mapping[str, Any]] = {"float32": {}, "bf16": {"precision": "bf16"}}


@pytest.fixture(autouse=True)
def enough_memory() -> None:
    if available_bytes() < NEEDED_BYTES:
        pytest.skip(f"needs {NEEDED_BYTES / 1e9:.0f} GB of memory, {available_bytes() / 1e9:.1f} GB are available")


def test_inference_seconds(report: Report, published: Published) -> None:
    works = {case: EngineInference(Size(frames=FRAMES, options=options)) for case, options in CASES.items()}
    whole = Size(frames=FRAMES)
    variants = {**works, "published": published.work(PublishedInference, whole, THREADS)}
    add_cases(report, "inference", "seconds", "s", whole, seconds(variants, repeats=3, threads=THREADS))


def test_inference_peak_bytes(report: Report, published: Published) -> None:
    sizes = {case: Size(frames=FRAMES, options=options) for case, options in CASES.items()}
    samples = {case: peak_bytes(EngineInference, size, threads=THREADS) for case, size in sizes.items()}
    samples["published"] = published.peak_bytes(PublishedInference, Size(frames=FRAMES), THREADS)
    add_cases(report, "inference", "peak_bytes", "B", Size(frames=FRAMES), samples)
