"""Optimizers from a model's parts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import nn

from viv1t.optim.schedule_free import ScheduleFreeAdamW


class Part(NamedTuple):
    """A parameter group: some modules with their learning rate and weight decay."""

    name: str
    modules: tuple[nn.Module, ...]
    lr: float
    weight_decay: float


def parameter_groups(parts: Iterable[Part]) -> list[dict[str, Any]]:
    """Groups for an optimizer, each with its `name`; parts without a trainable parameter are left out."""
    groups: list[dict[str, Any]] = []
    for name, modules, lr, weight_decay in parts:
        parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
        if parameters:
            groups.append({"name": name, "params": parameters, "lr": lr, "weight_decay": weight_decay})
    return groups


def adamw(parts: Iterable[Part], betas: tuple[float, float], eps: float) -> torch.optim.AdamW:
    """Fused AdamW. Parameters without a gradient are not decayed: it skips them."""
    return torch.optim.AdamW(parameter_groups(parts), betas=betas, eps=eps, fused=True)


def schedule_free(
    parts: Iterable[Part], betas: tuple[float, float], eps: float, warmup_steps: int, r: float, weight_lr_power: float
) -> ScheduleFreeAdamW:
    """Schedule-free AdamW; see there."""
    groups = parameter_groups(parts)
    return ScheduleFreeAdamW(
        groups, lr=0.0, betas=betas, eps=eps, warmup_steps=warmup_steps, r=r, weight_lr_power=weight_lr_power
    )
