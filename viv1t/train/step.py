"""One optimizer step: gradients of one batch of every mouse, then AdamW."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from viv1t.config import RunConfig
from viv1t.criterion import criterion
from viv1t.errors import TrainingError
from viv1t.model.viv1t import ViV1T
from viv1t.types import Batch


def frame_mask(batch: Batch, frames_out: int) -> Tensor | None:
    """(B, t) True at the predicted frames that a trial really has; None when no trial is padded."""
    if not batch.padded:
        return None
    frames_in = batch.video.shape[2]
    last = torch.arange(frames_in - frames_out, frames_in)
    return (last < batch.frames[:, None]).to(batch.video.device)


class Step:
    """Accumulates gradients over mice and updates the weights.

    Args:
        model: in training mode.
        optimizer: over its parameters.
        config: criterion, clipping and micro batches.
        train_sizes: training trials of each mouse, which scale its loss.
    """

    def __init__(
        self, model: ViV1T, optimizer: torch.optim.Optimizer, config: RunConfig, train_sizes: Mapping[str, int]
    ) -> None:
        self.model, self.optimizer, self.train_sizes = model, optimizer, train_sizes
        self.options = config.optimizer
        self.micro_batch_size = config.train.micro_batch_size
        self.parameters = list(model.parameters())

    def loss(self, batch: Batch, batch_size: int) -> Tensor:
        """The criterion of a (micro) batch, part of a whole batch of `batch_size` trials."""
        prediction = self.model(batch.video, batch.mouse_id, batch.behavior, batch.pupil_center)
        return criterion(
            self.options.criterion,
            batch.response,
            prediction,
            train_trials=self.train_sizes[batch.mouse_id],
            batch_size=batch_size,
            ds_scale=self.options.ds_scale,
            mask=frame_mask(batch, prediction.shape[2]),
        )

    def accumulate(self, batch: Batch) -> Tensor:
        """Adds the gradients of one mouse's batch, micro batch by micro batch; returns the loss, detached.

        Raises:
            TrainingError: the loss is not finite; names the mouse and trials.
        """
        size = self.micro_batch_size or len(batch)
        total = torch.zeros((), device=batch.video.device)
        for start in range(0, len(batch), size):
            loss = self.loss(batch.slice(start, start + size), len(batch))
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        if not torch.isfinite(total):
            trials = ", ".join(map(str, batch.trial_ids))
            raise TrainingError(
                f"the loss of mouse {batch.mouse_id}, trials {trials}, is {total.item()}: the weights were not "
                "updated; look at those trials with `viv1t-data check`, or lower --lr and --core_lr, or set --grad_norm"
            )
        return total

    def update(self) -> Tensor | None:
        """Clips if asked, updates the weights, clears the gradients; returns the norm before clipping, if clipped."""
        norm = None
        if self.options.grad_norm is not None:
            norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.options.grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm
