"""Training losses, by the names that `--criterion` takes.

Each loss is a small function of the response y and the prediction p, both (B, N, t), registered under its name. With
S = sqrt(training trials / batch size) and e the machine epsilon of float32, whatever the tensors' type:

    poisson              sum (p + e) - (y + e) log(p + e)
    correlation          -sum over neurons of (corr + 1)
    poisson_correlation  poisson + 1000 * sum over neurons of (1 - corr)
    mean_poisson         poisson / batch size
    mse                  mean (y - p)^2 * share
    logMSE               mean (log(y + e) - log(p + e))^2 * share
    gamma                sum (y + e) / (p + e) + log(p + e)

`corr` is Pearson's, over the frames of all trials together, with e added to each standard deviation. `share` is the
part of the batch that these trials are, so that the losses of micro batches add up; logMSE is weighed by it here
although the published code does not. S multiplies the result when scaling is on.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from viv1t.errors import check_choice

EPS = torch.finfo(torch.float32).eps
CORRELATION_WEIGHT = 1000.0  # of poisson_correlation's second term


@dataclass(frozen=True)
class _Pair:
    """Response and prediction with what every loss needs of them; padding is already zero in both."""

    response: Tensor  # (B, N, t)
    prediction: Tensor  # (B, N, t)
    mask: Tensor | None  # (B, 1, t) bool, true at valid frames
    batch_size: int  # trials of the whole batch

    @property
    def share(self) -> float:
        return self.response.shape[0] / self.batch_size

    def sum(self, x: Tensor, dim: tuple[int, ...]) -> Tensor:
        """Sum over the valid frames of x (B, N, t)."""
        return (x if self.mask is None else x * self.mask).sum(dim)

    def mean(self, x: Tensor, dim: tuple[int, ...]) -> Tensor:
        """Mean over the valid frames of x (B, N, t)."""
        if self.mask is None:
            return x.mean(dim)
        neurons = x.shape[1] if 1 in dim else 1
        return self.sum(x, dim) / (self.mask.sum() * neurons)


_ALL, _PER_NEURON = (0, 1, 2), (0, 2)
Loss = Callable[[_Pair], Tensor]
CRITERIA: dict[str, Loss] = {}


def _criterion(name: str) -> Callable[[Loss], Loss]:
    def register(loss: Loss) -> Loss:
        CRITERIA[name] = loss
        return loss

    return register


def _neuron_correlation(pair: _Pair) -> Tensor:
    """Pearson's correlation per neuron (N,); 0 where a series is constant, with a zero gradient."""
    y, p = (x - pair.mean(x, _PER_NEURON)[:, None] for x in (pair.response, pair.prediction))
    # The floor is far below e**2 and keeps the square root's derivative finite for a constant series.
    tiny = torch.finfo(p.dtype).tiny
    std_y, std_p = (pair.mean(x * x, _PER_NEURON).clamp_min(tiny).sqrt() + EPS for x in (y, p))
    return pair.mean(y * p, _PER_NEURON) / std_y / std_p


@_criterion("poisson")
def _poisson(pair: _Pair) -> Tensor:
    y, p = pair.response + EPS, pair.prediction + EPS
    return pair.sum(p - y * torch.log(p), _ALL)


@_criterion("correlation")
def _correlation(pair: _Pair) -> Tensor:
    return -(_neuron_correlation(pair) + 1).sum()


@_criterion("poisson_correlation")
def _poisson_correlation(pair: _Pair) -> Tensor:
    return _poisson(pair) + CORRELATION_WEIGHT * (1 - _neuron_correlation(pair)).sum()


@_criterion("mean_poisson")
def _mean_poisson(pair: _Pair) -> Tensor:
    return _poisson(pair) / pair.batch_size


@_criterion("mse")
def _mse(pair: _Pair) -> Tensor:
    return pair.mean((pair.response - pair.prediction).square(), _ALL) * pair.share


@_criterion("logMSE")
def _log_mse(pair: _Pair) -> Tensor:
    logs = torch.log(pair.response + EPS) - torch.log(pair.prediction + EPS)
    return pair.mean(logs.square(), _ALL) * pair.share


@_criterion("gamma")
def _gamma(pair: _Pair) -> Tensor:
    y, p = pair.response + EPS, pair.prediction + EPS
    return pair.sum(y / p + torch.log(p), _ALL)


