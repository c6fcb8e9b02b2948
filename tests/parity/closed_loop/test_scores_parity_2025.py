"""Scores, the schedule and initial values of 2025 against the published code's."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from closed_loop_cases import required
from safetensors.torch import load_file
from torch import Tensor

from viv1t.families.closed_loop import metrics
from viv1t.families.closed_loop.build import build_model
from viv1t.families.closed_loop.names import published_names, to_published
from viv1t.families.closed_loop.options import ClosedLoopConfig
from viv1t.model.twin import Neurons
from viv1t.optim.plateau import EarlyStopping, Plateau


def same(found: Tensor | None, expected: list[float | None] | float) -> None:
    if found is None:
        assert expected == 0.0  # the published code's word for none
        return
    values = expected if isinstance(expected, list) else [expected]
    numbers = torch.tensor([math.nan if v is None else v for v in values], dtype=torch.float64)
    mine = found if isinstance(expected, list) else found.nanmean()[None]
    torch.testing.assert_close(mine, numbers, rtol=1e-5, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("number", range(4))
def test_scores(number: int) -> None:
    folder = required() / "metrics"
    arrays = load_file(folder / "arrays.safetensors")
    case = json.loads((folder / "cases.json").read_text())[number]
    p, r = (list(arrays[f"{number}/{name}"]) for name in ("y_pred", "y_true"))
    videos = arrays[f"{number}/video_ids"].tolist()
    ours = {
        "challenge_correlation": metrics.correlation_over_trials(p, r),
        "single_trial_correlation": metrics.correlation_within_trials(p, r),
        "correlation_to_average": metrics.average_per_video(p, r, videos),
        "normalized_correlation": metrics.normalized_per_video(p, r, videos),
    }
    compared = 0
    for name, found in ours.items():
        for key in (name, f"{name}/per_neuron"):
            if key in case["values"]:
                same(found, case["values"][key])
                compared += 1
    assert compared >= 6
    if "list_lengths" in case:
        cut = [[x[:, :n] for x, n in zip(of, case["list_lengths"], strict=True)] for of in (p, r)]
        same(metrics.correlation_over_trials(*cut), case["values"]["list/challenge_correlation"])
        same(metrics.correlation_within_trials(*cut), case["values"]["list/single_trial_correlation"])


def test_the_plateau_schedule() -> None:
    traces = json.loads((required() / "scheduler" / "traces.json").read_text())
    assert len(traces) == 6
    for trace in traces:
        schedule, rates = Plateau(), {"core": 0.0126, "readouts": 0.0073}
        for row in trace["rows"]:
            decision = schedule.step(float(row["value"]), row["epoch"])
            if decision.reduce_lr:
                rates = {name: schedule.reduced(lr) for name, lr in rates.items()}
            assert decision.terminate == bool(row["terminate"])
            assert decision.restore == bool(row["restored"])
            assert rates == pytest.approx(row["lr"])
            found = (schedule.wait, schedule.reductions, schedule.best_value, schedule.best_epoch, schedule.was_nan)
            names = ("lr_wait", "num_reduce", "best_value", "best_epoch", "was_nan")
            assert found == tuple(row[name] for name in names), row
            again = Plateau()
            again.load_state_dict(json.loads(json.dumps(schedule.state_dict())))
            assert vars(again) == vars(schedule)


def test_early_stopping_waits_ten_epochs() -> None:
    stopping = EarlyStopping()
    decisions = [stopping.step(v, e) for e, v in enumerate([0.1, 0.2, *[0.2] * 9, math.nan], start=1)]
    assert [d.save for d in decisions] == [True, True] + [False] * 10
    assert [d.terminate for d in decisions] == [False] * 11 + [True]


SEEDS, SIGMAS = 5, 5


@pytest.mark.parametrize("name", ["default_narrower", "learned_softplus_free", "conv", "fcnn"])
def test_initial_values_follow_the_published_distributions(name: str) -> None:
    case = json.loads((required() / "init" / "init_stats.json").read_text())[name]
    derived = ("input_shapes", "output_shapes")
    args = {k: v for k, v in case["args"].items() if k not in derived} | {"output_dir": "runs/init"}
    config = ClosedLoopConfig.from_published(args)
    shapes = case["args"].get("input_shapes", {}).get("video", [1, 300, 36, 64])
    states, entries = [], case["entries"]
    for seed in range(SEEDS):
        torch.manual_seed(seed)
        mice = {m: Neurons(n, 300 * torch.rand(n, 3), torch.full((n,), 0.5)) for m, n in case["mice"].items()}
        model = build_model(config, mice, (shapes[-2], shapes[-1]))
        states.append(to_published(model))
    assert {k for k in states[0] if not k.endswith("source_grid")} == set(entries)  # that is not drawn
    names = published_names(model)
    assert {names[k] for k, _ in model.named_parameters()} == {k for k, v in entries.items() if v["is_parameter"]}
    for key, entry in entries.items():
        draws = [s[key] for s in states]
        assert list(draws[0].shape) == entry["shape"], key
        if not entry["is_parameter"]:
            if not key.endswith("source_grid"):
                assert [d.double().mean().item() for d in draws] == pytest.approx(entry["mean"], rel=1e-4, abs=1e-6), (
                    key
                )
            continue
        check_distribution(key, draws, entry)


def check_distribution(name: str, draws: list[Tensor], entry: dict[str, Any]) -> None:
    n = draws[0].numel()
    theirs = {k: torch.tensor(entry[k], dtype=torch.float64) for k in ("mean", "std", "min", "max")}
    ours = torch.stack([d.double().flatten() for d in draws])
    if float(theirs["std"].max()) == 0 and len(set(entry["mean"])) == 1:  # a constant
        assert ours.min() == pytest.approx(entry["mean"][0])
        assert ours.max() == pytest.approx(entry["mean"][0])
        return
    spread = theirs["std"].mean().item() if n > 1 else theirs["mean"].std().item()
    standard_error = spread * (2 / (SEEDS * n)) ** 0.5
    assert abs(ours.mean() - theirs["mean"].mean()) < SIGMAS * standard_error, f"{name}: mean"
    if n >= 20:
        found = ours.std(1, correction=0).mean()
        assert abs(found - spread) < SIGMAS * standard_error, f"{name}: standard deviation"
    if n >= 200:
        largest = float(ours.abs().max()), float(max(theirs["max"].max(), -theirs["min"].min()))
        uniform = [x < 1.8 * spread for x in largest]
        assert uniform[0] == uniform[1], f"{name}: tails"
