"""One optimizer step: gradients of one batch of every mouse, then the update.

Nothing in a step waits for the device. Whether its losses and gradients are finite is decided there, by the optimizer's
own switch, and looked at once, when all of the step is under way.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from viv1t.errors import TrainingError
from viv1t.families.family import Training
from viv1t.model.cores.factorized import FactorizedBaseline
from viv1t.model.twin import ViV1T
from viv1t.training.micro_batch import MicroBatchSearch, out_of_memory
from viv1t.training.objective import Objective, backward
from viv1t.training.ranks import Ranks
from viv1t.types import Batch


class NotFinite(TrainingError):
    """A loss or a gradient that is not finite; `place` is the batch's among those of the step, if it is known."""

    def __init__(self, message: str, place: int | None = None) -> None:
        super().__init__(message)
        self.place = place


def _norm(parameters: list[nn.Parameter]) -> Tensor:
    return torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


class Step:
    """Accumulates gradients over mice and updates the weights.

    Args:
        model: in training mode.
        training: its loss, the optimization of its parameters, and the critic beside it.
        micro_batch_size: trials of a forward and backward; 0 takes whole batches.
        checkpointing: whether blocks are recomputed in the backward; None on GPUs alone.
        ranks: the processes that make steps together; each accumulates its own mice's batches.
        compiled: as of `Objective`.
    """

    def __init__(
        self,
        model: ViV1T,
        training: Training,
        *,
        micro_batch_size: int = 0,
        checkpointing: bool | None = None,
        ranks: Ranks | None = None,
        compiled: bool = False,
    ) -> None:
        loss, self.optimization, self.critic = training
        self.model, self.micro_batch_size, self.checkpointing = model, micro_batch_size, checkpointing
        self.objective = Objective(model, loss, self.critic, compiled)
        self.search = MicroBatchSearch(model, self.objective, self.optimization)
        self.parameters = list(model.parameters())
        self.trained = self.optimization.parameters
        self._accumulated: list[tuple[str, str, Tensor]] = []
        self.ranks = ranks or Ranks()
        # What every process trains, what only this one does, and batch norm's statistics, which follow the batches.
        everywhere = {id(p) for part in (model.core, self.critic) if part is not None for p in part.parameters()}
        self._shared = [p for p in self.trained if id(p) in everywhere]
        self._running = [b for name, b in model.core.named_buffers() if name.endswith(("running_mean", "running_var"))]
        self._own = [p for p in self.trained if id(p) not in everywhere]

    def accumulate(self, batch: Batch) -> Tensor:
        """Adds the gradients of one mouse's batch, micro batch by micro batch; returns the loss, detached.

        Raises:
            DataError: a trial is too short for the core.
            TrainingError: memory does not suffice; says what would fit.
        """
        trials = f"mouse {batch.mouse_id}, trials {', '.join(map(str, batch.trial_ids))}"
        size = min(self.micro_batch_size or len(batch), len(batch))
        total = torch.zeros((), device=batch.video.device)
        try:
            for start in range(0, len(batch), size):
                loss, critic_loss = self.objective.losses(batch.slice(start, start + size), len(batch))
                backward(loss if critic_loss is None else loss + critic_loss)
                total += loss.detach()
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
        else:
            self._accumulated.append((batch.mouse_id, trials, total))
            return total
        # Only here, where the error no longer keeps what had been computed.
        raise TrainingError(
            f"{trials}: {size} trials at a time do not fit in memory; {self._what_fits(batch.slice(0, size))}"
        )

    def _what_fits(self, batch: Batch) -> str:
        size = self.search.largest(batch.slice(0, max(1, len(batch) // 2)))
        if self.search.fits(batch.slice(0, size)):
            more = ", or more with --grad_checkpointing 1" if self.can_recompute else ""
            return f"the same command with --micro_batch_size {size} goes on{more}"
        first = "set --grad_checkpointing 1, or " if self.can_recompute else ""
        return f"not even one does: {first}start a run in another folder with a lower --crop_frame or a smaller core"

    @property
    def can_recompute(self) -> bool:
        """Whether --grad_checkpointing 1 would take less memory than now."""
        parameter = next(iter(self.trained), None)
        on = self.checkpointing if self.checkpointing is not None else parameter is not None and parameter.is_cuda
        return not isinstance(self.model.core, FactorizedBaseline) and not on and not self.model.frozen

    def forget(self) -> None:
        """Drops what has been accumulated."""
        self._accumulated.clear()
        self.optimization.clear()

    def update(self) -> tuple[float, Tensor | None]:
        """Clips if asked, updates the weights, clears the gradients.

        Returns:
            The loss of the step, see `TrainingLoss.of_step`; the norm of the gradients before clipping, if clipped.

        Raises:
            NotFinite: a loss, which it names with mouse and trials, or a gradient. The weights are as they were.
        """
        numbers, norm = self._apply()
        mice = self.model.mouse_ids
        *values, count, own_square, shared, known = numbers.tolist()
        advice = f"look at those trials with `viv1t-data check`, or {self.optimization.advice}"
        trials = {mouse_id: words for mouse_id, words, _ in self._accumulated}
        if not all(map(math.isfinite, (*values, own_square, shared))):
            self.optimization.refused()
        for place, (mouse_id, value) in enumerate(zip(mice, values, strict=True)):
            if not math.isfinite(value):
                name = trials.get(mouse_id, f"mouse {mouse_id}")
                raise NotFinite(f"the loss of {name}, is {value}: the weights were not updated; {advice}", place)
        if not math.isfinite(own_square + shared):
            raise NotFinite(f"the gradient is not finite: the weights were not updated; {advice}")
        self.optimization.made(None if norm is None else known)
        self.forget()
        self.ranks.average(self._running)
        return self.objective.loss.of_step(values, count), norm

    def _apply(self) -> tuple[Tensor, Tensor | None]:
        """Updates the weights if everything is finite, without waiting to know.

        Returns:
            What tells: the losses of all mice, how many batches there were, the square of the norm of this process's
            gradients, the norm of the core's, and that of all, or 0. The norm before clipping, if clipped.
        """
        core = self.model.core
        penalty = core.regularizer() if isinstance(core, FactorizedBaseline) and self.ranks.first else None
        if penalty is not None:  # once, for gradients are summed over processes
            backward(penalty)
        zero = torch.zeros((), device=self._accumulated[0][2].device)
        losses = dict.fromkeys(self.model.mouse_ids, zero)
        for mouse_id, _, loss in self._accumulated:
            losses[mouse_id] = losses[mouse_id] + loss
        own = _norm(self._own).to(zero).square()
        sums = self.ranks.sum_gradients(
            self._shared, torch.stack([*losses.values(), zero + len(self._accumulated), own])
        )
        numbers = torch.cat((sums, _norm(self._shared).to(zero)[None]))
        norm = None
        if self.optimization.clipping.asks_norm:
            norm = (_norm(list(core.parameters())).square() + sums[-1]).sqrt()
            self.optimization.clipping.clip(self.parameters, norm)
        self.optimization.step(numbers.isfinite().all().float())
        return torch.cat((numbers, (zero if norm is None else norm)[None])), norm
