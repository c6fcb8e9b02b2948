"""Modules of cores in the form in which they are exported: called like those of `viv1t.model`, equal in evaluation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from viv1t.export.loops import loop, recur
from viv1t.model.layers.tokenizer import Tokenizer
from viv1t.model.layers.transformer import Transformer

# Sequences of frames that go through the temporal blocks together: enough for efficient products, few enough for a
# processor's cache.
_GROUP = 32


def largest_divisor(number: int, limit: int) -> int:
    """The largest divisor of `number` that is at most `limit`."""
    return max(n for n in range(1, min(number, limit) + 1) if number % n == 0)


class GraphTokenizer(nn.Module):
    """Tokens, with the patches' normalisation folded into the convolution once and for all."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        assert tokenizer.projection.bias is not None
        weight, bias = tokenizer.projection.weight.flatten(1), tokenizer.projection.bias
        if tokenizer.normalized:
            # As in `viv1t.kernels.patch_embed.reference`.
            norm = tokenizer.patch_norm
            assert isinstance(norm, nn.LayerNorm), "`check_known` refuses others"
            self.eps = norm.eps
            bias = bias + weight @ norm.bias
            weight = weight * norm.weight
            weight = weight - weight.mean(dim=1, keepdim=True)
        weight = weight.unflatten(1, (-1, *tokenizer.size))
        self.of_video = nn.Buffer(weight[:, :1].detach().clone())
        self.of_state = nn.Buffer(weight[:, 1:].sum((-1, -2)).detach())
        self.bias = nn.Buffer(bias.detach()[:, None, None, None])

    def forward(self, video: Tensor, state: Tensor | None) -> Tensor:
        """video (B, 1, T, H, W) and state (B, S, T) -> tokens (B, t, P, D)."""
        tokenizer = self.tokenizer
        if tokenizer.normalized:
            centre = video.mean(dim=(1, 2, 3, 4), keepdim=True)
            video = video - centre
            state = None if state is None else state - centre[..., 0, 0]
        x = F.conv3d(video, self.of_video, stride=tokenizer.stride)
        if state is not None:
            x = x + F.conv1d(state, self.of_state, stride=tokenizer.stride[0])[..., None, None]
        if tokenizer.normalized:
            mean = self._means(video, state)
            squares = self._means(video.square(), None if state is None else state.square())
            x = x * ((squares - mean.square()).clamp_min(0) + self.eps).rsqrt()
        x = tokenizer.norm((x + self.bias).flatten(3).permute(0, 2, 3, 1))
        return tokenizer.add_positions(x)

    def _means(self, video: Tensor, state: Tensor | None) -> Tensor:
        """Means over every patch and its channels: (B, 1, t, Ph, Pw)."""
        (frames, *size), (step, *steps) = self.tokenizer.size, self.tokenizer.stride
        mean = F.avg_pool3d(F.avg_pool3d(video, (frames, 1, 1), (step, 1, 1)), (1, *size), (1, *steps))
        if state is None:
            return mean
        of_state = F.avg_pool1d(state.sum(dim=1, keepdim=True), frames, step)
        return (mean + of_state[..., None, None]) / (1 + state.shape[1])


class GraphTransformer(nn.Module):
    """All blocks, one after the other, on a few sequences at a time."""

    def __init__(self, transformer: Transformer) -> None:
        super().__init__()
        self.blocks, self.encoders = transformer.blocks, transformer.state_encoders
        self.axis = transformer.axis

    def forward(self, x: Tensor, windows: Tensor | None, mouse: str) -> Tensor:
        """x (B, t, P, D), windows (B, t, inputs) -> (B, t, P, D)."""
        if not len(self.blocks):
            return x
        batch, frames, patches, _ = x.shape

        def through(x: Tensor, windows: Tensor | None = None) -> Tensor:
            for i, block in enumerate(self.blocks):
                if windows is not None:
                    x = x + self.encoders[i](windows, mouse)
                x = block(x)
            return x

        if self.axis == 2:
            groups = x.flatten(0, 1)[:, None]
            windows = None if windows is None else windows.flatten(0, 1)[:, None]
        else:
            group = largest_divisor(patches, _GROUP)
            groups = x.transpose(1, 2).unflatten(1, (-1, group)).flatten(0, 1)
            if windows is not None:
                windows = windows[:, None].expand(-1, patches // group, -1, -1).flatten(0, 1)
        y = loop(through, groups) if windows is None else loop(through, groups, windows)
        if self.axis == 2:
            return y.flatten(0, 1).unflatten(0, (batch, frames))
        return y.flatten(0, 1).unflatten(0, (batch, patches)).transpose(1, 2)


class GraphGru(nn.Module):
    """A recurrent unit from a zero state; gives (B, t, hidden) and, unlike PyTorch's, not the last state."""

    def __init__(self, gru: nn.GRU) -> None:
        super().__init__()
        weights = dict(gru.named_parameters())
        self.of_input, self.of_input_bias = weights["weight_ih_l0"], weights["bias_ih_l0"]
        self.of_hidden, self.of_hidden_bias = weights["weight_hh_l0"], weights["bias_hh_l0"]

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        """x (B, t, inputs)."""

        def step(hidden: Tensor, of_input: Tensor) -> Tensor:
            of_hidden = F.linear(hidden, self.of_hidden, self.of_hidden_bias)
            (r_in, z_in, n_in), (r, z, n) = of_input.chunk(3, dim=-1), of_hidden.chunk(3, dim=-1)
            update = torch.sigmoid(z_in + z)
            new = torch.tanh(n_in + torch.sigmoid(r_in + r) * n)
            return new + update * (hidden - new)

        of_inputs = F.linear(x, self.of_input, self.of_input_bias).transpose(0, 1)
        start = x.new_zeros(x.shape[0], self.of_hidden.shape[1])
        return recur(step, start, of_inputs).transpose(0, 1), None
