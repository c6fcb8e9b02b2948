"""A prediction and a training step as a research script writes them, for any model that is called as the published one.

Imports nothing of ours: what is measured of a checkout of the published code runs these very lines.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def poisson_correlation(response: Tensor, prediction: Tensor, train_trials: int, batch_size: int) -> Tensor:
    """The published default loss; response (B, N, T), prediction (B, N, t)."""
    eps = torch.finfo(torch.float32).eps
    response = response[..., -prediction.shape[2] :]
    y, p = response + eps, prediction + eps
    poisson = (p - y * torch.log(p)).sum()
    standardised = [
        (x - x.mean((0, 2), keepdim=True)) / (x.std((0, 2), correction=0, keepdim=True) + eps)
        for x in (response, prediction)
    ]
    correlation = (standardised[0] * standardised[1]).mean((0, 2))
    return (train_trials / batch_size) ** 0.5 * (poisson + 1000 * (1 - correlation).sum())


def adamw(
    model: nn.Module, core_lr: float, core_weight_decay: float, lr: float, weight_decay: float, **options: Any
) -> torch.optim.AdamW:
    """The published optimizer groups: the core, and the rest; `options` are AdamW's."""
    core = [p for name, p in model.named_parameters() if name.startswith("core.")]
    rest = [p for name, p in model.named_parameters() if not name.startswith("core.")]
    groups = [
        {"params": core, "lr": core_lr, "weight_decay": core_weight_decay},
        {"params": rest, "lr": lr, "weight_decay": weight_decay},
    ]
    return torch.optim.AdamW(groups, **options)


def cuda_peak_added_bytes(work: Callable[[], object]) -> int:
    """What `work` allocates on the GPU at its highest, over what was allocated before."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


class Prediction:
    """The responses to a batch, in evaluation mode.

    Args:
        model: called with video, mouse, behavior and pupil_center.
        batch: has these, `mouse_id` and `response`.
    """

    def __init__(self, model: nn.Module, batch: Any) -> None:
        self.model, self.batch = model.eval(), batch

    @torch.inference_mode()
    def __call__(self) -> Tensor:
        batch = self.batch
        return self.model(batch.video, batch.mouse_id, batch.behavior, batch.pupil_center)


class TrainingStep:
    """Forward, loss, backward and AdamW on a batch, in training mode; returns the loss.

    Args:
        model, batch: as of `Prediction`.
        train_trials: of the mouse.
        rates: of `adamw`.
    """

    def __init__(self, model: nn.Module, batch: Any, train_trials: int, **rates: Any) -> None:
        self.model, self.batch, self.train_trials = model.train(), batch, train_trials
        self.optimizer = adamw(model, **rates)

    def __call__(self) -> float:
        batch = self.batch
        prediction = self.model(batch.video, batch.mouse_id, batch.behavior, batch.pupil_center)
        loss = poisson_correlation(batch.response, prediction, self.train_trials, len(batch.video))
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.item()
