"""How models of 2025 are trained: loss, parameter groups, optimizer, clipping, and the order of a saved optimizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from viv1t.errors import CheckpointError
from viv1t.families.closed_loop.options import ClosedLoopConfig
from viv1t.families.family import Training
from viv1t.model.cores.vivit import Vivit
from viv1t.model.twin import ViV1T
from viv1t.optim.build import Part, adamw, schedule_free
from viv1t.optim.clipping import GradientClipping
from viv1t.optim.optimization import AdamWOptimization, Optimization, ScheduleFreeOptimization
from viv1t.optim.plateau import EarlyStopping, Plateau
from viv1t.optim.schedule_free import ScheduleFreeAdamW
from viv1t.scoring.criterion import TrainingLoss, share_scale


@dataclass(frozen=True)
class ShareLoss(TrainingLoss):
    """The criterion times a mouse's share of the data, divided by all trials of a step.

    Attributes:
        train_sizes: training trials of each mouse.
        scaled: whether mice are weighed by their share of the data.
        batch_size: trials of each mouse in a step, also where a batch has fewer.
    """

    train_sizes: Mapping[str, int]
    scaled: bool
    batch_size: int

    def weight(self, mouse_id: str, batch_size: int) -> float:
        return self.trial_weight(mouse_id) / (len(self.train_sizes) * self.batch_size)

    def trial_weight(self, mouse_id: str) -> float:
        return share_scale(self.train_sizes, mouse_id) if self.scaled else 1.0

    def of_step(self, losses: Sequence[float], batches: float) -> float:
        """Their sum over mice."""
        return sum(losses)


def parts(model: ViV1T, config: ClosedLoopConfig) -> list[Part]:
    """The parameter groups, as published: core, shifters, readouts, activation."""
    lr, decay = config.optimizer.lr, config.optimizer.weight_decay
    if config.core_lr == 0:
        model.freeze_core()
    return [
        Part("core", (model.core,), config.core_lr, config.core_weight_decay),
        Part("shifters", (model.shifters,), lr, decay),
        Part("readouts", (model.readouts,), lr, decay),
        Part("activation", (model.outputs,), lr, decay),
    ]


def build_optimizer(model: ViV1T, config: ClosedLoopConfig) -> ScheduleFreeAdamW | torch.optim.AdamW:
    """Schedule-free AdamW where asked for, else AdamW; a core with the learning rate 0 is frozen."""
    options = config.optimizer
    betas = (options.beta1, options.beta2)
    if options.schedule_free:
        return schedule_free(
            parts(model, config), betas, options.eps, options.warmup_steps, options.r, options.weight_lr_power
        )
    return adamw(parts(model, config), betas, options.eps)


def build_clipping(config: ClosedLoopConfig) -> GradientClipping:
    """What is done to gradients before a step."""
    return GradientClipping(config.optimizer.clip_grad)


def build_optimization(model: ViV1T, config: ClosedLoopConfig) -> Optimization:
    """The optimizer with clipping and schedule: early stopping where it is schedule-free, else the plateau's."""
    optimizer, clipping = build_optimizer(model, config), build_clipping(config)
    advice = "lower --lr and --core_lr, or set --clip_grad"
    found: Optimization
    if isinstance(optimizer, ScheduleFreeAdamW):
        found = ScheduleFreeOptimization(optimizer, EarlyStopping(), clipping, advice)
    else:
        found = AdamWOptimization(optimizer, Plateau(), clipping, advice)
    found.kept_with_best = True  # published run folders have both
    return found


def training(model: ViV1T, config: ClosedLoopConfig, train_sizes: Mapping[str, int]) -> Training:
    """As of `Family.training`."""
    options = config.optimizer
    loss = ShareLoss(options.criterion, train_sizes, options.ds_scale, config.data.batch_size)
    return Training(loss, build_optimization(model, config))


