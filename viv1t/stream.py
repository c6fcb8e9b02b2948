"""A causal twin that follows a movie: past frames' keys and values are kept, a new frame costs one frame's work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from viv1t.data.transform import Transform
from viv1t.kernels.attention.rotary import rotate
from viv1t.live import Live, check_after
from viv1t.model.cores.vivit import Vivit, following_core
from viv1t.model.layers.blocks import ParallelBlock, split_heads
from viv1t.model.layers.patches import embed_patches
from viv1t.model.layers.transformer import Transformer
from viv1t.model.twin import ViV1T
from viv1t.runs.folder import RunFolder
from viv1t.types import MAX_FRAMES


class _Past:
    """What a core keeps of the frames so far: its inputs, and the keys and values of each temporal block.

    Args:
        core: a causal one.
        device, dtype: of its weights.
    """

    def __init__(self, core: Vivit, device: torch.device, dtype: torch.dtype) -> None:
        tokenizer = core.tokenizer
        self.core, self.frame = core, 0
        self.lead = tokenizer.size[0] - 1  # frames of a patch before its last one
        self.skipped = self.lead - tokenizer.padding.front  # frames before the first that a token ends at
        self._video = torch.zeros(1, 1, self.lead + MAX_FRAMES, *tokenizer.frame_size, device=device, dtype=dtype)
        self._state = torch.zeros(1, 4, self.lead + MAX_FRAMES, device=device, dtype=dtype)
        self._keys: list[Tensor] = []
        for block in core.temporal.blocks:
            assert isinstance(block, ParallelBlock)
            patches = tokenizer.grid[0] * tokenizer.grid[1]
            size = (2, patches, block.heads, tokenizer.frames, block.widths[0] // block.heads)
            self._keys.append(torch.zeros(size, device=device, dtype=dtype))

    def copy(self) -> _Past:
        """The same past, to go on from differently."""
        other = copy(self)
        other._video, other._state = self._video.clone(), self._state.clone()
        other._keys = [cache.clone() for cache in self._keys]
        return other

    @torch.no_grad()
    def step(self, frame: np.ndarray, state: np.ndarray) -> Tensor | None:
        """Takes a frame (H, W) and the state (4,), gives the core's maps (1, D, 1, h, w); None where no token ends."""
        core, tokenizer = self.core, self.core.tokenizer
        place = self.lead + self.frame
        self._video[0, 0, place], self._state[0, :, place] = torch.from_numpy(frame), torch.from_numpy(state)
        self.frame += 1
        token, between = divmod(self.frame - 1 - self.skipped, tokenizer.stride[0])
        if token < 0 or between:
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


class Stream(Live[_Past]):
    """A causal model that follows a movie, one frame after the other; see `viv1t.live.Live` for what it does.

    A model with a stride in time gives responses at the frames that its tokens end at, and reads them with the state of
    that frame: they are the last of those that it gives for the movie so far.

    Args:
        run_or_model: a run folder, or a model, which is brought to evaluation mode.
        mouse_ids: whose responses are given; default every mouse of the model. Mice share the core's work as long as
            they are given the same inputs.
        device: of a run's model.
        after: what happens after 300 frames: `overlap`, `restart` or `stop`.
        transforms: of each mouse, where values are as recorded; without, they are as the model takes them.
        units: with `transforms`, responses are as `recorded`, or `scaled`, as the model gives them.

    Raises:
        CheckpointError: no run there, or its checkpoint is damaged.
        ConfigError: the model is not causal, or a mouse is not in it.
    """

    def __init__(
        self,
        run_or_model: str | Path | ViV1T,
        mouse_ids: Sequence[str] | None = None,
        device: str | torch.device = "cpu",
        *,
        after: str = "overlap",
        transforms: Mapping[str, Transform] | None = None,
        units: str = "recorded",
    ) -> None:
        check_after(after)
        if isinstance(run_or_model, ViV1T):
            self.model = run_or_model.eval()
        else:
            self.model = RunFolder(run_or_model).load_model(device).eval()
        self.units = units
        self._core, self._transforms = following_core(self.model.core), transforms or {}
        parameter = next(self.model.core.parameters())
        self._device, self._dtype = parameter.device, parameter.dtype
        super().__init__(mouse_ids, self.model.mouse_ids, self.model.frame_size, after)

    def neurons(self, mouse: str) -> int:
        return self.model.neurons[mouse]

    def _new_past(self) -> _Past:
        return _Past(self._core, self._device, self._dtype)

    @torch.no_grad()
    def _read_out(self, maps: Tensor, mouse: str, state: np.ndarray) -> np.ndarray:
        now = torch.from_numpy(state)[None, :, None].to(self._device, self._dtype)
        response = self.model.activate(self.model.read_out(maps, mouse, now[:, :2], now[:, 2:]), mouse)
        values: np.ndarray = response[0, :, 0].float().cpu().numpy()
        if self.units == "recorded" and mouse in self._transforms and self._transforms[mouse].affine:
            offset, scale = (
                part[:, 0] for part in self._transforms[mouse].affine["response"].part(self._known_frame() - 1, 1)
            )
            values = (values / np.where(scale, scale, np.inf) + offset).astype(np.float32)
        return values

    def _known_frame(self) -> int:
        """How many frames of a trial the statistics are asked for; those past a trial's end are like its last."""
        return min(max(self._frame, 1), MAX_FRAMES)

    def _transformed(self, mouse: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if mouse not in self._transforms:
            return inputs
        transform, first = self._transforms[mouse], min(self._frame, MAX_FRAMES - 1)
        result = dict(inputs)
        for name, variable in (("frame", "video"), ("behavior", "behavior"), ("pupil_center", "pupil_center")):
            if transform.affine:
                offset, scale = (part[..., 0] for part in transform.affine[variable].part(first, 1))
                result[name] = (inputs[name] - offset) * scale
        if transform.center is not None:
            result["frame"] = transform.center(torch.from_numpy(result["frame"])[None])[0].numpy()
        return result
