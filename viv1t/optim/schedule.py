"""When to save, go back, slow down and stop, decided from the validation score after each epoch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch


@dataclass(frozen=True)
class Decision:
    """What to do after an epoch.

    Attributes:
        save: the weights are the best so far: keep them.
        restore: go back to the best weights.
        reduce_lr: multiply the learning rates, see `PlateauSchedule.reduced`.
        terminate: stop training.
    """

    save: bool = False
    restore: bool = False
    reduce_lr: bool = False
    terminate: bool = False


class Schedule(Protocol):
    """Decides after each epoch, from its validation score; knows nothing of files, weights or optimizers.

    Attributes:
        best_epoch: the best so far, from 1; 0 or None before there is one.
        terminated: whether it has ended the run.
    """

    best_epoch: int | None
    terminated: bool

    def scale(self, epoch: int) -> float | None:
        """What a learning rate is multiplied by in epoch `epoch` (from 1); None leaves it as it is."""

    def step(self, value: float, epoch: int) -> Decision:
        """What to do after epoch `epoch` (from 1) with validation score `value`: higher is better."""

    def reduced(self, lr: float) -> float:
        """The learning rate after one reduction."""

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes back what `state_dict` gave."""


def cosine_factor(epoch: int, epochs: int, floor: float = 0.02) -> float:
    """What the learning rates of epoch 1 to `epochs` are multiplied by: from 1 down to `floor` along half a cosine."""
    done = (epoch - 1) / max(epochs - 1, 1)
    return floor + (1 - floor) * (1 + math.cos(math.pi * done)) / 2


class PlateauSchedule:
    """Reduces the learning rates whenever the score stops improving, then stops.

    Knows nothing of files, weights or optimizers: the caller carries out its decisions. A score that collapses to zero
    after having been at least `COLLAPSE_FROM` restores the best weights and is not counted as waiting.

    Args:
        patience: epochs in a row without an improvement, until a reduction.
        max_reduce: the wait that ends without an improvement after this many minus one reductions stops the run.
        factor: what a reduction multiplies learning rates by.
        min_lr: no learning rate is reduced below this.
        min_epochs: up to this epoch nothing is waited for.
    """

    COLLAPSE_FROM = 0.05

    def __init__(
        self,
        *,
        patience: int = 5,
        max_reduce: int = 3,
        factor: float = 0.3,
        min_lr: float = torch.finfo(torch.float32).eps,
        min_epochs: int = 0,
    ) -> None:
        self.patience, self.max_reduce, self.factor = patience, max_reduce, factor
        self.min_lr, self.min_epochs = min_lr, min_epochs
        self.best_value = 0.0  # a model that predicts nothing is not worth keeping
        self.best_epoch: int | None = None
        self.wait = 0
        self.reductions = 0
        self.terminated = False

    def scale(self, epoch: int) -> float | None:
        """None: the learning rates follow the score alone."""
        return None

    def step(self, value: float, epoch: int) -> Decision:
        """Decides after epoch `epoch` (from 1) with validation score `value`: higher is better, NaN never improves."""
        if value > self.best_value:
            self.best_value, self.best_epoch = value, epoch
            self.wait = self.reductions = 0
            return Decision(save=True)
        if not math.isnan(value) and round(value, 2) <= 0 and self.best_value >= self.COLLAPSE_FROM:
            return Decision(restore=True)
        if epoch <= self.min_epochs:
            return Decision()
        if self.wait + 1 < self.patience:
            self.wait += 1
            return Decision()
        if self.reductions + 1 >= self.max_reduce:
            self.terminated = True
            return Decision(terminate=True)
        self.wait = 0
        self.reductions += 1
        return Decision(restore=self.best_epoch is not None, reduce_lr=True)

    def reduced(self, lr: float) -> float:
        """The learning rate after one reduction."""
        return max(lr * self.factor, self.min_lr)

    _STATE = ("best_value", "best_epoch", "wait", "reductions", "terminated")

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON."""
        return {key: getattr(self, key) for key in self._STATE}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes back what `state_dict` gave."""
        for key in self._STATE:
            setattr(self, key, state[key])


class CosineSchedule(PlateauSchedule):
    """Lowers the learning rates along half a cosine over `epochs` epochs, so that there is nothing to wait for."""

    def __init__(self, epochs: int) -> None:
        super().__init__(min_epochs=epochs)
        self.epochs = epochs

    def scale(self, epoch: int) -> float:
        """As of `cosine_factor`."""
        return cosine_factor(epoch, self.epochs)
