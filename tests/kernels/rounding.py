"""How far from the exact result a computation in a format may end: no bound is what some machine happened to reach."""

from __future__ import annotations

import torch

_SURE = 4.0  # for chance, and for what cancels on the way


def allowed(dtype: torch.dtype, *lengths: int) -> float:
    """The relative error, of the norm, that sums of `lengths` terms, one after the other, may have in a format.

    Each addition is rounded by at most u, half the format's eps, up or down as chance has it: after n of them the error
    has grown as u sqrt(n) (Higham and Mary, 2019, "A new approach to probabilistic rounding error analysis"). Sums of
    half precision are taken in float32, and rounded once.
    """
    wide = torch.promote_types(dtype, torch.float32)
    roundings = sum(lengths) ** 0.5 * torch.finfo(wide).eps / 2
    if wide != dtype:
        roundings += len(lengths) ** 0.5 * torch.finfo(dtype).eps / 2
    return _SURE * roundings
