"""Losses equal the published ones."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from viv1t.scoring.criterion import CRITERIA, criterion

CASES = ("02_parallel", "03_sequential", "14_mod1_variants", "22_fb_behavior2_train_bn")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("case", CASES)
def test_losses_equal_the_published(golden: Path, case: str, dtype: torch.dtype) -> None:
    tensors = load_file(golden / "model" / case / "tensors.safetensors")
    sizes = json.loads((golden / "model" / case / "meta.json").read_text())["ds_sizes"]
    seen = set()
    for key, expected in tensors.items():
        if not key.startswith("loss/"):
            continue
        _, name, scale, batch_size, mouse = key.split("/")
        response, prediction = tensors[f"inputs/response/{mouse}"].to(dtype), tensors[f"outputs/{mouse}"].to(dtype)
        size = int(batch_size.removeprefix("bs"))
        # The published logMSE is not weighed by the micro batch's share of the batch.
        expected = expected * (len(response) / size if name == "logMSE" else 1)
        loss = criterion(
            name, response, prediction, train_trials=sizes[mouse], batch_size=size, ds_scale=scale == "ds_scale1"
        )
        assert loss.dtype == dtype
        assert float(loss) == pytest.approx(float(expected), rel=1e-5), key
        seen.add(name)
    assert seen == set(CRITERIA) - {"gamma"}  # of the family of 2025 alone
