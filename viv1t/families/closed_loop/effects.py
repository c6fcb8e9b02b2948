"""Options of 2025 that do nothing beside the others that were given."""

from __future__ import annotations

from collections.abc import Iterator

from viv1t.config.effects import Parts, told
from viv1t.families.closed_loop.options import OPTIMIZER_DEFAULTS, ClosedLoopConfig, FcnnConfig


def without_effect(config: ClosedLoopConfig) -> list[str]:
    """A line for every option that differs from its default and changes nothing."""
    return told(_idle(config), OPTIMIZER_DEFAULTS[config.core.name])


def _idle(config: ClosedLoopConfig) -> Iterator[Parts]:
    optimizer, shifter, train = config.optimizer, config.shifter, config.train
    if not optimizer.schedule_free:
        names = ("warmup_steps", "r", "weight_lr_power")
        yield optimizer, names, "AdamW without --schedule_free has no warm-up and no average"
    if config.core_lr == 0:
        yield optimizer, ("core_weight_decay",), "--core_lr 0 leaves the core as it is"
    if isinstance(config.core, FcnnConfig):
        yield train, ("grad_checkpointing",), "the core fcnn has no blocks to recompute"
    else:
        yield config.core, ("flash_attention",), "it changes rounding alone in the published code, and nothing here"
    if shifter.mode == "none":
        yield shifter, ("layers", "size"), "--shifter_mode 0 has no shifter"
    if not train.save_plots:
        yield train, ("dpi", "format"), "--save_plots is not given"
