"""The parallel block on a GPU: normalised projection, attention, and one kernel for all that comes after.

Backward, what was not kept is computed again: queries, keys and values, and what attention gives. Gradients of weights
are summed over parts of the tokens and then over the parts, in a fixed order and without atomics.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from ..attention.operator import implementation
from ..attention.rotary import Rotary
from ..attention.settings import Settings
from ..attention.triton import turn
from ..common import tiles
from ..common.dropout import drop_threshold, keep_scale
from ..common.launch import launch
from ..common.precision import input_precision
from ..common.tiles import Tile, padded_depth
from .settings import BlockSettings, BlockWeights, Kept, norms_of
from .triton_kernels import (
    ff_weight_kernel,
    input_kernel,
    output_kernel,
    project_kernel,
    rows_kernel,
    weight_kernel,
)

# Parts that the tokens are cut into in the backward; the gradients of the weights exist once for each.
_SPLITS = 64


class _Block:
    """The block's input (S, L, D) and weights as the kernels take them, and their launches."""

    def __init__(
        self, x: Tensor, weights: BlockWeights, settings: BlockSettings, rotary: Rotary | None, seed: Tensor | None
    ) -> None:
        low, self.mlp, self.activation = settings.dtype, weights.mlp, settings.activation
        self.shape, self.depth, self.dtype = x.shape[:2], x.shape[2], low
        self.tokens, self.length, self.eps, self.seed = x.shape[0] * x.shape[1], x.shape[1], settings.eps, seed
        norm, q_norm, k_norm = norms_of(weights, settings)
        self.norm, self.kind = [None if p is None else p.contiguous() for p in norm[:3]], norm.kind
        self.x = x.contiguous()
        self.packed_in, self.ff_in = weights.fused.to(low).contiguous().split((3 * weights.inner, weights.widths[3]))
        self.attention_out, self.ff_out = (w.t().to(low).contiguous() for w in weights[3:5])
        self.paths = bool(settings.drop_path)
        self.path_numbers = drop_threshold(settings.drop_path), keep_scale(settings.drop_path)
        self.ff = drop_threshold(settings.ff_dropout), keep_scale(settings.ff_dropout), bool(settings.ff_dropout)
        # Without norms after it, the projection is turned where it lies; its gradient is turned back.
        self.turned = rotary if q_norm is None and k_norm is None else None
        rate, head_dim = settings.attention_dropout, weights.inner // settings.heads
        self.settings = Settings(
            settings.heads, head_dim, settings.scale, settings.causal, rate, seed if rate else None, q_norm, k_norm,
            None if self.turned else rotary,
        )  # fmt: skip

    def tile(self, kernel: str) -> Tile:
        return tiles.parallel_block(kernel, self.depth, self.dtype, self.activation)

    def new(self, *size: int) -> Tensor:
        return torch.empty(size, dtype=torch.float32, device=self.x.device)

    def splits(self, tile: Tile) -> tuple[int, int]:
        """Parts of the tokens, and the tokens of each but the last."""
        span = triton.cdiv(self.tokens, _SPLITS * tile.rows) * tile.rows
        return triton.cdiv(self.tokens, span), span

    def project(self, rows: Tensor, weight: Tensor, normalise: bool) -> Tensor:
        """(S, L, columns) products of rows, or of what the norm makes of them, with a weight's (columns, D)."""
        tile, columns = self.tile("project"), len(weight)
        out = torch.empty(*self.shape, columns, dtype=self.dtype, device=rows.device)
        launch(
            project_kernel, (triton.cdiv(self.tokens, tile.rows),), tile,
            rows, *self.norm, weight, out, self.tokens, self.eps, self.depth, columns, self.kind, normalise,
            tile.rows, tile.columns, padded_depth(self.depth), input_precision(self.dtype),
        )  # fmt: skip
        return out

    def rows(self, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Normalised x, and the gradients of what attention's and the feed-forward path add to it."""
        tile = self.tile("rows")
        rows, of_ff = (torch.empty_like(self.x, dtype=self.dtype) for _ in range(2))
        of_attention = torch.empty_like(of_ff) if self.paths else of_ff
        launch(
            rows_kernel, (triton.cdiv(self.tokens, tile.rows),), tile,
            grad, self.x, *self.norm, self.seed, rows, of_attention, of_ff, self.tokens, self.length, self.eps,
            *self.path_numbers, self.depth, self.kind, self.paths, tile.rows, padded_depth(self.depth),
        )  # fmt: skip
        return rows, of_attention, of_ff

    def attend(self) -> Kept:
        packed = self.project(self.x, self.packed_in, True)
        self.turn(packed)
        return packed, *implementation(packed, self.settings.head_dim).forward(packed, self.settings)

    def turn(self, packed: Tensor, backward: bool = False) -> None:
        """Turns queries and keys, or their gradients back, in place."""
        if self.turned is not None:
            turn(packed, self.turned, self.settings, backward)

    def output(self, attended: Tensor) -> Tensor:
        tile, y = self.tile("output"), torch.empty_like(self.x)
        launch(
            output_kernel, (triton.cdiv(self.tokens, tile.rows),), tile,
            self.x, *self.norm, self.ff_in, self.ff_out, attended, self.attention_out, self.seed, y,
            self.tokens, self.length, self.eps, *self.ff[:2], *self.path_numbers,
            self.depth, attended.shape[2], self.mlp, self.kind, self.activation, self.ff[2], self.paths,
            tile.rows, tile.columns, tile.inner, padded_depth(self.depth), input_precision(self.dtype),
        )  # fmt: skip
        return y

    def of_input(self, grad: Tensor, rows: Tensor, of_ff: Tensor, grad_packed: Tensor) -> tuple[Tensor, ...]:
        """Gradients of x, and of the norm's parameters, float32."""
        tile, grad_x = self.tile("input"), torch.empty_like(self.x)
        programs = triton.cdiv(self.tokens, tile.rows)
        of_norm = self.new(programs, 3, self.depth)
        launch(
            input_kernel, (programs,), tile,
            grad, self.x, self.norm[0], self.norm[2], rows, of_ff, self.ff_in, self.ff_out, grad_packed, self.packed_in,
            self.seed, grad_x, of_norm, self.tokens, self.eps, *self.ff[:2], self.depth, len(self.packed_in), self.mlp,
            self.kind, self.activation, self.ff[2], tile.rows, tile.columns, tile.inner, padded_depth(self.depth),
            input_precision(self.dtype),
        )  # fmt: skip
        sums = [of_norm[:, i].sum(0) for i, p in enumerate(self.norm) if p is not None]
        return grad_x, *sums

    def of_weight(self, columns: Tensor, rows: Tensor) -> Tensor:
        """columns' rows (columns, D) over all tokens, float32."""
        tile, width = self.tile("weight"), columns.shape[2]
        splits, span = self.splits(tile)
        found = self.new(splits, width, self.depth)
        launch(
            weight_kernel, (triton.cdiv(width, tile.columns), splits), tile,
            columns, rows, found, self.tokens, span, self.depth, width, tile.rows, tile.columns,
            padded_depth(self.depth), input_precision(self.dtype),
        )  # fmt: skip
        return found.sum(0)

    def of_feed_forward(self, rows: Tensor, of_ff: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of the inner (hidden, D) and outer (mlp, D) weights, float32."""
        tile = self.tile("ff_weight")
        splits, span = self.splits(tile)
        of_in, of_out = self.new(splits, len(self.ff_in), self.depth), self.new(splits, self.mlp, self.depth)
        launch(
            ff_weight_kernel, (triton.cdiv(self.mlp, tile.inner), splits), tile,
            rows, of_ff, self.ff_in, self.ff_out, self.seed, of_in, of_out, self.tokens, span, *self.ff[:2],
            self.depth, self.mlp, self.activation, self.ff[2], tile.rows, tile.inner, padded_depth(self.depth),
            input_precision(self.dtype),
        )  # fmt: skip
        return of_in.sum(0), of_out.sum(0)


def new_kept(x: Tensor, weights: BlockWeights, settings: BlockSettings, keep: bool) -> Kept:
    """See `settings.py`: the projection to queries, keys and values, and attention's two results."""
    sequences, length = x.shape[:2] if keep else (0, 0)
    low, wide = settings.dtype, torch.float32
    return (
        x.new_empty(sequences, length, 3 * weights.inner, dtype=low),
        x.new_empty(sequences, length, weights.inner, dtype=low),
        x.new_empty(sequences, settings.heads, length, dtype=wide),
    )


def forward(
    x: Tensor, weights: BlockWeights, settings: BlockSettings, rotary: Rotary | None, seed: Tensor | None, keep: bool
) -> tuple[Tensor, Kept]:
    """See `settings.py`."""
    if not x.numel():
        return x.new_empty(x.shape), new_kept(x, weights, settings, keep)
    block = _Block(x, weights, settings, rotary, seed)
    kept = block.attend()
    y = block.output(kept[1])
    return y, kept if keep else new_kept(x, weights, settings, False)


def backward(
    grad: Tensor, x: Tensor, weights: BlockWeights, settings: BlockSettings, rotary: Rotary | None,
    seed: Tensor | None, kept: Kept | None,
) -> list[Tensor]:  # fmt: skip
    """See `settings.py`."""
    given = [w for w in weights if w is not None]
    if not x.numel():
        return [x.new_empty(x.shape), *(torch.zeros_like(w) for w in given)]
    block, grad = _Block(x, weights, settings, rotary, seed), grad.contiguous()
    packed, attended, lse = block.attend() if kept is None else kept
    rows, of_attention, of_ff = block.rows(grad)
    of_attention_out = block.of_weight(attended, of_attention).t()
    d_attended = block.project(of_attention, block.attention_out, False)
    grad_packed = torch.empty_like(packed)
    attention = implementation(packed, block.settings.head_dim)
    of_norms = attention.backward(d_attended, packed, attended, lse, block.settings, grad_packed)
    block.turn(grad_packed, backward=True)
    del packed, attended, d_attended
    of_packed_in = block.of_weight(grad_packed, rows)
    of_ff_in, of_ff_out = block.of_feed_forward(rows, of_ff)
    grad_x, *of_norm = block.of_input(grad, rows, of_ff, grad_packed)
    norm, *others = norms_of(weights, settings)
    names = [f"norm_{name}" for name in ("weight", "bias", "alpha") if getattr(norm, name) is not None]
    names += [
        f"{side}_{name}"
        for side, n in zip("qk", others, strict=True)
        for name in ("weight", "bias", "alpha")
        if n is not None and getattr(n, name) is not None
    ]
    found = dict(zip(names, (*of_norm, *of_norms), strict=True))
    if norm.alpha is not None:
        found["norm_alpha"] = found["norm_alpha"].sum(0, keepdim=True)
    found |= {"fused": torch.cat((of_packed_in, of_ff_in)), "attention_out": of_attention_out, "ff_out": of_ff_out.t()}
    named = {name: w for name, w in weights._asdict().items() if w is not None}
    return [grad_x, *(found[name].to(w.dtype).contiguous() for name, w in named.items())]
