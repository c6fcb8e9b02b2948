"""What the readout's implementations share: where the neurons look.

An implementation has two functions, with maps (B, t, h, w, D) and features (D, N):

    sample(maps, features, places) -> (B, t, N), samples dotted with the features
    sample_backward(grad, maps, features, places) -> gradients of maps, features, mu, sigma, and shift (B, t, 2)

`grad` is (B, t, N). A gradient has the dtype of what it belongs to; sigma's is zero without noise.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Places(NamedTuple):
    """Arguments of `readout` by their names there."""

    mu: Tensor
    sigma: Tensor
    shift: Tensor | None
    noise: Tensor | None
    seed: Tensor | None


class Gradients(NamedTuple):
    maps: Tensor
    features: Tensor
    mu: Tensor
    sigma: Tensor
    shift: Tensor
