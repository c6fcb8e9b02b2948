"""Schedule-free AdamW (Defazio et al. 2024, "The Road Less Scheduled", arXiv 2405.15682).

Three series of weights: z makes the steps, x averages z and is saved and evaluated, and y, between both, is where
gradients are taken. A parameter holds y in training and x otherwise; x follows from y and z.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


class ScheduleFreeAdamW(Optimizer):
    """AdamW whose average of the weights stands for a schedule of the learning rate.

    With g the learning rate times min(1, (k + 1) / warmup_steps), step k does, for each parameter with a gradient,

        w = (k + 1)^r max(g so far)^weight_lr_power,  c = w / (sum of w so far)
        v = b2 v + (1 - b2) grad^2,  u = grad / (sqrt(v / (1 - b2^(k + 1))) + eps) + weight_decay y
        y = (1 - c) y + c z + g (b1 (1 - c) - 1) u,  z = z - g u

    k and the sums belong to a group. There is no first moment: b1 says where y lies between x and z.

    Args:
        params: parameters, or groups of them with options of their own.
        lr: learning rate.
        betas: b1, above 0, and b2.
        eps, weight_decay: as of AdamW; the decay is part of u.
        warmup_steps: steps in which the learning rate grows; 0 for none.
        r, weight_lr_power: powers of the average's weights.

    Attributes:
        found_inf: a scalar tensor on the parameters' device; where it is 1, a step changes nothing but the counters.
    """

    found_inf: Tensor | None = None

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        warmup_steps: int = 0,
        r: float = 0.0,
        weight_lr_power: float = 2.0,
    ) -> None:
        defaults = {
            "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "warmup_steps": warmup_steps, "r": r,
            "weight_lr_power": weight_lr_power, "k": 0, "lr_max": -1.0, "weight_sum": 0.0, "scheduled_lr": 0.0,
            "train_mode": True,
        }  # fmt: skip
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step from the gradients that there are.

        Raises:
            RuntimeError: the parameters are in their evaluation form.
        """
        for group in self.param_groups:
            if not group["train_mode"]:
                raise RuntimeError("the weights are in their evaluation form: call train() before a step")
            k, (b1, b2) = group["k"], group["betas"]
            rate = group["lr"] * (min(1.0, (k + 1) / group["warmup_steps"]) if group["warmup_steps"] else 1.0)
            group["scheduled_lr"], group["lr_max"] = rate, max(rate, group["lr_max"])
            weight = (k + 1) ** group["r"] * group["lr_max"] ** group["weight_lr_power"]
            group["weight_sum"] += weight
            c = weight / group["weight_sum"] if group["weight_sum"] else 0.0
            correction = 1 - b2 ** (k + 1)
            for p in group["params"]:
                if p.grad is not None:
                    self._move(p, p.grad, rate, c, b1, b2, correction, group["eps"], group["weight_decay"])
            group["k"] = k + 1

    def _move(
        self, p: nn.Parameter, grad: Tensor, rate: float, c: float, b1: float, b2: float, correction: float, eps: float,
        decay: float,
    ) -> None:  # fmt: skip
        state = self.state[p]
        if not state:
            state["z"] = torch.clone(p, memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(p)
        z, v = state["z"], state["exp_avg_sq"]
        new_v = (v * b2).addcmul_(grad, grad, value=1 - b2)
        u = grad / (new_v / correction).sqrt_().add_(eps)
        if decay:
            u.add_(p, alpha=decay)
        new_p = torch.lerp(p, z, c).add_(u, alpha=rate * (b1 * (1 - c) - 1))
        new_z = torch.sub(z, u, alpha=rate)
        for old, new in ((p, new_p), (z, new_z), (v, new_v)):
            # Nobody waits to know: where something is not finite, all stays as it was.
            old.copy_(new if self.found_inf is None else torch.where(self.found_inf > 0, old, new))

    @torch.no_grad()
    def eval(self) -> None:
        """Puts the average x into the parameters; does nothing where it is there."""
        for group in self.param_groups:
            if group["train_mode"]:
                self._turn(group, 1 - 1 / group["betas"][0])
                group["train_mode"] = False

    @torch.no_grad()
    def train(self) -> None:
        """Puts y back into the parameters."""
        for group in self.param_groups:
            if not group["train_mode"]:
                self._turn(group, 1 - group["betas"][0])
                group["train_mode"] = True

    def _turn(self, group: dict[str, Any], share: float) -> None:
        for p in group["params"]:
            if "z" in self.state.get(p, {}):
                p.lerp_(self.state[p]["z"], share)
