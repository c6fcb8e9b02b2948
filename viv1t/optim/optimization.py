"""How the weights of a run follow their gradients: the rule of a step, clipping before it, the schedule after it.

There is one class for each rule. It says what the rule remembers of a parameter, and how that is saved and taken back;
what a gradient that is not finite leaves behind (nothing); and which weights are evaluated. Training knows no more.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from viv1t.errors import CheckpointError
from viv1t.optim.clipping import Clipping
from viv1t.optim.schedule import Decision, Schedule
from viv1t.optim.schedule_free import ScheduleFreeAdamW

_HISTORY = "clipping/history"  # the entry of what clipping remembers


class Optimization:
    """An optimizer with its clipping and its schedule: all of a run's state besides weights and position.

    Two runs with the same weights and equal `entries` and `facts` go on alike, to the bit.

    Args:
        optimizer: over groups of parameters, each with its `name`; with a switch `found_inf`, see `step`.
        schedule: decides after each epoch.
        clipping: of gradients; default none.
        advice: which options to try where gradients are not finite.

    Attributes:
        kept_with_best: whether it is kept beside the best weights.
    """

    kept_with_best = False

    STATE: ClassVar[tuple[str, ...]]  # what the rule remembers of each parameter
    optimizer: torch.optim.Optimizer

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        clipping: Clipping | None = None,
        advice: str = "lower the learning rates",
    ) -> None:
        self.optimizer, self.schedule, self.clipping, self.advice = optimizer, schedule, clipping or Clipping(), advice
        self._rates = [group["lr"] for group in optimizer.param_groups]

    @property
    def groups(self) -> list[dict[str, Any]]:
        """The parameter groups, each with its `name` and `lr`."""
        return self.optimizer.param_groups

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All that is trained."""
        return [p for group in self.groups for p in group["params"]]

    # -- a step ------------------------------------------------------------------------------------------------------

    def step(self, finite: Tensor) -> None:
        """Updates the weights from their gradients, without waiting for the device.

        Args:
            finite: a scalar on the parameters' device; where it is 0, weights and what is remembered of them stay as
                they are, and the caller, once it knows, says so by `refused`.
        """
        # Fused optimizers leave all as it is where this is 1; gradient scalers use it for the same.
        self.optimizer.found_inf = 1 - finite  # type: ignore[attr-defined]
        self.optimizer.step()

    def made(self, norm: float | None) -> None:
        """The step was made, and the norm of its gradients before clipping was this, if it was asked for."""
        if norm is not None:
            self.clipping.remember(norm)

    def refused(self) -> None:
        """The step was not made: everything is as before it."""

    def clear(self) -> None:
        """Drops the gradients."""
        self.optimizer.zero_grad(set_to_none=True)

    # -- the weights to evaluate -------------------------------------------------------------------------------------

    def to_training(self) -> None:
        """Puts the weights in which gradients are taken into the parameters."""

    def to_evaluation(self) -> None:
        """Puts the weights that are scored and kept into the parameters; they stay there until `to_training`."""

    # -- epochs ------------------------------------------------------------------------------------------------------

    def begin_epoch(self, epoch: int) -> None:
        """Sets the learning rates of epoch `epoch` (from 1), where the schedule follows the epochs."""
        scale = self.schedule.scale(epoch)
        if scale is not None:
            for group, rate in zip(self.groups, self._rates, strict=True):
                group["lr"] = rate * scale

    def end_epoch(self, score: float, epoch: int) -> Decision:
        """What to do after an epoch with this validation score; reduces the learning rates if so decided."""
        decision = self.schedule.step(score, epoch)
        if decision.reduce_lr:
            for group in self.groups:
                group["lr"] = self.schedule.reduced(group["lr"])
        return decision

    # -- to be saved -------------------------------------------------------------------------------------------------

    def entries(self, modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
        """What is remembered, under `optimizer/<module>/<parameter>/<name>`, and what clipping remembers."""
        found = state_entries(modules, self.optimizer)
        history = self.clipping.state()
        return found if history is None else found | {_HISTORY: history}

    def load_entries(self, modules: Mapping[str, nn.Module], entries: Mapping[str, Tensor]) -> None:
        """Takes back what `entries` gave; parameters without any start anew.

        Raises:
            CheckpointError: an entry is misshaped, or lacks its fellows.
        """
        load_state_entries(modules, self.optimizer, self.STATE, entries)
        if _HISTORY in entries:
            self.clipping.load_state(entries[_HISTORY])

    def facts(self) -> dict[str, Any]:
        """Learning rates and the schedule, in plain values for JSON."""
        return {"lr": [group["lr"] for group in self.groups], "schedule": self.schedule.state_dict()}

    def load_facts(self, facts: Mapping[str, Any]) -> None:
        """Takes back what `facts` gave.

        Raises:
            ValueError, LookupError, TypeError: these are facts of something else.
        """
        rates = [float(rate) for rate in facts["lr"]]
        for group, rate in zip(self.groups, rates, strict=True):
            group["lr"] = rate
        self.schedule.load_state_dict(facts["schedule"])

    # -- between processes -------------------------------------------------------------------------------------------

    def state_of(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """What is remembered of a parameter, in the order of `STATE`; what a first step would begin with if nothing."""
        state = self.optimizer.state.get(parameter) or self._fresh(parameter)
        return {name: state[name] for name in self.STATE}

    def _fresh(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        raise NotImplementedError


class AdamWOptimization(Optimization):
    """AdamW: two moments and a count of steps for each parameter; the weights that are trained are evaluated."""

    STATE = ("step", "exp_avg", "exp_avg_sq")

    def _fresh(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        zeros = torch.zeros_like(parameter)
        count = torch.zeros((), device=zeros.device if zeros.is_cuda else "cpu")
        return {"step": count, "exp_avg": zeros, "exp_avg_sq": zeros.clone()}


class ScheduleFreeOptimization(Optimization):
    """Schedule-free AdamW: z and the second moment of each parameter, counters of each group; the average x is scored.

    A save in the middle of an epoch holds the weights y, and one at its end the average, as they are in memory: to turn
    one into the other rounds, and a run that goes on is to round no more often than one that was never stopped.
    `weights_to_evaluate` gives the average of either.
    """

    STATE = ("z", "exp_avg_sq")
    COUNTERS = ("k", "lr_max", "weight_sum", "scheduled_lr", "train_mode")
    optimizer: ScheduleFreeAdamW

    def step(self, finite: Tensor) -> None:
        self._before = self._counters()
        super().step(finite)

    def refused(self) -> None:
        for group, counters in zip(self.groups, self._before, strict=True):
            group.update(counters)

    def to_training(self) -> None:
        self.optimizer.train()

    def to_evaluation(self) -> None:
        self.optimizer.eval()

    def facts(self) -> dict[str, Any]:
        beta1 = self.groups[0]["betas"][0]
        return super().facts() | {"groups": self._counters(), "beta1": beta1}

    def load_facts(self, facts: Mapping[str, Any]) -> None:
        super().load_facts(facts)
        for group, known in zip(self.groups, facts["groups"], strict=True):
            group.update({name: type(group[name])(known[name]) for name in self.COUNTERS})

    def _counters(self) -> list[dict[str, Any]]:
        return [{name: group[name] for name in self.COUNTERS} for group in self.groups]

    def _fresh(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        return {"z": parameter.detach().clone(), "exp_avg_sq": torch.zeros_like(parameter)}


def weights_to_evaluate(entries: Mapping[str, Tensor], facts: Mapping[str, Any]) -> dict[str, Tensor]:
    """A save's entries, with the weights that its rule evaluates, in place of those in which gradients were taken.

    Args:
        entries: of modules, `<module>/<parameter>`, and of an `Optimization`.
        facts: of that optimization.
    """
    found = dict(entries)
    if any(group["train_mode"] for group in facts.get("groups", ())):
        share = 1 - 1 / facts["beta1"]
        for name, z in entries.items():
            if name.startswith("optimizer/") and name.endswith("/z"):
                place = name.removeprefix("optimizer/").removesuffix("/z")
                found[place] = entries[place].lerp(z, share)
    return found


def _named(modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, nn.Parameter]]:
    for module, parts in modules.items():
        yield from ((f"optimizer/{module}/{key}", parameter) for key, parameter in parts.named_parameters())


def state_entries(modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What an optimizer remembers, under `optimizer/<module>/<parameter>/<name>`."""
    entries = {}
    for name, parameter in _named(modules):
        for key, value in optimizer.state.get(parameter, {}).items():
            entries[f"{name}/{key}"] = torch.as_tensor(value)
    return entries


def load_state_entries(
    modules: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    names: Iterable[str],
    entries: Mapping[str, Tensor],
) -> None:
    """Takes back what `state_entries` gave of an optimizer whose rule has these names.

    Raises:
        CheckpointError: an entry is misshaped, or lacks its fellows.
    """
    names = tuple(names)
    for name, parameter in _named(modules):
        state: dict[str, Tensor] = {}
        for key in names:
            value = entries.get(f"{name}/{key}")
            if value is not None:
                if value.shape != (() if key == "step" else parameter.shape):
                    raise CheckpointError(f"{name}/{key}: misshaped, {tuple(value.shape)}, in the checkpoint")
                # The step count stays on the CPU unless the optimizer is a fused one on CUDA.
                device = "cpu" if key == "step" and not parameter.is_cuda else parameter.device
                state[key] = value.to(device, copy=True)
        if state:
            if len(state) < len(names):
                raise CheckpointError(f"{name}: its moments are not all in the checkpoint")
            optimizer.state[parameter] = state