def published_order(model: ViV1T) -> list[nn.Parameter]:
    """The parameters in the order in which a published `optimizer.pt` numbers them.

    A module's own parameters come before its children's: positions, the patches' norm and projection, the tokens' norm;
    registers; blocks, each norm, projection, both outputs, norms of queries and keys; shifters; readouts; activations.
    """
    ordered: list[nn.Parameter] = []

    def add(*modules: Any) -> None:
        for module in modules:
            if isinstance(module, nn.Parameter):
                ordered.append(module)
            elif module is not None:
                ordered.extend(module.parameters())

    core = model.core
    if isinstance(core, Vivit):
        tokenizer = core.tokenizer
        add(*tokenizer.parameters(recurse=False))
        add(getattr(tokenizer, "patch_norm", None), tokenizer.projection, tokenizer.norm)
        add(core.spatial.registers, core.temporal.registers)
        for transformer in (core.spatial, core.temporal):
            for block in transformer.blocks:
                add(block.norm, block.fused_linear, block.attention_out, block.ff_out, block.norm_q, block.norm_k)
    else:
        add(core)
    add(model.shifters)
    for readout in model.readouts.values():
        own = dict(readout.named_parameters(recurse=False))
        add(*(own[name] for name in ("mu", "sigma", "features", "bias") if name in own))
        add(*readout.children())
    add(model.outputs)
    return ordered


_COUNTERS = ("k", "lr_max", "weight_sum", "scheduled_lr", "train_mode")
_WITHOUT = "without the file, its folder's weights alone are started from"


def take_optimizer(model: ViV1T, optimization: Optimization, content: Any, where: str) -> None:
    """As of `Family.take_optimizer`."""
    load_published_optimizer(model, optimization.optimizer, content, where)  # type: ignore[arg-type]


def to_optimizer(model: ViV1T, entries: Mapping[str, Tensor], facts: Mapping[str, Any]) -> dict[str, Any]:
    """As of `Family.to_optimizer`."""
    optimization = build_optimization(model, model.config)
    optimization.load_facts(facts)
    optimization.load_entries({"model": model}, entries)
    return published_optimizer(model, optimization.optimizer)  # type: ignore[arg-type]


def load_published_optimizer(
    model: ViV1T, optimizer: ScheduleFreeAdamW | torch.optim.AdamW, content: Any, where: str
) -> None:
    """Takes the state of a published `optimizer.pt`, which stands in the evaluation form.

    Raises:
        CheckpointError: it is no such state, or belongs to another optimizer or model.
    """
    own, found = published_order(model), {}
    names = ("z", "exp_avg_sq") if isinstance(optimizer, ScheduleFreeAdamW) else ("step", "exp_avg", "exp_avg_sq")
    try:
        groups = {group["name"]: group for group in content["param_groups"]}
        state = {int(index): dict(entries) for index, entries in content["state"].items()}
        counts = [len(group["params"]) for group in content["param_groups"]]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{where}: not the state of an optimizer; {_WITHOUT}") from error
    if [group["name"] for group in optimizer.param_groups] != list(groups) or sum(counts) != len(own):
        raise CheckpointError(
            f"{where}: belongs to a model of other parts: {', '.join(groups)}, {sum(counts)} tensors; {_WITHOUT}"
        )
    for index, entries in state.items():
        parameter = own[index] if 0 <= index < len(own) else None
        fits = parameter is not None and set(entries) == set(names) and all(map(torch.is_tensor, entries.values()))
        if parameter is None or not fits or any(
            entries[n].shape != (() if n == "step" else parameter.shape) for n in names
        ):  # fmt: skip
            raise CheckpointError(
                f"{where}: entry {index} is not that of this optimizer ({', '.join(names)}); {_WITHOUT}"
            )
        found[parameter] = {
            name: value.to(parameter.device if name != "step" or parameter.is_cuda else "cpu", copy=True)
            for name, value in entries.items()
        }
    try:
        counters = [{key: type(group[key])(groups[group["name"]][key]) for key in _COUNTERS if key in group}
                    for group in optimizer.param_groups]  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{where}: a group lacks its counters ({error!r}); {_WITHOUT}") from error
    for parameter, entries in found.items():
        optimizer.state[parameter] = entries
    for group, known in zip(optimizer.param_groups, counters, strict=True):
        group.update(known)


def published_optimizer(model: ViV1T, optimizer: ScheduleFreeAdamW | torch.optim.AdamW) -> dict[str, Any]:
    """The optimizer's state as published, `{state, param_groups}`, to be taken in the evaluation form."""
    number = {id(p): i for i, p in enumerate(published_order(model))}
    state = {number[id(p)]: {k: torch.as_tensor(v).cpu() for k, v in s.items()} for p, s in optimizer.state.items()}
    groups = [
        {k: v for k, v in group.items() if k != "params"} | {"params": sorted(number[id(p)] for p in group["params"])}
        for group in optimizer.param_groups
    ]
    return {"state": dict(sorted(state.items())), "param_groups": groups}
