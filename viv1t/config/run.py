"""What a run is made of, in any family of models, and how that comes from options by their published names."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any, ClassVar

from viv1t.config.data import AnyDataConfig
from viv1t.config.fields import Checked, Options, decode, encode, number, shown
from viv1t.config.training import AnyOptimizerConfig, AnyTrainConfig
from viv1t.errors import ConfigError
from viv1t.types import MAX_FRAMES


class AnyRunConfig:
    """What the configurations of all families have: data, core, optimizer, train, and the output's activation.

    A family's own is a frozen dataclass of its components, with `from_options` for what its options say.
    """

    OUTPUTS: ClassVar[Mapping[int, str]]  # activations by their published codes
    data: AnyDataConfig
    core: Any
    readout: Any
    optimizer: AnyOptimizerConfig
    train: AnyTrainConfig
    output: str

    def __post_init__(self) -> None:
        if self.output not in self.OUTPUTS.values():
            words = ", ".join(f"{k} ({v})" for k, v in self.OUTPUTS.items())
            raise ConfigError(f"--output_mode must be one of {words}, not {shown(self.output)}")
        crop = self.data.crop_frame
        for what, frames in (("a 300-frame trial", MAX_FRAMES), (f"--crop_frame {crop}", crop)):
            if frames > 0 and self.core.output_frames(frames) < 1:
                raise ConfigError(f"the core's temporal extent is longer than {what}: no frame would be predicted")

    @property
    def pretrained_core(self) -> str | None:
        """The run folder whose core it starts from."""
        raise NotImplementedError

    @property
    def frozen_core(self) -> bool:
        """Whether the core is left as it is, and its maps of whole trials are computed once."""
        return False

    @property
    def core_lr(self) -> float:
        """Of the core's parameters."""
        return self.optimizer.lr if self.optimizer.core_lr is None else self.optimizer.core_lr

    def to_options(self) -> Options:
        """The flat mapping of published option names and integer codes."""
        raise NotImplementedError

    @classmethod
    def output_of(cls, options: Mapping[str, Any], default: int) -> Any:
        """The output's activation that options ask for, by its name; what is not a code is left as it is."""
        output = number(options.get("output_mode", default))
        if isinstance(output, int) and not isinstance(output, bool):
            return cls.OUTPUTS.get(output, output)
        return output

    @property
    def output_code(self) -> int:
        """The published code of the output's activation."""
        return next(k for k, v in self.OUTPUTS.items() if v == self.output)


def components_from(
    classes: Collection[type[Checked]], options: Mapping[str, Any], defaults: Mapping[str, Any]
) -> tuple[list[Any], set[str]]:
    """Components that options by their published names describe, and the options that none of them has.

    Args:
        classes: of the components.
        options: values of a file or words of a command line.
        defaults: of options that are other ones than in general.

    Raises:
        ConfigError: names the option, what is allowed and what was given.
    """
    left, parts = set(map(str, options)), []
    for component in classes:
        values = {}
        for f in dataclasses.fields(component):  # type: ignore[arg-type]
            flag = f.metadata["flag"]
            left.discard(flag)
            if flag in options:
                values[f.name] = decode(f, options[flag])
            elif flag in defaults:
                values[f.name] = defaults[flag]
            elif f.default is dataclasses.MISSING:
                raise ConfigError(f"--{flag} is required: {f.metadata['help']}")
        parts.append(component(**values))
    return parts, left


def options_from(components: Collection[Any]) -> Options:
    """What `components_from` takes, from components: every option in its published form."""
    return {f.metadata["flag"]: encode(f, getattr(c, f.name)) for c in components for f in dataclasses.fields(c)}
