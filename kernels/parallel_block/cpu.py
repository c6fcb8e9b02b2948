"""The parallel block off CUDA: a few sequences at a time, each on one thread, so that what lies between stays in cache.

The backward computes again what was not kept, and adds up the weights' gradients lane by lane.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..attention.rotary import Rotary
from ..attention.settings import Prepared, Settings, prepare, prepare_backward
from ..attention.softmax_cpu import HeadAttention
from ..common.activations import activate, activate_backward
from ..common.dropout import keep_rows, keep_scale, lane_generator
from ..common.lanes import lane_slices, run_lanes
from ..common.norms import Norm, Normalised, normalise, normalise_backward
from .settings import BlockSettings, BlockWeights, Kept, norms_of

# Values of the fused projection that are taken at a time.
_GROUP_VALUES = 1_000_000
_FEWEST_GROUPS = 4


class Masks(NamedTuple):
    """What dropout and stochastic depth keep of a group, as zeros and ones: multiplying is cheapest. None for all."""

    attention: Tensor | None  # (rows, inner)
    ff: Tensor | None  # (rows, mlp)
    paths: Tensor | None  # (s, 2)

    def on_paths(self, x: Tensor, path: int, settings: BlockSettings) -> Tensor:
        """x (rows, D) of a path, without what stochastic depth drops; both kinds of dropout are made up for here."""
        scale = keep_scale((settings.attention_dropout, settings.ff_dropout)[path])
        if self.paths is None:
            return x * scale if scale != 1 else x
        factor = self.paths[:, path] * (scale * keep_scale(settings.drop_path))
        return (x.view(len(factor), -1) * factor[:, None]).view(x.shape)


def block_lanes(shape: torch.Size, weights: BlockWeights) -> list[list[slice]]:
    """How the sequences of x (S, L, D) are taken: lanes of groups."""
    most = max(1, _GROUP_VALUES // max(1, shape[1] * len(weights.fused)))
    # Groups of one size, and several even where one would do: else most threads would wait for the last.
    groups = max(-(-shape[0] // most), min(_FEWEST_GROUPS, shape[0]), 1)
    return lane_slices(shape[0], max(1, -(-shape[0] // groups)))


def draw_masks(
    generator: torch.Generator | None, sequences: int, length: int, weights: BlockWeights, settings: BlockSettings
) -> Masks:
    """The masks of the next group."""

    def draw(rows: int, columns: int, rate: float, dtype: torch.dtype) -> Tensor | None:
        return None if generator is None or rate == 0 else keep_rows(rows, columns, rate, generator, dtype)

    rows, low = sequences * length, settings.dtype
    return Masks(
        draw(rows, weights.inner, settings.attention_dropout, low),
        draw(rows, weights.mlp, settings.ff_dropout, low),
        draw(sequences, 2, settings.drop_path, torch.promote_types(low, torch.float32)),
    )


def _masked(x: Tensor, mask: Tensor | None) -> Tensor:
    return x if mask is None else x * mask


class _Lane:
    """One lane's view of the block: weights in the products' dtype, and memory to work in."""

    def __init__(
        self, x: Tensor, weights: BlockWeights, settings: BlockSettings, rotary: Rotary | None, seed: int | None,
        index: int,
    ) -> None:  # fmt: skip
        self.x, self.weights, self.settings = x, weights, settings
        self.wide = torch.promote_types(x.dtype, torch.float32)
        self.dtype = settings.dtype
        self.length, self.inner = x.shape[1], weights.inner
        self.fused, self.attention_out, self.ff_out = (w.to(self.dtype) for w in weights[2:5])
        self.fused_in = self.fused.t().contiguous()  # products with it are faster this way round
        self.norm, *self.norms = norms_of(weights, settings)
        self.generator = None if seed is None else lane_generator(seed, index)
        heads, scale, causal = settings.heads, settings.scale, settings.causal
        self.of_attention = Settings(heads, self.inner // heads, scale, causal, rotary=rotary)
        self.attention = HeadAttention(self.length, heads, self.inner // heads, scale, self.dtype, causal)

    def masks(self, group: slice) -> Masks:
        return draw_masks(self.generator, group.stop - group.start, self.length, self.weights, self.settings)

    def normalise(self, group: slice) -> Normalised:
        """Rows of the group, normalised."""
        return normalise(self.x[group].reshape(-1, self.x.shape[2]).to(self.wide).contiguous(), self.norm)

    def prepare(self, q: Tensor, k: Tensor) -> list[Prepared]:
        return [prepare(x, norm, self.of_attention) for x, norm in zip((q, k), self.norms, strict=True)]

    def kept(self, group: slice, kept: Kept | None) -> Kept:
        """The group's part of what is kept, or memory for it."""
        if kept is None:
            return new_kept(self.x[group], self.weights, self.settings, keep=True)
        packed, attended, sums = (x[group] for x in kept)
        return packed, attended, sums

    def parts(self, packed: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys, values and the feed-forward part of (..., widths)."""
        return packed.split(self.weights.widths, dim=-1)

    def attending(self, masks: Masks, *results: Tensor) -> list[slice]:
        """Runs of sequences whose attention counts; `results` (s, ...) of the others are zeroed."""
        if masks.paths is None or masks.paths[:, 0].all():
            return [slice(0, len(results[0]))]
        runs: list[slice] = []
        for i, on in enumerate(masks.paths[:, 0].tolist()):
            if not on:
                for result in results:
                    result[i].zero_()
            elif runs and runs[-1].stop == i:
                runs[-1] = slice(runs[-1].start, i + 1)
            else:
                runs.append(slice(i, i + 1))
        return runs

    def forward(self, group: slice, y: Tensor, kept: Kept | None) -> None:
        settings, masks = self.settings, self.masks(group)
        packed, attended, sums = self.kept(group, kept)
        normalised = self.normalise(group)
        rows = normalised.x
        torch.mm(normalised.y.to(self.dtype), self.fused_in, out=packed.view(len(rows), -1))
        q, k, v, hidden = self.parts(packed)
        for run in self.attending(masks, attended, sums):
            queries, keys = self.prepare(q[run], k[run])
            self.attention.forward(queries.y, keys.y, v[run], attended[run], sums[run])
        dropped = _masked(attended.view(len(rows), -1), masks.attention)
        active = _masked(activate(hidden.flatten(0, 1), settings.activation), masks.ff)
        for path, (branch, out) in enumerate(((dropped, self.attention_out), (active, self.ff_out))):
            rows = rows + masks.on_paths((branch @ out.t()).to(self.wide), path, settings)
        y[group] = rows.view(y[group].shape)

    def backward(self, group: slice, grad: Tensor, kept: Kept | None, grad_x: Tensor, sums: dict[str, Tensor]) -> None:
        """Writes the group's part of grad_x, adds to the sums of the weights' gradients."""
        settings, masks = self.settings, self.masks(group)
        norm = self.normalise(group)
        rows, normalised = norm.x, norm.y.to(self.dtype)
        above = grad[group].reshape(rows.shape).to(self.wide).contiguous()
        packed, attended, attended_sums = self.kept(group, kept)
        if kept is None:
            torch.mm(normalised, self.fused_in, out=packed.view(len(rows), -1))
        q, k, v, hidden = self.parts(packed)
        grad_packed = torch.empty_like(packed)
        dq, dk, dv, d_hidden = self.parts(grad_packed)

        hidden = hidden.flatten(0, 1)
        branch = masks.on_paths(above, 1, settings).to(self.dtype)
        _add_product(sums["ff_out"], branch, _masked(activate(hidden, settings.activation), masks.ff))
        d_active = _masked(branch @ self.ff_out, masks.ff)
        activate_backward(d_active, hidden, settings.activation, d_hidden.flatten(0, 1))

        branch = masks.on_paths(above, 0, settings).to(self.dtype)
        d_attended = _masked(branch @ self.attention_out, masks.attention).view(attended.shape)
        # What is kept has its zeros already.
        zeroed = (grad_packed[..., : 3 * self.inner], *(() if kept else (attended,)))
        for run in self.attending(masks, *zeroed):
            queries, keys = self.prepare(q[run], k[run])
            grads = dq[run], dk[run], dv[run]
            inputs = d_attended[run], queries.y, keys.y, v[run]
            self.attention.backward(*inputs, attended[run], attended_sums[run], kept is not None, grads)
            for prefix, prepared, d in zip("qk", (queries, keys), grads, strict=False):
                dx, of_norm = prepare_backward(d, prepared, self.of_attention)
                if dx is not d:
                    d.copy_(dx)
                _add_norm(sums, prefix, prepared.normalised.norm, of_norm)
        _add_product(sums["attention_out"], branch, _masked(attended.view(len(rows), -1), masks.attention))

        flat = grad_packed.view(len(rows), -1)
        _add_product(sums["fused"], flat, normalised)
        dx, of_norm = normalise_backward((flat @ self.fused).to(self.wide), norm)
        _add_norm(sums, "norm", self.norm, of_norm)
        grad_x[group] = dx.add_(above).view(grad_x[group].shape)


def _add_norm(sums: dict[str, Tensor], prefix: str, norm: Norm | None, found: list[Tensor]) -> None:
    """Adds gradients of a norm's parameters."""
    if norm is not None:
        names = [name for name in ("weight", "bias", "alpha") if getattr(norm, name) is not None]
        for name, part in zip(names, found, strict=True):
            sums[f"{prefix}_{name}"] += part


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a' b."""
    if total.dtype == a.dtype:
        total.addmm_(a.t(), b)
    else:
        total.add_(a.t() @ b)


def new_kept(x: Tensor, weights: BlockWeights, settings: BlockSettings, keep: bool) -> Kept:
    """The fused projection (S, L, widths), the attention before its dropout (S, L, inner), its sums (S, heads, L)."""
    sequences, length = x.shape[:2] if keep else (0, 0)
    widths = len(weights.fused), weights.inner
    packed, attended = (x.new_empty(sequences, length, width, dtype=settings.dtype) for width in widths)
    wide = torch.promote_types(settings.dtype, torch.float32)
    return packed, attended, x.new_empty(sequences, settings.heads, length, dtype=wide)


def forward(
    x: Tensor, weights: BlockWeights, settings: BlockSettings, rotary: Rotary | None, seed: Tensor | None, keep: bool
) -> tuple[Tensor, Kept]:
    """See `settings.py`."""
    y = x.new_empty(x.shape)
    kept = new_kept(x, weights, settings, keep)
    lanes = block_lanes(x.shape, weights)
    number = None if seed is None else int(seed)

    def work(index: int) -> None:
        lane = _Lane(x, weights, settings, rotary, number, index)
        for group in lanes[index]:
            lane.forward(group, y, kept if keep else None)

    run_lanes(work, len(lanes))
    return y, kept


def backward(
    grad: Tensor, x: Tensor, weights: BlockWeights, settings: BlockSettings, rotary: Rotary | None,
    seed: Tensor | None, kept: Kept | None,
) -> list[Tensor]:  # fmt: skip
    """See `settings.py`."""
    grad_x = x.new_empty(x.shape)
    lanes = block_lanes(x.shape, weights)
    number = None if seed is None else int(seed)
    wide = torch.promote_types(x.dtype, torch.float32)
    given = {name: w for name, w in weights._asdict().items() if w is not None}
    sums = [{name: torch.zeros(w.shape, dtype=wide) for name, w in given.items()} for _ in range(max(1, len(lanes)))]

    def work(index: int) -> None:
        lane = _Lane(x, weights, settings, rotary, number, index)
        for group in lanes[index]:
            lane.backward(group, grad, kept, grad_x, sums[index])

    run_lanes(work, len(lanes))
    totals = (torch.stack([of_lane[name] for of_lane in sums]).sum(dim=0) for name in given)
    return [grad_x, *(total.to(w.dtype) for total, w in zip(totals, given.values(), strict=True))]
