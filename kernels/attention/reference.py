"""Softmax attention over packed queries, keys and values: the definition, made of plain operations."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..common.philox_reference import keep_mask


def attention(
    packed: Tensor,
    heads: int,
    head_dim: int,
    scale: float,
    *,
    q_weight: Tensor | None = None,
    q_bias: Tensor | None = None,
    k_weight: Tensor | None = None,
    k_bias: Tensor | None = None,
    causal: bool = False,
    dropout: float = 0.0,
    seed: Tensor | None = None,
) -> Tensor:
    """softmax(scale q k') v of each sequence and head, then dropout; arguments as in `viv1t.kernels.attention`.

    With dropout it keeps what the GPU kernel keeps for that seed.
    """
    inner = heads * head_dim
    q, k, v = packed[..., : 3 * inner].split(inner, dim=-1)
    if q_weight is not None:
        q = F.layer_norm(q, (inner,), q_weight, q_bias)
    if k_weight is not None:
        k = F.layer_norm(k, (inner,), k_weight, k_bias)
    q, k, v = (x.unflatten(-1, (heads, head_dim)).transpose(1, 2) for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale).transpose(1, 2).flatten(2)
    if seed is None or dropout == 0:
        return out
    keep = keep_mask(seed, out.shape[0] * out.shape[1], inner, dropout).view(out.shape)
    return torch.where(keep, out / (1 - dropout), 0.0)
