"""Checkpoints: what goes in comes out, and a failed write leaves the old file and nothing else."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from viv1t.errors import CheckpointError
from viv1t.optim.optimization import AdamWOptimization, load_state_entries, state_entries
from viv1t.runs.checkpoint import (
    load_module_entries,
    module_entries,
    read_checkpoint,
    write_checkpoint,
)


def trained(seed: int) -> tuple[dict[str, nn.Module], torch.optim.AdamW]:
    torch.manual_seed(seed)
    modules: dict[str, nn.Module] = {
        "model": nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)),
        "critic": nn.Linear(2, 2),
    }
    optimizer = torch.optim.AdamW([p for m in modules.values() for p in m.parameters()], lr=0.1)
    for _ in range(2):
        (modules["model"](torch.randn(5, 3)).square().sum() + modules["critic"](torch.randn(5, 2)).sum()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return modules, optimizer


def test_tensors_and_facts_come_back_to_the_bit(tmp_path: Path) -> None:
    state = {
        "strided": torch.randn(4, 6).t()[::2], "half": torch.randn(3).bfloat16(), "count": torch.tensor(7),
        "empty": torch.zeros(0, 2), "nan": torch.tensor([float("nan"), -0.0]),
    }  # fmt: skip
    facts = {"epoch": 3, "lr": [0.1 + 0.2, 1e-45], "name": "é\n"}
    write_checkpoint(tmp_path / "ckpt" / "a.safetensors", state, facts)
    tensors, read = read_checkpoint(tmp_path / "ckpt" / "a.safetensors")
    assert read == facts
    assert tensors.keys() == state.keys()
    for key, value in state.items():
        assert tensors[key].dtype == value.dtype
        assert torch.equal(tensors[key].nan_to_num(9), value.nan_to_num(9)), key
    assert [p.name for p in (tmp_path / "ckpt").iterdir()] == ["a.safetensors"]


def test_equal_content_gives_equal_files(tmp_path: Path) -> None:
    for name in "ab":
        modules, optimizer = trained(1)
        entries = module_entries(modules) | state_entries(modules, optimizer)
        write_checkpoint(tmp_path / name, entries, {"epoch": 1, "lr": [0.1], "value": 2})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_modules_and_optimizer_continue_alike() -> None:
    modules, optimizer = trained(1)
    entries = module_entries(modules) | state_entries(modules, optimizer)
    others, other = trained(2)
    load_module_entries(others, entries, "here")
    load_state_entries(others, other, AdamWOptimization.STATE, entries)
    x, y = torch.randn(5, 3), torch.randn(5, 2)
    for m, o in ((modules, optimizer), (others, other)):
        (m["model"](x).square().sum() + m["critic"](y).sum()).backward()
        o.step()
    for name, value in module_entries(modules).items():
        assert torch.equal(value, module_entries(others)[name]), name


def test_entries_of_other_modules_are_left_alone_and_misfits_listed() -> None:
    modules, _ = trained(1)
    entries = module_entries(modules)
    load_module_entries({"model": modules["model"]}, entries, "here")
    entries["model/0.weight"] = torch.zeros(9, 9)
    entries["model/more"] = entries.pop("model/0.bias")
    with pytest.raises(CheckpointError) as refusal:
        load_module_entries({"model": modules["model"]}, entries, "some/file")
    assert str(refusal.value).split("\n") == [
        "some/file does not fit the model that its options describe:",
        "  missing (1): 0.bias",
        "  surplus (1): more",
        "  misshaped (1): 0.weight: expected (4, 3), found (9, 9)",
    ]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    path = tmp_path / "a.safetensors"
    write_checkpoint(path, {"a": torch.zeros(2)}, {"epoch": 1})
    before = path.read_bytes()

    def failing(source: Any, target: Any) -> None:
        assert Path(source).stat().st_size == len(before)
        raise error

    monkeypatch.setattr(os, "replace", failing)
    expected = CheckpointError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        write_checkpoint(path, {"a": torch.ones(2)}, {"epoch": 2})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"a\.safetensors: no checkpoint there"):
        read_checkpoint(tmp_path / "a.safetensors")
