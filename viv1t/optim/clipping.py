"""Clipping gradients to a norm that is given, or that the run itself has found usual."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

HISTORY = 100_000  # norms that are remembered
PERCENTILE = 10.0


class Clipping:
    """Multiplies gradients by min(1, c / (n + 1e-6)), n the 2-norm of all of them.

    Args:
        max_norm: c, at least 0; infinity clips nothing.
    """

    def __init__(self, max_norm: float = math.inf) -> None:
        self._max_norm = max_norm

    @property
    def max_norm(self) -> float:
        """c of the next step; infinity where nothing is clipped."""
        return self._max_norm

    @property
    def asks_norm(self) -> bool:
        """Whether the norm is needed at all."""
        return math.isfinite(self.max_norm)

    def clip(self, parameters: Iterable[nn.Parameter], norm: Tensor) -> None:
        """Clips the gradients in place, without waiting for `norm`, their norm before.

        The caller gives that norm to `remember` once it is known.
        """
        max_norm = self.max_norm
        if math.isfinite(max_norm):
            torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)

    def remember(self, norm: float) -> None:
        """Takes note of the norm of a step, before it was clipped."""

    def state(self) -> Tensor | None:
        """What is remembered, to be saved: a run that goes on clips as if it had never stopped."""
        return None

    def load_state(self, state: Tensor) -> None:
        """Takes back what `state` gave."""


class GradientClipping(Clipping):
    """As `Clipping`, with the c that the run itself may have found usual.

    c is a number, or the 10th percentile of the norms of all earlier steps (AutoClip, Seetharaman et al. 2020): the
    first step is then not clipped. Norms that are not finite do not enter the history.

    Args:
        limit: c; 0 clips nothing, -1 takes the percentile.
        history: norms of a run that goes on.
    """

    def __init__(self, limit: float, history: Iterable[float] = ()) -> None:
        super().__init__()
        self.limit = limit
        self.history: deque[float] = deque(history, maxlen=HISTORY)

    @property
    def max_norm(self) -> float:
        if self.limit > 0:
            return self.limit
        if self.limit == 0 or not self.history:
            return math.inf
        return float(np.percentile(np.array(self.history, np.float32), PERCENTILE))

    @property
    def asks_norm(self) -> bool:
        return self.limit != 0

    def remember(self, norm: float) -> None:
        """Adds the norm of a step, before it was clipped."""
        if math.isfinite(norm):
            self.history.append(norm)

    def state(self) -> Tensor:
        """The history (steps,), float32."""
        return torch.tensor(list(self.history), dtype=torch.float32)

    def load_state(self, state: Tensor) -> None:
        self.history = deque(state.float().tolist(), maxlen=HISTORY)
