"""From options by their published names to a run's configuration, of whichever family they belong to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from viv1t.config.option_set import UNSAID, OptionSet
from viv1t.families.sensorium2023.run import RunConfig, option_set

if TYPE_CHECKING:
    from viv1t.families.known import AnyConfig


def options_of(options: Mapping[str, Any], wanted: str | None = None) -> tuple[str, OptionSet]:
    """The family that options belong to, by name, and all options that it has.

    Raises:
        ConfigError: options of two families are mixed, which it names, or `wanted` is not a family.
    """
    plain = option_set()
    chosen = all(plain.has_component(s, options[s]) for s in ("core", "readout") if s in options)
    if wanted in (None, UNSAID) and chosen and all(flag in plain for flag in options):
        return UNSAID, plain
    from viv1t.families.known import FAMILIES, family_of  # brings PyTorch, long to import

    family = family_of(options, wanted)
    return family.name, FAMILIES[family.name].options


def configuration(options: Mapping[str, Any]) -> AnyConfig:
    """A run's configuration.

    Args:
        options: by their published names; beside them `family`, 2023 or 2025, where no option tells it.

    Raises:
        ConfigError: names the option, what is allowed and what was given.
    """
    given = dict(options)
    wanted = given.pop("family", None)
    name, _ = options_of(given, None if wanted is None else str(wanted))
    if name == UNSAID:
        return RunConfig.from_options(given)
    from viv1t.families.known import FAMILIES

    config: AnyConfig = FAMILIES[name].from_options(given)
    return config
