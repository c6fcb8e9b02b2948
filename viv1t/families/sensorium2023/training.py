"""How models of 2023 are trained: loss and its scale, parameter groups, AdamW, clipping, schedule, and the critic."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from viv1t.families.family import Training
from viv1t.families.sensorium2023.options import CriticConfig
from viv1t.families.sensorium2023.run import RunConfig
from viv1t.model.critic import Critic, check_size
from viv1t.model.twin import ViV1T
from viv1t.optim.build import Part, adamw
from viv1t.optim.clipping import Clipping
from viv1t.optim.optimization import AdamWOptimization
from viv1t.optim.schedule import CosineSchedule, PlateauSchedule
from viv1t.scoring.criterion import TrainingLoss, criterion_scale
from viv1t.types import MAX_FRAMES


@dataclass(frozen=True)
class SizeLoss(TrainingLoss):
    """The criterion times sqrt(training trials / batch size), where scaling is on.

    Attributes:
        train_sizes: training trials of each mouse; None scales nothing.
    """

    train_sizes: Mapping[str, int] | None

    def weight(self, mouse_id: str, batch_size: int) -> float:
        return 1.0 if self.train_sizes is None else criterion_scale(self.train_sizes[mouse_id], batch_size)

    def trial_weight(self, mouse_id: str) -> float:
        return self.weight(mouse_id, 1)

    def of_step(self, losses: Sequence[float], batches: float) -> float:
        """Their mean over mice."""
        return sum(losses) / batches


def build_optimizer(model: ViV1T, config: RunConfig, critic: nn.Module | None = None) -> torch.optim.AdamW:
    """AdamW over the groups `core`, `readouts` (with the shifters), `modulators` and `critic`, each with its `name`.

    A group without trainable parameters is left out. Parameters without a gradient are not decayed: AdamW skips them.

    Args:
        model: on its final device.
        config: learning rates, decays, betas and epsilon.
        critic: trained beside the model, if there is one.
    """
    options = config.optimizer
    parts = [
        Part("core", (model.core,), config.core_lr, options.core_weight_decay),
        Part("readouts", (model.readouts, model.shifters), options.lr, options.weight_decay),
        Part("modulators", (model.modulators,), options.lr, options.modulator_weight_decay),
    ]
    if critic is not None and isinstance(config.critic, CriticConfig):
        parts.append(Part("critic", (critic,), options.lr, config.critic.weight_decay))
    return adamw(parts, (options.beta1, options.beta2), options.eps)


def build_critic(model: ViV1T, config: RunConfig) -> Critic | None:
    """The critic that is trained beside the model, on its device, if the options ask for one.

    Raises:
        ConfigError: the core's maps are too small for it.
    """
    if not isinstance(config.critic, CriticConfig):
        return None
    depth, *grid = model.core.output_shape
    crop = config.data.crop_frame
    check_size(model.core.output_frames(crop if crop > 0 else MAX_FRAMES), *grid)
    critic = Critic(config.critic.hidden_dim, config.critic.dropout, depth, len(model.neurons))
    return critic.to(next(model.parameters()).device)


def training(model: ViV1T, config: RunConfig, train_sizes: Mapping[str, int]) -> Training:
    """As of `Family.training`."""
    options = config.optimizer
    critic = build_critic(model, config)
    # With cosine rates there is nothing to wait for.
    schedule = CosineSchedule(config.train.epochs) if options.schedule == "cosine" else PlateauSchedule()
    optimization = AdamWOptimization(
        build_optimizer(model, config, critic),
        schedule,
        Clipping(math.inf if options.grad_norm is None else options.grad_norm),
        advice="lower --lr and --core_lr, or set --grad_norm",
    )
    return Training(SizeLoss(options.criterion, train_sizes if options.ds_scale else None), optimization, critic)
