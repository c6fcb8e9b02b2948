"""Checkpoints: tensors in safetensors, everything else as JSON in its header. No pickle.

`best.safetensors` holds the weights of the best epoch; `last.safetensors` everything that a run needs to go on from an
optimizer step as if it had never stopped, and `previous.safetensors` the same from the save before. Each carries a
checksum of all its content.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from viv1t.data.order import Cursor
from viv1t.errors import CheckpointError, WriteError
from viv1t.system.files import replacing
from viv1t.families.sensorium2023.names import check_entries
from viv1t.optim.schedule import PlateauSchedule

log = logging.getLogger("viv1t.train")

FORMAT = "viv1t-checkpoint-2"
# What damaged files raise: types that are not there, facts nested too deeply, sizes that do not fit.
_UNREADABLE = (
    SafetensorError, OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, MemoryError,
)  # fmt: skip


@dataclass(frozen=True)
class Progressed:
    """How far a run has come: what `last.safetensors` holds besides tensors.

    Noise is a function of the seed and the position, so no generator's state is kept.

    Attributes:
        cursor: the epoch under way, and how many of its batches have been used.
        losses: of the optimizer steps of that epoch.
        lr: learning rate of each parameter group.
        schedule: `PlateauSchedule.state_dict()`.
        micro_batch_size: as found for the memory there is.
    """

    cursor: Cursor
    losses: list[float]
    lr: list[float]
    schedule: dict[str, Any]
    micro_batch_size: int

    def facts(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any], where: Path) -> Progressed:
        """Takes back what `facts` gave.

        Raises:
            CheckpointError: something is missing or not what it should be.
        """
        try:
            cursor, schedule = facts["cursor"], facts["schedule"]
            plain = (int, float, bool, type(None))
            if not isinstance(schedule, dict) or not all(isinstance(v, plain) for v in schedule.values()):
                raise TypeError("schedule")
            PlateauSchedule().load_state_dict(schedule)
            return cls(
                Cursor(int(cursor["epoch"]), int(cursor["batch"]), str(cursor["order"])),
                [float(loss) for loss in facts["losses"]],
                [float(lr) for lr in facts["lr"]],
                schedule,
                int(facts["micro_batch_size"]),
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise CheckpointError(f"{where}: not the state of a run ({error!r})") from error


def _digest(tensors: Mapping[str, Tensor], facts: str) -> str:
    """A checksum of names, types, shapes and bytes, and of the facts."""
    digest = hashlib.blake2b(facts.encode(), digest_size=16)
    for name, value in sorted(tensors.items()):
        digest.update(f"\0{name}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_checkpoint(
    path: Path, state: Mapping[str, Tensor], facts: Mapping[str, Any], previous: Path | None = None
) -> None:
    """Writes tensors and JSON-able facts atomically; keeps the file that was there as `previous`, if given.

    Raises:
        CheckpointError: the file cannot be written.
    """
    # Shared or strided memory cannot be stored; a checkpoint holds plain copies.
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in state.items()}
    # One entry of metadata: several would come in any order, and equal runs give equal files.
    header = json.dumps({"digest": _digest(tensors, json.dumps(facts)), "facts": facts})
    try:
        with replacing(path, previous) as temporary, open(temporary, "wb") as file:
            file.write(save(tensors, metadata={FORMAT: header}))
    except WriteError as error:
        raise CheckpointError(f"{error}; the last save is as it was") from error
    except (SafetensorError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise CheckpointError(f"{path}: cannot be written ({reason}); the last save is as it was") from error


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and facts of a checkpoint, checked against its checksum.

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
            header = json.loads(metadata[FORMAT])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        facts = header["facts"]
        if not isinstance(facts, dict) or header["digest"] != _digest(tensors, json.dumps(facts)):
            raise ValueError("its checksum does not fit its content")
    except _UNREADABLE as error:
        if isinstance(error, CheckpointError):
            raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise CheckpointError(f"{path}: damaged ({reason}); restore it from a copy or start the run anew") from error
    return tensors, facts


def read_newest(*paths: Path) -> tuple[Path, dict[str, Tensor], dict[str, Any]]:
    """The first of several checkpoints that is whole, newest first, with its path; says so if it is not the first.

    Raises:
        CheckpointError: none is.
    """
    there = [path for path in paths if path.is_file()] or list(paths[:1])
    for path, older in itertools.pairwise(there):
        try:
            return path, *read_checkpoint(path)
        except CheckpointError as error:
            log.warning("%s", error)
            log.warning("going back to the save before it, %s", older)
    return there[-1], *read_checkpoint(there[-1])


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
    """Loads what `optimizer_entries` gave; parameters without an entry start without moments.

    Raises:
        CheckpointError: an entry is misshaped, or lacks its fellows.
    """
    for name, parameter in _parameters(modules).items():
        state: dict[str, Tensor] = {}
        for key in ("step", "exp_avg", "exp_avg_sq"):
            value = entries.get(f"{name}/{key}")
            if value is not None:
                if value.shape != (() if key == "step" else parameter.shape):
                    raise CheckpointError(f"{name}/{key}: misshaped, {tuple(value.shape)}, in the checkpoint")
                # The step count stays on the CPU unless the optimizer is a fused one on CUDA.
                device = "cpu" if key == "step" and not parameter.is_cuda else parameter.device
                state[key] = value.to(device, copy=True)
        if state:
            if len(state) < 3:
                raise CheckpointError(f"{name}: its moments are not all in the checkpoint")
            optimizer.state[parameter] = state
