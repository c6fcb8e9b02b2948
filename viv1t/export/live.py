"""The core of a causal model as a graph for one frame: past keys and values go in, those of the frame come out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from viv1t.kernels.attention.rotary import Rotary

from viv1t.errors import CheckpointError
from viv1t.export.blocks import GraphParallelBlock
from viv1t.export.check import TOLERANCE
from viv1t.export.core import GraphTokenizer
from viv1t.export.graph import graph_form
from viv1t.export.program import trace
from viv1t.model.cores.vivit import Vivit
from viv1t.model.layers.blocks import ParallelBlock, split_heads
from viv1t.model.layers.positions import Rotary as RotaryPositions
from viv1t.model.layers.tokenizer import Tokenizer
from viv1t.model.twin import ViV1T
from viv1t.onnx_model import open_session
from viv1t.onnx_stream import LiveShape, OnnxPast, cache_names
from viv1t.scoring.correlation import CorrelationAccumulator

if TYPE_CHECKING:
    import onnx_ir


def live_shape(core: Vivit) -> LiveShape:
    """What a runner has to know of a core."""
    tokenizer = core.tokenizer
    first = core.temporal.blocks[0] if len(core.temporal.blocks) else None
    heads = first.heads if isinstance(first, ParallelBlock) else 0
    return LiveShape(
        window=tokenizer.size[0],
        front=tokenizer.padding.front,
        stride=tokenizer.stride[0],
        channels=core.channels,
        tokens=tokenizer.frames,
        patches=tokenizer.grid[0] * tokenizer.grid[1],
        heads=heads,
        head_dim=first.widths[0] // heads if isinstance(first, ParallelBlock) else 0,
        blocks=len(core.temporal.blocks),
    )


class LiveBlock(nn.Module):
    """A temporal block for one new token of each patch."""

    def __init__(self, block: ParallelBlock) -> None:
        super().__init__()
        self.form, self.heads, self.scale = GraphParallelBlock(block), block.heads, block.scale

    def forward(
        self, x: Tensor, unseen: Tensor, keys: Tensor, values: Tensor, rotary: Rotary | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One token of each patch, its past, and what it adds to the past.

        Args:
            x: (P, 1, D).
            unseen: (n,) what is added to the scores of the past: 0, and minus infinity where nothing lies yet.
            keys, values: (P, heads, n, d) of the past.
            rotary: tables of the token's position.

        Returns:
            (P, 1, D), and the token's own keys and values, (P, heads, 1, d) each.
        """
        q, k, v, hidden = self.form.projections(x, rotary)
        q, k, v = (split_heads(y, self.heads) for y in (q * self.scale, k, v))
        # The past comes first in each product: so it is read once, as it lies.
        of_past = (keys @ q.transpose(2, 3)).transpose(2, 3) + unseen
        own = (q * k).sum(-1, keepdim=True)
        weights = torch.softmax(torch.cat((of_past, own), dim=-1), dim=-1)
        a = weights[..., :-1] @ values + weights[..., -1:] * v
        return self.form.block.join(x, a.transpose(1, 2).flatten(2), hidden), k, v


