"""Metrics equal the published ones."""

import json
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


def _value(case: dict[str, Any], prediction: Any, response: Any) -> Any:
    match case["fn"]:
        case "sse":
            return metrics.sse(prediction, response, case["reduction"])
        case "poisson_loss":
            return metrics.poisson_loss(prediction, response, case["eps"], case["reduction"])
        case "single_trial_correlation":
            return metrics.single_trial_correlation(prediction, response, skip=case["skip"], frames_of_first_trial=True)
        case "evaluate_rule":
            cut = ([x[:, case["skip"] :] for x in trials] for trials in (prediction, response))
            return metrics.single_trial_correlation(*cut, frames_of_first_trial=True)
        case "compute_metrics":
            return {f"metrics/{k}": v for k, v in metrics.compute_metrics(prediction, response).items()}
        case "correlation":
            dim = tuple(case["dim"]) if isinstance(case["dim"], list) else case["dim"]
            return metrics.correlation(prediction, response, dim, case["eps"]).float()
    raise AssertionError(case["fn"])


def test_metrics_equal_the_published(golden: Path, arrays: dict[str, Tensor]) -> None:
    def read(names: Any) -> Any:
        return [arrays[n] for n in names] if isinstance(names, list) else arrays[names]

    cases = json.loads((golden / "metrics" / "cases.json").read_text())
    assert {c["fn"] for c in cases} == {
        "sse", "poisson_loss", "correlation", "single_trial_correlation", "compute_metrics", "evaluate_rule",
    }  # fmt: skip
    for case in cases:
        found = _value(case, read(case["y_pred"]), read(case["y_true"]))
        if case["fn"] == "correlation":
            for kind in ("torch", "numpy"):
                expected = arrays[case[f"expected_{kind}"]]
                torch.testing.assert_close(found, expected.reshape(found.shape), rtol=1e-6, atol=1e-6)
        else:
            assert found == pytest.approx(case["value"], rel=1e-6), case
