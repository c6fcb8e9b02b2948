"""The model against the published code's numbers: weights both ways, outputs, losses and every gradient."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from golden_files import golden_folder
from safetensors.torch import load_file
from torch import Tensor

from viv1t.families.sensorium2023.build import build_model
from viv1t.families.sensorium2023.names import from_published, published_names, to_published
from viv1t.families.sensorium2023.options import CriticConfig, Gaussian2dConfig
from viv1t.families.sensorium2023.run import RunConfig
from viv1t.model.critic import Critic
from viv1t.model.readout import normalized_coordinates
from viv1t.model.twin import Neurons, ViV1T
from viv1t.scoring.criterion import criterion


def case_names(slow: tuple[str, ...] = (), having: tuple[str, str] | None = None) -> list[Any]:
    """Cases as parameters; `having` keeps those with this text in this one of their files."""
    folders = sorted((golden_folder() / "model").glob("*"))
    names = [f.name for f in folders if having is None or having[1] in (f / having[0]).read_text()]
    if not names:
        return [pytest.param("", marks=pytest.mark.skip(reason=f"golden numbers not found at {golden_folder()}"))]
    return [pytest.param(n, marks=pytest.mark.slow) if n in slow else n for n in names]


def error(a: Tensor, b: Tensor) -> float:
    """Relative Frobenius distance."""
    assert a.shape == b.shape
    return float((a.double() - b.double()).norm() / b.double().norm())


@dataclass
class Run:
    """What our model gives for a case, by the golden set's keys."""

    values: dict[str, Tensor] = field(default_factory=dict)
    losses: dict[str, float] = field(default_factory=dict)
    gradients: dict[str, Tensor | None] = field(default_factory=dict)
    state: dict[str, Tensor] = field(default_factory=dict)


class Case:
    """One folder of golden/model."""

    def __init__(self, folder: Path) -> None:
        self.name = folder.name
        self.options = yaml.safe_load((folder / "args.yaml").read_text())
        self.meta = json.loads((folder / "meta.json").read_text())
        self.tensors = load_file(folder / "tensors.safetensors")
        self.state = torch.load(folder / "ckpt" / "model_state.pt", weights_only=True)["model"]
        self.config = RunConfig.from_published(self.options)
        self.mice: list[str] = self.options["mouse_ids"]
        self.random = self.config.readout.name == "random"

    def model(self, dtype: torch.dtype = torch.float32) -> ViV1T:
        mice = {m: Neurons(self.options["output_shapes"][m][0]) for m in self.mice}
        height, width = self.options["input_shapes"]["video"][-2:]
        model = build_model(self.config, mice, (height, width))
        model.load_state_dict(from_published(model, self.state, self.name))
        return model.to(dtype)

    def inputs(self, mouse: str, dtype: torch.dtype, prefix: str = "inputs") -> tuple[Tensor, str, Tensor, Tensor]:
        video, behavior, pupil = (
            self.tensors[f"{prefix}/{name}/{mouse}"].to(dtype) for name in ("video", "behavior", "pupil_center")
        )
        return video, mouse, behavior, pupil

    def loss(self, name: str, mouse: str, outputs: Tensor, batch_size: int, ds_scale: bool = True) -> Tensor:
        response = self.tensors[f"inputs/response/{mouse}"].to(outputs.dtype)
        trials = self.meta["ds_sizes"][mouse]
        return criterion(name, response, outputs, train_trials=trials, batch_size=batch_size, ds_scale=ds_scale)

    def backward(self, model: ViV1T, run: Run, prefix: str = "") -> None:
        """Outputs, losses and gradients of the sum over mice."""
        maps: list[Tensor] = []
        hook = model.core.register_forward_hook(lambda module, args, output: maps.append(output.detach()))
        dtype = model.features_dtype
        for mouse in self.mice:
            logits = model(*self.inputs(mouse, dtype), activate=False)
            outputs = model.activate(logits, mouse)
            run.values[f"{prefix}outputs_noact/{mouse}"] = logits.detach()
            run.values[f"{prefix}outputs/{mouse}"] = outputs.detach()
            run.values[f"{prefix}core_outputs/{mouse}"] = maps.pop()
            if not self.random:
                loss = self.loss("poisson_correlation", mouse, outputs, batch_size=len(outputs))
                loss.backward()  # type: ignore[no-untyped-call]
                run.losses[mouse] = loss.item()
        hook.remove()
        names = published_names(model)
        run.gradients = {names[k]: p.grad for k, p in model.named_parameters()}
        run.state = {names[k]: v for k, v in model.state_dict().items()}

    def evaluate(self, dtype: torch.dtype) -> Run:
        run, model = Run(), self.model(dtype).eval()
        self.backward(model, run)
        with torch.no_grad():
            for mouse in self.mice:
                if f"long_outputs/{mouse}" in self.tensors:
                    run.values[f"long_outputs/{mouse}"] = model(*self.inputs(mouse, dtype, "long_inputs"))
                if (noise := self.tensors.get(f"noise/{mouse}")) is not None:
                    batch, neurons = self.tensors[f"outputs/{mouse}"].shape[:2]
                    noise = noise.view(batch, -1, neurons, 2).to(dtype)
                    run.values[f"outputs_sampled/{mouse}"] = model(*self.inputs(mouse, dtype), noise=noise)
        for mouse in self.mice:  # full-size cases keep some frames of the core's output
            key = f"core_outputs/{mouse}"
            run.values[key] = run.values[key][:, :, self.tensors["core_outputs_t_index"]]
        return run

    @cached_property
    def single(self) -> Run:
        return self.evaluate(torch.float32)

    @cached_property
    def double(self) -> Run:
        return self.evaluate(torch.float64)

    def gradient_pairs(self, run: Run, prefix: str = "") -> Iterator[tuple[str, Tensor, Tensor]]:
        """Name, our gradient and the golden one; of large parameters of full-size cases every n-th entry."""
        for name, gradient in run.gradients.items():
            expected = self.tensors.get(f"{prefix}grad/{name}")
            if expected is None and (step := self.meta["grad_sub_step"].get(name)):
                expected = self.tensors[f"grad_sub/{name}"]
                gradient = None if gradient is None else gradient.flatten()[::step]
            if expected is None:
                assert gradient is None, f"{name} has a gradient, the published one has none"
                continue
            assert gradient is not None, f"{name} has no gradient"
            assert gradient.shape == expected.shape
            yield name, gradient.double(), expected.double()


