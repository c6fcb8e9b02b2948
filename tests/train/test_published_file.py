"""Published checkpoints: whole or refused, by whatever loop they were saved."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from tiny_runs import same_weights, weights

import viv1t
from viv1t.errors import CheckpointError
from viv1t.runs.folder import RunFolder, save_published
from viv1t.runs.published_file import read_published


@pytest.fixture
def published(run: Path, tmp_path: Path) -> Path:
    """A published run, to be damaged."""
    return save_published(RunFolder(run), tmp_path / "published")


def content_of(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(folder / "ckpt" / "model_state.pt", weights_only=True)
    return content


def refused(folder: Path, content: Any) -> str:
    torch.save(content, folder / "ckpt" / "model_state.pt")
    with pytest.raises(CheckpointError) as refusal:
        viv1t.load_model(folder)
    return str(refusal.value)


def test_a_flipped_byte_never_loads_as_something_else(tmp_path: Path) -> None:
    """A thousand damaged files: each is refused, or the byte lay where nothing is stored."""
    draw = random.Random(1)
    path = tmp_path / "model_state.pt"
    state = {f"core.{i}.weight": torch.randn(3, i + 1) for i in range(6)} | {"core.norm.steps": torch.tensor(3)}
    torch.save({"epoch": 7, "value": 0.25, "model": state}, path)
    whole = path.read_bytes()
    known = read_published(path)
    refusals = []
    for _ in range(1000):
        place = draw.randrange(len(whole))
        path.write_bytes(whole[:place] + bytes([whole[place] ^ draw.randrange(1, 256)]) + whole[place + 1 :])
        try:
            model, facts = read_published(path)
        except CheckpointError as error:
            refusals.append((place, str(error)))
            continue
        assert facts == known[1], place
        assert same_weights(model, known[0]), place
    assert len({place for place, _ in refusals}) > 200  # much of a small archive is padding between its entries
    for _, line in refusals:
        assert line.startswith(f"{path}: not readable as a checkpoint of tensors (")
        assert line.isprintable(), repr(line)


def test_every_byte_of_a_weight_counts(tmp_path: Path) -> None:
    path = tmp_path / "model_state.pt"
    torch.save({"model": {"weight": torch.full((5,), 1.25)}}, path)
    whole = path.read_bytes()
    start = whole.index(np.full(5, 1.25, np.float32).tobytes())
    for place in range(start, start + 20):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(CheckpointError, match=r"its entry 'data/0' does not fit its checksum: the file is damaged"):
            read_published(path)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_files_cut_short_are_refused(published: Path, share: float) -> None:
    path = published / "ckpt" / "model_state.pt"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(CheckpointError, match=r"cut short; copy it again"):
        viv1t.load_model(published)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (torch.full((6,), torch.nan), "with values that are not finite (1): readouts.F.bias"),
        (torch.full((6,), -torch.inf), "with values that are not finite (1): readouts.F.bias"),
        (torch.full((6,), 1e300, dtype=torch.float64), "with values that are not finite (1): readouts.F.bias"),
        (torch.zeros(6, dtype=torch.complex64), "mistyped (1): readouts.F.bias: torch.complex64"),
        (torch.zeros(6, dtype=torch.int32), "mistyped (1): readouts.F.bias: torch.int32"),
        (torch.zeros(6, device="meta"), "readouts.F.bias holds no values: save the model's state from the CPU"),
        (torch.zeros(6).to_sparse(), "readouts.F.bias holds values on cpu, torch.sparse_coo"),
    ],
    ids=["nan", "infinite", "infinite as float32", "complex", "whole", "meta", "sparse"],
)
def test_weights_that_are_no_weights_are_refused(published: Path, value: torch.Tensor, words: str) -> None:
    content = content_of(published)
    content["model"]["readouts.F.bias"] = value
    assert words in refused(published, content)


def test_doubles_and_halves_are_weights(published: Path) -> None:
    content = content_of(published)
    for name in ("readouts.F.bias", "readouts.G.bias"):
        content["model"][name] = content["model"][name].double()
    torch.save(content, published / "ckpt" / "model_state.pt")
    viv1t.load_model(published)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda name: f"module.{name}",
        lambda name: f"_orig_mod.{name}",
        lambda name: f"module._orig_mod.module.{name}",
        lambda name: name.replace("core.", "core._orig_mod."),  # the core alone is compiled
        lambda name: name.replace("readouts.F.", "readouts.F.module."),
    ],
)
def test_wrapped_models_load(published: Path, wrap: Any) -> None:
    plain = weights(viv1t.load_model(published))
    content = content_of(published)
    content["model"] = {wrap(name): value for name, value in content["model"].items()}
    torch.save(content, published / "ckpt" / "model_state.pt")
    assert same_weights(weights(viv1t.load_model(published)), plain)


def test_a_mouse_may_be_called_module(published: Path) -> None:
    content, args = content_of(published), yaml.safe_load((published / "args.yaml").read_text())
    args["output_shapes"]["module"] = args["output_shapes"].pop("F")
    (published / "args.yaml").write_text(yaml.safe_dump(args))
    for prefix in ("", "module."):
        renamed = {prefix + k.replace(".F.", ".module."): v for k, v in content["model"].items()}
        torch.save(content | {"model": renamed}, published / "ckpt" / "model_state.pt")
        assert "module" in viv1t.load_model(published).mouse_ids


def test_a_name_with_and_without_its_prefix_is_refused(published: Path) -> None:
    content = content_of(published)
    content["model"]["module.readouts.F.bias"] = torch.zeros(6)
    assert "readouts.F.bias is there twice, once as module.readouts.F.bias" in refused(published, content)


@pytest.mark.parametrize(
    "value", [np.float64(0.125), np.float32(0.125), np.float16(0.125), np.int64(-3), np.uint8(200), np.bool_(True)]
)
def test_numpy_scalars_are_numbers(published: Path, value: Any) -> None:
    content = content_of(published)
    torch.save(content | {"value": value, "epoch": value}, published / "ckpt" / "model_state.pt")
    _, facts = read_published(published / "ckpt" / "model_state.pt")
    assert (facts["value"], facts["epoch"]) == (value.item(), value.item())
    assert type(facts["value"]) is type(value.item())
    viv1t.load_model(published)


def test_numpy_stays_refused_outside_and_for_anything_else(published: Path) -> None:
    for value, words in (
        (np.zeros(3), r"it holds numpy\S*\._reconstruct, where tensors, numbers and text are expected"),
        (np.array([None]), r"it holds numpy\S*\._reconstruct, where tensors, numbers and text are expected"),
        (np.complex64(1), "a NumPy value of the type 'c8'"),
        (np.datetime64("2020-01-01"), "a NumPy value of the type 'M8'"),
        (Path("x"), r"it holds pathlib\.PosixPath, where tensors, numbers and text are expected"),
    ):
        line = refused(published, {"model": {}, "value": value})
        assert line.isprintable(), repr(line)
        with pytest.raises(CheckpointError, match=words):
            viv1t.load_model(published)
    torch.save({"value": np.float64(1)}, published / "other.pt")
    with pytest.raises(Exception, match="numpy"):  # what is let through here is let through nowhere else
        torch.load(published / "other.pt", weights_only=True)


def test_files_without_checksums_are_refused(published: Path) -> None:
    torch.save(content_of(published), published / "ckpt" / "model_state.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match="not an archive as PyTorch writes them"):
        viv1t.load_model(published)
