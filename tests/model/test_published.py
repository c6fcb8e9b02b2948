"""Published names both ways, and what is said of a checkpoint that does not fit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_models import small_inputs, small_model

from viv1t.errors import CheckpointError
from viv1t.families.sensorium2023.names import from_published, published_constants, published_names, to_published

OPTIONS: tuple[dict[str, Any], ...] = (
    {"core_parallel_attention": True},
    {"core_pos_encoding": 2, "core_norm_qk": True},
    {"core_behavior_mode": 5, "core_pos_encoding": 5, "readout": "factorized"},
    {"core_patch_mode": 1, "modulator_mode": 1},
    {"core_patch_mode": 2, "modulator_mode": 2},
    {"core": "factorized_baseline", "core_behavior_mode": 9, "modulator_mode": 3, "readout_grid_mode": 0},
)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_weights_survive_the_way_there_and_back(options: dict[str, Any]) -> None:
    model, other = small_model(**options), small_model(seed=9, **options)
    names = published_names(model)
    assert len(set(names.values())) == len(names)
    other.load_state_dict(from_published(other, to_published(model), "here"))
    assert torch.equal(other(*small_inputs()), model(*small_inputs()))


def test_patch_mode_1_is_mode_0_under_its_own_name() -> None:
    alias, plain = (to_published(small_model(core_patch_mode=mode)) for mode in (1, 0))
    renamed = {k.replace("tokenizer.tokenizer2.", "tokenizer.tokenizer."): v for k, v in alias.items()}
    assert renamed.keys() == plain.keys()
    assert "core.vivit.tokenizer.tokenizer2.2.weight" in alias
    assert all(torch.equal(renamed[k], plain[k]) for k in plain)


def test_constants_may_be_absent() -> None:
    model = small_model()
    state = to_published(model)
    weights = {k: v for k, v in state.items() if k not in published_constants(model)}
    assert len(weights) < len(state)
    assert from_published(model, weights, "here").keys() == model.state_dict().keys()


def test_a_checkpoint_that_does_not_fit_is_described_whole() -> None:
    model = small_model()
    state = to_published(model)
    del state["readouts.A.sigma"]
    state["surprise"] = torch.zeros(1)
    state["readouts.B.bias"] = torch.zeros(3)
    with pytest.raises(CheckpointError) as info:
        from_published(model, state, "runs/x/ckpt/model_state.pt")
    message = str(info.value)
    assert message.startswith("runs/x/ckpt/model_state.pt does not fit the model that its options describe:")
    assert "missing (1): readouts.A.sigma" in message
    assert "surplus (1): surprise" in message
    assert "misshaped (1): readouts.B.bias: expected (7,), found (3,)" in message