class LiveCore(nn.Module):
    """A causal core for one frame.

    Args:
        model: its spatial blocks and tokenizer in the form in which they are exported.
    """

    def __init__(self, model: ViV1T) -> None:
        super().__init__()
        original = model.core
        assert isinstance(original, Vivit)
        core = graph_form(model, model.mouse_ids[0]).core
        assert isinstance(core, Vivit)
        tokenizer = original.tokenizer
        self.tokenizer = GraphTokenizer(tokenizer, front=False)
        self.spatial, self.activation, self.grid = core.spatial, core.activation, original.grid
        self.channels = original.channels
        self.blocks = nn.ModuleList(LiveBlock(block) for block in original.temporal.blocks)  # type: ignore[arg-type]
        self.added = nn.Buffer(added_positions(tokenizer))
        rotary = original.temporal.rotary
        assert rotary is None or isinstance(rotary, RotaryPositions)
        self.turned = None if rotary is None else nn.Buffer(torch.stack(rotary(tokenizer.frames)))

    def forward(self, video: Tensor, state: Tensor, position: Tensor, past: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The maps of a frame.

        Args:
            video: (1, 1, pt, H, W), the last frames, zeros before the first.
            state: (1, 4, pt), likewise.
            position: (1,) int64, the token's; as many tokens of the past are taken.
            past: keys and values in turn of every block, (P, heads, n, d), n any number from `position` on.

        Returns:
            Maps (1, D, 1, h, w), then the token's keys and values, (P, heads, 1, d), in the order of `past`.
        """
        x = self.tokenizer.embedded(video, state[:, : self.channels] if self.channels else None)
        x = x + self.added.index_select(1, position)
        x = self.spatial(x, None, "")[0, 0, :, None]  # (P, 1, D)
        rotary = None if self.turned is None else Rotary(*self.turned.index_select(1, position).unbind(0))
        new = []
        if past:
            places = torch.arange(past[0].shape[2])
            unseen = torch.where(places < position, 0.0, -torch.inf)
        for i, block in enumerate(self.blocks):
            x, keys, values = block(x, unseen, past[2 * i], past[2 * i + 1], rotary)
            new += [keys, values]
        maps = x.transpose(0, 1)[:, None].unflatten(2, self.grid).permute(0, 4, 1, 2, 3)
        return self.activation(maps), *new


def added_positions(tokenizer: Tokenizer) -> Tensor:
    """What is added to tokens: (1, t_max or 1, P or 1, D), of every frame; the tokenizer adds it to zeros."""
    zeros = torch.zeros(1, tokenizer.frames, tokenizer.grid[0] * tokenizer.grid[1], tokenizer.norm.weight.shape[0])
    training = tokenizer.training
    with torch.no_grad():
        added = tokenizer.eval().add_positions(zeros)
    tokenizer.train(training)
    if tokenizer.positions[1] == "none":  # the same in every frame
        added = added[:, :1].expand(-1, tokenizer.frames, -1, -1)
    return added.clone()


def live_graph(model: ViV1T, shape: LiveShape, opset: int) -> onnx_ir.Model:
    """The core of a model as an ONNX graph; its inputs and outputs are those of `viv1t.onnx_stream`."""
    cache = (shape.patches, shape.heads, 5, shape.head_dim)
    inputs = {
        "video": torch.randn(1, 1, shape.window, *model.frame_size),
        "state": torch.randn(1, 4, shape.window),
        "position": torch.tensor([3]),
        "past": [torch.randn(cache) for _ in range(2 * shape.blocks)],
    }
    of_past = [{2: torch.export.Dim.DYNAMIC} for _ in range(2 * shape.blocks)]
    dynamic = {"video": None, "state": None, "position": None, "past": of_past}
    names = cache_names(shape)
    graph = trace(LiveCore(model).eval(), inputs, dynamic, ["maps", *(f"new_{name}" for name in names)], opset)
    for value, name in zip(graph.graph.inputs, ["video", "state", "position", *names], strict=True):
        value.name = name
        if name in names:
            assert value.shape is not None
            value.shape[2] = "rows"
    return graph


def maps_agree(low: Path, full: Path, shape: LiveShape, frame_size: tuple[int, int], frames: int) -> float:
    """The mean correlation over time of two files' maps to a random movie."""
    generator = np.random.default_rng(frames)
    video = generator.standard_normal((frames, *frame_size), np.float32)
    state = generator.standard_normal((4, frames), np.float32)
    found = []
    for path in (low, full):
        past = OnnxPast(open_session(path), shape, frame_size)
        steps = [past.step(video[i], state[:, i]) for i in range(frames)]
        found.append(torch.from_numpy(np.concatenate([s for s in steps if s is not None], axis=2)))
    scores = CorrelationAccumulator()
    scores.update(*(maps[0].movedim(1, -1).flatten(0, -2) for maps in found))
    return float(scores.result().mean())


def check_live(path: Path, shape: LiveShape, model: ViV1T, frames: int) -> float:
    """The largest relative error of a file's maps, frame by frame, against those of PyTorch for a whole random movie.

    Raises:
        CheckpointError: it is above 1e-4, or something is not finite.
    """
    generator = np.random.default_rng(frames)
    video = generator.standard_normal((frames, *model.frame_size), np.float32)
    state = generator.standard_normal((4, frames), np.float32)
    past = OnnxPast(open_session(path), shape, model.frame_size)
    steps = [past.step(video[i], state[:, i]) for i in range(frames)]
    found = np.concatenate([step for step in steps if step is not None], axis=2)
    states = torch.from_numpy(state)[None]
    with torch.no_grad():
        whole = model.core_output(torch.from_numpy(video)[None, None], model.mouse_ids[0], states[:, :2], states[:, 2:])
    expected = whole.numpy()
    error = (
        float(np.linalg.norm(found - expected) / np.linalg.norm(expected)) if found.shape == expected.shape else np.inf
    )
    if not error <= TOLERANCE:
        raise CheckpointError(
            f"ONNX Runtime's maps, frame by frame, differ from PyTorch's by {error:.1e}; no file was written"
        )
    return error
