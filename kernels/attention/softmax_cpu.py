"""Softmax attention on one thread: a few heads at a time, so that their scores stay in cache.

Powers of two are several times cheaper than powers of e here, so queries are scaled by log2(e) as well. The weights
stay as they are and the results, L x d instead of L x L, are divided by the rows' sums. Scores that cannot overflow are
not shifted by their row's largest, which spares two passes over them. In the backward

    dS = P * (dO V' - delta)

comes from one product and one pass: delta joins dO, and ones join V, as further features. So does what is taken off
scores that could overflow; they are rounded, to bf16 too, only when they are small. Causal rows are taken in blocks,
each with the keys up to its last row alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

# Scores at a time: 4 or 2 bytes each, twice in the backward.
_SCORES = 260_000
# Largest score, as a power of two, that needs no shift: rows of 2**60 scores and gradients of 2**60 still fit.
_SAFE = 60.0
# Rows of a causal block.
_CAUSAL_ROWS = 64
# Of so many keys one is looked at for what is taken off a row's scores before they are rounded.
_SAMPLED = 8


def _product(a: Tensor, b: Tensor, out: Tensor, add: bool = False) -> None:
    """Writes or adds a b to `out`."""
    if add:
        out += torch.bmm(a, b)
    elif out.is_contiguous() and out.dtype == a.dtype:
        torch.bmm(a, b, out=out)
    else:
        out.copy_(torch.bmm(a, b))


class HeadAttention:
    """Attention of a few sequences (s, L, heads * d), with the memory it works in.

    Args:
        length, heads, head_dim: L, heads, d.
        scale: of the scores.
        dtype: of the products.
        causal: a row sees itself and what comes before.
        device: of the sequences.
    """

    def __init__(
        self, length: int, heads: int, head_dim: int, scale: float, dtype: torch.dtype, causal: bool = False,
        device: torch.device | None = None,
    ) -> None:  # fmt: skip
        self.heads, self.head_dim, self.scale, self.dtype = heads, head_dim, scale, dtype
        self.wide = torch.promote_types(dtype, torch.float32)
        rows = min(length, _CAUSAL_ROWS) if causal else length
        # Rows, and the end of the keys that they see.
        starts = range(0, length, max(1, rows))
        self.blocks = [(slice(start, end), end) for start in starts for end in [min(start + rows, length)]]
        self.at_once = max(1, _SCORES // max(1, rows * length))
        self.scores = torch.empty(2, self.at_once * rows * length, dtype=dtype, device=device)
        self.unseen: Tensor | None = None
        if causal:
            self.unseen = torch.full((rows, rows), float("-inf"), dtype=dtype, device=device).triu_(1)
        # Features that hold one number; in bf16 two, the second for what the first rounds away.
        self.slots = 1 if dtype.itemsize > 2 else 2

    def _split(self, x: Tensor) -> Tensor:
        """(s, L, heads * d) -> (s, heads, L, d), a view."""
        return x.unflatten(-1, (self.heads, self.head_dim)).transpose(1, 2)

    def _gathered(self, x: Tensor, features: int = 0, factor: float = 1.0) -> Tensor:
        """factor * (s, L, heads * d) -> (s * heads, L, d + features), a copy; the further features are ones."""
        parts = self._split(x)
        y = torch.empty(*parts.shape[:3], self.head_dim + features, dtype=self.dtype, device=x.device)
        if factor == 1:
            y[..., : self.head_dim].copy_(parts)  # several times cheaper in bf16
        else:
            torch.mul(parts, factor, out=y[..., : self.head_dim])
        if features:
            y[..., self.head_dim :] = 1
        return y.flatten(0, 1)

    def _put(self, x: Tensor, number: Tensor) -> None:
        """Sets the further features of x (n, L, d + slots) to a number (n, L, 1) each row."""
        slot = x[..., self.head_dim : self.head_dim + 1]
        slot.copy_(number)
        if self.slots > 1:
            x[..., self.head_dim + 1 :] = number - slot

    def _queries_keys(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor, bool]:
        """Contiguous (N, L, d) of all N = s * heads, queries scaled; whether their scores need a shift."""
        factor = self.scale * math.log2(math.e)
        queries, keys = self._gathered(q, factor=factor), self._gathered(k)
        largest = [torch.linalg.vector_norm(x, dim=-1).amax().to(self.wide) for x in (queries, keys)]
        if float(largest[0] * largest[1]) < _SAFE:
            return queries, keys, False
        near = torch.bmm(queries, keys[:, ::_SAMPLED].transpose(1, 2))
        if self.unseen is not None:
            row = torch.arange(near.shape[1], device=near.device)
            near.masked_fill_(row[::_SAMPLED] > row[:, None], float("-inf"))
        near = near.amax(dim=-1, keepdim=True)
        queries, keys = self._gathered(q, self.slots, factor), self._gathered(k, self.slots)
        self._put(queries, -near.to(self.wide))
        return queries, keys, True

    def _scratch(self, which: int, queries: Tensor, keys: Tensor) -> Tensor:
        """Memory for scores, (n, rows, keys)."""
        shape = (len(queries), queries.shape[1], keys.shape[1])
        return self.scores[which, : math.prod(shape)].view(shape)

    def _weights(self, queries: Tensor, keys: Tensor, shift: bool) -> Tensor:
        """Unnormalised weights (n, rows, keys) in scratch memory; the last of causal keys are the rows' own."""
        weights = self._scratch(0, queries, keys)
        torch.bmm(queries, keys.transpose(1, 2), out=weights)
        if self.unseen is not None:
            rows = queries.shape[1]
            weights[..., -rows:] += self.unseen[:rows, :rows]
        if shift:
            weights.sub_(weights.amax(dim=-1, keepdim=True))
        return torch.exp2(weights, out=weights)

    def _at_once(self, *whole: Tensor) -> Iterable[tuple[Tensor, ...]]:
        """Parts of as many heads as are taken at a time."""
        return zip(*(x.split(self.at_once) for x in whole), strict=True)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, out: Tensor, sums: Tensor) -> None:
        """Writes softmax(scale q k') v of each head to out (s, L, heads * d), and the sums of unnormalised weights.

        The sums (s, heads, L), contiguous, are of rows; they spare the backward a pass.
        """
        queries, keys, shift = self._queries_keys(q, k)
        values = self._gathered(v)
        result = torch.empty_like(values)
        of_rows = sums.view(*values.shape[:2], 1)
        for queries_, keys_, values_, result_, sums_ in self._at_once(queries, keys, values, result, of_rows):
            for rows, end in self.blocks:
                weights = self._weights(queries_[:, rows], keys_[:, :end], shift)
                torch.sum(weights, dim=-1, keepdim=True, dtype=self.wide, out=sums_[:, rows])
                _product(weights, values_[:, :end], result_[:, rows])
        target = self._split(out)
        target.copy_(result.div_(of_rows).view(target.shape))

    def backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, sums: Tensor, known: bool,
        grads: tuple[Tensor, ...],
    ) -> None:  # fmt: skip
        """Writes the gradients of q, k and v to `grads`, and, unless they are known, the result and its sums."""
        d = self.head_dim
        queries, keys, shift = self._queries_keys(q, k)
        values, given = self._gathered(v, self.slots), self._gathered(grad)
        result = self._gathered(out) if known else torch.empty_like(given)
        of_rows = sums.view(*keys.shape[:2], 1)
        # What several blocks add to is as wide as sums are.
        summed = self.wide if len(self.blocks) > 1 else self.dtype
        above, dq = torch.empty_like(values), torch.empty_like(given)
        dk, dv = (torch.empty_like(given, dtype=summed) for _ in "kv")
        whole = queries, keys, values, of_rows, given, result, above, dq, dk, dv
        for queries_, keys_, values_, sums_, given_, result_, above_, dq_, dk_, dv_ in self._at_once(*whole):
            # From the last rows, which see all keys, to the first, which add to what is there.
            for i, (rows, end) in enumerate(reversed(self.blocks)):
                some, seen = queries_[:, rows], keys_[:, :end]
                weights = self._weights(some, seen, shift)
                if not known:
                    torch.sum(weights, dim=-1, keepdim=True, dtype=self.wide, out=sums_[:, rows])
                    _product(weights, values_[:, :end, :d], result_[:, rows])
                    result_[:, rows] /= sums_[:, rows]
                # (grad, -delta) / sums, delta the sum of grad * result over a row.
                given_rows = above_[:, rows, :d]
                torch.div(given_[:, rows], sums_[:, rows], out=given_rows)
                delta = (given_rows * result_[:, rows]).sum(dim=-1, keepdim=True, dtype=self.wide)
                self._put(above_[:, rows], -delta)
                _product(weights.transpose(1, 2), given_rows, dv_[:, :end], add=i > 0)
                products = self._scratch(1, some, seen)
                torch.bmm(above_[:, rows], values_[:, :end].transpose(1, 2), out=products)
                weights.mul_(products)
                _product(weights, seen[..., :d], dq_[:, rows])
                _product(weights.transpose(1, 2), some[..., :d], dk_[:, :end], add=i > 0)
        if not known:
            target = self._split(out)
            target.copy_(result.view(target.shape))
        dq_out, dk_out, dv_out = (self._split(x) for x in grads)
        torch.mul(dq.view(dq_out.shape), self.scale, out=dq_out)
        torch.mul(dk.view(dk_out.shape), math.log(2), out=dk_out)  # the queries carry scale * log2(e) already
        dv_out.copy_(dv.view(dv_out.shape))
