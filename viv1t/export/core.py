"""Modules of cores in the form in which they are exported: called like those of `viv1t.model`, equal in evaluation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from viv1t.kernels.patch_embed.reference import fold

from viv1t.export.loops import loop, recur
from viv1t.model.layers.norms import DynamicTanh
from viv1t.model.layers.patches import pixels_on_frame
from viv1t.model.layers.tokenizer import Tokenizer
from viv1t.model.layers.transformer import Transformer

# Sequences of frames that go through the temporal blocks together: enough for efficient products, few enough for a
# processor's cache.
_GROUP = 32


def largest_divisor(number: int, limit: int) -> int:
    """The largest divisor of `number` that is at most `limit`."""
    return max(n for n in range(1, min(number, limit) + 1) if number % n == 0)


class GraphTokenizer(nn.Module):
    """Tokens, with the patches' normalisation folded into the convolution once and for all.

    The state is constant over a frame, but zero in the border around it. How a patch lies on that border is one of few
    ways, and the state's part of the product is taken once for each.

    Args:
        tokenizer: of the model.
        front: whether zeros are put before the first frame; without, the caller does.
    """

    def __init__(self, tokenizer: Tokenizer, front: bool = True) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.padding = tokenizer.padding if front else tokenizer.padding._replace(front=0)
        self.norm = tokenizer.patch_norm if tokenizer.normalized else None
        assert tokenizer.projection.bias is not None
        weight, bias = tokenizer.projection.weight.flatten(1), tokenizer.projection.bias
        if isinstance(self.norm, nn.LayerNorm):
            weight, bias = fold(self.norm.weight, self.norm.bias, weight, bias)
        elif self.norm is not None:
            bias = bias + weight @ self.norm.bias if isinstance(self.norm, DynamicTanh) else bias
            weight = weight * self.norm.weight
        kernel = weight.detach().unflatten(1, (-1, *tokenizer.size))  # (D, 1 + S, pt, ps, ps)
        # The ways to lie on the border, (K, pixels of a patch), and which of them each patch has.
        on_frame, ways = pixels_on_frame(
            weight.detach(), tokenizer.frame_size, tokenizer.size, tokenizer.stride, self.padding
        ).flatten(0, 1).unique(dim=0, return_inverse=True)  # fmt: skip
        of_state = torch.einsum("dskq,wq->wdsk", kernel[:, 1:].flatten(3), on_frame)
        self.count = kernel[0].numel()
        self.of_video = nn.Buffer(kernel[:, :1].clone())
        self.of_state = nn.Buffer(of_state.flatten(0, 1).contiguous())  # (K * D, S, pt)
        self.of_centre = nn.Buffer(kernel[:, 1:].sum((1, 2, 3, 4))[:, None, None, None])
        self.covered = nn.Buffer(on_frame.sum(1)[ways].unflatten(0, tokenizer.grid))  # pixels on the frame
        self.ways = nn.Buffer(ways) if len(on_frame) > 1 else None
        self.bias = nn.Buffer(bias.detach()[:, None, None, None])

    def forward(self, video: Tensor, state: Tensor | None) -> Tensor:
        """video (B, 1, T, H, W) and state (B, S, T) -> tokens (B, t, P, D)."""
        return self.tokenizer.add_positions(self.embedded(video, state))

    def embedded(self, video: Tensor, state: Tensor | None) -> Tensor:
        """The tokens before positions are added."""
        tokenizer, norm = self.tokenizer, self.norm
        centre = None
        if isinstance(norm, DynamicTanh):
            video = torch.tanh(norm.alpha * video)
            state = None if state is None else torch.tanh(norm.alpha * state)
        elif isinstance(norm, nn.LayerNorm):
            centre = video.mean(dim=(1, 2, 3, 4), keepdim=True)
        video = self.padding.of_video(video)
        state = None if state is None else self.padding.of_state(state)
        if centre is not None:
            video = video - centre
        x = F.conv3d(video, self.of_video, stride=tokenizer.stride)
        if state is not None:
            x = x + self._spread(F.conv1d(state, self.of_state, stride=tokenizer.stride[0]))
            if centre is not None:
                x = x - centre * self.of_centre
        if isinstance(norm, nn.LayerNorm | nn.RMSNorm):
            mean, squares = self._moments(video, state, centre)
            eps = torch.finfo(x.dtype).eps if norm.eps is None else norm.eps
            power = squares if centre is None else (squares - mean.square()).clamp_min(0)
            x = x * (power + eps).rsqrt()
        embedded: Tensor = tokenizer.norm((x + self.bias).flatten(3).permute(0, 2, 3, 1))
        return embedded

    def _spread(self, x: Tensor) -> Tensor:
        """What each way to lie on the border gives, (B, K * D, t), for every patch: (B, D, t, Ph, Pw)."""
        if self.ways is None:
            return x[..., None, None]
        depth = self.of_video.shape[0]
        each = x.unflatten(1, (-1, depth)).permute(0, 2, 3, 1).index_select(3, self.ways)
        return each.unflatten(3, self.tokenizer.grid)

    def _moments(self, video: Tensor, state: Tensor | None, centre: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean, less `centre`, and mean square about it of every patch and its channels: (B, 1, t, Ph, Pw)."""
        total, squares = self._sums(video), self._sums(video.square())
        if state is not None:
            (frames, *size), step = self.tokenizer.size, self.tokenizer.stride[0]
            values, pixels = frames * state.shape[1], size[0] * size[1]
            shifted = state if centre is None else state - centre[..., 0, 0]
            for_state = [
                frames * F.avg_pool1d(x.sum(dim=1, keepdim=True), frames, step)[..., None, None]
                for x in (state, shifted.square())
            ]
            total = total + for_state[0] * self.covered
            squares = squares + for_state[1] * self.covered
            if centre is not None:
                total = total - centre * (pixels * values)
                squares = squares + centre.square() * (values * (pixels - self.covered))
        return total / self.count, squares / self.count

    def _sums(self, video: Tensor) -> Tensor:
        """Sums over every patch of the video: (B, 1, t, Ph, Pw)."""
        (frames, *size), (step, *steps) = self.tokenizer.size, self.tokenizer.stride
        mean = F.avg_pool3d(F.avg_pool3d(video, (frames, 1, 1), (step, 1, 1)), (1, *size), (1, *steps))
        return mean * (frames * size[0] * size[1])


class GraphTransformer(nn.Module):
    """All blocks, one after the other, on a few sequences at a time."""

    def __init__(self, transformer: Transformer) -> None:
        super().__init__()
        self.blocks, self.encoders = transformer.blocks, transformer.state_encoders
        self.axis, self.rotary = transformer.axis, transformer.rotary
        # No token of a causal model sees a register.
        self.registers = None if transformer.causal else transformer.registers

    def forward(self, x: Tensor, windows: Tensor | None, mouse: str) -> Tensor:
        """x (B, t, P, D), windows (B, t, inputs) -> (B, t, P, D)."""
        if not len(self.blocks):
            return x
        batch, frames, patches, _ = x.shape
        tokens = x.shape[self.axis]
        registers = 0 if self.registers is None else len(self.registers)
        rotary = None if self.rotary is None else self.rotary(tokens, registers)

        def through(x: Tensor, windows: Tensor | None = None) -> Tensor:
            if self.registers is not None:
                x = torch.cat((x, self.registers.expand(len(x), -1, -1)), dim=1)
            for i, block in enumerate(self.blocks):
                if windows is not None:
                    x = x + self.encoders[i](windows, mouse)
                x = block(x) if rotary is None else block(x, rotary)
            return x if self.registers is None else x[:, :tokens]

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
