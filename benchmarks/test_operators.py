"""Operators of the hot path, forward and backward at the published model's full size, beside the plain PyTorch way.

Runs on the GPU where there is one, there also beside the plain way compiled. The plain way's attention is PyTorch's
fused one. A row of `CASES` is one operator at one precision; its variants are classes that make the work from the
device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from viv1t.kernels.attention import attention
from viv1t.kernels.patch_embed import patch_embed
from viv1t.kernels.readout import readout
from viv1t.kernels.readout.reference import readout as plain_readout

from benchmarks.baseline.core import ParallelBlock as PlainParallelBlock
from benchmarks.baseline.core import Unfold, attend
from benchmarks.harness import DEVICE, Report, float32_products, peak_bytes, seconds
from viv1t.families.sensorium2023.build import build_transformer
from viv1t.families.sensorium2023.options import VivitConfig
from viv1t.system.memory import available_bytes

THREADS = 2
TRIALS, FRAMES_IN, FRAMES, FRAME_SIZE = 1, 140, 116, (36, 64)
GRID, DEPTH, NEURONS = (15, 29), 112, 8000
PATCH, STRIDE = (25, 7, 7), (1, 2, 2)
CONFIG = VivitConfig(parallel_attention=True)

# Of products, forward and backward. Patches: those of the video alone, which needs no gradient. Attention: two forward,
# and five backward, where scores are computed again.
TOKENS, INNER = TRIALS * FRAMES * math.prod(GRID), CONFIG.num_heads * CONFIG.head_dim
PATCH_FLOPS = 2 * 2 * TOKENS * DEPTH * math.prod(PATCH)
ATTENTION_FLOPS = 7 * 2 * TOKENS * math.prod(GRID) * INNER
BLOCK_FLOPS = 3 * 2 * TOKENS * DEPTH * (4 * INNER + 2 * CONFIG.mlp_dim) + ATTENTION_FLOPS


class Work:
    """Forward and backward. A variant sets `leaves`, what is differentiated, and defines `forward`.

    Args:
        device: where it runs.
        precision: of autocast.
    """

    leaves: list[Tensor]

    def __init__(self, device: str, precision: torch.dtype) -> None:
        self.device, self.precision = device, precision
        torch.manual_seed(0)

    def draw(self, *shape: int) -> Tensor:
        return torch.randn(*shape).to(self.device)

    def forward(self) -> Tensor:
        raise NotImplementedError

    def __call__(self) -> None:
        for leaf in self.leaves:
            leaf.requires_grad_().grad = None
        with torch.autocast(self.device, self.precision, enabled=self.precision != torch.float32):
            y = self.forward()
        y.backward(torch.ones_like(y))


class Readout(Work):
    """The readout in training, noise drawn."""

    def __init__(self, device: str, precision: torch.dtype) -> None:
        super().__init__(device, precision)
        maps = self.draw(TRIALS, FRAMES, *GRID, DEPTH)
        places = [0.5 * self.draw(NEURONS, 2), 0.5 * self.draw(NEURONS, 2, 2), 0.1 * self.draw(TRIALS, FRAMES, 2)]
        state = [self.draw(TRIALS, FRAMES, DEPTH), self.draw(NEURONS)]
        self.leaves = [maps, self.draw(DEPTH, NEURONS), *places, *state]
        self.seed = torch.tensor([1], device=device)

    def forward(self) -> Tensor:
        maps, features, mu, sigma, shift, code, bias = self.leaves
        return readout(maps, features, mu, sigma, shift=shift, code=code, bias=bias, seed=self.seed)


class PlainReadout(Readout):
    """Every sample written out."""

    def forward(self) -> Tensor:
        noise = torch.randn(TRIALS, FRAMES, NEURONS, 2, device=self.device)
        return plain_readout(*self.leaves, noise, None)


class PatchEmbed(Work):
    """Patches, normalised and projected."""

    def __init__(self, device: str, precision: torch.dtype) -> None:
        super().__init__(device, precision)
        self.video, self.state = self.draw(TRIALS, 1, FRAMES_IN, *FRAME_SIZE), self.draw(TRIALS, 4, FRAMES_IN)
        values = 5 * PATCH[0] * PATCH[1] * PATCH[2]
        self.leaves = [1 + 0.1 * self.draw(values), self.draw(values), self.draw(DEPTH, values), self.draw(DEPTH)]

    def forward(self) -> Tensor:
        return patch_embed(self.video, self.state, *self.leaves, PATCH, STRIDE)


class PlainPatchEmbed(PatchEmbed):
    """Every patch written out."""

    def forward(self) -> Tensor:
        gamma, beta, weight, bias = self.leaves
        state = self.state[..., None, None].expand(-1, -1, -1, *FRAME_SIZE)
        patches = Unfold(PATCH, STRIDE)(torch.cat((self.video, state), dim=1))
        return F.linear(F.layer_norm(patches, patches.shape[-1:], gamma, beta), weight, bias)


class Attention(Work):
    """Attention over a frame's patches, in training."""

    def __init__(self, device: str, precision: torch.dtype) -> None:
        super().__init__(device, precision)
        width = 3 * CONFIG.num_heads * CONFIG.head_dim
        self.leaves = [self.draw(TRIALS * FRAMES, GRID[0] * GRID[1], width).to(precision)]

    def forward(self) -> Tensor:
        return attention(
            *self.leaves, CONFIG.num_heads, CONFIG.head_dim, CONFIG.head_dim**-0.5, dropout=CONFIG.mha_dropout
        )


