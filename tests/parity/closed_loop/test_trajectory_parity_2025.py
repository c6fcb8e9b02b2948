"""Ten steps of training as published in 2025: losses, norms, clipping, and the weights in all their forms."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from closed_loop_cases import Case, case_names, closed_loop_folder, required
from torch import Tensor, nn

from viv1t.families.closed_loop import CLOSED_LOOP
from viv1t.families.closed_loop.names import published_names, to_published
from viv1t.families.closed_loop.training import (
    build_clipping,
    build_optimizer,
    load_published_optimizer,
    published_optimizer,
)
from viv1t.optim.clipping import GradientClipping
from viv1t.optim.schedule_free import ScheduleFreeAdamW
from viv1t.scoring.correlation import correlation
from viv1t.scoring.criterion import share_criterion
from viv1t.training.step import Step
from viv1t.types import Batch


class Trajectory(Case):
    """A golden case, and what ours makes of it."""

    def __init__(self, name: str) -> None:
        super().__init__(closed_loop_folder() / "trajectory" / name)
        self.expected: dict[str, Any] = json.loads((self.folder / "trajectory.json").read_text())
        self.net = self.model()
        self.optimizer = build_optimizer(self.net, self.net.config)
        self.clipping = build_clipping(self.net.config)
        self.training()

    def training(self) -> None:
        self.net.train()
        self.net.readouts.eval()  # neurons sample at their positions, without noise
        if isinstance(self.optimizer, ScheduleFreeAdamW):
            self.optimizer.train()

    def loss(self, mouse: str, trials: list[int], frames: int | None = None) -> tuple[Tensor, Tensor]:
        pool = {v: self.tensors[f"pool/{v}/{mouse}"][trials] for v in ("video", "response", "behavior", "pupil_center")}
        prediction = self.net(pool["video"], mouse, pool["behavior"], pool["pupil_center"])
        prediction = prediction if frames is None else prediction[..., -frames:]
        options = self.net.config.optimizer
        sizes = self.expected["ds_sizes"] if options.ds_scale else None
        loss = share_criterion(options.criterion, pool["response"], prediction, train_sizes=sizes, mouse_id=mouse)
        return loss, prediction

    def step(self, entries: list[dict[str, Any]]) -> None:
        """One optimizer step against its entries."""
        batch, micro = self.expected["batch_size"], self.expected["micro_batch_size"]
        for entry in entries:
            mouse, trials = entry["mouse"], entry["trials"]
            total, predictions = 0.0, []
            for start in range(0, len(trials), micro):
                loss, prediction = self.loss(mouse, trials[start : start + micro])
                loss = loss / (len(self.mice) * batch)
                loss.backward()  # type: ignore[no-untyped-call]
                total += loss.item()
                predictions.append(prediction.detach())
            where = f"step {entry['step']}, mouse {mouse}"
            assert total == pytest.approx(entry["loss"], rel=1e-5), where
            joined = torch.cat(predictions)
            response = self.tensors[f"pool/response/{mouse}"][trials][..., -joined.shape[2] :]
            found = correlation(joined, response, dim=(0, 2)).mean().item()
            assert found == pytest.approx(entry["correlation"], abs=1e-5), where
        last = entries[-1]
        parameters = [p for p in self.net.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        assert float(norm) == pytest.approx(last["grad_norm"], rel=1e-5)
        limit = self.clipping.max_norm
        assert limit == (float("inf") if last["max_norm"] is None else pytest.approx(last["max_norm"], rel=1e-5))
        assert min(1.0, limit / (float(norm) + 1e-6)) == pytest.approx(last["clip_coef"], rel=1e-5)
        self.clipping.clip(parameters, norm)
        self.clipping.remember(float(norm))
        self.optimizer.step()
        self.optimizer.zero_grad()
        rates = {g["name"]: g.get("scheduled_lr", g["lr"]) for g in self.optimizer.param_groups}
        assert rates == pytest.approx(last["lr"])

    def run(self) -> None:
        steps: dict[int, list[dict[str, Any]]] = {}
        for entry in self.expected["steps"]:
            steps.setdefault(entry["step"], []).append(entry)
        assert len(steps) == 10
        for number, entries in steps.items():
            self.step(entries)
            if number == self.expected["switch"]["after_step"]:
                self.validate()

    def validate(self) -> None:
        if isinstance(self.optimizer, ScheduleFreeAdamW):
            self.optimizer.eval()
        self.net.eval()
        with torch.no_grad():
            for entry in self.expected["switch"]["validation"]:
                frames = self.tensors[f"pool/video/{entry['mouse']}"].shape[2]
                loss, _ = self.loss(entry["mouse"], [entry["trial"]], frames - 50)
                assert loss.item() == pytest.approx(entry["loss"], rel=1e-5)
        self.training()


class TrainersTrajectory(Trajectory):
    """The same steps, made as a run makes them."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        training = CLOSED_LOOP.training(self.net, self.net.config, self.expected["ds_sizes"])
        self.optimization = training.optimization
        self.optimizer = self.optimization.optimizer  # type: ignore[assignment]
        self.stepping = Step(self.net, training, micro_batch_size=self.expected["micro_batch_size"])
        self.stepping.optimization.to_training()

    def step(self, entries: list[dict[str, Any]]) -> None:
        limit = self.optimization.clipping.max_norm
        for entry in entries:
            mouse, trials = entry["mouse"], entry["trials"]
            variables = ("video", "response", "behavior", "pupil_center")
            pool = {v: self.tensors[f"pool/{v}/{mouse}"][trials] for v in variables}
            frames = torch.full((len(trials),), pool["video"].shape[2])
            loss = self.stepping.accumulate(Batch(mouse, tuple(trials), frames=frames, **pool))
            assert float(loss) == pytest.approx(entry["loss"], rel=1e-5), (entry["step"], mouse)
        last = entries[-1]
        assert limit == (float("inf") if last["max_norm"] is None else pytest.approx(last["max_norm"], rel=1e-5))
        total, norm = self.stepping.update()
        assert total == pytest.approx(sum(entry["loss"] for entry in entries), rel=1e-5)
        assert norm is not None
        assert float(norm) == pytest.approx(last["grad_norm"], rel=1e-5)
        rates = {g["name"]: g.get("scheduled_lr", g["lr"]) for g in self.optimization.groups}
        assert rates == pytest.approx(last["lr"])

    def validate(self) -> None:
        self.optimization.to_evaluation()
        self.net.eval()
        with torch.no_grad():
            for entry in self.expected["switch"]["validation"]:
                mouse, trial = entry["mouse"], entry["trial"]
                pool = {v: self.tensors[f"pool/{v}/{mouse}"][[trial]] for v in ("video", "behavior", "pupil_center")}
                frames = pool["video"].shape[2] - 50
                prediction = self.net(pool["video"], mouse, pool["behavior"], pool["pupil_center"])[..., -frames:]
                response = self.tensors[f"pool/response/{mouse}"][[trial]]
                loss = self.stepping.objective.loss.of_trial(mouse, response, prediction)
                assert loss.item() == pytest.approx(entry["loss"], rel=1e-5)
        self.net.train()
        self.net.readouts.eval()
        self.optimization.to_training()


