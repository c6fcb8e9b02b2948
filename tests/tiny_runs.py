"""Tiny mice and tiny models, trained in a second."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from viv1t.config.fields import Options
from viv1t.data.synthetic.mice import Size, synthesize
from viv1t.families.closed_loop import CLOSED_LOOP
from viv1t.families.closed_loop.build import build_model
from viv1t.families.closed_loop.options import ClosedLoopConfig
from viv1t.families.sensorium2023.definition import SENSORIUM2023
from viv1t.families.sensorium2023.run import RunConfig
from viv1t.model.twin import Neurons, ViV1T
from viv1t.recipes.configuration import configuration
from viv1t.recipes.train import run
from viv1t.training import trainer as trainer_module
from viv1t.training.step import Step
from viv1t.training.trainer import Trainer
from viv1t.training.validate import Validation

# Trials of 63 to 70 frames; the test tiers of F and G are withheld, those of A are not.
SIZE = Size(neurons=6, frames=70, trials=4, evaluation=((1, 2), (1, 1), (0, 1), (1, 1), (0, 1)))
VIVIT: Options = {
    "core": "vivit", "core_spatial_patch_size": 12, "core_spatial_patch_stride": 12, "core_temporal_patch_size": 5,
    "core_spatial_depth": 1, "core_temporal_depth": 1, "core_num_heads": 2, "core_emb_dim": 8, "core_head_dim": 4,
    "core_mlp_dim": 12, "core_parallel_attention": True,
}  # fmt: skip
FACTORIZED: Options = {
    "core": "factorized_baseline", "core_num_layers": 2, "core_hidden_dim": 2, "core_spatial_input_kernel": 3,
    "core_temporal_input_kernel": 5, "core_spatial_hidden_kernel": 3, "core_temporal_hidden_kernel": 3,
}  # fmt: skip


def make_mice(folder: Path) -> Path:
    """Mice F, G and A in `folder`."""
    synthesize(folder, mice=["F", "G", "A"], size=SIZE, seed=3, workers=1)
    return folder


def options(mice: Path, output_dir: Path, **changes: Any) -> Options:
    """Options of a tiny run, two epochs on mice F and G; None takes an option's default."""
    given: Options = {
        "data": str(mice), "output_dir": str(output_dir), "ds_mode": 1, "mouse_ids": ["F", "G"], "transform_mode": 2,
        "crop_frame": 40, "batch_size": 2, "epochs": 2, "readout": "gaussian2d", "output_mode": 1, "num_workers": 1,
        "device": "cpu", "verbose": 0,
    }  # fmt: skip
    core = FACTORIZED if changes.get("core") == "factorized_baseline" else VIVIT
    return {k: v for k, v in (given | core | changes).items() if v is not None}


def train(mice: Path, output_dir: Path, **changes: Any) -> tuple[Trainer, Validation]:
    return run(RunConfig.from_options(options(mice, output_dir, **changes)))


def training_step(model: ViV1T, config: RunConfig, sizes: Mapping[str, int], *, compiled: bool = False) -> Step:
    """The step that a run with these options makes, of a model in training mode, on its device."""
    training = SENSORIUM2023.training(model, config, sizes)
    size, checkpointing = config.train.micro_batch_size, config.train.grad_checkpointing
    return Step(model, training, micro_batch_size=size, checkpointing=checkpointing, compiled=compiled)