class PlainAttention(Attention):
    """PyTorch's attention and dropout."""

    def forward(self) -> Tensor:
        q, k, v = self.leaves[0].chunk(3, dim=-1)
        y = attend(q, k, v, CONFIG.num_heads, torch.tensor(CONFIG.head_dim**-0.5), CONFIG.flash_attention)
        return F.dropout(y, CONFIG.mha_dropout)


class Block(Work):
    """A spatial block in training, which keeps what it keeps by default."""

    def __init__(self, device: str, precision: torch.dtype) -> None:
        super().__init__(device, precision)
        self.block = self.build().to(device)
        self.leaves = [self.draw(TRIALS * FRAMES, GRID[0] * GRID[1], DEPTH), *self.block.parameters()]

    def build(self) -> nn.Module:
        """The block that is measured."""
        transformer = build_transformer(CONFIG, 2, 1, GRID[0] * GRID[1], 0, None)
        return transformer.blocks[0]

    def forward(self) -> Tensor:
        y: Tensor = self.block(self.leaves[0], recompute=self.device == "cuda")
        return y


class PlainBlock(Block):
    """As published."""

    def build(self) -> nn.Module:
        return PlainParallelBlock(CONFIG)

    def forward(self) -> Tensor:
        y: Tensor = self.block(self.leaves[0])
        return y


class Compiled:
    """Work of a kind, compiled by PyTorch."""

    def __init__(self, kind: type[Work], device: str, precision: torch.dtype) -> None:
        self.work = kind(device, precision)
        self.work.forward = torch.compile(self.work.forward)  # type: ignore[method-assign]

    def __call__(self) -> None:
        self.work()


@dataclass(frozen=True)
class Case:
    name: str
    precision: torch.dtype
    variants: Mapping[str, type[Work]]
    needed_bytes: float  # by the hungriest variant
    flops: float = 0  # of products; a readout's are few

    def on(self, device: str) -> dict[str, Callable[[str, torch.dtype], Callable[[], None]]]:
        """The variants on a kind of device."""
        plain = self.variants["published"]
        peers = {} if device == "cpu" else {"peer:compiled": partial(Compiled, plain)}
        return {**self.variants, **peers}


CASES = [
    Case("readout-float32", torch.float32, {"viv1t": Readout, "published": PlainReadout}, 3e9),
    Case("patch-embed-float32", torch.float32, {"viv1t": PatchEmbed, "published": PlainPatchEmbed}, 8e9, PATCH_FLOPS),
    Case("patch-embed-bf16", torch.bfloat16, {"viv1t": PatchEmbed, "published": PlainPatchEmbed}, 8e9, PATCH_FLOPS),
    Case("attention-float32", torch.float32, {"viv1t": Attention, "published": PlainAttention}, 2e9, ATTENTION_FLOPS),
    Case("attention-bf16", torch.bfloat16, {"viv1t": Attention, "published": PlainAttention}, 2e9, ATTENTION_FLOPS),
    Case("parallel-block-float32", torch.float32, {"viv1t": Block, "published": PlainBlock}, 2e9, BLOCK_FLOPS),
    Case("parallel-block-bf16", torch.bfloat16, {"viv1t": Block, "published": PlainBlock}, 2e9, BLOCK_FLOPS),
]


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Case:
    found: Case = request.param
    needed, available = found.needed_bytes, available_bytes()
    if available < needed:
        pytest.skip(f"needs {needed / 1e9:.0f} GB of memory, {available / 1e9:.1f} GB are available")
    return found


def test_operator_seconds(case: Case, report: Report) -> None:
    works = {name: make(DEVICE, case.precision) for name, make in case.on(DEVICE).items()}
    rounds = {"repeats": 5} if DEVICE == "cpu" else {"repeats": 50, "warmup": 3}
    report.add("operators", case.name, "seconds", "s", seconds(works, threads=THREADS, **rounds))


def test_operator_floor(case: Case, report: Report) -> None:
    """What the operator's products, or its inputs and gradients, would take at this machine's best.

    Products at the rate of a large one (float32 on tensor cores where there are any); inputs read twice and gradients
    written once, at the rate of a large copy.
    """
    work = case.variants["viv1t"](DEVICE, case.precision)
    side, values = (8192, 2**30) if DEVICE == "cuda" else (2048, 2**27)
    a, source = torch.randn(side, side, device=DEVICE).to(case.precision), torch.zeros(values, device=DEVICE)
    target = torch.empty_like(source)
    with float32_products(tf32=DEVICE == "cuda"):
        best = seconds({"product": lambda: a @ a, "copy": lambda: target.copy_(source)}, repeats=10, threads=THREADS)
    products = case.flops * min(best["product"]) / (2 * side**3)
    traffic = 3 * sum(leaf.nbytes for leaf in work.leaves) * min(best["copy"]) / (2 * source.nbytes)
    report.add("operators", case.name, "floor_seconds", "s", {"viv1t": max(products, traffic)})


def test_operator_peak_bytes(case: Case, report: Report) -> None:
    arguments = DEVICE, case.precision
    samples = {name: peak_bytes(make, *arguments, threads=THREADS) for name, make in case.on(DEVICE).items()}
    report.add("operators", case.name, "peak_bytes", "B", samples)
