"""The operator `viv1t::attention` off CUDA: against its definition, as a PyTorch operator, and its dropout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch._inductor.config
from attention_cases import Case, errors, joined, make_case
from torch import Tensor
from viv1t.kernels.attention import attention, cpu
from viv1t.kernels.attention.reference import attention as definition
from viv1t.kernels.attention.rotary import Rotary


def operator_arguments(case: Case) -> tuple[Any, ...]:
    s = case.settings
    nothing = (None,) * 3
    norms = *(s.q_norm or nothing)[:3], *(s.k_norm or nothing)[:3]
    kind = (s.q_norm.kind, s.q_norm.eps) if s.q_norm is not None else ("layernorm", 1e-5)
    tables = s.rotary or (None, None)
    return case.packed, *norms, *tables, s.seed, s.heads, s.head_dim, s.scale, s.causal, s.dropout, *kind


def call(packed: Tensor, case: Case, parameters: list[Tensor], **options: Any) -> Tensor:
    s = case.settings
    given = {"causal": s.causal, "dropout": s.dropout, "seed": s.seed, **case.options(parameters), **options}
    return attention(packed, s.heads, s.head_dim, s.scale, **given)


def run(case: Case, **options: Any) -> list[Tensor]:
    """Result and gradients."""
    packed = case.packed.detach().requires_grad_()
    parameters = [p.detach().requires_grad_() for p in case.norm_parameters()]
    out = call(packed, case, parameters, **options)
    return [out.detach(), *joined(torch.autograd.grad(out, [packed, *parameters], case.grad))]


@pytest.mark.parametrize("causal", [False, True])
def test_the_definition_is_softmax_attention_of_each_sequence_and_head(causal: bool) -> None:
    case = make_case(dtype=torch.float64, length=5, heads=3, head_dim=4, causal=causal)
    out = case.expected()[0]
    for s in range(2):
        for head in range(3):
            q, k, v = (x[s, :, 4 * head : 4 * head + 4] for x in case.packed.split(12, dim=-1))
            for row in range(5):
                seen = slice(0, row + 1 if causal else 5)
                weights = torch.softmax(case.settings.scale * k[seen] @ q[row], dim=0)
                torch.testing.assert_close(out[s, row, 4 * head : 4 * head + 4], weights @ v[seen])


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "options",
    [
        {"length": 1},
        {"head_dim": 48, "length": 37, "layout": "wide"},
        {"head_dim": 24, "length": 20, "heads": 3, "layout": "frames", "causal": True},
        {"head_dim": 7, "length": 51, "layout": "odd", "sequences": 5},
        {"norm": True},
        {"norm": True, "causal": True, "head_dim": 80, "layout": "wide"},
        {"norm": True, "kind": "rmsnorm", "rotary": True, "registers": 3},
        {"norm": True, "kind": "dyt", "rotary": True, "causal": True, "length": 17, "head_dim": 10},
        {"rotary": True, "causal": True, "length": 300, "head_dim": 80, "sequences": 1, "layout": "frames"},
        {"rotary": True, "registers": 24, "length": 57, "head_dim": 80, "heads": 1},
        {"causal": True, "length": 2, "rotary": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("group", [1, 10**9])  # one sequence at a time, all at once
def test_result_and_gradients_are_the_definition_s(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], dtype: torch.dtype, group: int
) -> None:
    monkeypatch.setattr(cpu, "_GROUP_VALUES", group)
    case = make_case(dtype=dtype, **options)
    out, _, gradients = case.expected()
    assert max(errors(run(case), [out, *gradients])) < case.tolerance()


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("sharpness", [5.0, 40.0])
def test_scores_of_any_size(causal: bool, sharpness: float, dtype: torch.dtype) -> None:
    case = make_case(dtype=dtype, head_dim=24, length=31, causal=causal, sharpness=sharpness)
    out, _, gradients = case.expected()
    tolerance = {torch.float64: 1e-12, torch.float32: 3e-5, torch.bfloat16: 0.1}
    assert max(errors(run(case), [out, *gradients])) < tolerance[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_zeroes_the_result_and_its_gradient_alike(dtype: torch.dtype) -> None:
    case = make_case(sequences=9, length=53, head_dim=48, dtype=dtype, dropout=0.358)
    rate, out = case.settings.dropout, run(case)[0]
    keep = out != 0
    assert abs(keep.double().mean() - (1 - rate)) < 6 * (rate * (1 - rate) / keep.numel()) ** 0.5
    packed = case.packed.double().requires_grad_()
    plain = definition(packed, case.settings.heads, case.settings.head_dim, case.settings.scale)
    expected = torch.where(keep, plain / (1 - rate), 0.0)
    (gradient,) = torch.autograd.grad(expected, packed, case.grad.double())
    assert max(errors(run(case), [expected.detach(), gradient])) < case.tolerance()


def test_threads_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "_GROUP_VALUES", 1)
    case = make_case(sequences=7, length=11, head_dim=5, heads=3, dropout=0.5, norm=True)
    found = run(case)
    threads = torch.get_num_threads()
    torch.set_num_threads(2 if threads == 1 else 1)
    try:
        again = run(case)
    finally:
        torch.set_num_threads(threads)
    for a, b in zip(found, again, strict=True):
        assert torch.equal(a, b)


def test_seeds_are_drawn_from_the_generator_unless_given() -> None:
    case = make_case(dropout=0.5)

    def drawn(seed: int) -> list[Tensor]:
        torch.manual_seed(seed)
        return run(case, seed=None)

    assert torch.equal(drawn(1)[0], drawn(1)[0])
    assert not torch.equal(drawn(1)[0], drawn(2)[0])
    assert torch.equal(run(case)[0], run(case)[0])
    assert not run(case, dropout=1.0)[0].any()
    plain = run(case, dropout=0.0)
    assert not (plain[0] == 0).any()


def test_causal_rows_are_taken_with_the_keys_they_see_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products of a causal case cost a little more than half of the others': no block lies above the diagonal."""
    products = torch.bmm
    costs: list[int] = []

    def counted(a: Tensor, b: Tensor, **options: Any) -> Tensor:
        costs.append(a.numel() * b.shape[-1])
        return products(a, b, **options)

    monkeypatch.setattr(torch, "bmm", counted)
    totals = []
    for causal in (False, True):
        costs.clear()
        run(make_case(length=320, sequences=1, heads=1, head_dim=16, causal=causal))
        totals.append(sum(costs))
    assert totals[1] == pytest.approx(0.6 * totals[0], rel=0.02)  # 15 of 25 blocks of 64 x 64


