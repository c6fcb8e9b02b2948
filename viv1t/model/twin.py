"""The whole model: core -> shifter -> readout -> modulator -> output activation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from viv1t.config import FactorizedReadoutConfig, Gaussian2dConfig, ReadoutConfig, RunConfig, VivitConfig
from viv1t.errors import ConfigError
from viv1t.model.cores.factorized import FactorizedBaseline
from viv1t.model.cores.vivit import Vivit
from viv1t.model.modulator import build_modulator
from viv1t.model.readout import FactorizedReadout, Gaussian2dReadout, RandomReadout
from viv1t.model.shifter import Shifter


@dataclass(frozen=True)
class Neurons:
    """What a model must know about a mouse.

    Attributes:
        count: N.
        coordinates: (N, 3) cortical positions in micrometres; None where a checkpoint brings them.
        mean_response: (N,) start of the readout's bias; None for zeros.
        unit_ids: (N,) int64, the recording's own neuron numbers; None where they are not known.
    """

    count: int
    coordinates: Tensor | None = None
    mean_response: Tensor | None = None
    unit_ids: np.ndarray | None = None


def module_key(mouse_id: str) -> str:
    """A mouse id as a module name, which cannot hold a point."""
    return mouse_id.replace(".", "%2E")


class MouseModules(NamedTuple):
    """What a model has for one mouse alone."""

    shifter: nn.Module | None
    readout: nn.Module
    modulator: nn.Module | None


def read_out(
    modules: MouseModules, maps: Tensor, behavior: Tensor, pupil_center: Tensor, noise: Tensor | None = None
) -> Tensor:
    """From the core's maps to responses (B, N, t) of one mouse before the output activation."""
    state = torch.cat((behavior, pupil_center), dim=1)[..., -maps.shape[2] :]
    shift = None if modules.shifter is None else modules.shifter(state)
    response: Tensor = modules.readout(maps, state, shift, noise)
    return response if modules.modulator is None else modules.modulator(response, state)


def elu1(x: Tensor) -> Tensor:
    """ELU(x) + 1, positive."""
    return F.elu(x) + 1


_OUTPUTS: dict[str, Callable[[Tensor], Tensor]] = {"elu": elu1, "exp": torch.exp, "softplus": F.softplus}