def make_causal(folder: Path, mice: Sequence[str]) -> Path:
    """A published run folder of 2025, causal and untrained, of mice as `make_mice` makes them."""
    config = ClosedLoopConfig.from_options({
        "core": "vivit", "readout": "gaussian", "output_dir": str(folder), "data_dir": "data", "mouse_ids": list(mice),
        "core_use_causal_attention": True, "core_spatial_patch_size": 12, "core_spatial_patch_stride": 12,
        "core_temporal_patch_size": 5, "core_spatial_depth": 1, "core_temporal_depth": 1, "core_emb_dim": 8,
        "core_head_dim": 4, "core_ff_dim": 12, "core_reg_tokens": 2,
    })  # fmt: skip
    neurons = {mouse: Neurons(SIZE.neurons, coordinates=torch.rand(SIZE.neurons, 3)) for mouse in mice}
    model = build_model(config, neurons, (36, 64))
    (folder / "ckpt").mkdir(parents=True)
    (folder / "args.yaml").write_text(yaml.safe_dump(CLOSED_LOOP.to_args(model, {})))
    (folder / "ckpt" / "info.yaml").write_text(yaml.safe_dump({"best_corr": 0.1, "epoch": 1}))
    torch.save(CLOSED_LOOP.to_published(model), folder / "ckpt" / "model.pt")
    return folder


def as_arguments(given: Options) -> list[str]:
    """Options as words of a command line."""
    words = []
    for name, value in given.items():
        if isinstance(value, list):
            words += [f"--{name}", *value]
        else:
            words.append(f"--{name}" if value is True else f"--{name}={value}")
    return words


def ran(
    main: Callable[[Sequence[str]], int], argv: list[Any], capsys: pytest.CaptureFixture[str], status: int = 0
) -> str:
    """What a command printed; with a `status` other than 0, its error, which must be one line."""
    assert main([str(word) for word in argv]) == status
    out, err = capsys.readouterr()
    if status:
        assert re.match(r"viv1t-\w+: error: ", err)
        assert err.count("\n") == 1, err
        return err
    assert err == ""
    return out


def script_validation(monkeypatch: pytest.MonkeyPatch, scores: list[float], mice: tuple[str, ...] = ("F", "G")) -> None:
    """Validation gives these scores after each epoch, and the last one ever after."""
    left = list(scores)

    def validate(*_: Any) -> Validation:
        score = left.pop(0) if len(left) > 1 else left[0]
        return Validation(dict.fromkeys(mice, score), 1.0)

    monkeypatch.setattr(trainer_module, "validate", validate)


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same_weights(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def metrics(folder: Path) -> list[dict[str, str]]:
    """The rows of `metrics.csv` without what depends on the clock."""
    with open(folder / "metrics.csv", newline="") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


# -- the family of 2025 ------------------------------------------------------------------------------------------------

CAUSAL: Options = {
    "core": "vivit", "core_spatial_patch_size": 12, "core_spatial_patch_stride": 12, "core_temporal_patch_size": 5,
    "core_spatial_depth": 1, "core_temporal_depth": 1, "core_num_heads": 2, "core_emb_dim": 8, "core_head_dim": 4,
    "core_ff_dim": 12, "core_reg_tokens": 2, "core_use_causal_attention": True,
}  # fmt: skip
FCNN: Options = {
    "core": "fcnn", "core_num_layers": 2, "core_hidden_dim": 2, "core_spatial_input_kernel": 3,
    "core_temporal_input_kernel": 5, "core_spatial_hidden_kernel": 3, "core_temporal_hidden_kernel": 3,
}  # fmt: skip


def options_2025(mice: Path, output_dir: Path, **changes: Any) -> Options:
    """Options of a tiny run of the family of 2025, two epochs on mice F and G; None takes an option's default."""
    given: Options = {
        "data_dir": str(mice), "output_dir": str(output_dir), "mouse_ids": ["F", "G"], "epochs": 2,
        "readout": "gaussian", "schedule_free": True, "adam_warmup_steps": 3, "num_workers": 1, "device": "cpu",
        "verbose": 0,
    }  # fmt: skip
    core = FCNN if changes.get("core") == "fcnn" else CAUSAL
    return {k: v for k, v in (given | core | changes).items() if v is not None}


def train_2025(mice: Path, output_dir: Path, **changes: Any) -> tuple[Trainer, Validation]:
    return run(configuration(options_2025(mice, output_dir, **changes)))
