"""Run folders: loading ours and published ones, writing published ones, the lock, and what is refused."""

from __future__ import annotations

import errno
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from golden_files import golden_folder
from safetensors.torch import load_file, save_file
from tiny_runs import options, same_weights, train, weights

import viv1t
from viv1t.errors import CheckpointError, ConfigError
from viv1t.families.sensorium2023.names import published_constants, published_names
from viv1t.families.sensorium2023.run import RunConfig
from viv1t.runs.checkpoint import FORMAT
from viv1t.runs.folder import RunFolder, save_published


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    """A copy of `run` to damage."""
    target = tmp_path / "copy"
    for path in run.rglob("*"):
        if path.is_file():
            (target / path.relative_to(run)).parent.mkdir(parents=True, exist_ok=True)
            (target / path.relative_to(run)).write_bytes(path.read_bytes())
    return target


def golden_cases() -> list[Any]:
    names = [f.name for f in sorted((golden_folder() / "model").glob("*")) if "full_size" not in f.name]
    return names or [pytest.param("", marks=pytest.mark.skip(reason=f"golden numbers not found at {golden_folder()}"))]


# -- loading -----------------------------------------------------------------------------------------------------------


def test_our_run_loads_without_data_and_predicts(run: Path) -> None:
    model = viv1t.load_model(run)
    assert not model.training
    video, state = torch.zeros(2, 1, 30, 36, 64), torch.zeros(2, 2, 30)
    response = model(video, mouse_id="F", behavior=state, pupil_center=state)
    assert response.shape == (2, 6, 26)
    assert model.mouse_ids == ["F", "G"]


@pytest.mark.parametrize("name", golden_cases())
def test_published_runs_load_and_predict(golden: Path, name: str) -> None:
    folder = golden / "model" / name
    model = viv1t.load_model(str(folder))
    tensors = load_file(folder / "tensors.safetensors")
    for mouse in model.mouse_ids:
        video, behavior, pupil_center = (tensors[f"inputs/{v}/{mouse}"] for v in ("video", "behavior", "pupil_center"))
        with torch.no_grad():
            response = model(video, mouse_id=mouse, behavior=behavior, pupil_center=pupil_center)
        expected = tensors[f"outputs/{mouse}"]
        assert response.shape == expected.shape
        if model.config.readout.name != "random":
            assert float((response - expected).norm() / expected.norm()) < 1e-5


def test_options_that_published_runs_lack_take_what_they_had(golden: Path, tmp_path: Path) -> None:
    source = golden / "model" / "03_sequential"
    args = yaml.safe_load((source / "args.yaml").read_text())
    late = ("core_parallel_attention", "core_norm_qk", "core_ff_dropout", "core_ff_activation", "wandb_id")
    for option in late:
        args.pop(option, None)
    (tmp_path / "ckpt").mkdir()
    (tmp_path / "ckpt" / "model_state.pt").write_bytes((source / "ckpt" / "model_state.pt").read_bytes())
    (tmp_path / "args.yaml").write_text(yaml.safe_dump(args))
    assert same_weights(weights(viv1t.load_model(tmp_path)), weights(viv1t.load_model(source)))
    core: Any = RunFolder(tmp_path).config().core
    assert (core.parallel_attention, core.norm_qk, core.ff_activation) == (False, False, "gelu")
    assert core.ff_dropout == core.mha_dropout


# -- writing published runs ------------------------------------------------------------------------------------------


def test_published_folder_has_published_names_and_loads_again(run: Path, tmp_path: Path) -> None:
    out = save_published(RunFolder(run), tmp_path / "out")
    content = torch.load(out / "ckpt" / "model_state.pt", weights_only=True)
    assert (content["epoch"], content["value"]) == (1, 0.25)
    model = viv1t.load_model(run)
    assert set(content["model"]) == {*published_names(model).values(), *published_constants(model)}
    again = viv1t.load_model(out)
    assert same_weights(weights(again), weights(model))
    assert again.config == model.config
    assert sorted(p.name for p in out.rglob("*") if p.is_file()) == ["args.yaml", "model_state.pt"]


def golden_cases() -> list[Any]:
    return [pytest.param(f.parent, id=f.parent.name) for f in sorted(golden_folder().glob("*/*/args.yaml"))]


@pytest.mark.parametrize("source", golden_cases())
def test_published_runs_go_round_unchanged(golden: Path, tmp_path: Path, source: Path) -> None:
    out = save_published(RunFolder(source), tmp_path / "out")
    before, after = (torch.load(f / "ckpt" / "model_state.pt", weights_only=True) for f in (source, out))
    assert same_weights(before["model"], after["model"])
    assert (before["epoch"], before["value"]) == (after["epoch"], after["value"])
    assert RunFolder(out).config() == RunFolder(source).config()
    args = [yaml.safe_load((f / "args.yaml").read_text()) for f in (source, out)]
    # Every entry that the published code writes, of the same type: it reads them as attributes.
    for key, value in args[0].items():
        number = float if type(args[1].get(key)) is float else type(value)  # 1e-08 is text to this reader of YAML
        assert args[1][key] == number(value) if value is not None else args[1][key] is None, key
        assert type(args[1][key]) is type(value) or number is float, key
    assert (args[1]["max_frame"], args[1]["trainable_params"]) == (300, args[0]["trainable_params"])


