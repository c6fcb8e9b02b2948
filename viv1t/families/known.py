"""The families there are, and which one options belong to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from viv1t.errors import ConfigError
from viv1t.families.closed_loop import CLOSED_LOOP
from viv1t.families.family import Family
from viv1t.families.sensorium2023 import SENSORIUM2023

FAMILIES = {family.name: family for family in (SENSORIUM2023, CLOSED_LOOP)}


def signs(options: Mapping[str, Any], family: Family) -> list[str]:
    """The options, as `--flag` or `--flag value`, that `family` alone has."""
    others = [other for other in FAMILIES.values() if other is not family]
    found = [f"--{flag}" for flag in options if flag in family.flags and not any(flag in o.flags for o in others)]
    for selector, names in family.components.items():
        value = options.get(selector)
        if value in names and not any(value in other.components.get(selector, ()) for other in others):
            found.append(f"--{selector} {value}")
    return sorted(found)


def family_of(options: Mapping[str, Any], wanted: str | None = None) -> Family:
    """The family that options belong to: the one that alone has some of them; of 2023 where any could be meant.

    Args:
        options: by published names.
        wanted: the name of the family that was asked for.

    Raises:
        ConfigError: options of several families are mixed, which it names, or `wanted` is not a family.
    """
    if wanted is not None and wanted not in FAMILIES:
        raise ConfigError(f"--family must be one of {', '.join(FAMILIES)}, not {wanted}")
    found = {name: words for name, family in FAMILIES.items() if (words := signs(options, family))}
    if wanted is not None:
        found.setdefault(wanted, ["--family " + wanted])
    if len(found) > 1:
        several = "; ".join(f"{name} has {', '.join(flags[:5])}" for name, flags in found.items())
        raise ConfigError(f"options of two families of models are mixed ({several}): leave those of one of them out")
    return FAMILIES[next(iter(found), SENSORIUM2023.name)]
