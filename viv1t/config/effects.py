"""Options that do nothing beside the others that were given, and what that means: said, never passed over."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from viv1t.errors import ConfigError

Parts = tuple[object, tuple[str, ...] | None, str]  # a component, some of its fields or None for all, and why


def told(idle: Iterable[Parts], of_core: Mapping[str, Any]) -> list[str]:
    """A line for every option that differs from its default and changes nothing.

    Args:
        idle: what changes nothing.
        of_core: defaults that the core changes.
    """
    lines: dict[str, str] = {}
    for part, names, why in idle:
        for f in dataclasses.fields(part):  # type: ignore[arg-type]
            flag = f.metadata["flag"]
            default = of_core.get(flag, f.default)
            if (names is None or f.name in names) and getattr(part, f.name) != default is not dataclasses.MISSING:
                lines.setdefault(flag, f"--{flag} has no effect: {why}")
    return list(lines.values())


def check_effects(config: Any) -> None:
    """Raises a ConfigError for an option without effect that somebody counts on."""
    train = config.train
    if train.wandb_id is not None and train.wandb is None:
        raise ConfigError(
            "--wandb_id resumes a run of Weights & Biases, which is not logged to: give --wandb GROUP, too"
        )
