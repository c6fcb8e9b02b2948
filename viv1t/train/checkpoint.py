"""Checkpoints: tensors in safetensors, everything else as JSON in its header. No pickle.

`best.safetensors` holds the weights of the best epoch, `last.safetensors` also the optimizer's state, so that a run
goes on from the last finished epoch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from viv1t.errors import CheckpointError
from viv1t.files import replacing
from viv1t.model.published import check_entries

FORMAT = "viv1t-checkpoint-1"


def write_checkpoint(path: Path, state: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Writes tensors and JSON-able facts atomically.

    Raises:
        CheckpointError: the file cannot be written.
    """
    # Shared or strided memory cannot be stored; a checkpoint holds plain copies.
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in state.items()}
    try:
        with replacing(path) as temporary:
            # One entry of metadata: several would come in any order, and equal runs give equal files.
            save_file(tensors, temporary, metadata={FORMAT: json.dumps(facts)})
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be written ({error})") from error


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and facts of a checkpoint.

    Raises:
        CheckpointError: the file is missing, damaged or of another format.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no checkpoint there")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if FORMAT not in metadata:
                raise CheckpointError(f"{path}: not a checkpoint of this program ({FORMAT} expected)")
            facts = json.loads(metadata[FORMAT])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path}: damaged ({error}); restore it from a copy or start the run anew") from error
    return tensors, facts


def module_entries(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """The state of every module, under `<module>/<entry>`."""
    return {f"{name}/{key}": value for name, module in modules.items() for key, value in module.state_dict().items()}


def load_module_entries(modules: Mapping[str, nn.Module], entries: Mapping[str, Tensor], where: str) -> None:
    """Loads what `module_entries` gave; other modules' entries are left alone.

    Raises:
        CheckpointError: entries are missing, surplus or misshaped; lists them.
    """
    for name, module in modules.items():
        prefix = f"{name}/"
        state = {key.removeprefix(prefix): value for key, value in entries.items() if key.startswith(prefix)}
        check_entries(module.state_dict(), state, where, {})
        module.load_state_dict(state)


def _parameters(modules: Mapping[str, nn.Module]) -> dict[str, nn.Parameter]:
    return {f"optimizer/{m}/{key}": p for m, module in modules.items() for key, p in module.named_parameters()}


def optimizer_entries(modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """AdamW's moments and step counts under `optimizer/<module>/<parameter>/<name>`."""
    entries = {}
    for name, parameter in _parameters(modules).items():
        for key, value in optimizer.state.get(parameter, {}).items():
            entries[f"{name}/{key}"] = torch.as_tensor(value)
    return entries


def load_optimizer_entries(
    modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer, entries: Mapping[str, Tensor]
) -> None:
    """Loads what `optimizer_entries` gave; parameters without an entry start without moments."""
    for name, parameter in _parameters(modules).items():
        state: dict[str, Tensor] = {}
        for key in ("step", "exp_avg", "exp_avg_sq"):
            value = entries.get(f"{name}/{key}")
            if value is not None:
                # The step count stays on the CPU unless the optimizer is a fused one on CUDA.
                device = "cpu" if key == "step" and not parameter.is_cuda else parameter.device
                state[key] = value.to(device, copy=True)
        if state:
            optimizer.state[parameter] = state
