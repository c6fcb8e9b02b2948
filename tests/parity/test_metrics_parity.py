"""Correlations equal the published ones."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from viv1t.scoring import correlation as metrics


@pytest.fixture(scope="module")
def arrays(golden: Path) -> dict[str, Tensor]:
    return load_file(golden / "metrics" / "arrays.safetensors")


def pooled(predictions: Iterable[Tensor], responses: Iterable[Tensor], skip: int = 0) -> float:
    """Mean over neurons of the correlation over all trials.

    The published function takes of every trial as many last frames as the first has left after `skip`, or whole trials
    where it has none left.
    """
    accumulator = metrics.CorrelationAccumulator()
    first: int | None = None
    for prediction, response in zip(predictions, responses, strict=True):
        length = min(prediction.shape[-1], response.shape[-1])
        first = length - skip if first is None else first
        frames = min(first, length) if first > 0 else length
        accumulator.update(*(x[..., x.shape[-1] - frames :] for x in (prediction, response)))
    return float(accumulator.result().mean())


def _value(case: dict[str, Any], prediction: Any, response: Any) -> Any:
    match case["fn"]:
        case "single_trial_correlation":
            return pooled(prediction, response, case["skip"])
        case "evaluate_rule":
            return pooled(*([x[:, case["skip"] :] for x in trials] for trials in (prediction, response)))
        case "compute_metrics":
            return pooled(prediction, response)
        case "correlation":
            dim = tuple(case["dim"]) if isinstance(case["dim"], list) else case["dim"]
            return metrics.correlation(prediction, response, dim, case["eps"]).float()
    raise AssertionError(case["fn"])


def test_correlations_equal_the_published(golden: Path, arrays: dict[str, Tensor]) -> None:
    def read(names: Any) -> Any:
        return [arrays[n] for n in names] if isinstance(names, list) else arrays[names]

    cases = json.loads((golden / "metrics" / "cases.json").read_text())
    # Losses are the criterion's, which has golden numbers of its own.
    cases = [c for c in cases if c["fn"] not in ("sse", "poisson_loss")]
    assert {c["fn"] for c in cases} == {"correlation", "single_trial_correlation", "compute_metrics", "evaluate_rule"}
    for case in cases:
        found = _value(case, read(case["y_pred"]), read(case["y_true"]))
        if case["fn"] == "correlation":
            for kind in ("torch", "numpy"):
                expected = arrays[case[f"expected_{kind}"]]
                torch.testing.assert_close(found, expected.reshape(found.shape), rtol=1e-6, atol=1e-6)
        else:
            whole = case["fn"] == "compute_metrics"
            value = case["value"]["metrics/single_trial_correlation"] if whole else case["value"]
            assert found == pytest.approx(value, rel=1e-6), case
