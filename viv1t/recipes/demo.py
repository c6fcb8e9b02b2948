"""`viv1t-train --demo`: synthetic mice, a small model, its scores against what can be reached, and pictures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from viv1t.config.fields import Options, flag_of
from viv1t.data.synthetic.mice import Size, synthesize
from viv1t.data.synthetic.truth import noise_ceiling
from viv1t.errors import ConfigError
from viv1t.plot import learning_curves, receptive_fields, response_traces
from viv1t.recipes.configuration import configuration, options_of
from viv1t.recipes.train import run
from viv1t.report import positions_on_frame
from viv1t.training.trainer import Trainer
from viv1t.training.validate import scored_trials

if TYPE_CHECKING:
    from viv1t.families.known import AnyConfig

# Two mice whose recordings take seconds to make; movies of the tier oracle are never trained on.
SIZE = Size(neurons=200, frames=150, trials=320, evaluation=((6, 4), (1, 1), (1, 1), (1, 1), (1, 1)))

OPTIONS: Options = {
    "output_dir": "runs/demo",
    "ds_mode": 1,
    "mouse_ids": ["F", "G"],
    "transform_mode": 5,
    "response_scale": "neuron",
    "core": "vivit",
    "readout": "gaussian2d",
    "output_mode": 1,
    "crop_frame": 80,
    "batch_size": 2,
    "epochs": 9,
    "lr_schedule": "cosine",
    "lr": 0.02,
    "core_lr": 0.004,
    "weight_decay": 0.6,
    "core_weight_decay": 0.01,
    "core_parallel_attention": True,
    # Patches that reach the frame's borders, and no learned positions: features are the same wherever they are read,
    # so that where a neuron reads them says where its receptive field is.
    "core_spatial_patch_size": 12,
    "core_spatial_patch_stride": 6,
    "core_temporal_patch_size": 13,
    "core_pos_encoding": 0,
    "core_spatial_depth": 1,
    "core_temporal_depth": 1,
    "core_num_heads": 2,
    "core_emb_dim": 64,
    "core_head_dim": 16,
    "core_mlp_dim": 128,
    "shifter_layers": 1,
    "core_p_dropout": 0.0,
    "core_mha_dropout": 0.1,
    "core_ff_dropout": 0.0,
    "core_drop_path": 0.0,
    "grad_checkpointing": 0,
    "format": "png",
}

# The same mice and core, causal, with the tokens, positions and optimizer of 2025.
OPTIONS_2025: Options = {
    "output_dir": "runs/demo-2025",
    "mouse_ids": ["F", "G"],
    "core": "vivit",
    "readout": "gaussian",
    "output_mode": 2,
    "crop_frame": 80,
    "batch_size": 2,
    "epochs": 7,
    "schedule_free": True,
    "adam_warmup_steps": 100,
    "lr": 0.02,
    "core_lr": 0.004,
    "weight_decay": 0.6,
    "core_weight_decay": 0.01,
    "core_use_causal_attention": True,
    "core_spatial_patch_size": 12,
    "core_spatial_patch_stride": 6,
    "core_temporal_patch_size": 13,
    "core_pos_encoding": 5,
    "core_reg_tokens": 4,
    "core_spatial_depth": 1,
    "core_temporal_depth": 1,
    "core_num_heads": 2,
    "core_emb_dim": 64,
    "core_head_dim": 16,
    "core_ff_dim": 128,
    "shifter_layers": 1,
    "core_p_dropout": 0.0,
    "core_mha_dropout": 0.1,
    "core_ff_dropout": 0.0,
    "core_drop_path": 0.0,
    "format": "png",
    "verbose": 2,
}
DEMOS = {"2023": OPTIONS, "2025": OPTIONS_2025}  # by family


def axis_correlations(true: np.ndarray, recovered: np.ndarray) -> tuple[float, float]:
    """Correlation over neurons of the x and of the y positions."""
    x, y = (float(np.corrcoef(true[:, i], recovered[:, i])[0, 1]) for i in (0, 1))
    return x, y


def draw(
    trainer: Trainer, sessions: dict[str, Path], ceilings: dict[str, np.ndarray]
) -> dict[str, tuple[float, float]]:
    """Draws the demo's pictures into the run folder; returns the position correlations (x, y) of each mouse."""
    run, config = trainer.run, trainer.config.train
    form: dict[str, Any] = {"dpi": config.dpi, "format": config.format}
    run.plots.mkdir(exist_ok=True)
    mean_ceiling = float(np.mean([c.mean() for c in ceilings.values()]))
    learning_curves(run.metrics, run.plots / f"learning_curves.{config.format}", ceiling=mean_ceiling, **form)
    true = {m: np.load(sessions[m] / "truth" / "positions.npy") for m in sessions}
    recovered = {m: positions_on_frame(trainer.model, trainer.recordings, m) for m in sessions}
    receptive_fields(true, recovered, run.plots / f"receptive_fields.{config.format}", **form)
    mouse_id = next(iter(sessions))
    trial, prediction, response = next(scored_trials([trainer.model], trainer.recordings, mouse_id, "validation"))
    # A spread of neurons, from well to poorly predictable.
    neurons = np.argsort(ceilings[mouse_id])[::-1][np.linspace(0, len(ceilings[mouse_id]) * 0.6, 6).astype(int)]
    response_traces(
        response.numpy(), prediction.numpy(), run.plots / f"responses.{config.format}", neurons=neurons.tolist(),
        title=f"mouse {mouse_id}, held-out trial {trial}", **form,
    )  # fmt: skip
    return {m: axis_correlations(true[m], recovered[m]) for m in sessions}


