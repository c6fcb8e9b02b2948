"""The whole model: core -> shifter -> readout -> modulator -> output activation."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from viv1t.errors import ConfigError
from viv1t.inputs import as_array, input_shapes
from viv1t.kernels.common.precision import multiplies_bf16
from viv1t.model.cores.factorized import FactorizedBaseline
from viv1t.model.cores.vivit import Vivit
from viv1t.types import SENSORIUM_SESSIONS

log = logging.getLogger("viv1t")

_GREY = 30  # no movie without negative values reaches this when it is transformed


@functools.cache
def _say_float32(processor: str) -> None:
    log.warning(
        "bf16: this %s has no arithmetic for it, so the core multiplies in float32, which is faster here and rounds "
        "less", processor,
    )  # fmt: skip


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # looked up where a graph is made
def _half(device: torch.device, say: bool) -> bool:
    there = multiplies_bf16(device)
    if say and not there:
        _say_float32("GPU" if device.type == "cuda" else "processor")
    return there


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
    output: nn.Module


def read_out(
    modules: MouseModules, maps: Tensor, behavior: Tensor, pupil_center: Tensor, noise: Tensor | None = None
) -> Tensor:
    """From the core's maps to responses (B, N, t) of one mouse before the output activation."""
    state = torch.cat((behavior, pupil_center), dim=1)[..., -maps.shape[2] :]
    shift = None if modules.shifter is None else modules.shifter(state)
    response: Tensor = modules.readout(maps, state, shift, noise)
    return response if modules.modulator is None else modules.modulator(response, state)


