"""Blocks and stacks: sequences are independent; groups and recomputation change nothing; paths drop per sequence."""

from __future__ import annotations

import pytest
import torch
from small_models import small_core
from torch import Tensor, nn
from viv1t.kernels.parallel_block import cpu

from viv1t.families.sensorium2023.build import build_transformer
from viv1t.model.layers import transformer
from viv1t.model.layers.blocks import Activation, DropPath
from viv1t.model.layers.positions import PositionGenerator, most_square_grid
from viv1t.model.layers.transformer import Transformer

BLOCKS = {"parallel": {"core_parallel_attention": True}, "sequential": {"core_parallel_attention": False}}
SHAPE = (2, 6, 12, 8)  # B, t, P, D


def stack(axis: int = 2, state: bool = True, **options: object) -> Transformer:
    torch.manual_seed(0)
    return build_transformer(small_core(**options), axis, 3, most_square_grid(SHAPE[2]), 20 if state else 0, None)


def run(module: Transformer, seed: int = 1, windows: bool = True) -> tuple[Tensor, list[Tensor]]:
    """Output, and gradients of the input, the windows and every parameter."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(*SHAPE, generator=generator, requires_grad=True)
    state = torch.randn(*SHAPE[:2], 20, generator=generator, requires_grad=True)
    weigh = torch.randn(*SHAPE, generator=generator)
    torch.manual_seed(seed)
    y = module(x, state if windows else None, "A")
    return y, list(torch.autograd.grad((y * weigh).sum(), [x, state, *module.parameters()]))


def test_most_square_grid() -> None:
    for patches in range(1, 500):
        rows, columns = most_square_grid(patches)
        start = next(r for r in range(1, patches + 1) if r * r >= patches)  # ceil of the root
        assert rows == max(r for r in range(1, start + 1) if patches % r == 0)
        assert rows * columns == patches
    assert most_square_grid(435) == (15, 29)


def test_swiglu_takes_value_then_gate() -> None:
    value, gate = torch.randn(2, 3, 4)
    torch.testing.assert_close(Activation("swiglu")(torch.cat((value, gate), -1)), value * gate * torch.sigmoid(gate))


@pytest.mark.parametrize("kind", BLOCKS)
@pytest.mark.parametrize("axis", [1, 2])
def test_a_sequence_sees_only_itself(axis: int, kind: str) -> None:
    module = stack(axis, state=False, **BLOCKS[kind]).eval()
    x = torch.randn(*SHAPE)
    changed = x.clone()
    place: tuple[slice | int, ...] = (1, slice(None), 4) if axis == 1 else (1, 4)
    changed[place] += 1
    with torch.no_grad():
        moved = (module(x, None, "A") - module(changed, None, "A")).abs() > 0
    assert moved[place].all()
    moved[place] = False
    assert not moved.any()


@pytest.mark.parametrize("kind", BLOCKS)
@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize("values", [1, 700])  # one sequence at a time; groups of unequal size
def test_groups_change_nothing(monkeypatch: pytest.MonkeyPatch, values: int, axis: int, kind: str) -> None:
    module = stack(axis, **BLOCKS[kind]).eval()
    expected, gradients = run(module)
    take_groups_of(values, monkeypatch)
    grouped, grouped_gradients = run(module)
    torch.testing.assert_close(grouped, expected, rtol=1e-5, atol=1e-5)
    for a, b in zip(grouped_gradients, gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def take_groups_of(values: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (transformer, cpu):
        monkeypatch.setattr(module, "_GROUP_VALUES", values)


def count_calls(block: nn.Module) -> list[int]:
    calls: list[int] = []
    block.register_forward_pre_hook(lambda module, args: calls.append(len(args[0])))
    return calls


def test_sequential_blocks_are_called_for_each_group(monkeypatch: pytest.MonkeyPatch) -> None:
    module = stack(**BLOCKS["sequential"])
    calls = count_calls(module.blocks[0])
    take_groups_of(700, monkeypatch)
    run(module)
    assert sum(calls) == SHAPE[0] * SHAPE[1]
    assert len(calls) > 1


@pytest.mark.parametrize("kind", BLOCKS)
@pytest.mark.parametrize("values", [700, 6_000_000])
def test_recomputation_draws_the_same_dropout(monkeypatch: pytest.MonkeyPatch, values: int, kind: str) -> None:
    take_groups_of(values, monkeypatch)
    module = stack(**BLOCKS[kind], core_mha_dropout=0.3, core_ff_dropout=0.3, core_drop_path=0.3).train()
    expected, gradients = run(module)
    other, _ = run(module, seed=5)
    assert (other - expected).abs().max() > 0.01, "dropout is on"
    module.recompute = True
    recomputed, recomputed_gradients = run(module)
    assert torch.equal(recomputed, expected)
    for a, b in zip(recomputed_gradients, gradients, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("kind", BLOCKS)
def test_recomputation_keeps_less(kind: str) -> None:
    def kept() -> int:
        sizes: dict[int, int] = {}

        def pack(x: Tensor) -> Tensor:
            sizes[x.data_ptr()] = x.numel()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            module(torch.randn(*SHAPE), None, "A")
        return sum(sizes.values())

    module = stack(state=False, **BLOCKS[kind]).train()
    everything = kept()
    module.recompute = True
    blocks = len(module.blocks)
    inputs, weights = blocks * torch.Size(SHAPE).numel(), sum(p.numel() for p in module.parameters())
    assert kept() <= inputs + weights + 1000 < everything


def test_recomputation_is_off_on_a_cpu_unless_asked_for() -> None:
    module = stack()
    calls = count_calls(module.blocks[0])
    run(module)
    assert len(calls) == 1


@pytest.mark.parametrize("kind", BLOCKS)
def test_dropout_and_stochastic_depth_act_in_training_only(kind: str) -> None:
    rates = {"core_mha_dropout": 0.4, "core_ff_dropout": 0.4, "core_drop_path": 0.4}
    plain = stack(**BLOCKS[kind], **dict.fromkeys(rates, 0.0)).train()
    dropping = stack(**BLOCKS[kind], **rates).eval()
    assert torch.equal(run(plain)[0], run(dropping)[0])
    dropping.train()
    assert not torch.equal(run(plain)[0], run(dropping)[0])
    for rate in rates:  # each one acts
        assert not torch.equal(run(plain)[0], run(stack(**BLOCKS[kind], **dict.fromkeys(rates, 0.0) | {rate: 0.4}))[0])


def test_drop_path_drops_whole_sequences_and_keeps_the_mean() -> None:
    rate, sequences = 0.3, 20_000
    torch.manual_seed(0)
    x = torch.rand(sequences, 3, 2) + 0.5
    factor = DropPath(rate).train()(x) / x
    torch.testing.assert_close(factor, factor[:, :1, :1].expand_as(factor))
    kept = factor[:, 0, 0] > 0
    torch.testing.assert_close(factor[kept], torch.full_like(factor[kept], 1 / (1 - rate)))
    assert abs(kept.double().mean() - (1 - rate)) < 6 * (rate * (1 - rate) / sequences) ** 0.5
    assert torch.equal(DropPath(rate).eval()(x), x)


def test_the_two_paths_of_a_block_are_dropped_independently() -> None:
    drop = DropPath(0.5).train()
    torch.manual_seed(0)
    first, second = (drop(torch.ones(4000, 1, 1)).flatten() > 0 for _ in range(2))
    assert abs((first == second).double().mean() - 0.5) < 6 * 0.5 / 4000**0.5


def test_drop_path_rescales_bf16_without_a_bias() -> None:
    y = DropPath(0.0505).train()(torch.ones(500, 1, 1, dtype=torch.bfloat16))
    assert y.max().item() == pytest.approx(1 / 0.9495, rel=1e-6)


@pytest.mark.parametrize(("axis", "grid"), [(2, (4, 3)), (1, ())])
def test_generated_positions_are_a_depthwise_convolution(axis: int, grid: tuple[int, ...]) -> None:
    module = stack(axis, state=False, core_pos_encoding=2)
    generators = [m for m in module.modules() if isinstance(m, PositionGenerator)]
    assert len(generators) == 1, "in the first block alone"
    assert module.blocks[0].position_generator is generators[0]
    x = torch.randn(2, 12 if grid else 6, 8)
    weight, bias = generators[0].conv.weight, generators[0].conv.bias
    assert bias is not None
    rows, columns = grid or (1, 6)
    expected = x + bias
    maps = x.unflatten(1, (rows, columns))
    for i in range(rows):
        for j in range(columns):
            for di in (-1, 0, 1) if grid else (0,):
                for dj in (-1, 0, 1):
                    if 0 <= i + di < rows and 0 <= j + dj < columns:
                        tap = weight[:, 0, di + 1, dj + 1] if grid else weight[:, 0, dj + 1]
                        expected[:, i * columns + j] = expected[:, i * columns + j] + tap * maps[:, i + di, j + dj]
    torch.testing.assert_close(generators[0](x), expected)
