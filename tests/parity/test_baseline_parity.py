"""The plain model that benchmarks compare with is the published one: outputs, losses, gradients."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from benchmarks.baseline.model import PlainViV1T
from benchmarks.baseline.step import poisson_correlation
from viv1t.families.sensorium2023.run import RunConfig

CASES = (pytest.param("01_full_size_default", marks=pytest.mark.slow), "02_parallel", "10_sequential_noflash")


@pytest.mark.parametrize("case", CASES)
def test_plain_model_equals_the_published(golden: Path, case: str) -> None:
    folder = golden / "model" / case
    options = yaml.safe_load((folder / "args.yaml").read_text())
    meta = json.loads((folder / "meta.json").read_text())
    tensors = load_file(folder / "tensors.safetensors")
    mice = options["mouse_ids"]
    height, width = options["input_shapes"]["video"][-2:]
    model = PlainViV1T(
        RunConfig.from_published(options), {m: options["output_shapes"][m][0] for m in mice}, (height, width)
    )
    model.load_state_dict(torch.load(folder / "ckpt" / "model_state.pt", weights_only=True)["model"])
    model.eval()
    for mouse in mice:
        inputs = [tensors[f"inputs/{kind}/{mouse}"] for kind in ("video", "behavior", "pupil_center", "response")]
        video, behavior, pupil_center, response = inputs
        output = model(video, mouse, behavior, pupil_center)
        expected = tensors[f"outputs/{mouse}"]
        assert (output - expected).norm() < 1e-5 * expected.norm()
        loss = poisson_correlation(response, output, meta["ds_sizes"][mouse], len(video))
        reference = tensors[f"loss/poisson_correlation/ds_scale1/bs2/{mouse}"]
        assert loss.item() == pytest.approx(reference.item(), rel=1e-5)
        loss.backward()
        if f"noise/{mouse}" in tensors:
            with torch.no_grad():
                sampled = model(video, mouse, behavior, pupil_center, tensors[f"noise/{mouse}"])
            expected = tensors[f"outputs_sampled/{mouse}"]
            assert (sampled - expected).norm() < 1e-5 * expected.norm()
    largest = max(meta["grad_norm"].values())
    for name, parameter in model.named_parameters():
        found = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        expected = tensors.get(f"grad/{name}")
        if expected is None:
            expected = tensors[f"grad_sub/{name}"]
            found = found.flatten()[:: meta["grad_sub_step"][name]]
        near = 20 * meta["tolerance"]["grad_err_norm_f64"].get(name, 0.0)  # gradients that nearly cancel
        allowed = max(1e-3 * float(expected.norm()) + 1e-5 * largest, near)
        assert float((found.reshape(expected.shape) - expected).norm()) <= allowed, name