def demo_config(given: Options) -> AnyConfig:
    """The demo's configuration, of the family that `family` or another of the options given says."""
    options = {flag: value for flag, value in given.items() if flag != "family"}
    name, _ = options_of(options, given.get("family"))
    config = configuration(DEMOS[name] | options | {"family": name})
    if flag_of(config.data, "path") not in given:
        return replace(config, data=replace(config.data, path=f"data/demo-{config.train.seed}"))  # type: ignore[arg-type]
    return config


def run_demo(given: Options) -> int:
    """Runs the demo with `given` options on top of its own; returns the exit status."""
    config = demo_config(given)
    seed = config.train.seed
    if config.readout.name not in ("gaussian2d", "gaussian"):
        raise ConfigError("--demo draws receptive fields, which only --readout gaussian2d has")
    data = Path(config.data.path)
    mice = config.data.mouse_ids or ("F", "G")
    print(
        f"1/3  synthetic mice {' and '.join(mice)} in {data}; where they are made now, {SIZE.neurons} neurons and "
        f"{SIZE.trials} training trials each"
    )
    named = flag_of(config.data, "path") in given
    existing = "keep" if named else "resume"  # mice that were asked for may train models of several seeds
    sessions = dict(
        zip(mice, synthesize(data, mice=mice, size=SIZE, seed=seed, existing=existing, report=print), strict=True)
    )
    print(f"2/3  training a small ViV1T, some minutes on two cores; run folder {config.train.output_dir}")
    trainer, final = run(config)
    print("3/3  drawing what was learned")
    ceilings = {m: noise_ceiling(path, "oracle") for m, path in sessions.items()}
    positions = draw(trainer, sessions, ceilings)

    print("\nheld-out movies        predicted   reachable     share   receptive fields x, y")
    for mouse_id, r in final.correlation.items():
        ceiling, (x, y) = float(ceilings[mouse_id].mean()), positions[mouse_id]
        print(f"  mouse {mouse_id:<15} {r:9.3f}   {ceiling:9.3f}   {r / ceiling:6.0%}   {x:.2f}, {y:.2f}")
    reachable = float(np.mean([c.mean() for c in ceilings.values()]))
    both = float(np.mean([v for pair in positions.values() for v in pair]))
    print(
        f"\nThe model reaches a correlation of {final.mean:.3f} with single trials of movies it never saw; noise "
        f"allows {reachable:.3f}: {final.mean / reachable:.0%} of what is reachable.\n"
        f"Receptive-field positions correlate with the true ones at {both:.2f}.\n\n"
        f"Pictures: {trainer.run.plots}\n"
        "Next:\n"
        f"  viv1t-evaluate {trainer.run.path} --tier all        scores of every tier\n"
        f"  viv1t-data synth data/mice --mice 3                 mice of your own size\n"
        "  viv1t-train --help                                  every option; the README has the published command"
    )
    return 0
