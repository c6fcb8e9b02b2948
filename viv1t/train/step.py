"""One optimizer step: gradients of one batch of every mouse, then AdamW."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from viv1t.config import DataConfig, RunConfig
from viv1t.criterion import criterion
from viv1t.errors import DataError, TrainingError
from viv1t.model.critic import Critic
from viv1t.model.factorized import FactorizedBaseline
from viv1t.model.viv1t import ViV1T
from viv1t.train.distributed import Ranks
from viv1t.types import MAX_FRAMES, Batch


def by_length(batch: Batch) -> list[Batch]:
    """The batch's trials in batches of one length each, ascending, without padding or what lies past 300 frames.

    Padding would reach the predictions through attention over frames and through batch norm.
    """
    frames = batch.frames.clamp(max=MAX_FRAMES)
    parts = []
    for length in sorted(set(frames.tolist())):
        same = frames == length
        rows: Any = slice(None) if same.all() else same.nonzero()[:, 0]
        parts.append(
            Batch(
                mouse_id=batch.mouse_id,
                trial_ids=tuple(trial for trial, here in zip(batch.trial_ids, same.tolist(), strict=True) if here),
                video=batch.video[rows, :, :length],
                response=batch.response[rows, :, :length],
                behavior=batch.behavior[rows, :, :length],
                pupil_center=batch.pupil_center[rows, :, :length],
                frames=frames[rows],
                first_frames=tuple(f for f, here in zip(batch.first_frames, same.tolist(), strict=False) if here),
            )
        )
    return parts


def _joined(series: list[Tensor]) -> Tensor:
    """Series (B, N, t) of any t as one, shorter ones followed by zeros."""
    longest = max(s.shape[2] for s in series)
    return torch.cat([F.pad(s, (0, longest - s.shape[2])) for s in series]) if len(series) > 1 else series[0]


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
        optimizer: over its parameters, and the critic's.
        config: criterion, clipping and micro batches.
        train_sizes: training trials of each mouse, which scale its loss.
        critic: trained beside the model, which it leaves alone.
        ranks: the processes that make steps together; each accumulates its own mice's batches.
    """

    def __init__(
        self,
        model: ViV1T,
        optimizer: torch.optim.Optimizer,
        config: RunConfig,
        train_sizes: Mapping[str, int],
        critic: Critic | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.model, self.optimizer, self.train_sizes, self.critic = model, optimizer, train_sizes, critic
        self.options = config.optimizer
        self.micro_batch_size = config.train.micro_batch_size
        self.parameters = list(model.parameters())
        self.trained = [p for group in optimizer.param_groups for p in group["params"]]
        self._accumulated: list[tuple[str, str, Tensor]] = []
        self.ranks = ranks or Ranks()
        # What every process trains, what only this one does, and batch norm's statistics, which follow the batches.
        everywhere = {id(p) for part in (model.core, critic) if part is not None for p in part.parameters()}
        self._shared = [p for p in self.trained if id(p) in everywhere]
        self._running = [b for name, b in model.core.named_buffers() if name.endswith(("running_mean", "running_var"))]
        self._own = [p for p in self.trained if id(p) not in everywhere]
        self.maps: Callable[[Batch], Tensor] = self._run_core  # a frozen core's are known

    def _run_core(self, batch: Batch) -> Tensor:
        return self.model.core_output(batch.video, batch.mouse_id, batch.behavior, batch.pupil_center)

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
                loss, critic_loss = self._losses(batch.slice(start, start + size), len(batch))
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
            return f"--micro_batch_size {size} does, or more with --grad_checkpointing 1"
        return "not even one does: set --grad_checkpointing 1, lower --crop_frame, or take a smaller core"

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
        core = self.model.core
        penalty = core.regularizer() if isinstance(core, FactorizedBaseline) and self.ranks.first else None
        if penalty is not None:  # once, for gradients are summed over processes
            _backward(penalty)
        mice, zero = self.model.mouse_ids, torch.zeros((), device=self._accumulated[0][2].device)
        losses = dict.fromkeys(mice, zero)
        for mouse_id, _, loss in self._accumulated:
            losses[mouse_id] = losses[mouse_id] + loss
        own = _norm(self._own).to(zero).square()
        sums = self.ranks.sum_gradients(
            self._shared, torch.stack([*losses.values(), zero + len(self._accumulated), own])
        )
        # Looked at here and not mouse by mouse: a GPU is waited for once in a step.
        *values, count, own_square, shared = torch.cat((sums, _norm(self._shared).to(zero)[None])).tolist()
        advice = "look at those trials with `viv1t-data check`, or lower --lr and --core_lr, or set --grad_norm"
        trials = {mouse_id: words for mouse_id, words, _ in self._accumulated}
        for place, (mouse_id, value) in enumerate(zip(mice, values, strict=True)):
            if not math.isfinite(value):
                name = trials.get(mouse_id, f"mouse {mouse_id}")
                raise NotFinite(f"the loss of {name}, is {value}: the weights were not updated; {advice}", place)
        if not math.isfinite(own_square + shared):
            raise NotFinite(f"the gradient is not finite: the weights were not updated; {advice}")
        self._accumulated.clear()
        norm = None
        if self.options.grad_norm is not None:
            norm = (_norm(list(self.model.core.parameters())).square() + sums[-1]).sqrt()
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.options.grad_norm, norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.ranks.average(self._running)
        return sum(values) / count, norm

    def _losses(self, batch: Batch, batch_size: int) -> tuple[Tensor, Tensor | None]:
        """The criterion of a (micro) batch, part of a whole batch of `batch_size` trials, and the critic's loss."""
        parts = by_length(batch)
        self._check_lengths(parts[0])
        predictions, critic_losses = [], []
        for part in parts:
            maps = self.maps(part)
            response = self.model.read_out(maps, part.mouse_id, part.behavior, part.pupil_center)
            predictions.append(self.model.output(response))
            if self.critic is not None:
                mouse = torch.full((len(part),), self.model.mouse_ids.index(part.mouse_id), device=maps.device)
                critic_losses.append(F.cross_entropy(self.critic(maps.detach()), mouse, reduction="sum") / batch_size)
        prediction, response = _joined(predictions), _joined([part.response for part in parts])
        mask = None
        if len(parts) > 1:
            frames_in, frames_out = response.shape[2], prediction.shape[2]
            predicted = torch.arange(frames_in - frames_out, frames_in)
            mask = (predicted < torch.cat([part.frames for part in parts])[:, None]).to(response.device)
        loss = criterion(
            self.options.criterion,
            response,
            prediction,
            train_trials=self.train_sizes[batch.mouse_id],
            batch_size=batch_size,
            ds_scale=self.options.ds_scale,
            mask=mask,
        )
        return loss, torch.stack(critic_losses).sum() if critic_losses else None

    def _check_lengths(self, shortest: Batch) -> None:
        frames = shortest.video.shape[2]
        if self.model.config.core.output_frames(frames) < 1:
            raise DataError(
                f"mouse {shortest.mouse_id}, trial {', '.join(map(str, shortest.trial_ids))}: {frames} frames are "
                "fewer than the core's temporal extent, so that nothing would be predicted; set the trial's tier to "
                "'none'"
            )

    def find_micro_batch(self, batch: Batch) -> int:
        """The largest micro batch that fits in the GPU's memory, found by halving, from one forward and backward.

        Args:
            batch: the largest there will be; its values do not matter, the weights stay as they are.

        Raises:
            TrainingError: not even one trial fits.
        """
        buffers = {name: value.clone() for name, value in self.model.named_buffers()}
        size = len(batch)
        while size > 1 and not self._fits(batch.slice(0, size)):
            size = (size + 1) // 2
            if batch.video.is_cuda:
                torch.cuda.empty_cache()
        for name, value in self.model.named_buffers():
            value.copy_(buffers[name])
        return size

    def _fits(self, batch: Batch) -> bool:
        try:
            _backward(self._losses(batch, len(batch))[0])
        except (RuntimeError, MemoryError) as error:
            if not _out_of_memory(error):
                raise
            return False
        finally:
            self.optimizer.zero_grad(set_to_none=True)
        return True
