"""Freshly initialised weights follow the published code's distributions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from viv1t.families.sensorium2023.build import build_model
from viv1t.families.sensorium2023.names import published_names, to_published
from viv1t.families.sensorium2023.run import RunConfig
from viv1t.model.twin import Neurons, ViV1T

CASES = (
    "vivit_parallel_default",
    "vivit_sequential_default",
    "vivit_parallel_mod2",
    "fb_default",
    "fb_factorized_readout_mod3",
)
SEEDS = 5  # as many as the golden set draws
SIGMAS = 6.0  # hundreds of entries are compared: far enough out that none fails by chance


def fresh(options: dict[str, Any], seed: int) -> ViV1T:
    torch.manual_seed(seed)
    mice = {}
    for mouse in options["mouse_ids"]:
        neurons = options["output_shapes"][mouse][0]
        mice[mouse] = Neurons(neurons, 300 * torch.rand(neurons, 3), torch.full((neurons,), 0.5))
    height, width = options["input_shapes"]["video"][-2:]
    return build_model(RunConfig.from_published(options), mice, (height, width))


def check_distribution(name: str, draws: list[Tensor], expected: dict[str, Any]) -> None:
    """Mean, standard deviation, and whether the tails are those of a uniform or a normal distribution."""
    n = draws[0].numel()
    ours, theirs = (
        torch.stack(draws).double().flatten(1),
        {k: torch.tensor(expected[k]) for k in ("mean", "std", "min", "max")},
    )
    # Of a single entry only the spread over seeds is known.
    spread = theirs["std"].mean().item() if n > 1 else theirs["mean"].std().item()
    standard_error = spread * (2 / (SEEDS * n)) ** 0.5
    assert abs(ours.mean() - theirs["mean"].mean()) < SIGMAS * standard_error, f"{name}: mean"
    if n > 1:
        assert abs(ours.std(1, correction=0).mean() - spread) < SIGMAS * standard_error, f"{name}: standard deviation"
    if n >= 200:
        largest = (ours.abs().max().item(), max(-theirs["min"].min().item(), theirs["max"].max().item()))
        uniform = [x < 1.8 * spread for x in largest]
        assert uniform[0] == uniform[1], f"{name}: tails"
        if uniform[0]:
            assert largest[0] == pytest.approx(largest[1], rel=0.02), f"{name}: bounds"


@pytest.mark.parametrize("case", CASES)
def test_initial_values_follow_the_published_distributions(golden: Path, case: str) -> None:
    stored = json.loads((golden / "init" / "init_stats.json").read_text())
    assert set(stored) == set(CASES)
    options, expected = stored[case]["config"], stored[case]["tensors"]
    models = [fresh(options, seed) for seed in range(SEEDS)]
    states = [to_published(m) for m in models]
    assert set(states[0]) == set(expected)
    names = published_names(models[0])
    assert {names[k] for k, _ in models[0].named_parameters()} == {k for k, v in expected.items() if v["is_parameter"]}
    for name, entry in expected.items():
        draws = [s[name] for s in states]
        assert list(draws[0].shape) == entry["shape"], name
        if name.endswith("source_grid"):  # from the coordinates, not drawn
            assert draws[0].abs().max() == 1
            torch.testing.assert_close(draws[0].mean(0), torch.zeros(entry["shape"][1]), rtol=0, atol=1e-6)
        elif len({*entry["min"], *entry["max"]}) == 1:
            assert all((d == torch.tensor(entry["min"][0], dtype=d.dtype)).all() for d in draws), name
        elif not entry["is_parameter"]:
            assert [d.double().mean().item() for d in draws] == pytest.approx(entry["mean"], rel=1e-5, abs=1e-7), name
        else:
            check_distribution(name, draws, entry)
