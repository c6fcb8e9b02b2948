"""What a core trained on other mice is worth to a new one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from viv1t.data.synthetic.mice import Size, synthesize
from viv1t.data.synthetic.truth import noise_ceiling
from viv1t.families.sensorium2023.run import RunConfig
from viv1t.recipes.demo import OPTIONS
from viv1t.recipes.train import run
from viv1t.types import SENSORIUM_SESSIONS

SMALL = {"core_emb_dim": 32, "core_mlp_dim": 64, "shifter_layers": 1, "verbose": 0, "num_workers": 1, "device": "cpu"}


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_new_mouse_on_a_frozen_core_beats_the_same_budget_from_scratch(seed: int, tmp_path: Path) -> None:
    """Three mice are made; two train a core, the third sees a few trials for as many epochs either way."""
    size = Size(neurons=100, frames=150, trials=200, evaluation=((4, 2), (0, 1), (0, 1), (0, 1), (0, 1)))
    few = Size(neurons=100, frames=150, trials=16, evaluation=((4, 2), (0, 1), (0, 1), (0, 1), (0, 1)))
    synthesize(tmp_path / "mice", mice=["F", "G"], size=size, seed=seed)
    synthesize(tmp_path / "new", mice=["H"], size=few, seed=seed + 1)

    def correlation(name: str, **changes: Any) -> float:
        options = OPTIONS | SMALL | {"output_dir": str(tmp_path / name), "seed": seed} | changes
        return run(RunConfig.from_options(options))[1].mean

    correlation("core", data=str(tmp_path / "mice"), epochs=8)
    new: dict[str, Any] = {"data": str(tmp_path / "new"), "mouse_ids": ["H"], "epochs": 20}
    scratch = correlation("scratch", **new)
    fitted = correlation("fitted", pretrain_core=str(tmp_path / "core"), freeze_core=True, **new)
    ceiling = float(noise_ceiling(tmp_path / "new" / SENSORIUM_SESSIONS["H"]).mean())
    print(f"seed {seed}, new mouse: frozen core {fitted:.3f}, from scratch {scratch:.3f}, reachable {ceiling:.3f}")
    assert fitted > scratch
