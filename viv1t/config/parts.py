"""Parts of a model that every family of models has, and what all cores have in common."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, ClassVar

from viv1t.config.fields import Checked, encode, option
from viv1t.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class AnyCnnConfig(Checked):
    """A core of factorised 3-D convolutions, in every family of models."""

    spatial_input_kernel: int = option("core_spatial_input_kernel", 11, help="first spatial kernel, pixels", low=1)
    temporal_input_kernel: int = option("core_temporal_input_kernel", 11, help="first temporal kernel, frames", low=1)
    spatial_hidden_kernel: int = option("core_spatial_hidden_kernel", 5, help="further spatial kernels", low=1)
    temporal_hidden_kernel: int = option("core_temporal_hidden_kernel", 5, help="further temporal kernels", low=1)
    num_layers: int = option("core_num_layers", 4, help="layers", low=1, high=40)
    hidden_dim: int = option("core_hidden_dim", 16, help="channels of the first layer, doubled at each", low=1)
    dropout: float = option("core_dropout", 0.0, help="dropout of whole channels", low=0, high=1)

    def validate(self) -> None:
        for flag, kernel in (("input", self.spatial_input_kernel), ("hidden", self.spatial_hidden_kernel)):
            if kernel % 2 == 0:
                raise ConfigError(f"--core_spatial_{flag}_kernel must be odd (same padding), not {kernel}")

    def output_frames(self, frames: int) -> int:
        """Frames predicted from `frames` input frames."""
        return frames - (self.temporal_input_kernel - 1) - (self.num_layers - 1) * (self.temporal_hidden_kernel - 1)


@dataclass(frozen=True, kw_only=True)
class ShifterConfig(Checked):
    """How gaze moves the readout positions."""

    mode: str = option(
        "shifter_mode", "pupil_center", help="0 none, 1 from pupil_center, 2 from behavior and pupil_center",
        codes={0: "none", 1: "pupil_center", 2: "state"},
    )  # fmt: skip
    layers: int = option("shifter_layers", 3, help="linear layers", low=1, high=1000)
    size: int = option("shifter_size", 5, help="hidden units", low=1)


@dataclass(frozen=True, kw_only=True)
class NoModulatorConfig(Checked):
    """No modulator."""

    name: ClassVar[str] = "none"


@dataclass(frozen=True, kw_only=True)
class NoCriticConfig(Checked):
    """No critic."""

    name: ClassVar[str] = "none"


def check_same_core(core: Any, other: Any, folder: str, option: str, ignored: Collection[str]) -> None:
    """Raises a ConfigError where the core of the run `other`, in `folder`, would compute something else as `core`.

    Args:
        core, other: the options of both cores.
        folder: of the other run, as `option` named it.
        option: named in errors.
        ignored: fields that may differ.
    """
    if core.name != other.name:
        raise ConfigError(f"{option} {folder} has the core {other.name}: give --core {other.name}")
    if type(core) is not type(other):
        raise ConfigError(f"{option} {folder} has a core {other.name} of another family of models")
    wanted = []
    for f in dataclasses.fields(core):
        if f.name not in ignored and getattr(core, f.name) != getattr(other, f.name):
            wanted.append(f"--{f.metadata['flag']} {encode(f, getattr(other, f.name))}")
    if wanted:
        raise ConfigError(f"{option} {folder} has a core of other options: give {', '.join(wanted)}")
