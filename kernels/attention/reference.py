"""Softmax attention over packed queries, keys and values: the definition, made of plain operations."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..common.norms import norm, norm_of
from ..common.philox_reference import keep_mask
from .rotary import Rotary, rotate


def attention(
    packed: Tensor,
    heads: int,
    head_dim: int,
    scale: float,
    *,
    q_weight: Tensor | None = None,
    q_bias: Tensor | None = None,
    q_alpha: Tensor | None = None,
    k_weight: Tensor | None = None,
    k_bias: Tensor | None = None,
    k_alpha: Tensor | None = None,
    norm_kind: str = "layernorm",
    norm_eps: float = 1e-5,
    rotary: Rotary | None = None,
    causal: bool = False,
    dropout: float = 0.0,
    seed: Tensor | None = None,
) -> Tensor:
    """softmax(scale q k') v of each sequence and head, then dropout; arguments as in `viv1t.kernels.attention`.

    With dropout it keeps what the GPU kernel keeps for that seed.
    """
    inner = heads * head_dim
    q, k, v = packed[..., : 3 * inner].split(inner, dim=-1)
    q = rotate(norm(q, norm_of(q_weight, q_bias, q_alpha, norm_kind, norm_eps)), rotary, heads)
    k = rotate(norm(k, norm_of(k_weight, k_bias, k_alpha, norm_kind, norm_eps)), rotary, heads)
    q, k, v = (x.unflatten(-1, (heads, head_dim)).transpose(1, 2) for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale).transpose(1, 2).flatten(2)
    if seed is None or dropout == 0:
        return out
    keep = keep_mask(seed, out.shape[0] * out.shape[1], inner, dropout).view(out.shape)
    return torch.where(keep, out / (1 - dropout), 0.0)
