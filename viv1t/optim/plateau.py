"""When a run of 2025 saves, goes back, slows down and stops, decided from the validation score after each epoch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from viv1t.optim.schedule import Decision


class Plateau:
    """Reduces the learning rates when the score stops improving, then stops; goes back once from a score that is NaN.

    Args:
        patience: epochs without an improvement, the one that reduces included.
        max_reduce: reductions without an improvement between them; the next one stops the run.
        factor: what a reduction multiplies learning rates by.
        min_lr: no learning rate is reduced below this.
    """

    def __init__(
        self,
        patience: int = 5,
        max_reduce: int = 2,
        factor: float = 0.3,
        min_lr: float = torch.finfo(torch.float32).eps,
    ) -> None:
        self.patience, self.max_reduce, self.factor, self.min_lr = patience, max_reduce, factor, min_lr
        self.best_value = 0.0
        self.best_epoch: int | None = 0  # 0 before there is one
        self.wait = self.reductions = 0
        self.was_nan = self.terminated = False

    def scale(self, epoch: int) -> float | None:
        """None: the learning rates follow the score alone."""
        return None

    def step(self, value: float, epoch: int) -> Decision:
        """Decides after epoch `epoch` (from 1) with validation score `value`: higher is better, in float32."""
        value = float(np.float32(value))
        if math.isnan(value):
            if self.was_nan or not self.best_epoch:
                self.terminated = True
                return Decision(terminate=True)
            self.was_nan = True
            return Decision(restore=True)
        if value > self.best_value:
            self.best_value, self.best_epoch = value, epoch
            self.wait = self.reductions = 0
            self.was_nan = False
            return Decision(save=True)
        if self.wait + 1 < self.patience:
            self.wait += 1
            return Decision()
        if self.reductions < self.max_reduce:
            self.reductions += 1
            self.wait = 0
            return Decision(restore=True, reduce_lr=True)
        self.terminated = True
        return Decision(terminate=True)

    def reduced(self, lr: float) -> float:
        """The learning rate after one reduction."""
        return max(lr * self.factor, self.min_lr)

    _STATE = ("best_value", "best_epoch", "wait", "reductions", "was_nan", "terminated")

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON."""
        return {key: getattr(self, key) for key in self._STATE}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes back what `state_dict` gave."""
        for key in self._STATE:
            setattr(self, key, state[key])


class EarlyStopping(Plateau):
    """Keeps the learning rates, and stops `patience` epochs after the best one: for schedule-free optimizers."""

    def __init__(self, patience: int = 10) -> None:
        super().__init__(patience)

    def step(self, value: float, epoch: int) -> Decision:
        """As of `Plateau`; NaN is no improvement."""
        value = float(np.float32(value))
        if value > self.best_value:
            self.best_value, self.best_epoch = value, epoch
            return Decision(save=True)
        self.terminated = epoch - (self.best_epoch or 0) >= self.patience
        return Decision(terminate=self.terminated)
