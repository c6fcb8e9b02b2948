"""A causal twin that follows a movie: past frames' keys and values are kept, a new frame costs one frame's work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from viv1t.data.transform import Transform
from viv1t.errors import ConfigError
from viv1t.kernels.attention.rotary import rotate
from viv1t.model.cores.vivit import Vivit
from viv1t.model.layers.blocks import ParallelBlock, split_heads
from viv1t.model.layers.patches import embed_patches
from viv1t.model.layers.transformer import Transformer
from viv1t.model.twin import ViV1T
from viv1t.runs.folder import RunFolder
from viv1t.types import MAX_FRAMES, UNSCORED_FRAMES

AFTER = ("overlap", "restart", "stop")
Values = np.ndarray | Tensor | Sequence[float]


def check_streamable(model: ViV1T) -> Vivit:
    """The model's core, if it can follow a movie; raises a ConfigError that says why not."""
    core = model.core
    if not isinstance(core, Vivit):
        raise ConfigError("a model with a convolutional core keeps no past: predict its movies in windows")
    if not core.causal or core.encoded:
        raise ConfigError(
            "the model is not causal (it was trained without --core_use_causal_attention): every response depends on "
            "frames to come, so that it cannot follow a movie; predict whole movies"
        )
    if core.tokenizer.stride[0] != 1:
        raise ConfigError("the model does not predict every frame (--core_temporal_patch_stride is above 1)")
    return core


