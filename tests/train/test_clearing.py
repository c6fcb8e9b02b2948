"""`--clear_output_dir`: what goes, and what never does."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from tiny_runs import train

from viv1t.errors import ConfigError
from viv1t.runs.clearing import RECORDINGS
from viv1t.runs.folder import RunFolder
from viv1t.system.files import is_leftover


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    """A copy of a finished run, to be cleared."""
    return Path(shutil.copytree(run, tmp_path / "run"))


def content(folder: Path) -> dict[Path, bytes | str]:
    """Every file and link in a folder, but for the lock."""
    return {
        p.relative_to(folder): os.readlink(p) if p.is_symlink() else p.read_bytes()
        for p in folder.rglob("*")
        if (p.is_symlink() or p.is_file()) and p.name != ".lock"
    }


def only_options(folder: Path) -> None:
    """Options of a run, as the published code writes them, beside a thesis."""
    for name in ("ckpt", "model.txt", "metrics.csv", "evaluation.yaml", "output.log", RECORDINGS):
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


FOREIGN: dict[str, Callable[[Path], object]] = {
    "options of another program": lambda f: (f / "args.yaml").write_text("lr: 0.1\nmodel: resnet\n"),
    "no options": lambda f: (f / "args.yaml").write_text("- chapter 1\n- chapter 2\n"),
    "not YAML": lambda f: (f / "args.yaml").write_bytes(b"\0\xff"),
    "options alone": only_options,
}


@pytest.mark.parametrize("clear", [True, None])
@pytest.mark.parametrize("kind", FOREIGN)
def test_a_file_args_yaml_makes_no_run_folder(mice: Path, copy: Path, kind: str, clear: bool | None) -> None:
    FOREIGN[kind](copy)
    (copy / "ckpt" if (copy / "ckpt").exists() else copy).joinpath("thesis.tex").write_text("years")
    before = content(copy)
    with pytest.raises(ConfigError, match=r"is not a run folder of this program, though it has a file args\.yaml"):
        train(mice, copy, epochs=0, clear_output_dir=clear)
    assert content(copy) == before


def test_what_the_engine_did_not_write_stays_and_is_named(mice: Path, copy: Path) -> None:
    mine = {
        "notes.txt": "notes", "ckpt/mine.safetensors": "mine", "plots/responses_of_mine.svg": "drawn",
        "failure/why.txt": "why", "tensorboard/readme": "curves", ".notes.part1.txt": "hidden",
        "predictions/F/0.npy": "", "wandb/offline-run-1/run.wandb": "rows", "old/args.yaml": "data: x",
        "old/ckpt/last.safetensors": "another run",
    }  # fmt: skip
    gone = ("plots/learning_curves.svg", "plots/responses_F.png", "tensorboard/events.out.tfevents.1.host.2.0",
            "failure/failure.json", "ckpt/.best.0a1b2c3d.part.safetensors", "wandb_id")  # fmt: skip
    for name in (*mine, *gone):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_text(mine.get(name, ""))
    (copy / "link").symlink_to(copy / "notes.txt")
    train(mice, copy, epochs=0, clear_output_dir=True, batch_size=3)
    assert {name: (copy / name).read_text() for name in mine} == mine
    assert (copy / "link").is_symlink()
    assert not [name for name in gone if (copy / name).exists()]
    assert not RunFolder(copy).started
    assert RunFolder(copy).config().data.batch_size == 3
    said = next(line for line in (copy / "output.log").read_text().splitlines() if "not written by a run" in line)
    for name in ("notes.txt", "ckpt/mine.safetensors", "plots/responses_of_mine.svg", "old", "wandb", "link"):
        assert name in said
    assert "metrics.csv" not in said


@pytest.mark.parametrize("name", ["ckpt", "ckpt/last.safetensors", "plots", "output.log"])
def test_links_are_not_followed(mice: Path, copy: Path, tmp_path: Path, name: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    if (copy / name).exists():
        (copy / name).rename(elsewhere)
    else:
        elsewhere.mkdir()
        (elsewhere / "correlation.svg").write_text("drawn")
    (copy / name).symlink_to(elsewhere)
    before = content(copy), content(tmp_path)
    with pytest.raises(ConfigError, match=r"is a link.*nothing was deleted"):
        train(mice, copy, epochs=0, clear_output_dir=True)
    assert (content(copy), content(tmp_path)) == before


def test_a_published_run_is_not_cleared(mice: Path, run: Path, tmp_path: Path) -> None:
    from viv1t.runs.folder import save_published

    out = save_published(RunFolder(run), tmp_path / "published")
    before = content(out)
    with pytest.raises(ConfigError, match="holds a published run"):
        train(mice, out, epochs=0, clear_output_dir=True)
    assert content(out) == before


def test_runs_of_earlier_releases_are_known(mice: Path, copy: Path) -> None:
    (copy / RECORDINGS).unlink()
    shutil.rmtree(copy / "ckpt")  # before its first save
    train(mice, copy, epochs=0, clear_output_dir=True)
    assert not (copy / "metrics.csv").exists()


def test_best_weights_without_a_save_are_not_started_over(mice: Path, copy: Path) -> None:
    from viv1t.runs.checkpoint import read_checkpoint, write_checkpoint

    best = copy / "ckpt" / "best.safetensors"
    write_checkpoint(best, read_checkpoint(best)[0], {"epoch": 7, "value": 0.2})
    (copy / "ckpt" / "last.safetensors").unlink()  # to save room
    before = content(copy)
    with pytest.raises(ConfigError, match="the weights of epoch 7, but no save to go on from"):
        train(mice, copy, epochs=9)
    assert content(copy) == before


def test_a_start_that_was_killed_is_started_again(mice: Path, copy: Path) -> None:
    for path in copy.iterdir():
        if path.name != RECORDINGS:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    train(mice, copy, epochs=0)
    assert yaml.safe_load((copy / "args.yaml").read_text())["epochs"] == 0


def test_leftovers_are_known_by_their_whole_name() -> None:
    assert is_leftover(Path(".best.0a1b2c3d.part.safetensors"))
    assert is_leftover(Path(".args.00000000.part"))
    assert not any(is_leftover(Path(n)) for n in (".my.part.txt", ".notes.part1", "a.0a1b2c3d.part.npy", ".partners"))