class ViV1T(nn.Module):
    """Predicts the responses of every neuron of a mouse to a movie.

    Args:
        config: the run's configuration; only its model parts are used.
        mice: the mice, in order.
        frame_size: (H, W) of the video in pixels.

    Attributes:
        neurons: N of every mouse.
        unit_ids: (N,) neuron numbers of every mouse, in the order of the responses; None where they are not known.
    """

    def __init__(self, config: RunConfig, mice: Mapping[str, Neurons], frame_size: tuple[int, int]) -> None:
        super().__init__()
        self.config, self.frame_size = config, (frame_size[0], frame_size[1])
        self.frozen = False
        self.neurons = {mouse: neurons.count for mouse, neurons in mice.items()}
        self.unit_ids = {mouse: neurons.unit_ids for mouse, neurons in mice.items()}
        keys = [module_key(m) for m in mice]
        self.core: Vivit | FactorizedBaseline
        if isinstance(config.core, VivitConfig):
            self.core = Vivit(config.core, frame_size, keys)
        else:
            self.core = FactorizedBaseline(config.core, frame_size)
        shape = self.core.output_shape
        self.shifters = nn.ModuleDict()
        self.readouts = nn.ModuleDict()
        self.modulators = nn.ModuleDict()
        for key, neurons in zip(keys, mice.values(), strict=True):
            if config.shifter.mode != "none":
                self.shifters[key] = Shifter(config.shifter)
            self.readouts[key] = _build_readout(config.readout, shape, neurons)
            modulator = build_modulator(config.modulator, neurons.count)
            if modulator is not None:
                self.modulators[key] = modulator
        self.output = _OUTPUTS[config.output]

    def freeze_core(self) -> None:
        """Leaves the core as it is from now on: without gradients, always in evaluation mode."""
        self.frozen = True
        self.core.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> ViV1T:
        """As of every module; a frozen core stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.core.eval()
        return self

    @property
    def mouse_ids(self) -> list[str]:
        """The mice this model predicts."""
        return list(self.neurons)

    def modules_of(self, mouse_id: str) -> MouseModules:
        """The modules of one mouse."""
        key = module_key(mouse_id)
        shifter, modulator = (d[key] if key in d else None for d in (self.shifters, self.modulators))  # noqa: SIM401
        return MouseModules(shifter, self.readouts[key], modulator)

    def check_input(self, video: Tensor, mouse_id: str) -> None:
        """Raises a ConfigError for a mouse or frame size that the model does not have."""
        if mouse_id not in self.neurons:
            raise ConfigError(f"mouse {mouse_id!r} is not in this model; it has {', '.join(self.neurons)}")
        if video.shape[-2:] != self.frame_size:
            expected, found = (f"{h} x {w}" for h, w in (self.frame_size, video.shape[-2:]))
            raise ConfigError(f"the model takes frames of {expected} pixels, not of {found} (mouse {mouse_id})")

    def core_output(self, video: Tensor, mouse_id: str, behavior: Tensor, pupil_center: Tensor) -> Tensor:
        """The core's maps (B, D, t, h, w), float32 whatever the core's precision; arguments as in `forward`."""
        self.check_input(video, mouse_id)
        return self.run_core(video, behavior, pupil_center, module_key(mouse_id))

    def run_core(self, video: Tensor, behavior: Tensor, pupil_center: Tensor, key: str) -> Tensor:
        """As `core_output`, unchecked; `key` is the mouse's `module_key`."""
        bf16 = self.config.train.precision == "bf16"
        with torch.autocast(video.device.type, torch.bfloat16, enabled=bf16):
            maps: Tensor = self.core(video, behavior, pupil_center, key)
        return maps.to(behavior.dtype)

    @property
    def features_dtype(self) -> torch.dtype:
        """Of everything after the core."""
        return next(self.readouts.parameters()).dtype

    def read_out(
        self, maps: Tensor, mouse_id: str, behavior: Tensor, pupil_center: Tensor, noise: Tensor | None = None
    ) -> Tensor:
        """From the core's maps to responses (B, N, t) before the output activation."""
        return read_out(self.modules_of(mouse_id), maps, behavior, pupil_center, noise)

    def forward(
        self,
        video: Tensor,
        mouse_id: str,
        behavior: Tensor,
        pupil_center: Tensor,
        *,
        activate: bool = True,
        noise: Tensor | None = None,
    ) -> Tensor:
        """Predicted responses.

        Args:
            video: (B, 1, T, H, W) transformed movie, T at most 300.
            mouse_id: which mouse's readout.
            behavior: (B, 2, T) transformed pupil dilation and running speed.
            pupil_center: (B, 2, T) transformed gaze.
            activate: apply the output activation.
            noise: (B, t, N, 2) readout noise, instead of drawing it in training.

        Returns:
            (B, N, t) responses of the last t frames.

        Raises:
            ConfigError: a mouse, frame size or number of frames that the model does not have.
        """
        maps = self.core_output(video, mouse_id, behavior, pupil_center)
        response = self.read_out(maps, mouse_id, behavior, pupil_center, noise)
        return self.output(response) if activate else response


def _build_readout(config: ReadoutConfig, shape: tuple[int, int, int], neurons: Neurons) -> nn.Module:
    if isinstance(config, Gaussian2dConfig):
        return Gaussian2dReadout(config, shape, neurons.count, neurons.coordinates, neurons.mean_response)
    if isinstance(config, FactorizedReadoutConfig):
        return FactorizedReadout(config, shape, neurons.count)
    return RandomReadout(neurons.count)


def build_model(config: RunConfig, mice: Mapping[str, Neurons], frame_size: tuple[int, int]) -> ViV1T:
    """A freshly initialised model on the CPU; draws from PyTorch's global generator."""
    model = ViV1T(config, mice, frame_size)
    model.core.set_recompute(config.train.grad_checkpointing)
    return model