def test_what_the_published_code_does_not_know_is_said_in_its_words_or_refused(
    run: Path, tmp_path: Path, copy: Path
) -> None:
    args = yaml.safe_load((copy / "args.yaml").read_text())
    (copy / "args.yaml").write_text(yaml.safe_dump(args | {"precision": "tf32", "cache_data": "gpu"}))
    written = yaml.safe_load((save_published(RunFolder(copy), tmp_path / "out") / "args.yaml").read_text())
    assert (written["precision"], written["cache_data"]) == ("32", True)
    # 3 x 5 patches are 3 x 5 in the published code, too; 5 x 3 are not.
    (copy / "args.yaml").write_text(yaml.safe_dump(args | {"core_grid": "true"}))
    save_published(RunFolder(copy), tmp_path / "same")
    taller = {**args["input_shapes"], "video": [1, 40, 60, 36]}  # 5 x 3 patches, as many as they were
    (copy / "args.yaml").write_text(yaml.safe_dump(args | {"core_grid": "true", "input_shapes": taller}))
    with pytest.raises(ConfigError, match="--core_grid true, which the published code does not have"):
        save_published(RunFolder(copy), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_nothing_is_written_over(run: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not an empty folder"):
        save_published(RunFolder(run), tmp_path / "out")
    with pytest.raises(ConfigError, match="not an empty folder"):
        save_published(RunFolder(run), tmp_path / "out" / "mine.txt")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine.txt"]


# -- damaged and foreign runs ----------------------------------------------------------------------------------------


def test_entries_that_do_not_fit_are_listed(run: Path, tmp_path: Path) -> None:
    out = save_published(RunFolder(run), tmp_path / "out")
    path = out / "ckpt" / "model_state.pt"
    content = torch.load(path, weights_only=True)
    state = content["model"]
    state["readouts.F.bias"] = state["readouts.F.bias"][:-1]
    state["surplus.weight"] = state.pop("readouts.G.bias")
    torch.save(content, path)
    with pytest.raises(CheckpointError) as refusal:
        viv1t.load_model(out)
    text = str(refusal.value)
    assert "missing (1): readouts.G.bias" in text
    assert "surplus (1): surplus.weight" in text
    assert "misshaped (1): readouts.F.bias: expected (6,), found (5,)" in text
    assert str(path) in text


def test_our_checkpoint_that_does_not_fit_its_options_is_refused(copy: Path) -> None:
    args = yaml.safe_load((copy / "args.yaml").read_text())
    (copy / "args.yaml").write_text(yaml.safe_dump(args | {"core_emb_dim": 10}))
    with pytest.raises(CheckpointError, match="misshaped"):
        viv1t.load_model(copy)


class Canary:
    """What a malicious pickle does."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_code_in_a_checkpoint_is_refused_and_not_run(copy: Path, tmp_path: Path) -> None:
    (copy / "ckpt" / "best.safetensors").unlink()
    canary = tmp_path / "canary"
    for content in (Canary(canary), {"model": {"a": Canary(canary)}}):
        torch.save(content, copy / "ckpt" / "model_state.pt")
        with pytest.raises(CheckpointError, match=r"model_state\.pt: not readable as a checkpoint of tensors"):
            viv1t.load_model(copy)
        (copy / "ckpt" / "model_state.pt").write_bytes(pickle.dumps(content))
        with pytest.raises(CheckpointError, match=r"model_state\.pt: not readable as a checkpoint of tensors"):
            viv1t.load_model(copy)
    assert not canary.exists()


@pytest.mark.parametrize("content", [[1], {"weights": {}}, {"model": {"a": 3}}, {"model": torch.zeros(2)}])
def test_another_layout_is_refused(copy: Path, content: Any) -> None:
    (copy / "ckpt" / "best.safetensors").unlink()
    torch.save(content, copy / "ckpt" / "model_state.pt")
    with pytest.raises(CheckpointError, match="a mapping with an entry 'model' of named tensors was expected"):
        viv1t.load_model(copy)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_truncated_checkpoints_are_refused(copy: Path, share: float) -> None:
    path = copy / "ckpt" / "best.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(CheckpointError, match=r"best\.safetensors: damaged"):
        viv1t.load_model(copy)


def test_foreign_safetensors_are_refused(copy: Path) -> None:
    path = copy / "ckpt" / "best.safetensors"
    save_file({"a": torch.zeros(3)}, path)
    with pytest.raises(CheckpointError, match="not a checkpoint of this program"):
        viv1t.load_model(copy)
    save_file({"a": torch.zeros(3)}, path, metadata={FORMAT: "{not json"})
    with pytest.raises(CheckpointError, match="damaged"):
        viv1t.load_model(copy)


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: [", "not readable as YAML"), ("- 1\n", "a mapping of options was expected"), ("core: vivit\n", "is required"),
     ("!!python/object/apply:os.getcwd []\n", "not readable as YAML"), ("core: 3\n", "--core must be one of")],
)  # fmt: skip
def test_damaged_args(copy: Path, text: str, message: str) -> None:
    (copy / "args.yaml").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        viv1t.load_model(copy)


@pytest.mark.parametrize("shapes", [None, {}, {"F": []}, {"F": ["many"]}, {"F": [0, 40]}, [3]])
def test_args_without_shapes(copy: Path, shapes: Any) -> None:
    args = yaml.safe_load((copy / "args.yaml").read_text())
    (copy / "args.yaml").write_text(yaml.safe_dump(args | {"output_shapes": shapes}))
    with pytest.raises(CheckpointError, match=r"input_shapes .* and output_shapes .* are needed"):
        viv1t.load_model(copy)


def test_no_run_and_no_checkpoint(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is not a run folder: it has no args\.yaml"):
        viv1t.load_model(tmp_path / "nowhere")
    (copy / "ckpt" / "best.safetensors").unlink()
    with pytest.raises(CheckpointError, match="has no checkpoint"):
        viv1t.load_model(copy)


# -- starting in a folder --------------------------------------------------------------------------------------------


def config_for(mice: Path, folder: Path, **changes: Any) -> RunConfig:
    return RunConfig.from_options(options(mice, folder, **changes))


@pytest.mark.parametrize("clear", [False, True])
def test_a_folder_of_something_else_is_left_alone(mice: Path, tmp_path: Path, clear: bool) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.txt").write_text("words")
    with pytest.raises(ConfigError, match="is not a run folder"):
        train(mice, tmp_path / "thesis", clear_output_dir=clear)
    assert [p.name for p in (tmp_path / "thesis").iterdir()] == ["chapter1.txt"]


def test_a_published_run_is_not_written_over(mice: Path, run: Path, tmp_path: Path) -> None:
    out = save_published(RunFolder(run), tmp_path / "out")
    before = (out / "args.yaml").read_bytes()
    with pytest.raises(ConfigError, match="holds a published run"):
        train(mice, out)
    assert (out / "args.yaml").read_bytes() == before
    train(mice, tmp_path / "further", epochs=0, restore=str(out))


def test_an_empty_folder_and_an_interrupted_first_epoch_are_started_in(mice: Path, copy: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    RunFolder(tmp_path / "empty").check_start(config_for(mice, tmp_path / "empty"))
    (copy / "ckpt" / "last.safetensors").unlink()
    train(mice, copy, epochs=0, batch_size=3)
    assert not (copy / "ckpt" / "best.safetensors").exists()
    assert not (copy / "metrics.csv").exists()
    assert RunFolder(copy).config().data.batch_size == 3


# -- the lock --------------------------------------------------------------------------------------------------------

HOLD = """
import sys
from viv1t.runs.folder import RunFolder
with RunFolder(sys.argv[1]).locked():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_refused(mice: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(
            CheckpointError, match=rf"another process is training in .*run \(process {other.pid} on \S+\): wait"
        ):
            train(mice, folder, clear_output_dir=True)
        assert (folder / ".lock").exists()
        other.kill()
    # The killed process left its file behind, but no lock.
    with RunFolder(folder).locked():
        pass
    assert list(folder.iterdir()) == []


def test_lock_makes_folders_and_takes_empty_ones_away(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    with RunFolder(folder).locked():
        assert folder.is_dir()
    assert not (tmp_path / "a").exists()
    with RunFolder(folder).locked():
        (folder / "result").write_text("")
    assert [p.name for p in folder.iterdir()] == ["result"]


def test_lock_of_a_deleted_file_is_taken_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    flock, calls = fcntl.flock, []

    def deleted_meanwhile(file: int, flags: int) -> None:
        if not calls:
            (tmp_path / ".lock").unlink()
        calls.append(file)
        flock(file, flags)

    monkeypatch.setattr(fcntl, "flock", deleted_meanwhile)
    with RunFolder(tmp_path).locked():
        assert (tmp_path / ".lock").exists()
        assert len(calls) == 2


def test_a_disk_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    def none(*_: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with pytest.raises(CheckpointError, match=r"its disk has no file locks \(No locks available\)"):
        RunFolder(tmp_path / "run").locked().__enter__()


def test_a_path_below_a_file_cannot_be_written(mice: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for target in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(CheckpointError, match=r"--output_dir .* cannot be written"):
            train(mice, target)
