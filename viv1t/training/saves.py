"""What a run keeps of itself: its last state, from which it goes on to the bit, and its best weights."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from viv1t.data.order import Cursor
from viv1t.errors import CheckpointError
from viv1t.optim.optimization import Optimization
from viv1t.runs.checkpoint import (
    Progressed,
    load_module_entries,
    module_entries,
    read_checkpoint,
    read_newest,
    write_checkpoint,
)
from viv1t.runs.folder import RunFolder
from viv1t.training.ranks import Ranks

log = logging.getLogger("viv1t.train")


class NewestSave(NamedTuple):
    """A state that was read: its file, tensors, and how far the run had come."""

    path: Path
    entries: dict[str, Tensor]
    state: Progressed


class Saves:
    """The checkpoints of a run, and when they are due.

    Args:
        run: its folder.
        modules: the model, and what is trained beside it, by name.
        optimization: of their parameters.
        owned: for each process, the modules that it alone trains.
        ranks: the processes; the first alone writes.
        interval: optimizer steps, and seconds, between saves within an epoch.

    Attributes:
        moved: whether the run folder was found in another place than it began in.
    """

    def __init__(
        self,
        run: RunFolder,
        modules: Mapping[str, nn.Module],
        optimization: Optimization,
        owned: Mapping[int, Sequence[nn.Module]],
        ranks: Ranks,
        interval: tuple[float, float],
    ) -> None:
        self._run, self._modules, self._optimization, self._ranks = run, modules, optimization, ranks
        self._owned, self._interval, self.moved = owned, interval, False
        entries = module_entries(modules)
        self._buffers = {
            name: value
            for module, parts in modules.items()
            for name, value in ((f"{module}/{key}", value) for key, value in parts.named_buffers())
            if name in entries
        }
        self._before: dict[str, Tensor] = {}  # those buffers before the step under way
        self._cursor = Cursor(-1, 0, "")
        self._steps, self._time = 0, time.monotonic()

    # -- around a step -----------------------------------------------------------------------------------------------

    def step_begins(self) -> None:
        """Notes the buffers: batch norm's change with every batch, the weights only when all have been seen."""
        self._before = {name: value.clone() for name, value in self._buffers.items()}

    def step_made(self) -> None:
        """The weights have followed."""
        self._before = {}
        self._steps += 1

    def rewind(self) -> None:
        """Puts the buffers back as they were before the step under way."""
        for name, value in self._before.items():
            self._buffers[name].copy_(value)

    @property
    def entries(self) -> dict[str, Tensor]:
        """The modules' state, before the step under way."""
        return module_entries(self._modules) | self._before

    @property
    def due(self) -> bool:
        """Whether it is time for a save, by this process's clock."""
        steps, seconds = self._interval
        return self._steps >= steps or time.monotonic() - self._time >= seconds

    # -- the last state ----------------------------------------------------------------------------------------------

    def write(self, cursor: Cursor, losses: list[float], micro_batch_size: int) -> None:
        """Saves the state after the last optimizer step, unless that was done; see `Progressed`."""
        if cursor == self._cursor:
            return
        self._cursor, self._steps, self._time = cursor, 0, time.monotonic()
        self._ranks.collect(self._owned, self._optimization)
        if not self._ranks.first:
            return
        self.follow()
        state = Progressed(cursor, losses, micro_batch_size, self._optimization.facts())
        entries = self.entries | self._optimization.entries(self._modules)
        write_checkpoint(self._run.last, entries, state.facts(), self._run.previous)

    def newest(self) -> NewestSave:
        """The last state, or the one before it where that is damaged; nothing is loaded yet.

        Raises:
            CheckpointError: neither is whole.
        """
        path, entries, facts = read_newest(self._run.last, self._run.previous)
        return NewestSave(path, entries, Progressed.from_facts(facts, path))

    def load(self, save: NewestSave) -> None:
        """Takes a state back.

        Raises:
            CheckpointError: it belongs to another run.
        """
        path, entries, state = save
        try:
            self._optimization.load_facts(state.optimization)
        except (LookupError, ValueError, TypeError, OverflowError) as error:
            raise CheckpointError(f"{path}: not the state of this run") from error
        load_module_entries(self._modules, entries, str(path))
        self._optimization.load_entries(self._modules, entries)
        self._cursor = state.cursor

    def set_aside(self, taken: NewestSave) -> None:
        """Renames the last state if `taken` is the one before it: damaged, it must not become the save before."""
        if taken.path != self._run.last and self._run.last.is_file():
            self._run.last.replace(self._run.last.with_name("damaged.safetensors"))

    # -- the best weights --------------------------------------------------------------------------------------------

    def write_best(self, epoch: int, value: float) -> None:
        """Keeps the weights of an epoch, in the form in which they were scored."""
        self._ranks.collect(self._owned, self._optimization)
        if self._ranks.first:
            entries = module_entries(self._modules)
            facts: dict[str, Any] = {"epoch": epoch, "value": value}
            if self._optimization.kept_with_best:
                entries |= self._optimization.entries(self._modules)
                facts |= {"optimization": self._optimization.facts()}
            write_checkpoint(self._run.best, entries, facts)

    def load_best(self) -> None:
        """Takes them back."""
        entries, _ = read_checkpoint(self._run.best)
        load_module_entries(self._modules, entries, str(self._run.best))

    # -- the folder --------------------------------------------------------------------------------------------------

    def follow(self) -> None:
        """Goes after a run folder that was moved: nothing is written where it was."""
        if (before := self._run.follow()) is not None:
            self.moved = True
            log.warning("%s was moved to %s while training", before, self._run.path)
