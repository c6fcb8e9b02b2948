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
        micro_batch_size: as found for the memory there is.
        optimization: what `Optimization.facts` gave.
    """

    cursor: Cursor
    losses: list[float]
    micro_batch_size: int
    optimization: dict[str, Any]

    def facts(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        own = {"cursor": asdict(self.cursor), "losses": self.losses, "micro_batch_size": self.micro_batch_size}
        return own | self.optimization

    @property
    def best_epoch(self) -> int:
        """The epoch of the best score so far, from 1; 0 before there is one."""
        return int(self.optimization["schedule"]["best_epoch"] or 0)

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any], where: Path) -> Progressed:
        """Takes back what `facts` gave.

        Raises:
            CheckpointError: something is missing or not what it should be.
        """
        try:
            cursor = facts["cursor"]
            own = ("cursor", "losses", "micro_batch_size")
            found = cls(
                Cursor(int(cursor["epoch"]), int(cursor["batch"]), str(cursor["order"])),
                [float(loss) for loss in facts["losses"]],
                int(facts["micro_batch_size"]),
                {key: value for key, value in facts.items() if key not in own},
            )
            if not all(isinstance(v, int | float | None) for v in facts["schedule"].values()) or found.best_epoch < 0:
                raise TypeError("schedule")
            return found
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
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