class ViV1T(nn.Module):
    """Predicts the responses of every neuron of a mouse to a movie.

    Args:
        config: the options that the parts were made from; the model does not look at them.
        core: from movie and state to maps.
        mice: the modules of each mouse, in order.
        neurons: what is known of each mouse's.
        frame_size: (H, W) of the video in pixels.
        autocast: whether the core runs under bf16 autocast: `never`, `always` (on what multiplies it in hardware; else
            it stays in float32, with a word), or `capable`, on GPUs that do.

    Attributes:
        neurons: N of every mouse.
        unit_ids: (N,) neuron numbers of every mouse, in the order of the responses; None where they are not known.
        looked: whether a movie's values have been looked at, if it was transformed.
    """

    def __init__(
        self,
        config: Any,
        core: Vivit | FactorizedBaseline,
        mice: Mapping[str, MouseModules],
        neurons: Mapping[str, Neurons],
        frame_size: tuple[int, int],
        autocast: str = "never",
    ) -> None:
        super().__init__()
        self.config, self.frame_size, self.autocast = config, (frame_size[0], frame_size[1]), autocast
        self.frozen = self._warned = self.looked = False
        self.neurons = {mouse: of.count for mouse, of in neurons.items()}
        self.unit_ids = {mouse: of.unit_ids for mouse, of in neurons.items()}
        self.core = core
        self.shifters = nn.ModuleDict()
        self.readouts = nn.ModuleDict()
        self.modulators = nn.ModuleDict()
        self.outputs = nn.ModuleDict()
        for mouse, modules in mice.items():
            key = module_key(mouse)
            if modules.shifter is not None:
                self.shifters[key] = modules.shifter
            self.readouts[key] = modules.readout
            if modules.modulator is not None:
                self.modulators[key] = modules.modulator
            self.outputs[key] = modules.output

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
        return MouseModules(shifter, self.readouts[key], modulator, self.outputs[key])

    def check_input(self, video: Tensor, mouse_id: str) -> None:
        """Raises a ConfigError for a mouse or frame size that the model does not have."""
        if mouse_id not in self.neurons:
            raise ConfigError(f"mouse {mouse_id!r} is not in this model; it has {', '.join(self.neurons)}")
        if video.shape[-2:] != self.frame_size:
            expected, found = (f"{h} x {w}" for h, w in (self.frame_size, video.shape[-2:]))
            raise ConfigError(f"the model takes frames of {expected} pixels, not of {found} (mouse {mouse_id})")

    def known_mouse(self, mouse_id: str) -> str:
        """The mouse's id, also of a published session's name; raises a ConfigError for one that the model lacks."""
        letters = (letter for letter, session in SENSORIUM_SESSIONS.items() if session == mouse_id)
        chosen = mouse_id if mouse_id in self.neurons else next(letters, mouse_id)
        if chosen not in self.neurons:
            raise ConfigError(f"mouse {mouse_id!r} is not in this model; it has {', '.join(self.neurons)}")
        return chosen

    def _inputs(self, video: Any, mouse_id: str, behavior: Any, pupil_center: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Arrays in whatever form they are given, as `core_output` takes them."""
        given = {"video": video, "behavior": behavior, "pupil_center": pupil_center}
        arrays = {n: a if isinstance(a, Tensor) else torch.tensor(as_array(a, n)) for n, a in given.items()}
        movie = arrays.pop("video")
        if movie.ndim == 5 and movie.shape[1] == 1:
            self.check_input(movie, mouse_id)
        whole, seen = input_shapes(tuple(movie.shape), {n: tuple(a.shape) for n, a in arrays.items()}, self.frame_size)
        self._check_transformed(movie)
        device, dtype = self.device, self.features_dtype
        states = [a.reshape(seen[n][0]).expand(seen[n][1]).to(device, dtype).contiguous() for n, a in arrays.items()]
        return movie.reshape(whole).to(device, dtype).contiguous(), states[0], states[1]

    def _check_transformed(self, movie: Tensor) -> None:
        """Refuses whole numbers, which are grey levels, where movies are transformed; tells of floats like them."""
        if getattr(getattr(self.config, "data", None), "transform", "none") == "none":
            return
        advice = "viv1t.Predictor takes movies as recorded"
        if not movie.dtype.is_floating_point:
            raise ConfigError(
                f"video must be transformed as in training, floating point, not grey levels of {movie.dtype}: {advice}"
            )
        if self.training or self._warned or (movie.is_cuda and self.looked):
            return
        self.looked = True  # at a GPU's movies once, for it would be waited for
        if movie.amin() >= 0 and movie.amax() > _GREY:
            self._warned = True
            log.warning(
                "video has values from %g to %g, like grey levels, but the model takes transformed movies: %s",
                movie.amin(), movie.amax(), advice,
            )  # fmt: skip

    def core_output(self, video: Tensor, mouse_id: str, behavior: Tensor, pupil_center: Tensor) -> Tensor:
        """The core's maps (B, D, t, h, w), float32 whatever the core's precision; arguments as in `forward`."""
        self.check_input(video, mouse_id)
        return self.run_core(video, behavior, pupil_center, module_key(mouse_id))

    def run_core(self, video: Tensor, behavior: Tensor, pupil_center: Tensor, key: str) -> Tensor:
        """As `core_output`, unchecked; `key` is the mouse's `module_key`."""
        with torch.autocast(video.device.type, torch.bfloat16, enabled=self.core_dtype(video.device) != torch.float32):
            maps: Tensor = self.core(video, behavior, pupil_center, key)
        return maps.to(behavior.dtype)

    def core_dtype(self, device: torch.device) -> torch.dtype:
        """The type in which the core multiplies on a device, of float32 weights."""
        wanted = self.autocast == "always" or (self.autocast == "capable" and device.type == "cuda")
        half = wanted and _half(device, self.autocast == "always")
        return torch.bfloat16 if half else torch.float32

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

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

        Arrays may be tensors, NumPy arrays or lists, of any type of number and on any device: they are brought to the
        model's. A `viv1t.Predictor` takes them as recorded.

        Args:
            video: (B, 1, T, H, W), or without B or the channel's 1: transformed movie, T at most 300.
            mouse_id: which mouse's readout.
            behavior: (B, 2, T), or (2, T) for all movies: transformed pupil dilation and running speed.
            pupil_center: the same of transformed gaze.
            activate: apply the output activation.
            noise: (B, t, N, 2) readout noise, instead of drawing it in training.

        Returns:
            (B, N, t) responses of the last t frames.

        Raises:
            ConfigError: a mouse, frame size or number of frames that the model does not have, or arrays that do not fit
                each other or are not transformed; names the argument.
        """
        if not torch.compiler.is_compiling():
            mouse_id = self.known_mouse(mouse_id)
            video, behavior, pupil_center = self._inputs(video, mouse_id, behavior, pupil_center)
        maps = self.core_output(video, mouse_id, behavior, pupil_center)
        response = self.read_out(maps, mouse_id, behavior, pupil_center, noise)
        return self.activate(response, mouse_id) if activate else response

    def activate(self, response: Tensor, mouse_id: str) -> Tensor:
        """What `read_out` gave, through the mouse's output activation."""
        activated: Tensor = self.outputs[module_key(mouse_id)](response)
        return activated
