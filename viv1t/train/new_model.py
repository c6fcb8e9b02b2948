"""The model that a run starts with."""

from __future__ import annotations

import torch

from viv1t.config import Gaussian2dConfig, RunConfig
from viv1t.data.loader import Recordings
from viv1t.families.sensorium2023.build import build_model
from viv1t.model.twin import Neurons, ViV1T


def new_model(config: RunConfig, recordings: Recordings) -> ViV1T:
    """A freshly initialised model for the recordings' mice, drawn from the run's seed."""
    mice = {}
    for mouse_id, mouse in recordings.mice.items():
        needs_mean = isinstance(config.readout, Gaussian2dConfig) and config.readout.bias == "mean_response"
        mean = torch.from_numpy(recordings.mean_response(mouse_id)) if needs_mean else None
        coordinates = torch.from_numpy(mouse.coordinates).float()
        mice[mouse_id] = Neurons(mouse.neurons, coordinates, mean, mouse.unit_ids)
    torch.manual_seed(config.train.seed)
    return build_model(config, mice, recordings.frame_size)


def summary(model: ViV1T) -> str:
    """Modules and parameter counts, for `model.txt`."""
    lines = [str(model), ""]
    parts: list[tuple[str, torch.nn.Module]] = [("core", model.core)]
    for group in ("shifters", "readouts", "modulators"):
        parts += [(f"{group}.{mouse}", module) for mouse, module in getattr(model, group).items()]
    counts = [(name, sum(p.numel() for p in module.parameters())) for name, module in parts]
    lines += [f"{name:<40} {count:>12,}" for name, count in counts]
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    lines.append(f"{'trainable parameters':<40} {trainable:>12,}")
    return "\n".join(lines) + "\n"