def criterion(
    name: str,
    response: Tensor,
    prediction: Tensor,
    *,
    train_trials: int,
    batch_size: int,
    ds_scale: bool,
    mask: Tensor | None = None,
) -> Tensor:
    """The loss of one micro batch of one mouse; those of a batch's micro batches add up, but for correlations.

    Correlations are taken within the micro batch, as published.

    Args:
        name: one of `CRITERIA`.
        response: (B, N, T) recorded activity, not negative; its last t frames are compared.
        prediction: (B, N, t) predicted activity, positive.
        train_trials: training trials of the mouse.
        batch_size: trials of the whole batch that these B belong to.
        ds_scale: multiply by sqrt(train_trials / batch_size).
        mask: (B, t) bool, true at valid frames of padded trials. The rest counts nowhere and gets no gradient.

    Returns:
        Scalar of the prediction's type.

    Raises:
        ConfigError: a name that is not known.
    """
    loss = unscaled_criterion(name, response, prediction, batch_size, mask)
    return loss * criterion_scale(train_trials, batch_size) if ds_scale else loss


def criterion_scale(train_trials: int, batch_size: int) -> float:
    """S."""
    return (train_trials / batch_size) ** 0.5


def share_scale(train_sizes: Mapping[str, int], mouse_id: str) -> float:
    """The mean number of training trials over mice, divided by this mouse's: every mouse's data weigh the same."""
    return sum(train_sizes.values()) / (len(train_sizes) * train_sizes[mouse_id])


def share_criterion(
    name: str,
    response: Tensor,
    prediction: Tensor,
    *,
    train_sizes: Mapping[str, int] | None,
    mouse_id: str,
    batch_size: int | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """The loss of 2025 of one micro batch of one mouse: the criterion times `share_scale`.

    A step divides the sum over mice by the number of mice and `batch_size`.

    Args:
        name, response, prediction, mask: as of `criterion`.
        train_sizes: training trials of every mouse; None scales nothing.
        mouse_id: whose trials these are.
        batch_size: trials of the whole batch, by whose share mse and logMSE are weighed; default all are here. The
            published code does not weigh them.
    """
    loss = unscaled_criterion(name, response, prediction, batch_size or len(prediction), mask)
    return loss if train_sizes is None else loss * share_scale(train_sizes, mouse_id)


def unscaled_criterion(
    name: str, response: Tensor, prediction: Tensor, batch_size: int, mask: Tensor | None = None
) -> Tensor:
    """As `criterion`, before S."""
    check_choice("--criterion", name, CRITERIA)
    # Contiguous, so that sums are made in one order wherever the response comes from.
    response = response[..., response.shape[-1] - prediction.shape[-1] :].contiguous()
    if mask is not None:
        mask = mask[:, None]
        response, prediction = (torch.where(mask, x, 0.0) for x in (response, prediction))
    return CRITERIA[name](_Pair(response, prediction, mask, batch_size))


def compared(name: str, trials: int, neurons: int, frames: float) -> float:
    """What a criterion divides by to be one neuron's loss in one frame: how many it adds up.

    A correlation is of all frames: it is then one neuron's. Means have been divided already.
    """
    match name:
        case "poisson" | "poisson_correlation" | "gamma":
            return trials * neurons * frames
        case "mean_poisson":
            return neurons * frames
        case "correlation":
            return neurons
    return 1


@dataclass(frozen=True)
class TrainingLoss(ABC):
    """A criterion with what a family multiplies it by: the loss of training, and of validation.

    Attributes:
        criterion: one of `CRITERIA`.
    """

    criterion: str

    @abstractmethod
    def weight(self, mouse_id: str, batch_size: int) -> float:
        """What the criterion of a mouse's (micro) batch is multiplied by, of a whole batch of `batch_size` trials."""

    @abstractmethod
    def trial_weight(self, mouse_id: str) -> float:
        """The same of one trial in validation."""

    @abstractmethod
    def of_step(self, losses: Sequence[float], batches: float) -> float:
        """The loss of a step as it is written down, from those of its mice, of that many batches together."""

    def of_trial(self, mouse_id: str, response: Tensor, prediction: Tensor) -> Tensor:
        """The loss of one trial in validation, a scalar, from response (1, N, T) and prediction (1, N, t)."""
        return unscaled_criterion(self.criterion, response, prediction, 1) * self.trial_weight(mouse_id)

    def step_size(self, neurons: Mapping[str, int], batch_size: int, frames: float) -> float:
        """What a step's loss is divided by to be read: as a loss of 1 of each neuron in each frame would add up.

        Args:
            neurons: of each mouse.
            batch_size: trials of each mouse.
            frames: that are predicted of a trial.
        """
        ones = [
            self.weight(mouse, batch_size) * compared(self.criterion, batch_size, count, frames)
            for mouse, count in neurons.items()
        ]
        return self.of_step(ones, len(ones))

    def trial_size(self, mouse_id: str, neurons: int, frames: int) -> float:
        """The same of one trial in validation."""
        return self.trial_weight(mouse_id) * compared(self.criterion, 1, neurons, frames)