def check_weights(case: Trajectory, form: str) -> None:
    compared = 0
    for name, value in to_published(case.net).items():
        expected = case.tensors[f"{form}/{name}"].double()
        if not expected.norm():
            assert not value.any(), name
            continue
        tolerance = max(1e-4, 20 * case.expected["final_param_rel_err_f32_vs_f64"].get(name, 0))
        assert float((value.double() - expected).norm() / expected.norm()) < tolerance, (form, name)
        compared += 1
    assert compared > 40


@pytest.mark.parametrize("name", case_names("trajectory"))
@pytest.mark.parametrize("kind", [Trajectory, TrainersTrajectory], ids=["parts", "trainer"])
def test_ten_steps(kind: type[Trajectory], name: str) -> None:
    case = kind(name)
    case.run()
    check_weights(case, "final_train")
    names = published_names(case.net)
    parameters = {names[k]: p for k, p in case.net.named_parameters()}
    remembered = ("z", "exp_avg_sq") if isinstance(case.optimizer, ScheduleFreeAdamW) else ("exp_avg", "exp_avg_sq")
    for what in remembered:
        keys = [k for k in case.tensors if k.startswith(f"final_{what}/")]
        assert len(keys) == len(parameters)
        for key in keys:
            found, expected = case.optimizer.state[parameters[key.split("/", 1)[1]]][what], case.tensors[key]
            assert (found - expected).norm() <= 1e-4 * expected.norm() + 1e-12, key
    if isinstance(case.optimizer, ScheduleFreeAdamW):
        case.optimizer.eval()
    check_weights(case, "final_eval")
    for group, expected in zip(case.optimizer.param_groups, case.expected["optimizer"]["groups"], strict=True):
        assert len(group["params"]) == expected["num_params"]
        for key in ("name", "lr", "weight_decay", "eps", "k", "lr_max", "weight_sum", "scheduled_lr", "warmup_steps"):
            if key in expected:
                assert group[key] == (expected[key] if key == "name" else pytest.approx(expected[key], rel=1e-6)), key

    # The state as published, numbered as published.
    written = published_optimizer(case.net, case.optimizer)
    there = torch.load(case.folder / "ckpt" / "optimizer_after.pt", weights_only=True)
    assert [g["params"] for g in written["param_groups"]] == [list(g["params"]) for g in there["param_groups"]]
    assert list(written["state"]) == list(there["state"])
    for index, entries in there["state"].items():
        for key, expected in entries.items():
            found = written["state"][index][key]
            assert found.shape == expected.shape
            assert (found - expected).norm() <= 1e-4 * expected.norm() + 1e-12, (index, key)


