"""AdamW with a learning rate and weight decay per part of the model."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from viv1t.config.run import CriticConfig, RunConfig
from viv1t.model.twin import ViV1T


def build_optimizer(model: ViV1T, config: RunConfig, critic: nn.Module | None = None) -> torch.optim.AdamW:
    """AdamW over the groups `core`, `readouts` (with the shifters), `modulators` and `critic`, each with its `name`.

    A group without trainable parameters is left out. Parameters without a gradient are not decayed: AdamW skips them.

    Args:
        model: on its final device.
        config: learning rates, decays, betas and epsilon.
        critic: trained beside the model, if there is one.
    """
    options = config.optimizer
    parts: list[tuple[str, tuple[nn.Module, ...], float, float]] = [
        ("core", (model.core,), config.core_lr, options.core_weight_decay),
        ("readouts", (model.readouts, model.shifters), options.lr, options.weight_decay),
        ("modulators", (model.modulators,), options.lr, options.modulator_weight_decay),
    ]
    if critic is not None and isinstance(config.critic, CriticConfig):
        parts.append(("critic", (critic,), options.lr, config.critic.weight_decay))
    groups: list[dict[str, Any]] = []
    for name, modules, lr, weight_decay in parts:
        parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
        if parameters:
            groups.append({"name": name, "params": parameters, "lr": lr, "weight_decay": weight_decay})
    return torch.optim.AdamW(groups, betas=(options.beta1, options.beta2), eps=options.eps, fused=True)
