"""Softmax attention on one CPU thread: a few heads at a time, so that their scores stay in cache.

Powers of two are several times cheaper than powers of e here, so queries are scaled by log2(e) as well. Scores that
cannot overflow are not shifted by their row's largest, which spares two passes over them; the weights stay as they are
and the results, L x d instead of L x L, are divided by the rows' sums. In the backward

    dS = P * (dO V' - delta)

comes from one product and one pass: delta joins dO, and a column of ones V, as a further feature.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Scores at a time: 4 or 2 bytes each, twice in the backward.
_SCORES = 260_000
# Largest score, as a power of two, that needs no shift: rows of 2**60 scores and gradients of 2**60 still fit.
_SAFE = 60.0


class HeadAttention:
    """Attention of a few sequences (s, L, heads * d), with the memory it works in.

    Args:
        length, heads, head_dim: L, heads, d.
        scale: of the scores.
        dtype: of the products.
    """

    def __init__(self, length: int, heads: int, head_dim: int, scale: float, dtype: torch.dtype) -> None:
        self.heads, self.head_dim, self.scale, self.dtype = heads, head_dim, scale, dtype
        self.wide = torch.promote_types(dtype, torch.float32)
        self.at_once = max(1, _SCORES // max(1, length * length))
        self.scores = torch.empty(2, self.at_once, length, length, dtype=dtype)
        # delta as one more feature; in bf16 as two, the second for what the first rounds away.
        self.features = head_dim + (1 if dtype.itemsize > 2 else 2)

    def _split(self, x: Tensor) -> Tensor:
        """(s, L, heads * d) -> (s, heads, L, d), a view."""
        return x.unflatten(-1, (self.heads, self.head_dim)).transpose(1, 2)

    def _gathered(self, x: Tensor) -> Tensor:
        """(s, L, heads * d) -> (s * heads, L, d), a copy."""
        parts = self._split(x)
        return torch.empty(parts.shape, dtype=x.dtype).copy_(parts).flatten(0, 1)

    def _queries_keys(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor, bool]:
        """Contiguous (N, L, d) of all N = s * heads, queries scaled; whether their scores need a shift."""
        queries, keys = self._gathered(q), self._gathered(k)
        queries.mul_(self.scale * math.log2(math.e))
        largest = [torch.linalg.vector_norm(x, dim=-1, dtype=self.wide).amax() for x in (queries, keys)]
        return queries, keys, not float(largest[0] * largest[1]) < _SAFE

    def _weights(self, queries: Tensor, keys: Tensor, shift: bool, sums: Tensor) -> Tensor:
        """Unnormalised weights (n, L, L) in scratch memory; writes their sums (n, L, 1)."""
        weights = self.scores[0, : len(queries)]
        torch.bmm(queries, keys.transpose(1, 2), out=weights)
        if shift:
            weights.sub_(weights.amax(dim=-1, keepdim=True))
        torch.exp2(weights, out=weights)
        torch.sum(weights, dim=-1, keepdim=True, dtype=self.wide, out=sums)
        return weights

    def forward(self, q: Tensor, k: Tensor, v: Tensor, out: Tensor) -> None:
        """Writes softmax(scale q k') v of each head to out (s, L, heads * d)."""
        queries, keys, shift = self._queries_keys(q, k)
        values = self._gathered(v)
        result, sums = torch.empty_like(values), torch.empty(*values.shape[:2], 1, dtype=self.wide)
        parts = (x.split(self.at_once) for x in (queries, keys, values, result, sums))
        for queries_, keys_, values_, result_, sums_ in zip(*parts, strict=True):
            weights = self._weights(queries_, keys_, shift, sums_)
            torch.bmm(weights, values_, out=result_)
        target = self._split(out)
        target.copy_(result.div_(sums).view(target.shape))

    def backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, known: bool, grads: tuple[Tensor, ...]
    ) -> None:
        """Writes the gradients of q, k and v to `grads`, and the result to `out` unless it is known."""
        d = self.head_dim
        queries, keys, shift = self._queries_keys(q, k)
        values = torch.empty(*keys.shape[:2], self.features, dtype=self.dtype)
        values[..., d:] = 1
        values[..., :d].unflatten(0, (-1, self.heads)).copy_(self._split(v))
        sums = torch.empty(*keys.shape[:2], 1, dtype=self.wide)
        given, target = self._gathered(grad), self._split(out)
        result = self._gathered(out) if known else torch.empty_like(keys)
        above, dq, dk, dv = (torch.empty_like(x) for x in (values, keys, keys, keys))
        whole = queries, keys, values, sums, given, result, above, dq, dk, dv
        parts = (x.split(self.at_once) for x in whole)
        for queries_, keys_, values_, sums_, given_, result_, above_, dq_, dk_, dv_ in zip(*parts, strict=True):
            weights = self._weights(queries_, keys_, shift, sums_)
            if not known:
                torch.bmm(weights, values_[..., :d], out=result_)
                result_.div_(sums_)
            # (grad, -delta) / sums, delta the sum of grad * result over a row.
            torch.div(given_, sums_, out=above_[..., :d])
            delta = (above_[..., :d] * result_).sum(dim=-1, keepdim=True, dtype=self.wide)
            above_[..., d : d + 1] = -delta
            if self.features > d + 1:
                above_[..., d + 1 :] = -delta - above_[..., d : d + 1]
            torch.bmm(weights.transpose(1, 2), above_[..., :d], out=dv_)
            products = self.scores[1, : len(weights)]
            torch.bmm(above_, values_.transpose(1, 2), out=products)
            weights.mul_(products)
            torch.bmm(weights, keys_, out=dq_)
            torch.bmm(weights.transpose(1, 2), queries_, out=dk_)
        if not known:
            target.copy_(result.view(target.shape))
        dq.mul_(self.scale)
        dk.mul_(math.log(2))  # the queries carry scale * log2(e) already
        for x, y in zip(grads, (dq, dk, dv), strict=True):
            self._split(x).copy_(y.view(target.shape))
