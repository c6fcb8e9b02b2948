"""Which options a family of models has, and which family options belong to."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from viv1t.errors import ConfigError

UNSAID = "2023"  # the family of options that could be of any


@dataclass(frozen=True)
class OptionSet:
    """The options of one family of models, by their published names.

    Attributes:
        selectors: options that pick a component, with what they pick by value: a class of options, or a name.
        selector_defaults: of those; others are required.
        owners: every other option with the classes that take it.
        by_core: by core, defaults of the optimizer's options that are other ones with it.
        explained: what is said of a selector in place of its values.
    """

    selectors: Mapping[str, Mapping[Any, Any]]
    selector_defaults: Mapping[str, Any]
    owners: Mapping[str, list[type]]
    by_core: Mapping[str, Mapping[str, Any]]
    explained: Mapping[str, str] = field(default_factory=dict)

    @property
    def switches(self) -> frozenset[str]:
        """Options that take 0 or 1 in place of being given or not."""
        return frozenset(flag for flag in self.owners if any(f.metadata["integer"] for f in self.fields(flag)))

    def __contains__(self, flag: object) -> bool:
        return flag in self.owners or flag in self.selectors

    def has_component(self, selector: str, value: object) -> bool:
        """Whether a component is chosen by the word `value`."""
        return isinstance(value, str) and not value.isdigit() and value in self.selectors.get(selector, ())

    def fields(self, flag: str) -> list[dataclasses.Field[Any]]:
        """The option's field in each class that takes it."""
        return [
            next(f for f in dataclasses.fields(owner) if f.metadata["flag"] == flag)  # type: ignore[arg-type]
            for owner in self.owners[flag]
        ]


def owners_of(classes: Collection[type]) -> dict[str, list[type]]:
    """Every option of some classes of options, with those that take it."""
    found: dict[str, list[type]] = {}
    for component in classes:
        for f in dataclasses.fields(component):  # type: ignore[arg-type]
            found.setdefault(f.metadata["flag"], []).append(component)
    return found


def signs(options: Mapping[str, Any], name: str, sets: Mapping[str, OptionSet]) -> list[str]:
    """The options, as `--flag` or `--flag value`, that the family `name` alone has."""
    others = [other for key, other in sets.items() if key != name]
    found = [f"--{flag}" for flag in options if flag in sets[name] and not any(flag in o for o in others)]
    for selector in ("core", "readout"):
        value = options.get(selector)
        if sets[name].has_component(selector, value) and not any(o.has_component(selector, value) for o in others):
            found.append(f"--{selector} {value}")
    return sorted(found)


def choose_family(options: Mapping[str, Any], sets: Mapping[str, OptionSet], wanted: str | None = None) -> str:
    """The name of the family that options belong to: the one that alone has some; of 2023 where any could be meant.

    Args:
        options: by published names.
        sets: the options of every family.
        wanted: the family that was asked for.

    Raises:
        ConfigError: options of several families are mixed, which it names, or `wanted` is not a family.
    """
    if wanted is not None and wanted not in sets:
        raise ConfigError(f"--family must be one of {', '.join(sets)}, not {wanted}")
    found = {name: words for name in sets if (words := signs(options, name, sets))}
    if wanted is not None:
        found.setdefault(wanted, ["--family " + wanted])
    if len(found) > 1:
        several = "; ".join(f"{name} has {', '.join(flags[:5])}" for name, flags in found.items())
        raise ConfigError(f"options of two families of models are mixed ({several}): leave those of one of them out")
    return next(iter(found), UNSAID)
