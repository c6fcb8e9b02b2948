"""Work on many short sequences in a graph: a loop over them, so that what one iteration writes stays in cache."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch._higher_order_ops.scan import scan

Carried = tuple[Tensor, ...]


def loop(body: Callable[..., Tensor], *sequences: Tensor) -> Tensor:
    """stack([body(*items) for items in zip(*sequences)]), as one node `Scan` of an ONNX graph."""
    # Iterations share nothing, but a scan must carry something on; the exporter wants as many as there are sequences.
    carried = tuple(torch.full((1,), float(i)) for i in range(len(sequences)))

    def step(carried: Carried, items: Carried) -> tuple[Carried, Tensor]:
        return tuple(c.clone() for c in carried), body(*items)

    result: Tensor = scan(step, carried, sequences)[1]
    return result


def recur(body: Callable[..., Tensor], state: Tensor, sequence: Tensor) -> Tensor:
    """stack of state = body(state, item) over the items of a sequence."""

    def step(carried: Tensor, item: Tensor) -> tuple[Tensor, Tensor]:
        state = body(carried, item)
        return state, state.clone()

    result: Tensor = scan(step, state, sequence)[1]
    return result
