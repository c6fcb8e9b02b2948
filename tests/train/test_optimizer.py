"""Parameter groups of the optimizer."""

from typing import Any

from torch import nn

from viv1t.families.sensorium2023.run import RunConfig
from viv1t.families.sensorium2023.training import build_optimizer


class Tiny(nn.Module):
    """The attributes of a model that the optimizer looks at."""

    def __init__(self, modulators: bool) -> None:
        super().__init__()
        self.core = nn.Linear(3, 4)
        self.readouts = nn.ModuleDict({"A": nn.Linear(4, 5), "B": nn.Linear(4, 6)})
        self.shifters = nn.ModuleDict({"A": nn.Linear(2, 2)})
        self.modulators = nn.ModuleDict({"A": nn.Linear(5, 5)} if modulators else {})


def _config(**options: Any) -> RunConfig:
    required = {"ds_mode": 3, "transform_mode": 2, "core": "vivit", "readout": "gaussian2d", "output_dir": "run"}
    return RunConfig.from_options(required | options)


def _groups(model: nn.Module, config: RunConfig, critic: nn.Module | None = None) -> dict[str, Any]:
    optimizer = build_optimizer(model, config, critic)  # type: ignore[arg-type]
    return {g["name"]: (g["lr"], g["weight_decay"], {id(p) for p in g["params"]}) for g in optimizer.param_groups}


def _ids(*modules: nn.Module) -> set[int]:
    return {id(p) for m in modules for p in m.parameters()}


def test_published_groups() -> None:
    model = Tiny(modulators=False)
    assert _groups(model, _config()) == {
        "core": (0.0048, 0.1789, _ids(model.core)),
        "readouts": (0.0036, 0.3939, _ids(model.readouts, model.shifters)),
    }


def test_core_and_readouts_have_rates_and_decays_of_their_own() -> None:
    options = {"lr": 0.5, "core_lr": 0.25, "weight_decay": 0.125, "core_weight_decay": 0.0625}
    groups = _groups(Tiny(modulators=False), _config(**options))
    assert {name: group[:2] for name, group in groups.items()} == {"core": (0.25, 0.0625), "readouts": (0.5, 0.125)}
    groups = _groups(Tiny(modulators=False), _config(core="factorized_baseline", **options))
    assert groups["core"][:2] == (0.25, 0.0625)


def test_factorized_baseline_takes_one_rate() -> None:
    groups = _groups(Tiny(modulators=False), _config(core="factorized_baseline"))
    assert {name: group[:2] for name, group in groups.items()} == {"core": (0.005, 0.0), "readouts": (0.005, 0.0)}


def test_modulators_and_critic_have_their_own_decay() -> None:
    model, critic = Tiny(modulators=True), nn.Linear(4, 2)
    config = _config(modulator_mode=1, modulator_weight_decay=0.5, critic_mode=1, critic_weight_decay=0.25, lr=0.002)
    groups = _groups(model, config, critic)
    assert groups["modulators"] == (0.002, 0.5, _ids(model.modulators))
    assert groups["critic"] == (0.002, 0.25, _ids(critic))
    assert set.union(*(g[2] for g in groups.values())) == _ids(model, critic)


def test_frozen_parameters_are_left_out() -> None:
    model = Tiny(modulators=False)
    model.core.requires_grad_(False)
    assert set(_groups(model, _config())) == {"readouts"}


def test_adam_options() -> None:
    optimizer = build_optimizer(Tiny(False), _config(adam_beta1=0.8, adam_beta2=0.99, adam_eps=1e-6))  # type: ignore[arg-type]
    assert optimizer.defaults["betas"] == (0.8, 0.99)
    assert optimizer.defaults["eps"] == 1e-6
    assert optimizer.defaults["fused"]
