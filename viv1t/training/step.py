"""One optimizer step: gradients of one batch of every mouse, then AdamW.

Nothing in a step waits for the device. Whether its losses and gradients are finite is decided there, by the optimizer's
own switch, and looked at once, when all of the step is under way.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from viv1t.config.run import DataConfig, RunConfig
from viv1t.errors import TrainingError
from viv1t.model.cores.factorized import FactorizedBaseline
from viv1t.model.critic import Critic
from viv1t.model.twin import ViV1T
from viv1t.system.memory import peak_added_bytes
from viv1t.training.objective import Objective
from viv1t.training.ranks import Ranks
from viv1t.types import MAX_FRAMES, Batch


def _backward(loss: Tensor) -> None:
    if loss.requires_grad:  # the random readout leaves nothing to train
        loss.backward()  # type: ignore[no-untyped-call]


def largest_batch(model: ViV1T, data: DataConfig) -> Batch:
    """A batch of zeros, on the CPU, as large as any of a run will be: of the mouse with the most neurons."""
    mouse_id = max(model.neurons, key=lambda m: model.neurons[m])
    count, frames = data.batch_size, data.crop_frame if data.crop_frame > 0 else MAX_FRAMES
    return Batch(
        mouse_id=mouse_id,
        trial_ids=tuple(range(count)),
        video=torch.zeros(count, 1, frames, *model.frame_size),
        response=torch.zeros(count, model.neurons[mouse_id], frames),
        behavior=torch.zeros(count, 2, frames),
        pupil_center=torch.zeros(count, 2, frames),
        frames=torch.full((count,), frames),
    )


class NotFinite(TrainingError):
    """A loss or a gradient that is not finite; `place` is the batch's among those of the step, if it is known."""

    def __init__(self, message: str, place: int | None = None) -> None:
        super().__init__(message)
        self.place = place


def _norm(parameters: list[nn.Parameter]) -> Tensor:
    return torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


def _out_of_memory(error: BaseException) -> bool:
    # On a CPU PyTorch raises a plain RuntimeError.
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "allocate memory" in str(error)


class Step:
    """Accumulates gradients over mice and updates the weights.

    Args:
        model: in training mode.
        optimizer: fused AdamW over its parameters, and the critic's.
        config: criterion, clipping and micro batches.
        train_sizes: training trials of each mouse, which scale its loss.
        critic: trained beside the model, which it leaves alone.
        ranks: the processes that make steps together; each accumulates its own mice's batches.
        compiled: as of `Objective`.
    """

    def __init__(
        self,
        model: ViV1T,
        optimizer: torch.optim.AdamW,
        config: RunConfig,
        train_sizes: Mapping[str, int],
        critic: Critic | None = None,
        ranks: Ranks | None = None,
        compiled: bool = False,
    ) -> None:
        self.model, self.optimizer, self.train_sizes, self.critic = model, optimizer, train_sizes, critic
        self.objective = Objective(model, config, train_sizes, critic, compiled)
        self.options = config.optimizer
        self.micro_batch_size = config.train.micro_batch_size
        self.checkpointing = config.train.grad_checkpointing
        self.parameters = list(model.parameters())
        self.trained = [p for group in optimizer.param_groups for p in group["params"]]
        self._accumulated: list[tuple[str, str, Tensor]] = []
        self.ranks = ranks or Ranks()
        # What every process trains, what only this one does, and batch norm's statistics, which follow the batches.
        everywhere = {id(p) for part in (model.core, critic) if part is not None for p in part.parameters()}
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
                _backward(loss if critic_loss is None else loss + critic_loss)
                total += loss.detach()
        except (RuntimeError, MemoryError) as error:
            if not _out_of_memory(error):
                raise
        else:
            self._accumulated.append((batch.mouse_id, trials, total))
            return total
        # Only here, where the error no longer keeps what had been computed.
        raise TrainingError(
            f"{trials}: {size} trials at a time do not fit in memory; {self._what_fits(batch.slice(0, size))}"
        )

    def _what_fits(self, batch: Batch) -> str:
        size = self.find_micro_batch(batch.slice(0, max(1, len(batch) // 2)))
        if self._fits(batch.slice(0, size)):
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
        self.optimizer.zero_grad(set_to_none=True)

    def update(self) -> tuple[float, Tensor | None]:
        """Clips if asked, updates the weights, clears the gradients.

        Returns:
            The mean loss over the mice; the norm of their gradients before clipping, if clipped.

        Raises:
            NotFinite: a loss, which it names with mouse and trials, or a gradient. The weights are as they were.
        """
        numbers, norm = self._apply()
        mice = self.model.mouse_ids
        *values, count, own_square, shared = numbers.tolist()
        advice = "look at those trials with `viv1t-data check`, or lower --lr and --core_lr, or set --grad_norm"
        trials = {mouse_id: words for mouse_id, words, _ in self._accumulated}
        for place, (mouse_id, value) in enumerate(zip(mice, values, strict=True)):
            if not math.isfinite(value):
                name = trials.get(mouse_id, f"mouse {mouse_id}")
                raise NotFinite(f"the loss of {name}, is {value}: the weights were not updated; {advice}", place)
        if not math.isfinite(own_square + shared):
            raise NotFinite(f"the gradient is not finite: the weights were not updated; {advice}")
        self.forget()
        self.ranks.average(self._running)
        return sum(values) / count, norm

    def _apply(self) -> tuple[Tensor, Tensor | None]:
        """Updates the weights if everything is finite, without waiting to know.

        Returns:
            What tells: the losses of all mice, how many batches there were, the square of the norm of this process's
            gradients, and the norm of the core's. The norm before clipping, if clipped.
        """
        core = self.model.core
        penalty = core.regularizer() if isinstance(core, FactorizedBaseline) and self.ranks.first else None
        if penalty is not None:  # once, for gradients are summed over processes
            _backward(penalty)
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
        if self.options.grad_norm is not None:
            norm = (_norm(list(core.parameters())).square() + sums[-1]).sqrt()
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.options.grad_norm, norm)
        # Fused AdamW leaves weights and moments as they are where this is 1; gradient scalers use it for the same.
        self.optimizer.found_inf = 1 - numbers.isfinite().all().float()  # type: ignore[attr-defined]
        self.optimizer.step()
        return numbers, norm

    def find_micro_batch(self, batch: Batch) -> int:
        """The largest micro batch that fits in memory, found by halving, from one forward and backward.

        Args:
            batch: the largest there will be; its values do not matter, the weights stay as they are.
        """
        size = len(batch)
        with self._trying():
            while size > 1 and not self._fits(batch.slice(0, size)):
                size = (size + 1) // 2
                if batch.video.is_cuda:
                    torch.cuda.empty_cache()
        return size

    def micro_batch_within(self, batch: Batch, memory: float) -> int:
        """The same on a CPU, where whoever takes too much is killed: from what one trial takes of `memory` bytes."""
        with self._trying():
            one = peak_added_bytes(lambda: self._fits(batch.slice(0, 1)))
        return max(1, min(len(batch), int(memory / max(one, 1))))

    @contextmanager
    def _trying(self) -> Iterator[None]:
        buffers = {name: value.clone() for name, value in self.model.named_buffers()}
        yield
        for name, value in self.model.named_buffers():
            value.copy_(buffers[name])

    def _fits(self, batch: Batch) -> bool:
        try:
            _backward(self.objective.losses(batch, len(batch))[0])
        except (RuntimeError, MemoryError) as error:
            if not _out_of_memory(error):
                raise
            return False
        finally:
            self.optimizer.zero_grad(set_to_none=True)
        return True
