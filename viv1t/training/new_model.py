"""The model that a run starts with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from viv1t.data.recordings import Recordings
from viv1t.errors import ConfigError
from viv1t.families.known import family_for
from viv1t.model.twin import Neurons, ViV1T
from viv1t.system.memory import available_bytes


def new_model(config: Any, recordings: Recordings) -> ViV1T:
    """A freshly initialised model for the recordings' mice, drawn from the run's seed.

    Raises:
        ConfigError: the options describe a model that no memory holds, or one that starts at neurons' places in the
            cortex, which a recording does not give.
    """
    placeless = [id for id, mouse in recordings.mice.items() if not np.isfinite(mouse.coordinates).all()]
    if placeless and getattr(config.readout, "grid", "free") != "free":
        raise ConfigError(
            f"--readout_grid_mode: the recordings of mouse {', '.join(placeless)} give no coordinates of neurons, "
            "where readouts would start: use 0, or leave these mice out with --mouse_ids"
        )
    _check_size(config, {id: mouse.neurons for id, mouse in recordings.mice.items()}, recordings.frame_size)
    mice = {}
    for mouse_id, mouse in recordings.mice.items():
        starts_at_mean = getattr(config.readout, "starts_at_mean", False)
        most = getattr(config.readout, "mean_of", None)
        mean = torch.from_numpy(recordings.mean_response(mouse_id, most)) if starts_at_mean else None
        coordinates = torch.from_numpy(mouse.coordinates).float()
        mice[mouse_id] = Neurons(mouse.neurons, coordinates, mean, mouse.unit_ids)
    torch.manual_seed(config.train.seed)
    return family_for(config).build_model(config, mice, recordings.frame_size)


def _check_size(config: Any, neurons: Mapping[str, int], frame_size: tuple[int, int]) -> None:
    try:
        with torch.device("meta"):  # without memory
            mice = {id: Neurons(count) for id, count in neurons.items()}
            model = family_for(config).build_model(config, mice, frame_size)
        needed = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    except (RuntimeError, MemoryError, OverflowError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"the options describe a model that cannot be built ({reason})") from error
    if needed > (free := available_bytes()):
        raise ConfigError(
            f"the options describe a model of {needed / 2**30:,.1f} GiB of weights, and {free / 2**30:.1f} GiB of "
            "memory are free: choose smaller sizes of the core"
        )


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
