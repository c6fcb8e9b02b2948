"""The stack of blocks that runs over many short sequences: the patches of each frame, or the frames of each patch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from viv1t.model.layers.blocks import ParallelBlock, SequentialBlock
from viv1t.model.layers.positions import Rotary
from viv1t.model.layers.state import StateEncoder

# Values of a block's widest intermediate that are in memory at a time off CUDA: sequences are independent, so a block
# takes them in groups that stay in cache.
_GROUP_VALUES = 6_000_000


class _Unused(torch.autograd.Function):
    """x, as it is; the parameter beside it gets a zero gradient instead of none, so that weight decay acts on it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, unused: Tensor) -> Tensor:
        ctx.save_for_backward(unused)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        (unused,) = ctx.saved_tensors
        return grads[0], torch.zeros_like(unused)


class Transformer(nn.Module):
    """Blocks over sequences of patches (`axis` 2) or of frames (`axis` 1) of a token grid (B, t, P, D).

    Args:
        axis: 1 attends over frames, 2 over patches.
        blocks: one after the other.
        registers: (R, D) further tokens at every sequence's end, dropped after the last block; None for none. Where the
            blocks are causal no token sees them: they are left out of the computation, and their gradient is zero.
        rotary: positions of the sequences' own tokens; None where tokens bring theirs.
        state_encoders: for each block, what adds the state's encoding to its input; empty for none.
    """

    def __init__(
        self,
        axis: int,
        blocks: Sequence[ParallelBlock | SequentialBlock],
        *,
        registers: Tensor | None = None,
        rotary: Rotary | None = None,
        state_encoders: Sequence[StateEncoder] = (),
    ) -> None:
        super().__init__()
        assert registers is None or not state_encoders, "the state's encoding is of frames, not of registers"
        self.axis = axis
        self.recompute: bool | None = None  # None: on CUDA
        self.registers = None if registers is None else nn.Parameter(registers)
        self.blocks = nn.ModuleList(blocks)
        self.rotary = rotary
        self.state_encoders = nn.ModuleList(state_encoders)

    @property
    def causal(self) -> bool:
        """Whether every block is causal, so that a token depends on what comes before it alone."""
        return all(isinstance(block, ParallelBlock) and block.causal for block in self.blocks)

    @property
    def masked(self) -> bool:
        """Whether some block is causal."""
        return any(isinstance(block, ParallelBlock) and block.causal for block in self.blocks)

    def forward(self, x: Tensor, windows: Tensor | None, mouse: str) -> Tensor:
        """x (B, t, P, D), windows (B, t, inputs) -> (B, t, P, D); the result may be a transposed view."""
        if self.axis == 1:
            x = x.transpose(1, 2)
        shape = x.shape
        x = x.reshape(-1, *shape[2:])
        registers = 0 if self.registers is None or self.causal else len(self.registers)
        rotary = None if self.rotary is None else self.rotary(shape[2], registers)
        if self.registers is not None:
            if self.causal:
                x = _Unused.apply(x, self.registers)  # type: ignore[no-untyped-call]
            else:
                x = torch.cat((x, self.registers.to(x.dtype).expand(len(x), -1, -1)), dim=1)
        for i, block in enumerate(self.blocks):
            if windows is not None:
                code = self.state_encoders[i](windows, mouse).unsqueeze(self.axis)
                x = (x.view(shape) + code).view(x.shape)
            x = self._run(block, x, rotary)
        x = x[:, : shape[2]].reshape(shape)
        return x.transpose(1, 2) if self.axis == 1 else x

    def _run(self, block: nn.Module, x: Tensor, rotary: Any) -> Tensor:
        recompute = torch.is_grad_enabled() and (x.is_cuda if self.recompute is None else self.recompute)
        if isinstance(block, ParallelBlock):  # takes groups, and recomputes, by itself
            parallel: Tensor = block(x, recompute, rotary)
            return parallel
        group = len(x)
        if x.device.type == "cpu" and isinstance(block, SequentialBlock):
            group = min(group, max(1, _GROUP_VALUES // (x.shape[1] * block.width)))
        if group == len(x) and not recompute:
            y: Tensor = block(x)
            return y
        parts = [checkpoint(block, part, use_reentrant=False) if recompute else block(part) for part in x.split(group)]
        return torch.cat(parts)
