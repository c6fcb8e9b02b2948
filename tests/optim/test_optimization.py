"""Each rule of optimization: what it saves and takes back, what it refuses, and which weights are evaluated."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from viv1t.errors import CheckpointError
from viv1t.optim.build import Part, adamw, schedule_free
from viv1t.optim.clipping import Clipping, GradientClipping
from viv1t.optim.optimization import (
    AdamWOptimization,
    Optimization,
    ScheduleFreeOptimization,
    weights_to_evaluate,
)
from viv1t.optim.plateau import EarlyStopping, Plateau
from viv1t.optim.schedule import CosineSchedule, PlateauSchedule
from viv1t.runs.checkpoint import load_module_entries, module_entries

Modules = dict[str, nn.Module]


def new_modules(seed: int) -> Modules:
    torch.manual_seed(seed)
    return {"model": nn.ModuleDict({"core": nn.Linear(3, 4), "readout": nn.Linear(4, 2)}), "critic": nn.Linear(4, 1)}


def parts(modules: Modules) -> list[Part]:
    model = modules["model"]
    assert isinstance(model, nn.ModuleDict)
    return [
        Part("core", (model["core"],), 0.05, 0.1),
        Part("readouts", (model["readout"],), 0.02, 0.3),
        Part("critic", (modules["critic"],), 0.02, 0.0),
    ]


def plain(modules: Modules) -> Optimization:
    return AdamWOptimization(adamw(parts(modules), (0.9, 0.999), 1e-8), PlateauSchedule(), Clipping(0.7))


def plain_with_history(modules: Modules) -> Optimization:
    return AdamWOptimization(adamw(parts(modules), (0.9, 0.999), 1e-8), Plateau(), GradientClipping(-1))


def free(modules: Modules) -> Optimization:
    optimizer = schedule_free(parts(modules), (0.8, 0.99), 1e-8, warmup_steps=4, r=0.5, weight_lr_power=2.0)
    return ScheduleFreeOptimization(optimizer, EarlyStopping(), GradientClipping(-1))


RULES = pytest.mark.parametrize("rule", [plain, plain_with_history, free])


def loss_of(modules: Modules, number: int) -> Tensor:
    model = modules["model"]
    assert isinstance(model, nn.ModuleDict)
    generator = torch.Generator().manual_seed(number)
    maps = torch.tanh(model["core"](torch.randn(5, 3, generator=generator)))
    total: Tensor = model["readout"](maps).square().sum()
    if number > 1:  # one part gets its first gradient later than the others
        total = total + modules["critic"](maps).square().sum()
    return total


def step(modules: Modules, optimization: Optimization, number: int, broken: bool = False) -> None:
    """As `Step` does it: clips, updates without knowing whether all is finite, then tells."""
    loss_of(modules, number).backward()
    if broken:
        gradient = optimization.parameters[0].grad
        assert gradient is not None
        gradient.view(-1)[0] = math.nan
    parameters = [p for p in optimization.parameters if p.grad is not None]
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if optimization.clipping.asks_norm:
        optimization.clipping.clip(parameters, norm)
    optimization.step(norm.isfinite().float())
    if broken:
        optimization.refused()
    else:
        optimization.made(float(norm))
    optimization.clear()


def state(modules: Modules, optimization: Optimization) -> tuple[dict[str, bytes], str]:
    """All that a save holds, as bytes."""
    entries = module_entries(modules) | optimization.entries(modules)
    return {k: v.detach().numpy().tobytes() for k, v in entries.items()}, json.dumps(optimization.facts())


def taken_back(rule: Callable[[Modules], Optimization], modules: Modules, before: Optimization) -> Any:
    """Other modules and another optimization, with a save of these."""
    others = new_modules(9)
    after = rule(others)
    after.load_facts(json.loads(json.dumps(before.facts())))
    saved = {k: v.detach().clone() for k, v in (module_entries(modules) | before.entries(modules)).items()}
    load_module_entries(others, saved, "here")
    after.load_entries(others, saved)
    return others, after


@RULES
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_a_save_comes_back_to_the_byte_and_goes_on_alike(rule: Callable[[Modules], Optimization], steps: int) -> None:
    modules = new_modules(1)
    optimization = rule(modules)
    for number in range(steps):
        step(modules, optimization, number)
    others, other = taken_back(rule, modules, optimization)
    assert state(others, other) == state(modules, optimization)
    for number in range(steps, steps + 3):
        for pair in ((modules, optimization), (others, other)):
            step(*pair, number)
    assert state(others, other) == state(modules, optimization)


@RULES
def test_the_evaluation_form_is_saved_and_left_as_if_never_stopped(rule: Callable[[Modules], Optimization]) -> None:
    modules = new_modules(1)
    optimization = rule(modules)
    for number in range(3):
        step(modules, optimization, number)
    optimization.to_evaluation()
    scored = state(modules, optimization)
    others, other = taken_back(rule, modules, optimization)
    other.to_evaluation()  # does nothing where the weights are in that form
    assert state(others, other) == scored
    for pair in ((modules, optimization), (others, other)):
        pair[1].to_training()
        step(*pair, 3)
    assert state(others, other) == state(modules, optimization)


@RULES
def test_a_step_that_is_not_finite_leaves_everything_as_it_was(rule: Callable[[Modules], Optimization]) -> None:
    modules, untouched = new_modules(1), new_modules(1)
    optimization, other = rule(modules), rule(untouched)
    for number in range(3):
        step(modules, optimization, number)
        step(untouched, other, number)
    step(modules, optimization, 3, broken=True)
    assert state(modules, optimization) == state(untouched, other)
    for pair in ((modules, optimization), (untouched, other)):
        step(*pair, 4)
    assert state(modules, optimization) == state(untouched, other)


def test_a_first_step_that_is_not_finite_is_as_if_none_had_been() -> None:
    modules, untouched = new_modules(1), new_modules(1)
    optimization, other = free(modules), free(untouched)
    step(modules, optimization, 0, broken=True)
    for pair in ((modules, optimization), (untouched, other)):
        for number in range(2):
            step(*pair, number)
    assert state(modules, optimization) == state(untouched, other)


def test_schedule_free_weights_to_evaluate_are_those_of_the_average() -> None:
    modules = new_modules(1)
    optimization = free(modules)
    for number in range(3):
        step(modules, optimization, number)
    saved = {k: v.detach().clone() for k, v in (module_entries(modules) | optimization.entries(modules)).items()}
    found = weights_to_evaluate(saved, optimization.facts())
    optimization.to_evaluation()
    average = module_entries(modules)
    assert any(not torch.equal(saved[name], value) for name, value in average.items())
    assert all(torch.equal(found[name], value) for name, value in average.items())
    # In that form already, they are left as they are.
    again = weights_to_evaluate(dict(average) | optimization.entries(modules), optimization.facts())
    assert all(torch.equal(again[name], value) for name, value in average.items())


def test_adamw_is_evaluated_with_the_weights_it_trains() -> None:
    modules = new_modules(1)
    optimization = plain(modules)
    step(modules, optimization, 2)
    trained = state(modules, optimization)
    entries = module_entries(modules)
    assert weights_to_evaluate(entries, optimization.facts()) == entries
    optimization.to_evaluation()
    optimization.to_training()
    assert state(modules, optimization) == trained


@RULES
def test_what_one_process_remembers_is_given_to_another(rule: Callable[[Modules], Optimization]) -> None:
    modules, others = new_modules(1), new_modules(1)
    optimization, fresh = rule(modules), rule(others)
    step(modules, optimization, 2)
    for parameter, other in zip(optimization.parameters, fresh.parameters, strict=True):
        known = optimization.state_of(parameter)
        assert tuple(known) == optimization.STATE == tuple(fresh.state_of(other))
        assert {k: v.shape for k, v in known.items()} == {k: v.shape for k, v in fresh.state_of(other).items()}
        assert all(torch.equal(known[k], optimization.optimizer.state[parameter][k]) for k in known)
    assert not fresh.optimizer.state  # to be asked is not to remember


@pytest.mark.parametrize(
    "damage",
    [{"lr": [0.1]}, {"lr": ["x", 1, 1]}, {"schedule": {}}, {"schedule": 1}, {"groups": []}, {"groups": [{}, {}, {}]},
     {"groups": None}],
)  # fmt: skip
def test_facts_of_something_else_are_refused(damage: dict[str, Any]) -> None:
    modules = new_modules(1)
    optimization = free(modules)
    with pytest.raises((LookupError, ValueError, TypeError)):
        optimization.load_facts(optimization.facts() | damage)


def test_entries_of_another_rule_are_refused() -> None:
    modules = new_modules(1)
    optimization = free(modules)
    step(modules, optimization, 0)
    with pytest.raises(CheckpointError, match=r"its moments are not all in the checkpoint"):
        plain(new_modules(1)).load_entries(modules, optimization.entries(modules))


def test_rates_follow_the_epochs_or_the_score() -> None:
    modules = new_modules(1)
    cosine = AdamWOptimization(adamw(parts(modules), (0.9, 0.999), 1e-8), CosineSchedule(3))
    rates = []
    for epoch in (1, 2, 3):
        cosine.begin_epoch(epoch)
        rates.append([group["lr"] for group in cosine.groups])
        assert not cosine.end_epoch(0.1, epoch).reduce_lr
    assert rates[0] == [0.05, 0.02, 0.02]
    assert rates[2] == pytest.approx([0.02 * rate for rate in rates[0]])
    assert [group["name"] for group in cosine.groups] == ["core", "readouts", "critic"]
    waiting = plain(modules)
    for epoch in range(1, 7):
        waiting.begin_epoch(epoch)
        decision = waiting.end_epoch(0.3 if epoch == 1 else 0.1, epoch)
    assert decision.restore
    assert [group["lr"] for group in waiting.groups] == pytest.approx([0.3 * rate for rate in rates[0]])


@pytest.mark.parametrize(("limit", "asked"), [(0.0, True), (0.5, True), (math.inf, False)])
def test_a_given_norm_is_clipped_to(limit: float, asked: bool) -> None:
    clipping, parameter = Clipping(limit), nn.Parameter(torch.ones(4))
    parameter.grad = torch.full((4,), 2.0)
    assert clipping.asks_norm is asked
    clipping.clip([parameter], torch.tensor(4.0))
    assert float(parameter.grad.norm()) == pytest.approx(min(limit, 4.0), abs=1e-5)
    assert clipping.state() is None
