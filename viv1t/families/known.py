"""The families there are, and which one options belong to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from viv1t.config.option_set import choose_family
from viv1t.families.closed_loop import CLOSED_LOOP
from viv1t.families.closed_loop.options import ClosedLoopConfig
from viv1t.families.family import Family
from viv1t.families.sensorium2023.definition import SENSORIUM2023
from viv1t.families.sensorium2023.run import RunConfig

AnyConfig = RunConfig | ClosedLoopConfig
FAMILIES = {family.name: family for family in (SENSORIUM2023, CLOSED_LOOP)}


def family_of(options: Mapping[str, Any], wanted: str | None = None) -> Family:
    """The family that options belong to, see `choose_family`.

    Raises:
        ConfigError: options of several families are mixed, which it names, or `wanted` is not a family.
    """
    return FAMILIES[choose_family(options, {name: f.options for name, f in FAMILIES.items()}, wanted)]


def family_for(config: Any) -> Family:
    """The family that a configuration belongs to."""
    return next(family for family in FAMILIES.values() if isinstance(config, family.kind))
