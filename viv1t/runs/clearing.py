"""Which folders are a run's, and which files in one a run has written: `--clear_output_dir` deletes no others."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from pathlib import Path

from viv1t.data.formats.sensorium.recorded import FORMAT as RECORDINGS_FORMAT
from viv1t.system.files import is_leftover
from viv1t.runs.checkpoint import FORMAT as CHECKPOINT_FORMAT

_CHECKPOINTS = tuple(f"ckpt/{name}.safetensors" for name in ("best", "last", "previous", "damaged"))
RECORDINGS = "recordings.safetensors"
_FILES = (
    *_CHECKPOINTS, "model.txt", "metrics.csv", "evaluation.yaml", "output.log", "wandb_id",
    "failure/state.safetensors", "failure/failure.json",
)  # fmt: skip
_PROOFS = ("args.yaml", RECORDINGS)  # replaced by the next run, so that the folder is a run's at every moment
_FOLDERS = ("ckpt", "failure", "plots", "tensorboard")
_FIGURES = ("pdf", "svg", "png")
_EVENTS = "events.out.tfevents."  # how TensorBoard's files begin


def is_ours(folder: Path) -> bool:
    """Whether a folder holds what only a run of this program writes beside `args.yaml`."""
    if any(_has_format(folder / name, CHECKPOINT_FORMAT) for name in _CHECKPOINTS):
        return True
    if _has_format(folder / RECORDINGS, RECORDINGS_FORMAT):
        return True
    # A run of an earlier release that has not come to its first save.
    summary = folder / "model.txt"
    return _is_file(summary) and "\ntrainable parameters " in summary.read_text(encoding="utf-8", errors="replace")


def written_files(folder: Path, mice: list[str]) -> list[Path]:
    """The files in a run folder that runs on these mice write, but for those that the next run replaces."""
    plots = ["learning_curves", "correlation", "readout_positions"]
    plots += [f"{kind}_{mouse}" for mouse in mice for kind in ("responses", "attention")]
    names = [*_FILES, *(f"plots/{plot}.{kind}" for plot in plots for kind in _FIGURES)]
    paths = [folder / name for name in names]
    for part in ("", *_FOLDERS):
        inside = sorted((folder / part).iterdir()) if not part or _is_folder(folder / part) else []
        paths += [p for p in inside if is_leftover(p) or (part == "tensorboard" and p.name.startswith(_EVENTS))]
    return [path for path in paths if _is_file(path) and (path.parent == folder or _is_folder(path.parent))]


def links(folder: Path) -> list[Path]:
    """What has the name of something that a run writes and is a link, or a folder in place of a file."""
    files = (folder / name for name in (*_FILES, *_PROOFS))
    return [p for p in files if p.is_symlink() or p.is_dir()] + [
        p for p in (folder / name for name in _FOLDERS) if p.is_symlink() or p.is_file()
    ]


def clear(folder: Path, mice: list[str]) -> list[str]:
    """Deletes what runs on these mice have written, but for what the next run replaces; returns what else there is."""
    for path in written_files(folder, mice):
        path.unlink()
    for name in _FOLDERS:
        if _is_folder(folder / name) and not any((folder / name).iterdir()):
            (folder / name).rmdir()
    return sorted(_left(folder))


def _left(folder: Path) -> Iterator[str]:
    for path in folder.iterdir():
        if path.name in _FOLDERS and _is_folder(path):
            yield from (f"{path.name}/{inner.name}" for inner in path.iterdir())
        elif not path.name.startswith(".") and path.name not in _PROOFS:
            yield path.name


def _is_file(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _has_format(path: Path, name: str) -> bool:
    """Whether a file is one of safetensors whose header has an entry `name`."""
    if not _is_file(path):
        return False
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > path.stat().st_size:
            return False
        try:
            header = json.loads(file.read(size))
        except ValueError:
            return False
    metadata = header.get("__metadata__") if isinstance(header, dict) else None
    return isinstance(metadata, dict) and name in metadata
