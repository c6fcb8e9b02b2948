"""Rotary positions: the published tables, and the turn as a complex product."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from golden_files import golden_folder
from safetensors.torch import load_file
from viv1t.kernels.attention.rotary import Rotary, rotary_tables, rotate

FOLDER = golden_folder().parent / "golden_closed_loop" / "rotary"
CASES: list[dict[str, Any]] = json.loads((FOLDER / "cases.json").read_text()) if FOLDER.exists() else []


@pytest.mark.skipif(not CASES, reason="golden numbers of the second family not found")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_tables_and_turned_queries_are_the_published_ones(case: dict[str, Any]) -> None:
    tensors = load_file(FOLDER / "tables.safetensors")
    given = {k.split("/", 1)[1]: v for k, v in tensors.items() if k.startswith(case["name"] + "/")}
    half, tokens = case["dim"] // 2, case["sequence"] - case["reg_tokens"]
    centre = max(case["num_tokens"], tokens) // 2
    index = given["table_index"]
    tables = rotary_tables(index, given["inv_freq"], given["scale"], centre=centre)
    for ours, theirs in zip(tables, (given["cos"], given["sin"]), strict=True):
        expected = theirs * given["emb_scale"]
        torch.testing.assert_close(ours, expected[:, :half], rtol=0, atol=1e-6 * float(expected.abs().max()))
        assert torch.equal(expected[:, :half], expected[:, half:])
    tables = rotary_tables(
        torch.arange(tokens), given["inv_freq"], given["scale"], centre=centre, registers=case["reg_tokens"]
    )
    for name in "qk":
        x, expected = given[name], given[f"{name}_out"]
        ours = rotate(x.transpose(1, 2).flatten(2), tables, x.shape[1]).unflatten(-1, x.shape[1::2]).transpose(1, 2)
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6 * float(expected.abs().max()))


def test_the_turn_is_a_complex_product_and_registers_stay() -> None:
    torch.manual_seed(0)
    frequency, scale = torch.rand(3, dtype=torch.float64), torch.rand(3, dtype=torch.float64)
    tables = rotary_tables(torch.tensor([5, 2]), frequency, scale, centre=1, registers=1)
    x = torch.randn(4, 3, 12, dtype=torch.float64)
    y = rotate(x, tables, 2)
    for head in (0, 1):
        columns = x[:, :2, 6 * head : 6 * head + 6]
        turned = torch.complex(columns[..., :3], columns[..., 3:])
        m = torch.tensor([[5.0], [2.0]], dtype=torch.float64)
        turned = turned * torch.exp(1j * m * frequency) * scale ** ((m - 1) / 512)
        torch.testing.assert_close(y[:, :2, 6 * head : 6 * head + 6], torch.cat((turned.real, turned.imag), -1))
    assert torch.equal(y[:, 2], x[:, 2])


def test_the_backward_is_the_transpose() -> None:
    x = torch.randn(2, 5, 8, dtype=torch.float64, requires_grad=True)
    tables = Rotary(torch.randn(5, 2, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64))
    grad = torch.randn(2, 5, 8, dtype=torch.float64)
    (expected,) = torch.autograd.grad(rotate(x, tables, 2), x, grad)
    torch.testing.assert_close(rotate(grad, tables, 2, backward=True), expected)