@cache
def load_case(name: str) -> Case:
    return Case(golden_folder() / "model" / name)


@pytest.fixture(scope="module", params=case_names())
def case(request: pytest.FixtureRequest) -> Case:
    return load_case(request.param)


@pytest.fixture(scope="module", params=case_names(slow=("01_full_size_default",)))
def double_case(request: pytest.FixtureRequest) -> Case:
    """A case to run in float64, where our own rounding no longer counts."""
    return load_case(request.param)


def compared(case: Case) -> list[str]:
    """Golden keys of values that can be compared."""
    kinds = ("core_outputs/",) if case.random else ("core_outputs/", "outputs", "long_outputs/")
    return [k for k in case.tensors if k.startswith(kinds)]


def test_checkpoint_loads_and_writes_back_bit_identically(case: Case) -> None:
    written = to_published(case.model())
    assert written.keys() == case.state.keys()
    for name, value in case.state.items():
        assert written[name].dtype == value.dtype, name
        assert torch.equal(written[name], value), name


def test_neuron_positions_start_from_the_coordinates(case: Case) -> None:
    if not isinstance(case.config.readout, Gaussian2dConfig) or case.config.readout.grid == "free":
        pytest.skip("this readout does not use coordinates")
    axes = 3 if case.config.readout.grid == "xyz" else 2
    for mouse in case.mice:
        grid = normalized_coordinates(case.tensors[f"neuron_coordinates/{mouse}"], axes)
        torch.testing.assert_close(grid, case.state[f"readouts.{mouse}.source_grid"], rtol=1e-6, atol=1e-6)


def test_outputs(case: Case) -> None:
    for key in compared(case):
        assert error(case.single.values[key], case.tensors[key]) < 1e-5, key
    for mouse in case.mice:
        assert case.single.values[f"outputs/{mouse}"].shape == case.tensors[f"outputs/{mouse}"].shape


def test_losses(case: Case) -> None:
    if case.random:
        pytest.skip("random outputs have no losses to compare")
    keys = [k for k in case.tensors if k.startswith("loss/")]
    assert keys
    for key in keys:
        _, name, scale, size, mouse = key.split("/")
        outputs, batch_size = case.single.values[f"outputs/{mouse}"], int(size.removeprefix("bs"))
        loss = case.loss(name, mouse, outputs, batch_size, ds_scale=scale == "ds_scale1").item()
        # The published logMSE is not weighed by the micro batch's share of the batch.
        share = len(outputs) / batch_size if name == "logMSE" else 1
        assert loss == pytest.approx(case.tensors[key].item() * share, rel=1e-5), key


