"""What a run of 2023 is made of, from options by their published names and back.

`RunConfig.from_options` takes their flat mapping (a command line, a YAML file, a published `args.yaml`),
`RunConfig.to_options` gives it back.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from viv1t.config.data import DataConfig
from viv1t.config.fields import Checked, Options, number, shown
from viv1t.config.option_set import OptionSet, owners_of
from viv1t.config.parts import NoCriticConfig, ShifterConfig
from viv1t.config.run import AnyRunConfig, components_from, options_from
from viv1t.errors import ConfigError
from viv1t.families.sensorium2023.options import (
    CORES,
    CRITICS,
    MODULATORS,
    OPTIMIZER_DEFAULTS,
    READOUTS,
    CoreConfig,
    CriticConfig,
    ModulatorConfig,
    OptimizerConfig,
    ReadoutConfig,
    TrainConfig,
    VivitConfig,
)

OUTPUTS = {0: "elu", 1: "exp", 2: "softplus"}
# The options that pick a component, and what they pick.
SELECTORS: dict[str, Mapping[Any, Any]] = {
    "core": CORES, "readout": READOUTS, "modulator_mode": MODULATORS, "critic_mode": CRITICS,
}  # fmt: skip
SELECTOR_DEFAULTS: Options = {"modulator_mode": 0, "critic_mode": 0, "output_mode": 0}
# What published `args.yaml` files hold besides options: derived facts, not read back.
DERIVED = ("input_shapes", "output_shapes", "max_frame", "trainable_params", "ds_sizes", "git_hash", "hostname")


def component_classes(options: Mapping[str, Any]) -> list[type[Checked]]:
    """The component classes that a flat mapping selects, in the order of `RunConfig`'s fields."""
    picked = []
    for selector, table in SELECTORS.items():
        value = options.get(selector, SELECTOR_DEFAULTS.get(selector))
        if value is None:
            raise ConfigError(f"--{selector} is required: one of {', '.join(map(str, table))}")
        value = number(value) if 0 in table else value
        if value not in list(table) or isinstance(value, bool):  # a list compares also what cannot be hashed
            raise ConfigError(f"--{selector} must be one of {', '.join(map(str, table))}, not {shown(value)}")
        picked.append(table[value])
    core, readout, modulator, critic = picked
    return [DataConfig, core, readout, ShifterConfig, modulator, critic, OptimizerConfig, TrainConfig]


@dataclass(frozen=True)
class RunConfig(AnyRunConfig):
    """Everything that defines a run of the family of 2023."""

    OUTPUTS: ClassVar[Mapping[int, str]] = OUTPUTS

    data: DataConfig
    core: CoreConfig
    readout: ReadoutConfig
    shifter: ShifterConfig
    modulator: ModulatorConfig
    critic: NoCriticConfig | CriticConfig
    optimizer: OptimizerConfig
    train: TrainConfig
    output: str = "elu"

    @property
    def pretrained_core(self) -> str | None:
        """The run folder whose core it starts from."""
        return self.core.pretrain

    @property
    def frozen_core(self) -> bool:
        """Whether the core is left as it is."""
        return self.core.freeze

    @classmethod
    def from_options(cls, options: Mapping[str, Any], *, strict: bool = True) -> RunConfig:
        """Builds a configuration from published option names.

        Args:
            options: flat mapping, of a file's values or a command line's words: numbers, switches and codes may be
                text, codes also their names, and `none` is no value where an option may have none.
            strict: refuse options that are unknown or belong to a component that was not chosen; otherwise ignore them.

        Raises:
            ConfigError: names the option, what is allowed and what was given.
        """
        classes = component_classes(options)
        parts, left = components_from(classes, options, OPTIMIZER_DEFAULTS[options["core"]])
        left -= {*SELECTORS, "output_mode", *DERIVED}
        if strict and left:
            raise ConfigError(_surplus(min(left), options))
        return cls(*parts, output=cls.output_of(options, SELECTOR_DEFAULTS["output_mode"]))  # type: ignore[misc]

    @classmethod
    def from_published(cls, options: Mapping[str, Any]) -> RunConfig:
        """A configuration from the `args.yaml` of a published run, which may predate some options.

        Raises:
            ConfigError: as `from_options`; an option that is not known is never left out in silence.
        """
        options = dict(options)
        known = {*all_components(), *SELECTORS, "output_mode", *DERIVED}
        if unknown := sorted(str(flag) for flag in options if flag not in known):
            raise ConfigError(_surplus(unknown[0], options))
        if options.get("core") == "vivit":
            options.setdefault("core_parallel_attention", False)
            options.setdefault("core_norm_qk", False)
            options.setdefault("core_ff_activation", "gelu")
            options.setdefault("core_ff_dropout", options.get("core_mha_dropout", VivitConfig.mha_dropout))
        return cls.from_options(options, strict=False)

    def to_options(self) -> Options:
        """The flat mapping of published option names and integer codes."""
        modulator = next(k for k, v in MODULATORS.items() if isinstance(self.modulator, v))
        chosen: Options = {
            "core": self.core.name, "readout": self.readout.name, "modulator_mode": modulator,
            "critic_mode": int(isinstance(self.critic, CriticConfig)), "output_mode": self.output_code,
        }  # fmt: skip
        return chosen | options_from((
            self.data, self.core, self.readout, self.shifter, self.modulator, self.critic, self.optimizer, self.train,
        ))  # fmt: skip


def all_components() -> dict[str, list[type[Checked]]]:
    """Every option's flag with the component classes that take it."""
    optional = [c for table in SELECTORS.values() for c in table.values()]
    return owners_of([DataConfig, *optional, ShifterConfig, OptimizerConfig, TrainConfig])


def option_set() -> OptionSet:
    """The options of the family of 2023."""
    return OptionSet(
        selectors={**SELECTORS, "output_mode": OUTPUTS},
        selector_defaults=SELECTOR_DEFAULTS,
        owners=all_components(),
        by_core=OPTIMIZER_DEFAULTS,
        explained={"output_mode": "activation: 0 elu+1, 1 exp, 2 softplus"},
    )


def _surplus(flag: str, options: Mapping[str, Any]) -> str:
    owners = all_components().get(flag)
    if owners is None:
        close = difflib.get_close_matches(flag, [*all_components(), *SELECTORS, "output_mode"], n=1)
        return f"unknown option --{flag}" + (f"; did you mean --{close[0]}?" if close else "")
    for selector, table in SELECTORS.items():
        keys = [k for k, v in table.items() if v in owners]
        if keys:
            chosen = options.get(selector, SELECTOR_DEFAULTS.get(selector))
            return f"--{flag} belongs to --{selector} {' or '.join(map(str, keys))}, but --{selector} is {chosen}"
    return f"--{flag} does not apply here"
