"""Softmax attention on one thread: a few heads at a time, so that their scores stay in cache.

Powers of two are several times cheaper than powers of e here, so queries are scaled by log2(e) as well. The weights
stay as they are and the results, L x d instead of L x L, are divided by the rows' sums. Scores that cannot overflow are
not shifted by their row's largest, which spares two passes over them. In the backward

    dS = P * (dO V' - delta)

comes from one product and one pass: delta joins dO, and ones join V, as further features. So does what is taken off
scores that could overflow; they are rounded, to bf16 too, only when they are small.
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
# Of so many keys one is looked at for what is taken off a row's scores before they are rounded.
_SAMPLED = 8


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
        self.at_once = max(1, _SCORES // max(1, length * length))
        self.scores = torch.empty(2, self.at_once, length, length, dtype=dtype, device=device)
        self.unseen = torch.full_like(self.scores[0, 0], float("-inf")).triu_(1) if causal else None
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
        near = torch.bmm(queries, keys[:, ::_SAMPLED].transpose(1, 2)).amax(dim=-1, keepdim=True)
        queries, keys = self._gathered(q, self.slots, factor), self._gathered(k, self.slots)
        self._put(queries, -near.to(self.wide))
        return queries, keys, True

    def _weights(self, queries: Tensor, keys: Tensor, shift: bool) -> Tensor:
        """Unnormalised weights (n, L, L) in scratch memory."""
        weights = self.scores[0, : len(queries)]
        torch.bmm(queries, keys.transpose(1, 2), out=weights)
        if self.unseen is not None:
            weights.add_(self.unseen)
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
            weights = self._weights(queries_, keys_, shift)
            torch.sum(weights, dim=-1, keepdim=True, dtype=self.wide, out=sums_)
            torch.bmm(weights, values_, out=result_)
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
        above, dq, dk, dv = (torch.empty_like(x) for x in (values, given, given, given))
        whole = queries, keys, values, of_rows, given, result, above, dq, dk, dv
        for queries_, keys_, values_, sums_, given_, result_, above_, dq_, dk_, dv_ in self._at_once(*whole):
            weights = self._weights(queries_, keys_, shift)
            if not known:
                torch.sum(weights, dim=-1, keepdim=True, dtype=self.wide, out=sums_)
                torch.bmm(weights, values_[..., :d], out=result_)
                result_.div_(sums_)
            # (grad, -delta) / sums, delta the sum of grad * result over a row.
            torch.div(given_, sums_, out=above_[..., :d])
            self._put(above_, -(above_[..., :d] * result_).sum(dim=-1, keepdim=True, dtype=self.wide))
            torch.bmm(weights.transpose(1, 2), above_[..., :d], out=dv_)
            products = self.scores[1, : len(weights)]
            torch.bmm(above_, values_.transpose(1, 2), out=products)
            weights.mul_(products)
            torch.bmm(weights, keys_[..., :d], out=dq_)
            torch.bmm(weights.transpose(1, 2), queries_[..., :d], out=dk_)
        if not known:
            target = self._split(out)
            target.copy_(result.view(target.shape))
        dq_out, dk_out, dv_out = (self._split(x) for x in grads)
        torch.mul(dq.view(dq_out.shape), self.scale, out=dq_out)
        torch.mul(dk.view(dk_out.shape), math.log(2), out=dk_out)  # the queries carry scale * log2(e) already
        dv_out.copy_(dv.view(dv_out.shape))