def test_a_published_state_goes_on(tmp_path: Any) -> None:
    required()
    case = Trajectory("01_schedule_free_autoclip")
    content = torch.load(case.folder / "ckpt" / "optimizer_after.pt", weights_only=True)
    load_published_optimizer(case.net, case.optimizer, content, "optimizer.pt")
    again = published_optimizer(case.net, case.optimizer)
    assert all(not g["train_mode"] and g["k"] == 10 for g in again["param_groups"])
    for index, entries in content["state"].items():
        assert all(torch.equal(again["state"][index][key], value) for key, value in entries.items())
    with pytest.raises(RuntimeError, match="evaluation form"):
        case.optimizer.step()


def test_what_is_not_finite_changes_nothing() -> None:
    p = nn.Parameter(torch.ones(3))
    optimizer = ScheduleFreeAdamW([p], lr=0.1, warmup_steps=2)
    p.grad = torch.tensor([1.0, 2, 3])
    optimizer.step()
    before = [p.detach().clone(), *(v.clone() for v in optimizer.state[p].values())]
    p.grad = torch.tensor([1.0, torch.nan, 3])
    optimizer.found_inf = torch.ones(())
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, [p, *optimizer.state[p].values()], strict=True))
    optimizer.found_inf = torch.zeros(())
    p.grad = torch.ones(3)
    optimizer.step()
    assert not torch.equal(before[0], p)


def test_clipping_remembers_what_is_finite_and_goes_on_from_its_history() -> None:
    clipping = GradientClipping(-1)
    assert clipping.max_norm == float("inf")
    for norm in (4.0, float("nan"), 2.0, float("inf"), 3.0):
        clipping.remember(norm)
    assert clipping.max_norm == pytest.approx(2.2)
    again = GradientClipping(-1)
    again.load_state(clipping.state())
    assert again.max_norm == clipping.max_norm
    assert GradientClipping(0, [1.0]).max_norm == float("inf")
    assert GradientClipping(0.5, [1.0]).max_norm == 0.5