def test_a_forward_changes_what_the_published_one_changes(case: Case) -> None:
    changed = {k for k, v in case.single.state.items() if not torch.equal(v, case.state[k])}
    assert changed == set(case.meta.get("changed_by_forward", ()))
    for name in changed:
        assert torch.equal(case.single.state[name], case.tensors[f"state_after/{name}"]), name


def check_gradients(case: Case, run: Run, tolerance: dict[str, Any], prefix: str = "") -> None:
    largest = max(tolerance["grad_norm_f64"].values())
    seen = 0
    for name, ours, golden in case.gradient_pairs(run, prefix):
        if name.endswith(".sigma"):
            assert not ours.any(), f"{name}: the noise is zero, so is the gradient"
            assert not golden.any()
        bound = max(1e-3 * golden.norm().item() + 1e-5 * largest, 20 * tolerance["grad_err_norm_f64"].get(name, 0))
        assert (ours - golden).norm() <= bound, name
        seen += 1
    assert seen == sum(k.startswith((f"{prefix}grad/", f"{prefix}grad_sub/")) for k in case.tensors)


def test_gradients(case: Case) -> None:
    if case.random:
        pytest.skip("random outputs have no gradients to compare")
    check_gradients(case, case.single, case.meta["tolerance"])
    missing = {k for k, v in case.single.gradients.items() if v is None}
    assert missing == set(case.meta["grad_none"])


def test_float64_outputs_differ_by_the_golden_rounding_alone(double_case: Case) -> None:
    case, double = double_case, double_case.double
    tolerance = case.meta.get("tolerance", {})
    names = {"core_outputs": "core_rel_f64", "outputs": "outputs_rel_f64"}
    for key in compared(case):
        bound = tolerance.get(names.get(key.split("/")[0]), 1e-6)
        assert error(double.values[key], case.tensors[key]) < 1.01 * bound, key


def test_float64_losses_and_gradients_differ_by_the_golden_rounding_alone(double_case: Case) -> None:
    case, double = double_case, double_case.double
    if case.random:
        pytest.skip("random outputs have no gradients to compare")
    tolerance = case.meta["tolerance"]
    for mouse, loss in double.losses.items():
        assert loss == pytest.approx(tolerance[f"loss64_poisson_correlation/{mouse}"], rel=1e-9)
    largest = max(tolerance["grad_norm_f64"].values())
    for name, norm in tolerance["grad_norm_f64"].items():
        gradient = double.gradients[name]
        assert gradient is not None
        assert gradient.norm().item() == pytest.approx(norm, rel=1e-7, abs=1e-12 * largest), name
    for name, ours, golden in case.gradient_pairs(double):
        if name in case.meta["grad_sub_step"]:
            continue  # the golden error is that of all entries
        bound = 1.05 * tolerance["grad_err_norm_f64"].get(name, 0) + 1e-9 * largest
        assert (ours - golden).norm() <= bound, name


@pytest.mark.parametrize("name", case_names(having=("meta.json", "train_tolerance")))
def test_training_mode(name: str) -> None:
    case = load_case(name)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-6)):
        model, run = case.model(dtype).train(), Run()
        model.readouts.eval()
        case.backward(model, run, "train_")
        for mouse in case.mice:
            assert error(run.values[f"train_outputs/{mouse}"], case.tensors[f"train_outputs/{mouse}"]) < tolerance
        names = [k for k in case.tensors if k.startswith("train_state_after/")]
        assert names
        for name in names:
            ours = run.state[name.removeprefix("train_state_after/")]
            torch.testing.assert_close(ours.to(case.tensors[name].dtype), case.tensors[name], rtol=1e-5, atol=1e-6)
        check_gradients(case, run, case.meta["train_tolerance"], "train_")


@pytest.mark.parametrize("name", case_names(having=("args.yaml", "critic_mode: 1")))
def test_critic(name: str) -> None:
    case = load_case(name)
    assert isinstance(case.config.critic, CriticConfig)
    options = case.config.critic
    critic = Critic(options.hidden_dim, options.dropout, case.meta["core_output_shape_full"][1], len(case.mice)).eval()
    state = {k.removeprefix("critic_state/"): v for k, v in case.tensors.items() if k.startswith("critic_state/")}
    critic.load_state_dict(state)
    for mouse in case.mice:
        logits = critic(case.single.values[f"core_outputs/{mouse}"]).detach()
        assert error(logits, case.tensors[f"critic_logits/{mouse}"]) < 1e-5
        assert torch.equal(logits.argmax(1), case.tensors[f"critic_predict/{mouse}"])