def test_what_comes_after_changes_no_bit_of_what_came_before() -> None:
    case = make_case(length=150, head_dim=10, causal=True, rotary=True, sharpness=40.0)
    first = call(case.packed, case, [])
    changed = case.packed.clone()
    changed[:, 100:] *= -3
    second = call(changed, case, [])
    assert torch.equal(first[:, :100], second[:, :100])
    assert not torch.equal(first[:, 100:], second[:, 100:])


CASES = [
    make_case(),
    make_case(rotary=True, registers=4, norm=True, kind="dyt"),
    make_case(rotary=True, norm=True, kind="rmsnorm", causal=True),
    make_case(layout="wide", dropout=0.3, causal=True),
    make_case(layout="frames", norm=True, dropout=0.3),
    make_case(dtype=torch.bfloat16, layout="odd"),
]


@pytest.mark.parametrize("case", CASES, ids=["plain", "dyt", "rmsnorm", "wide", "frames", "bfloat16"])
def test_opcheck(case: Case) -> None:
    packed, *rest = operator_arguments(case)
    rest = [x.requires_grad_() if isinstance(x, Tensor) and x.is_floating_point() else x for x in rest]
    torch.library.opcheck(torch.ops.viv1t.attention.default, (packed.requires_grad_(), *rest))
    out, sums = torch.ops.viv1t.attention(packed, *rest)
    tensors = [x.detach() for x in (case.grad, packed, out, sums)]
    turned = case.grad.transpose(1, 2).contiguous().transpose(1, 2)  # a gradient that lies otherwise
    for grad in (case.grad, turned):
        given = [x.detach() if isinstance(x, Tensor) else x for x in rest]
        torch.library.opcheck(torch.ops.viv1t.attention_backward.default, (grad, *tensors[1:], *given))


def test_compiles_whole_for_any_length(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))

    def result(x: Tensor, seed: Tensor) -> Tensor:
        return attention(x, 2, 16, 0.25, dropout=0.3, seed=seed)

    torch._dynamo.reset()
    compiled = torch.compile(result, fullgraph=True, dynamic=True)
    with torch._inductor.config.patch(cpp_cache_precompile_headers=False):  # they take longer than they save
        for length in (9, 23):
            x, seed = torch.randn(3, length, 100, requires_grad=True), torch.tensor([length])
            found, expected = compiled(x, seed), result(x, seed)
            assert torch.equal(found, expected)
            assert torch.equal(*(torch.autograd.grad(y.square().sum(), x)[0] for y in (found, expected)))


def test_a_narrow_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r"packed must be \(S, L, 96 or more\), not \(2, 3, 95\)"):
        attention(torch.zeros(2, 3, 95), 2, 16, 1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head_dim": 5, "rotary": Rotary(torch.zeros(3, 2), torch.zeros(3, 2))}, "must be even, not 5"),
        (
            {"rotary": Rotary(torch.zeros(3, 8), torch.zeros(4, 8))},
            r"must be \(L, d / 2\) = \(3, 8\), not \(3, 8\) and \(4, 8\)",
        ),
        ({"q_weight": torch.ones(32), "norm_kind": "dyt"}, "dyt has an alpha"),
        ({"q_weight": torch.ones(32), "q_bias": torch.ones(32), "norm_kind": "rmsnorm"}, "rmsnorm has no bias"),
        ({"q_weight": torch.ones(32), "norm_kind": "batch"}, "a norm is one of layernorm, rmsnorm, dyt, not batch"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attention(torch.zeros(2, 3, 96), 2, options.pop("head_dim", 16), 1.0, **options)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gpu_gives_what_the_definition_gives(dtype: torch.dtype) -> None:
    case = make_case(4, 435, 11, 48, dtype, dropout=0.358, layout="wide", norm=True)
    out, _, gradients = case.expected()
    assert max(errors(run(case.to(torch.device("cuda"))), [out, *gradients])) < (
        1e-4 if dtype == torch.float32 else 0.1
    )