class _Past:
    """What a core keeps of the frames so far: its inputs, and the keys and values of each temporal block.

    Args:
        core: a causal one.
        device, dtype: of its weights.
    """

    def __init__(self, core: Vivit, device: torch.device, dtype: torch.dtype) -> None:
        self.core, self.frame = core, 0
        height, width = core.tokenizer.frame_size
        self.lead = core.tokenizer.size[0] - 1  # frames of a patch before its last one
        self.skipped = self.lead - core.tokenizer.padding.front  # frames without a response
        self._video = torch.zeros(1, 1, self.lead + MAX_FRAMES, height, width, device=device, dtype=dtype)
        self._state = torch.zeros(1, 4, self.lead + MAX_FRAMES, device=device, dtype=dtype)
        patches = core.tokenizer.grid[0] * core.tokenizer.grid[1]
        self._keys: list[Tensor] = []
        for block in core.temporal.blocks:
            assert isinstance(block, ParallelBlock)
            size = (2, patches, block.heads, core.tokenizer.frames, block.widths[0] // block.heads)
            self._keys.append(torch.zeros(size, device=device, dtype=dtype))

    def copy(self) -> _Past:
        """The same past, to go on from differently."""
        other = copy(self)
        other._video, other._state = self._video.clone(), self._state.clone()
        other._keys = [cache.clone() for cache in self._keys]
        return other

    def step(self, frame: Tensor, state: Tensor) -> Tensor | None:
        """Takes a frame (H, W) and the state (4,), gives the core's maps (1, D, 1, h, w); None before its reach."""
        core, tokenizer = self.core, self.core.tokenizer
        place = self.lead + self.frame
        self._video[0, 0, place], self._state[0, :, place] = frame, state
        self.frame += 1
        token = self.frame - 1 - self.skipped
        if token < 0:
            return None
        window = slice(place - self.lead, place + 1)
        weight, bias = tokenizer.projection.weight.flatten(1), tokenizer.projection.bias
        assert bias is not None
        x = embed_patches(
            self._video[:, :, window],
            self._state[:, : core.channels, window] if core.channels else None,
            tokenizer.patch_norm if tokenizer.normalized else None,
            weight,
            bias,
            tokenizer.size,
            tokenizer.stride,
            tokenizer.padding._replace(front=0),
        )
        x = tokenizer.add_positions(tokenizer.norm(x.flatten(2, 3)), token)
        x = core.spatial(x, None, "")[:, 0]  # (1, P, D)
        x = self._attend(core.temporal, x.transpose(0, 1), token)
        maps = x.transpose(0, 1)[:, None].unflatten(2, core.grid).permute(0, 4, 1, 2, 3)
        return core.activation(maps)

    def _attend(self, transformer: Transformer, x: Tensor, token: int) -> Tensor:
        """The temporal blocks for one new token of each patch, x (P, 1, D)."""
        rotary = None if transformer.rotary is None else transformer.rotary(1, first=token)
        for block, cache in zip(transformer.blocks, self._keys, strict=True):
            assert isinstance(block, ParallelBlock)
            q, k, v, hidden = block.fused_linear(block.norm(x)).split(block.widths, dim=-1)
            q, k = (rotate(norm(y), rotary, block.heads) for norm, y in ((block.norm_q, q), (block.norm_k, k)))
            q, k, v = (split_heads(y, block.heads) for y in (q, k, v))
            cache[0, :, :, token], cache[1, :, :, token] = k[:, :, 0], v[:, :, 0]
            keys, values = cache[:, :, :, : token + 1]
            a = F.scaled_dot_product_attention(q, keys, values, scale=block.scale)
            x = block.join(x, a.transpose(1, 2).flatten(2), hidden)
        return x


class _Lane:
    """Mice whose inputs have been the same so far, and their common past; `coming` takes over when positions end."""

    def __init__(self, mice: list[str], past: _Past, coming: _Past | None = None) -> None:
        self.mice, self.past, self.coming = mice, past, coming

    def copy(self, mice: list[str]) -> _Lane:
        """The same past for other mice."""
        return _Lane(mice, self.past.copy(), None if self.coming is None else self.coming.copy())


class Stream:
    """A causal model that follows a movie, one frame after the other.

    The responses are those that the model gives for the whole movie at once. Its positions end at 300 frames. From then
    on they are those of windows of 300 frames that overlap by 50 (`overlap`): while a window ends, the next one is
    under way, so that no response is without a past of 50 frames; these 50 frames cost twice the work. `restart`
    begins anew without a past, `stop` raises an error.

    Args:
        run_or_model: a run folder, or a model in evaluation mode.
        mouse_ids: whose responses are given; default every mouse of the model. Mice share the core's work as long as
            they are given the same inputs.
        device: of a run's model.
        after: what happens after 300 frames: `overlap`, `restart` or `stop`.
        transforms: of each mouse, where values and responses are as recorded; without, they are as the model takes and
            gives them.

    Raises:
        CheckpointError: no run there, or its checkpoint is damaged.
        ConfigError: the model is not causal or does not predict every frame, or a mouse is not in it.
    """

    def __init__(
        self,
        run_or_model: str | Path | ViV1T,
        mouse_ids: Sequence[str] | None = None,
        device: str | torch.device = "cpu",
        *,
        after: str = "overlap",
        transforms: Mapping[str, Transform] | None = None,
    ) -> None:
        if isinstance(run_or_model, ViV1T):
            self.model = run_or_model.eval()
        else:
            self.model = RunFolder(run_or_model).load_model(device)
        self._core = check_streamable(self.model)
        if after not in AFTER:
            raise ConfigError(f"after must be one of {', '.join(AFTER)}, not {after!r}")
        self.after, self._transforms = after, transforms or {}
        self.mouse_ids = list(mouse_ids or self.model.mouse_ids)
        if unknown := [m for m in self.mouse_ids if m not in self.model.neurons]:
            raise ConfigError(
                f"mouse {', '.join(unknown)} is not in this model; it has {', '.join(self.model.neurons)}"
            )
        parameter = next(self.model.core.parameters())
        self._device, self._dtype = parameter.device, parameter.dtype
        self.reset()

    @property
    def frame(self) -> int:
        """How many frames have been seen."""
        return self._frame

    @property
    def lanes(self) -> int:
        """How many times the core runs for a frame, outside of overlaps: mice of the same inputs share one."""
        return len(self._lanes)

    def reset(self) -> None:
        """Forgets everything: the next frame is a movie's first."""
        self._frame = 0
        self._lanes = [_Lane(list(self.mouse_ids), self._new_past())]

    def rewind(self, frame: int) -> None:
        """Goes back to when `frame` frames had been seen: those that come next replace what came then.

        Raises:
            ConfigError: that lies ahead, or before the present window of 300 frames.
        """
        seen = {lane.past.frame for lane in self._lanes}
        back = self._frame - frame
        if back < 0 or any(back > n for n in seen):
            first = self._frame - min(seen)
            raise ConfigError(f"frame must be from {first} to {self._frame}, the frames that are kept, not {frame}")
        for lane in self._lanes:
            lane.past.frame -= back
            if lane.coming is not None:
                lane.coming.frame -= back
                if lane.coming.frame <= 0:
                    lane.coming = None
        self._frame = frame

    @torch.no_grad()
    def step(
        self,
        frame: np.ndarray | Tensor,
        behavior: Values | Mapping[str, Values],
        pupil_center: Values | Mapping[str, Values],
    ) -> dict[str, np.ndarray]:
        """The responses to a frame.

        Args:
            frame: (H, W).
            behavior: (2,) pupil dilation and running speed, of every mouse or by mouse.
            pupil_center: (2,) gaze, of every mouse or by mouse.

        Returns:
            (N,) float32 of each mouse; empty before a model without padding has seen enough frames.

        Raises:
            ConfigError: values of another shape, or that are not finite, or a 301st frame with `after` `stop`.
        """
        inputs = {mouse: self._inputs(mouse, frame, behavior, pupil_center) for mouse in self.mouse_ids}
        if self.after == "stop" and self._frame == MAX_FRAMES:
            raise ConfigError(
                f"the model has positions for {MAX_FRAMES} frames: call reset(), or choose another `after`"
            )
        lanes = []
        for lane in self._lanes:
            groups: dict[bytes, list[str]] = {}
            for mouse in lane.mice:
                groups.setdefault(b"".join(x.cpu().numpy().tobytes() for x in inputs[mouse]), []).append(mouse)
            first, *others = groups.values()
            lanes += [lane.copy(mice) for mice in others]
            lane.mice = first
            lanes.append(lane)
        self._lanes = lanes
        self._frame += 1
        found = {}
        for lane in self._lanes:
            video, state = inputs[lane.mice[0]]
            maps = self._advance(lane, video, state)
            if maps is not None:
                for mouse in lane.mice:
                    found[mouse] = self._read_out(maps, mouse, state)
        return {mouse: found[mouse] for mouse in self.mouse_ids if mouse in found}

    def push(
        self, video: np.ndarray | Tensor, behavior: np.ndarray | Tensor, pupil_center: np.ndarray | Tensor
    ) -> dict[str, np.ndarray]:
        """The responses to several frames: video (T, H, W), behavior and pupil_center (2, T) -> (N, t) by mouse."""
        steps = [self.step(video[i], behavior[:, i], pupil_center[:, i]) for i in range(len(video))]
        given = [step for step in steps if step]
        return {mouse: np.stack([step[mouse] for step in given], axis=1) for mouse in (given[0] if given else ())}

    def _new_past(self) -> _Past:
        return _Past(self._core, self._device, self._dtype)

    def _advance(self, lane: _Lane, video: Tensor, state: Tensor) -> Tensor | None:
        if lane.past.frame == MAX_FRAMES:
            lane.past, lane.coming = lane.coming or self._new_past(), None
        if lane.coming is None and self.after == "overlap" and lane.past.frame >= MAX_FRAMES - UNSCORED_FRAMES:
            lane.coming = self._new_past()
        if lane.coming is not None:
            lane.coming.step(video, state)
        return lane.past.step(video, state)

    def _read_out(self, maps: Tensor, mouse: str, state: Tensor) -> np.ndarray:
        behavior, pupil_center = state[None, :2, None], state[None, 2:, None]
        response = self.model.activate(self.model.read_out(maps, mouse, behavior, pupil_center), mouse)
        values: np.ndarray = response[0, :, 0].float().cpu().numpy()
        if mouse in self._transforms:
            affine = self._transforms[mouse].affine["response"]
            offset, scale = (part[:, 0] for part in affine.part(min(self._frame, MAX_FRAMES) - 1, 1))
            values = (values / np.where(scale, scale, np.inf) + offset).astype(np.float32)
        return values

    def _inputs(self, mouse: str, frame: Any, behavior: Any, pupil_center: Any) -> tuple[Tensor, Tensor]:
        """The frame (H, W) and the state (4,) as the model takes them."""
        values = {"frame": frame}
        for name, given in (("behavior", behavior), ("pupil_center", pupil_center)):
            if isinstance(given, Mapping) and mouse not in given:
                raise ConfigError(f"{name}: nothing is given for mouse {mouse}")
            values[name] = given[mouse] if isinstance(given, Mapping) else given
        arrays = {}
        for name, value in values.items():
            array = torch.as_tensor(value, dtype=torch.float32)
            expected = self.model.frame_size if name == "frame" else (2,)
            if tuple(array.shape) != tuple(expected):
                raise ConfigError(f"{name}: {tuple(expected)} values were expected, not {tuple(array.shape)}")
            if not bool(array.isfinite().all()):
                raise ConfigError(f"{name}: values that are not finite, at frame {self._frame}")
            arrays[name] = array
        if mouse in self._transforms:
            arrays = self._transformed(self._transforms[mouse], arrays)
        state = torch.cat((arrays["behavior"], arrays["pupil_center"]))
        return arrays["frame"].to(self._device, self._dtype), state.to(self._device, self._dtype)

    def _transformed(self, transform: Transform, arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
        first = min(self._frame, MAX_FRAMES - 1)
        result = {}
        for name, variable in (("frame", "video"), ("behavior", "behavior"), ("pupil_center", "pupil_center")):
            offset, scale = (torch.from_numpy(part[..., 0]) for part in transform.affine[variable].part(first, 1))
            result[name] = (arrays[name].cpu() - offset) * scale
        if transform.center is not None:
            result["frame"] = transform.center(result["frame"][None])[0]
        return result
