"""The parallel block on a GPU: normalised projection, attention, and one kernel for all that comes after.

Backward, what was not kept is computed again: queries, keys and values, and what attention gives. Gradients of weights
are summed over parts of the tokens and then over the parts, in a fixed order and without atomics.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
from torch import Tensor

from ..attention.operator import implementation
from ..attention.rotary import Rotary
from ..attention.settings import Settings
from ..common import tiles
from ..common.dropout import drop_threshold, keep_scale
from ..common.launch import launch
from ..common.precision import input_precision
from ..common.tiles import Tile, padded_depth
from ..common.variant import Variant
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
        low, self.mlp, self.swiglu = settings.dtype, weights.mlp, settings.swiglu
        self.shape, self.depth, self.dtype = x.shape[:2], x.shape[2], low
        self.tokens, self.length, self.eps, self.seed = x.shape[0] * x.shape[1], x.shape[1], settings.eps, seed
        self.x, self.norm = x.contiguous(), (weights.norm_weight.contiguous(), weights.norm_bias.contiguous())
        self.packed_in, self.ff_in = weights.fused.to(low).contiguous().split((3 * weights.inner, weights.widths[3]))
        self.attention_out, self.ff_out = (w.t().to(low).contiguous() for w in weights[3:5])
        self.paths = bool(settings.drop_path)
        self.path_numbers = drop_threshold(settings.drop_path), keep_scale(settings.drop_path)
        self.ff = drop_threshold(settings.ff_dropout), keep_scale(settings.ff_dropout), bool(settings.ff_dropout)
        _, *norms = norms_of(weights, settings)
        rate, head_dim = settings.attention_dropout, weights.inner // settings.heads
        self.settings = Settings(
            settings.heads, head_dim, settings.scale, settings.causal, rate, seed if rate else None, *norms, rotary
        )

    def tile(self, kernel: str) -> Tile:
        return tiles.parallel_block(kernel, self.depth, self.dtype, self.swiglu)

    def new(self, *size: int) -> Tensor:
        return torch.empty(size, dtype=torch.float32, device=self.x.device)

    def splits(self, tile: Tile) -> tuple[int, int]:
        """Parts of the tokens, and the tokens of each but the last."""
        span = triton.cdiv(self.tokens, _SPLITS * tile.rows) * tile.rows
        return triton.cdiv(self.tokens, span), span

    def project(self, rows: Tensor, weight: Tensor, normalise: bool) -> Tensor:
        """(S, L, columns) of products of the rows, or of their LayerNorm, with each of a weight's (columns, D)."""
        tile, columns = self.tile("project"), len(weight)
        out = torch.empty(*self.shape, columns, dtype=self.dtype, device=rows.device)
        launch(
            project_kernel, (triton.cdiv(self.tokens, tile.rows),), tile,
            rows, *self.norm, weight, out, self.tokens, self.eps, self.depth, columns, normalise,
            tile.rows, tile.columns, padded_depth(self.depth), input_precision(self.dtype),
        )  # fmt: skip
        return out

    def rows(self, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """LayerNorm of x, and the gradients of what attention's and the feed-forward path add to it."""
        tile = self.tile("rows")
        rows, of_ff = (torch.empty_like(self.x, dtype=self.dtype) for _ in range(2))
        of_attention = torch.empty_like(of_ff) if self.paths else of_ff
        launch(
            rows_kernel, (triton.cdiv(self.tokens, tile.rows),), tile,
            grad, self.x, *self.norm, self.seed, rows, of_attention, of_ff, self.tokens, self.length, self.eps,
            *self.path_numbers, self.depth, self.paths, tile.rows, padded_depth(self.depth),
        )  # fmt: skip
        return rows, of_attention, of_ff

    def attend(self) -> Kept:
        packed = self.project(self.x, self.packed_in, True)
        return packed, *implementation(packed, self.settings.head_dim).forward(packed, self.settings)

    def output(self, attended: Tensor) -> Tensor:
        tile, y = self.tile("output"), torch.empty_like(self.x)
        launch(
            output_kernel, (triton.cdiv(self.tokens, tile.rows),), tile,
            self.x, *self.norm, self.ff_in, self.ff_out, attended, self.attention_out, self.seed, y,
            self.tokens, self.length, self.eps, *self.ff[:2], *self.path_numbers,
            self.depth, attended.shape[2], self.mlp, self.swiglu, self.ff[2], self.paths,
            tile.rows, tile.columns, tile.inner, padded_depth(self.depth), input_precision(self.dtype),
        )  # fmt: skip
        return y

    def of_input(self, grad: Tensor, rows: Tensor, of_ff: Tensor, grad_packed: Tensor) -> tuple[Tensor, ...]:
        """Gradients of x, and of the norm's weight and bias, float32."""
        tile, grad_x = self.tile("input"), torch.empty_like(self.x)
        programs = triton.cdiv(self.tokens, tile.rows)
        of_norm = self.new(programs, 2, self.depth)
        launch(
            input_kernel, (programs,), tile,
            grad, self.x, self.norm[0], rows, of_ff, self.ff_in, self.ff_out, grad_packed, self.packed_in, self.seed,
            grad_x, of_norm, self.tokens, self.eps, *self.ff[:2], self.depth, len(self.packed_in), self.mlp,
            self.swiglu, self.ff[2], tile.rows, tile.columns, tile.inner, padded_depth(self.depth),
            input_precision(self.dtype),
        )  # fmt: skip
        return grad_x, of_norm[:, 0].sum(0), of_norm[:, 1].sum(0)

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
            self.depth, self.mlp, self.swiglu, self.ff[2], tile.rows, tile.inner, padded_depth(self.depth),
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
    del packed, attended, d_attended
    of_packed_in = block.of_weight(grad_packed, rows)
    of_ff_in, of_ff_out = block.of_feed_forward(rows, of_ff)
    grad_x, *of_norm = block.of_input(grad, rows, of_ff, grad_packed)
    found = [*of_norm, torch.cat((of_packed_in, of_ff_in)), of_attention_out, of_ff_out.t(), *of_norms]
    return [grad_x, *(f.to(w.dtype).contiguous() for f, w in zip(found, given, strict=True))]


def variants() -> Iterator[Variant]:
    """Specialisations: the published model's, and others' in training."""
    kernels = {
        "project": project_kernel, "output": output_kernel, "rows": rows_kernel, "input": input_kernel,
        "weight": weight_kernel, "ff_weight": ff_weight_kernel,
    }  # fmt: skip
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        for depth, mlp in ((64, 100), (112, 136), (160, 256), (256, 512)):
            for swiglu in (False, True):
                for drops in (False, True):
                    for name, kernel in kernels.items():
                        yield from _variants(name, kernel, dtype, depth, mlp, swiglu, drops)


def _variants(
    name: str, kernel: Any, dtype: torch.dtype, depth: int, mlp: int, swiglu: bool, drops: bool
) -> Iterator[Variant]:
    names, tile, inner = kernel.arg_names, tiles.parallel_block(name, depth, dtype, swiglu), 528
    if (swiglu and "SWIGLU" not in names) or (drops and "seed" not in names):
        return
    for normalised in (True, False) if "NORMALISED" in names else (True,):
        low = ("weight", "out", "ff_in", "ff_out", "attended", "attention_out", "grad_packed", "packed_in", "columns",
               "rows", "of_attention", "of_ff")  # fmt: skip
        values: dict[str, Any] = {
            **dict.fromkeys(low, dtype), "x": torch.float32 if normalised else dtype,
            **dict.fromkeys(("norm_weight", "norm_bias", "y", "grad", "grad_x", "of_norm"), torch.float32),
            **dict.fromkeys(("of_weight", "of_in", "of_out"), torch.float32),
            **dict.fromkeys(("tokens", "length", "span", "ff_threshold", "path_threshold"), int),
            **dict.fromkeys(("eps", "ff_scale", "path_scale"), float),
            "seed": torch.int64 if drops else None, "D": depth, "DEPTH": padded_depth(depth), "WIDTH": 3 * inner,
            "INNER": inner, "PACKED": 3 * inner, "MLP": mlp, "SWIGLU": swiglu, "NORMALISED": normalised,
            "DROPOUT": drops, "PATHS": drops, "BLOCK_M": tile.rows, "BLOCK_N": tile.columns, "BLOCK_K": tile.columns,
            "BLOCK_C": tile.inner, "PRECISION": "tf32" if dtype == torch.float32 else "ieee",
        }  # fmt: skip
        kind = "tf32" if dtype == torch.float32 else str(dtype).removeprefix("torch.")
        flags = {"swiglu": swiglu, "drops": drops, "plain": not normalised}
        label = " ".join([f"parallel_block {name} {kind} {depth}", *(flag for flag, on in flags.items() if on)])
        yield Variant(label, kernel, {n: values[n] for n in names}, tile.warps, tile.stages)
