"""The parallel block: definition, operator and every gradient against float64; dropping, threads, memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from attention_cases import drawn_tables
from rounding import allowed
from torch import Tensor
from viv1t.kernels.common.activations import ACTIVATIONS, activate, activate_backward
from viv1t.kernels.common.norms import Norm, norm, normalise
from viv1t.kernels.parallel_block import BlockSettings, BlockWeights, cpu, parallel_block
from viv1t.kernels.parallel_block.operator import around_attention
from viv1t.kernels.parallel_block.reference import Kept
from viv1t.kernels.parallel_block.reference import parallel_block as definition

# shape: S, L, D, heads, d, mlp
FAMILY: dict[str, dict[str, Any]] = {
    "temporal": {"shape": (3, 17, 24, 2, 10, 14), "activation": "relu", "causal": True, "registers": 0},
    "spatial": {"shape": (2, 57, 12, 1, 8, 9), "activation": "relu", "registers": 24},
    "long": {"shape": (2, 300, 8, 1, 6, 5), "activation": "relu", "causal": True, "registers": 0},
    "one frame": {"shape": (4, 1, 8, 1, 4, 3), "activation": "relu", "causal": True, "registers": 0},
    "two frames": {"shape": (4, 2, 8, 1, 4, 3), "activation": "none", "causal": True, "registers": 0},
    "rmsnorm": {"shape": (5, 9, 12, 3, 4, 7), "activation": "tanh", "norm": "rmsnorm", "norm_qk": True},
    "dyt": {"shape": (5, 9, 12, 3, 4, 7), "swiglu": True, "norm": "dyt", "norm_qk": True, "registers": 2},
    "dyt alone": {"shape": (5, 9, 12, 3, 4, 7), "activation": "elu", "norm": "dyt", "causal": True},
    "silu": {"shape": (5, 9, 12, 3, 5, 7), "activation": "silu", "norm": "rmsnorm", "causal": True},
    "head of 80": {"shape": (1, 57, 112, 2, 80, 224), "activation": "relu", "causal": True, "registers": 0},
}

pytestmark = pytest.mark.usefixtures("poisoned")

SEED = torch.tensor([2**62 + 12345])
# S, L, D, heads, d, mlp
SHAPES = {"odd": (9, 7, 12, 3, 5, 7), "one": (1, 33, 20, 3, 16, 10), "shortest": (4, 1, 8, 1, 4, 3)}
VARIANTS = {"gelu": (False, False), "swiglu": (True, False), "norm_qk": (False, True), "both": (True, True)}


# An rmsnorm's is small in published models: with a larger one, a wrong place for it shows.
EPS = {"layernorm": 1e-5, "rmsnorm": 0.3, "dyt": 1e-5}


def make(
    shape: tuple[int, ...],
    swiglu: bool = False,
    norm_qk: bool = False,
    spread: float = 1.0,
    activation: str = "gelu",
    norm: str = "layernorm",
    causal: bool = False,
) -> tuple[Tensor, BlockWeights, BlockSettings]:
    """Input, weights and settings in float64, with gradients asked for."""
    generator = torch.Generator().manual_seed(0)

    def draw(*size: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(*size, generator=generator, dtype=torch.float64)).requires_grad_()

    sequences, length, depth, heads, d, mlp = shape
    activation = "swiglu" if swiglu else activation
    inner, hidden = heads * d, mlp * (2 if activation == "swiglu" else 1)
    weights = [
        draw(depth), draw(depth), draw(3 * inner + hidden, depth, scale=spread * depth**-0.5),
        draw(depth, inner, scale=inner**-0.5), draw(depth, mlp, scale=mlp**-0.5),
    ]  # fmt: skip
    norms: list[Tensor | None] = [draw(inner) for _ in range(4)] if norm_qk else [None] * 4
    alphas = [draw(1) if norm == "dyt" and (norm_qk or not i) else None for i in range(3)]
    found = BlockWeights(*weights, *norms, *alphas)
    if norm == "rmsnorm":
        found = found._replace(norm_bias=None, q_bias=None, k_bias=None)
    settings = BlockSettings(
        heads, d**-0.5, dtype=torch.float64, activation=activation, norm=norm, causal=causal, eps=EPS[norm]
    )
    return draw(sequences, length, depth), found, settings


def given(weights: BlockWeights) -> list[Tensor]:
    return [w for w in weights if w is not None]


def converted(weights: BlockWeights, dtype: torch.dtype) -> BlockWeights:
    return BlockWeights(*(None if w is None else w.detach().to(dtype).requires_grad_() for w in weights))


def results(y: Tensor, x: Tensor, weights: BlockWeights) -> list[Tensor]:
    """y, and the gradients of x and the weights for a fixed gradient of y, in another order of memory than y."""
    above = torch.randn(y.shape[::-1], generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return [y, *torch.autograd.grad(y, [x, *given(weights)], above.permute(2, 1, 0).to(y.dtype))]


def kept(x: Tensor, weights: BlockWeights, settings: BlockSettings) -> Kept:
    """What the operator keeps on a CPU for SEED."""
    drawn = []
    for lane, groups in enumerate(cpu.block_lanes(x.shape, weights)):
        generator = cpu.lane_generator(int(SEED), lane)
        drawn += [cpu.draw_masks(generator, g.stop - g.start, x.shape[1], weights, settings) for g in groups]
    attention, ff, paths = (torch.cat(parts).bool() for parts in zip(*drawn, strict=True))
    return Kept(attention.view(*x.shape[:2], -1), ff.view(*x.shape[:2], -1), paths)


def tolerance(shape: tuple[int, ...], dtype: torch.dtype) -> float:
    """What rounding may change in the result and gradients, relative to their norms."""
    sequences, length, depth, heads, d, mlp = shape
    inner = heads * d
    through = (depth, depth, inner, d, length, length, inner, mlp)  # norms, products, the softmax, in order
    return allowed(dtype, *2 * through, sequences * length)  # forward, backward, the weights' gradients


def joined(found: list[Tensor], weights: BlockWeights) -> list[Tensor]:
    """The same, each norm's gradients as one vector: those of alphas and of the keys' bias may be sums that cancel."""
    names = [name for name, w in weights._asdict().items() if w is not None]
    grads = dict(zip(names, found[2:], strict=True))
    for name in [name for name in names if name.endswith(("alpha", "bias"))]:
        weight = name.rsplit("_", 1)[0] + "_weight"
        grads[weight] = torch.cat((grads[weight], grads.pop(name)))
    return [*found[:2], *grads.values()]


def assert_close(found: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    for a, b in zip(found, expected, strict=True):
        # The gradient of the keys' bias is zero but for rounding.
        floor = 1e-3 if b.norm() > 1e-6 else 10.0
        assert (a - b).detach().norm() <= tolerance * max(float(b.detach().norm()), floor)


@pytest.mark.parametrize("variant", VARIANTS)
def test_definition_is_the_block_written_out(variant: str) -> None:
    x, w, settings = make(SHAPES["odd"], *VARIANTS[variant])
    normalised = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    q, k, v, f = ((normalised * w.norm_weight + w.norm_bias) @ w.fused.T).split(w.widths, dim=-1)
    if w.q_weight is not None:
        q, k = F.layer_norm(q, (15,), w.q_weight, w.q_bias), F.layer_norm(k, (15,), w.k_weight, w.k_bias)
    heads = [
        torch.softmax(q[..., h] @ k[..., h].mT * 5**-0.5, dim=-1) @ v[..., h]
        for h in (slice(0, 5), slice(5, 10), slice(10, 15))
    ]
    f = f[..., :7] * f[..., 7:] * torch.sigmoid(f[..., 7:]) if settings.swiglu else f * (1 + torch.erf(f / 2**0.5)) / 2
    expected = x + torch.cat(heads, -1) @ w.attention_out.T + f @ w.ff_out.T
    torch.testing.assert_close(definition(x, w, settings), expected)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_form_for_gpus_is_the_definition(variant: str) -> None:
    x, weights, settings = make(SHAPES["odd"], *VARIANTS[variant])
    expected = results(definition(x, weights, settings), x, weights)
    assert_close(results(around_attention(x, weights, settings), x, weights), expected, 1e-12)
    dropping = settings._replace(attention_dropout=0.4, ff_dropout=0.2, drop_path=0.3)
    with torch.no_grad():
        draws = torch.stack([around_attention(x, weights, dropping) for _ in range(400)])
    error = (draws.mean(0) - expected[0]) / (draws.std(0) / len(draws) ** 0.5)
    assert error.abs().max() < 6
    every = settings._replace(attention_dropout=1.0, ff_dropout=0.0, drop_path=0.0)
    assert not torch.equal(around_attention(x, weights, every), expected[0])


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("dropping", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_operator_is_the_definition(shape: str, variant: str, dropping: bool, keep: bool) -> None:
    x, weights, settings = make(SHAPES[shape], *VARIANTS[variant])
    if dropping:
        settings = settings._replace(attention_dropout=0.3, ff_dropout=0.2, drop_path=0.4)
    expected = results(definition(x, weights, settings, kept(x, weights, settings) if dropping else None), x, weights)
    for dtype in (torch.float64, torch.float32):
        a, w = x.detach().to(dtype).requires_grad_(), converted(weights, dtype)
        y = parallel_block(a, w, settings._replace(dtype=dtype), keep=keep, seed=SEED)
        assert_close(results(y, a, w), expected, tolerance(SHAPES[shape], dtype))


@pytest.mark.parametrize("dropping", [False, True])
@pytest.mark.parametrize("name", FAMILY)
def test_operator_is_the_definition_with_what_the_second_family_needs(name: str, dropping: bool) -> None:
    case = FAMILY[name]
    shape = case["shape"]
    x, weights, settings = make(shape, **{k: v for k, v in case.items() if k not in ("shape", "registers")})
    rotary = drawn_tables(shape[1], shape[4], case.get("registers", 0), torch.float64) if "registers" in case else None
    if dropping:
        settings = settings._replace(attention_dropout=0.3, ff_dropout=0.2, drop_path=0.4)
    masks = kept(x, weights, settings) if dropping else None
    expected = joined(results(definition(x, weights, settings, masks, rotary=rotary), x, weights), weights)
    if not dropping:
        found = results(around_attention(x, weights, settings, rotary), x, weights)
        assert_close(joined(found, weights), expected, 1e-12)
    for dtype, keep in ((torch.float64, False), (torch.float32, True)):
        a, w = x.detach().to(dtype).requires_grad_(), converted(weights, dtype)
        y = parallel_block(a, w, settings._replace(dtype=dtype), rotary=rotary, keep=keep, seed=SEED)
        assert_close(joined(results(y, a, w), w), expected, tolerance(shape, dtype))


def test_the_definition_s_activations_and_norms_are_what_they_are_called() -> None:
    x = torch.linspace(-3, 3, 24, dtype=torch.float64).view(2, 12)
    first, second = x.chunk(2, dim=-1)
    values = {
        "none": x, "tanh": x.tanh(), "elu": torch.where(x > 0, x, x.exp() - 1), "relu": x.clamp_min(0),
        "gelu": x * (1 + torch.erf(x / 2**0.5)) / 2, "silu": x / (1 + (-x).exp()),
        "swiglu": second / (1 + (-second).exp()) * first,
    }  # fmt: skip
    assert set(values) == set(ACTIVATIONS)
    for name, expected in values.items():
        torch.testing.assert_close(activate(x, name), expected)
        leaf = x.clone().requires_grad_()
        grad = torch.arange(expected.numel(), dtype=x.dtype).view(expected.shape)
        out = torch.full_like(x, float("nan"))
        activate_backward(grad, x, name, out)
        torch.testing.assert_close(out, torch.autograd.grad(activate(leaf, name), leaf, grad)[0])
    weight, bias, alpha = torch.rand(12).double(), torch.rand(12).double(), torch.tensor([0.7]).double()
    centred = x - x.mean(-1, keepdim=True)
    of_norms = {
        Norm(weight, bias, eps=0.1): centred / (centred.square().mean(-1, keepdim=True) + 0.1).sqrt() * weight + bias,
        Norm(weight, kind="rmsnorm", eps=0.1): x / (x.square().mean(-1, keepdim=True) + 0.1).sqrt() * weight,
        Norm(weight, bias, alpha, "dyt"): torch.tanh(0.7 * x) * weight + bias,
    }
    for n, expected in of_norms.items():
        torch.testing.assert_close(norm(x, n), expected)
        assert torch.equal(normalise(x, n).y, norm(x, n)) or (normalise(x, n).y - norm(x, n)).abs().max() < 1e-14


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"activation": "swish"}, "an activation is one of none, tanh, elu, relu, gelu, silu, swiglu, not swish"),
        ({"activation": "swiglu"}, "with swiglu, the fused weight has 59 rows, not 52"),
        ({"norm": "dyt"}, "dyt has an alpha"),
    ],
)
def test_weights_that_do_not_fit_are_refused(settings: dict[str, Any], message: str) -> None:
    x, weights, given = make(SHAPES["odd"])
    with pytest.raises(ValueError, match=message):
        parallel_block(x, weights, given._replace(**settings))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_full_width(dtype: torch.dtype) -> None:
    shape = (5, 61, 112, 11, 48, 136)
    x, weights, settings = make(shape)
    settings = settings._replace(attention_dropout=0.3, ff_dropout=0.2, drop_path=0.2)
    expected = results(definition(x, weights, settings, kept(x, weights, settings)), x, weights)
    stored = torch.promote_types(dtype, torch.float32)
    a, w = x.detach().to(stored).requires_grad_(), converted(weights, stored)
    found = results(parallel_block(a, w, settings._replace(dtype=dtype), seed=SEED), a, w)
    assert {t.dtype for t in found} == {stored}
    assert_close(found, expected, tolerance(shape, dtype))


@pytest.mark.parametrize("keep", [False, True])
def test_scores_of_any_size(keep: bool) -> None:
    x, weights, settings = make(SHAPES["odd"], spread=30.0)
    expected = results(definition(x, weights, settings), x, weights)
    assert_close(results(parallel_block(x, weights, settings, keep=keep), x, weights), expected, 1e-10)
    a, w = x.detach().float().requires_grad_(), converted(weights, torch.float32)
    for t in results(parallel_block(a, w, settings._replace(dtype=torch.float32), keep=keep), a, w):
        assert t.isfinite().all()


@pytest.mark.parametrize("groups", ["one", "many"])
def test_threads_and_strides_change_no_bit(monkeypatch: pytest.MonkeyPatch, groups: str) -> None:
    if groups == "many":
        monkeypatch.setattr(cpu, "_GROUP_VALUES", 1)
    x, weights, settings = make((40, 9, 16, 2, 8, 5))
    settings = BlockSettings(2, 0.3, 0.3, 0.2, 0.2, dtype=torch.float32)
    w = converted(weights, torch.float32)
    found = []
    threads = torch.get_num_threads()
    for count in (1, 2, 5):
        a = x.detach().float().requires_grad_()
        given = a if count < 5 else a.transpose(0, 1).contiguous().transpose(0, 1)
        torch.set_num_threads(count)
        try:
            found.append(results(parallel_block(given, w, settings, seed=SEED), a, w))
            assert torch.get_num_threads() == count
        finally:
            torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("rate", ["attention_dropout", "ff_dropout", "drop_path"])
def test_dropping_keeps_the_mean_and_follows_the_seed(rate: str) -> None:
    x, weights, settings = make((6, 5, 8, 2, 4, 6))
    dropping = settings._replace(**{rate: 0.4})
    with torch.no_grad():
        expected = parallel_block(x, weights, settings)
        draws = torch.stack([parallel_block(x, weights, dropping, seed=torch.tensor([i])) for i in range(600)])
        torch.manual_seed(0)
        first, second = (parallel_block(x, weights, dropping) for _ in range(2))
        torch.manual_seed(0)
        again = parallel_block(x, weights, dropping)
    error = (draws.mean(0) - expected) / (draws.std(0) / len(draws) ** 0.5)
    assert error.abs().max() < 6
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


def test_everything_dropped_leaves_the_input() -> None:
    x, weights, settings = make(SHAPES["odd"])
    y = parallel_block(x, weights, settings._replace(attention_dropout=1.0, ff_dropout=1.0))
    assert torch.equal(y, x)


@pytest.mark.parametrize(("keep", "dtype"), [(False, torch.float32), (True, torch.float32), (True, torch.bfloat16)])
def test_training_keeps_the_input_or_what_was_asked_for(keep: bool, dtype: torch.dtype) -> None:
    x, weights, settings = make((20, 30, 16, 2, 8, 5))
    a, w = x.detach().float().requires_grad_(), converted(weights, torch.float32)
    settings = settings._replace(attention_dropout=0.3, ff_dropout=0.2, drop_path=0.2, dtype=dtype)
    sizes: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        sizes[t.data_ptr()] = t.nbytes
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        parallel_block(a, w, settings, keep=keep)
    # The fused projection and the attention's result, and its rows' sums in float32.
    kept = 20 * 30 * ((w.fused.shape[0] + w.inner) * dtype.itemsize + settings.heads * 4) if keep else 0
    assert sum(sizes.values()) == a.nbytes + sum(t.nbytes for t in given(w)) + SEED.nbytes + kept


@pytest.mark.parametrize("norm_qk", [False, True])
@pytest.mark.parametrize("keep", [False, True])
def test_opcheck(keep: bool, norm_qk: bool) -> None:
    torch.use_deterministic_algorithms(False)  # it compares what was left unwritten too
    x, weights, _ = make((3, 4, 8, 2, 4, 6), norm_qk=norm_qk)
    settings = BlockSettings(2, 0.5, 0.3, 0.2, 0.2, dtype=torch.float64)
    for a in (x, x.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()):
        torch.library.opcheck(torch.ops.viv1t.parallel_block.default, (a, *weights, None, None, SEED, *settings, keep))


def test_opcheck_of_the_second_family() -> None:
    torch.use_deterministic_algorithms(False)
    for kind, activation in (("dyt", "relu"), ("rmsnorm", "swiglu")):
        x, weights, settings = make((3, 4, 8, 2, 4, 6), False, True, activation=activation, norm=kind, causal=True)
        arguments = (x, *weights, *drawn_tables(4, 4, 1, x.dtype), None, *settings, False)
        torch.library.opcheck(torch.ops.viv1t.parallel_block.default, arguments)


def test_compiles_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.use_deterministic_algorithms(False)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    x, weights, settings = make((3, 4, 8, 2, 4, 6))
    settings = settings._replace(attention_dropout=0.3, drop_path=0.2)
    compiled = torch.compile(parallel_block, fullgraph=True, backend="aot_eager")
    expected = results(parallel_block(x, weights, settings, seed=SEED), x, weights)
    found = results(compiled(x, weights, settings, seed=SEED), x, weights)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
