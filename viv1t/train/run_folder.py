"""The run folder: what a run leaves behind, ours and published ones."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch
import yaml
from torch import Tensor

from viv1t.config import RunConfig
from viv1t.errors import CheckpointError, ConfigError
from viv1t.files import replacing, write_text
from viv1t.model.published import from_published, to_published
from viv1t.model.viv1t import Neurons, ViV1T, build_model
from viv1t.train.checkpoint import load_model_entries, read_checkpoint

# Options that may differ when a run goes on: they do not change what is computed.
_FREE = {
    "output_dir", "epochs", "num_workers", "device", "verbose", "save_plots", "dpi", "format", "wandb", "wandb_id",
    "clear_output_dir", "cache_data", "grad_checkpointing", "core_compile",
}  # fmt: skip


class RunFolder:
    """Paths and records of one run."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.args = self.path / "args.yaml"
        self.best = self.path / "ckpt" / "best.safetensors"
        self.last = self.path / "ckpt" / "last.safetensors"
        self.published = self.path / "ckpt" / "model_state.pt"
        self.metrics = self.path / "metrics.csv"
        self.evaluation = self.path / "evaluation.yaml"
        self.log = self.path / "output.log"
        self.plots = self.path / "plots"
        self._lock: IO[str] | None = None

    def exists(self) -> bool:
        """Whether a run was started here."""
        return self.args.is_file()

    def clear(self) -> None:
        """Deletes the run.

        Raises:
            ConfigError: the folder holds something that is not a run.
        """
        if not self.path.exists():
            return
        # The lock may be there already: it is taken before anything is deleted.
        if not self.path.is_dir() or (not self.exists() and {p.name for p in self.path.iterdir()} - {".lock"}):
            raise ConfigError(
                f"--clear_output_dir: {self.path} is not a run folder (it has no args.yaml); "
                "nothing was deleted: choose another --output_dir"
            )
        for entry in self.path.iterdir():
            if entry.name == ".lock":
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()

    def lock(self) -> None:
        """Claims the folder for this process until it ends.

        Raises:
            ConfigError: the folder cannot be written, or another process is at work in it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.path / ".lock", "a")  # noqa: SIM115
        except OSError as error:
            raise ConfigError(f"--output_dir {self.path} cannot be written: {error.strerror or error}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(
                f"another process is training in {self.path}: wait for it or choose another --output_dir"
            ) from error

    def unlock(self) -> None:
        """Gives the folder back."""
        if self._lock is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path / ".lock")
            self._lock.close()
            self._lock = None

    def write_args(self, config: RunConfig, shapes: Mapping[str, Any]) -> None:
        """Writes `args.yaml`: every option by its published name, and the shapes of inputs and outputs."""
        write_text(self.args, yaml.safe_dump(config.to_options() | dict(shapes), sort_keys=True))

    def read_args(self) -> dict[str, Any]:
        """The mapping in `args.yaml`.

        Raises:
            CheckpointError: it is missing or not a mapping.
        """
        if not self.args.is_file():
            raise CheckpointError(f"{self.path} is not a run folder: it has no args.yaml")
        try:
            args = yaml.safe_load(self.args.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{self.args}: not readable as YAML: {' '.join(str(error).split())}") from error
        if not isinstance(args, dict):
            raise CheckpointError(f"{self.args}: a mapping of options was expected, not {type(args).__name__}")
        return args

    def config(self) -> RunConfig:
        """The run's configuration."""
        try:
            return RunConfig.from_published(self.read_args())
        except ConfigError as error:
            raise CheckpointError(f"{self.args}: {error}") from error

    def check_same(self, config: RunConfig) -> None:
        """Raises a ConfigError when the folder's run was made with other options than `config`."""
        before, now = self.config().to_options(), config.to_options()
        differ = [k for k in sorted(before.keys() | now.keys()) if k not in _FREE and before.get(k) != now.get(k)]
        if differ:
            words = ", ".join(f"--{k} {before.get(k)} (now {now.get(k)})" for k in differ)
            raise ConfigError(
                f"{self.path} holds a run made with {words}: give the same options to continue it, choose another "
                "--output_dir, or pass --clear_output_dir to start anew"
            )

    def load_model(self, device: str | torch.device = "cpu") -> ViV1T:
        """The run's best model in evaluation mode; needs no data on disk.

        Raises:
            CheckpointError: the folder is no run, or its checkpoint is missing, damaged or does not fit.
        """
        args = self.read_args()
        config = self.config()
        ours = self.best.is_file()
        if ours:
            entries, _ = read_checkpoint(self.best)
        elif self.published.is_file():
            entries = read_published(self.published)
        else:
            raise CheckpointError(
                f"{self.path} has no checkpoint: neither {self.best.relative_to(self.path)} nor "
                f"{self.published.relative_to(self.path)}; a run writes one at its first "
                "epoch with a positive correlation"
            )
        mice, frame_size = _shapes(args, self.args)
        model = build_model(config, mice, frame_size)
        if ours:
            load_model_entries(model, entries, str(self.best))
        else:
            model.load_state_dict(from_published(model, entries, str(self.published)))
        return model.to(device).eval()


def shapes_of(model: ViV1T, crop_frame: int) -> dict[str, Any]:
    """The `input_shapes` and `output_shapes` of `args.yaml`."""
    height, width = model.frame_size
    frames = crop_frame
    return {
        "input_shapes": {
            "video": [1, frames, height, width], "behavior": [2, frames], "pupil_center": [2, frames],
        },
        "output_shapes": {mouse: [count, frames] for mouse, count in model.neurons.items()},
    }  # fmt: skip


def _shapes(args: Mapping[str, Any], where: Path) -> tuple[dict[str, Neurons], tuple[int, int]]:
    """Mice and frame size from `args.yaml`."""
    try:
        mice = {str(m): Neurons(int(shape[0])) for m, shape in args["output_shapes"].items()}
        height, width = (int(n) for n in args["input_shapes"]["video"][-2:])
        if not mice or min(height, width, *(n.count for n in mice.values())) < 1:
            raise ValueError
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise CheckpointError(
            f"{where}: input_shapes (video: [1, T, H, W]) and output_shapes (mouse: [N, T]) are needed"
        ) from error
    return mice, (height, width)


def read_published(path: Path) -> dict[str, Tensor]:
    """The `model` mapping of a published checkpoint, read without running anything in it.

    Raises:
        CheckpointError: the file is damaged, holds objects other than tensors and numbers, or has no model.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many kinds for damaged files
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{path}: not readable as a checkpoint of tensors ({reason[:200]})") from error
    model = content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in model.items()):
        raise CheckpointError(f"{path}: a mapping with an entry 'model' of named tensors was expected")
    return model


def save_published(run: RunFolder, out: Path) -> Path:
    """Writes a run as a published run folder: `args.yaml` and `ckpt/model_state.pt`.

    The published format is PyTorch's own, read by the authors' analysis code.
    """
    target = RunFolder(out)
    if target.path.exists() and any(target.path.iterdir()):
        raise ConfigError(f"{out} exists and is not empty: choose another folder")
    model = run.load_model()
    facts = read_checkpoint(run.best)[1] if run.best.is_file() else {"epoch": 0, "value": 0.0}
    with replacing(target.published) as temporary:
        torch.save({"epoch": facts["epoch"], "value": facts["value"], "model": to_published(model)}, temporary)
    shapes = {k: v for k, v in run.read_args().items() if k in ("input_shapes", "output_shapes")}
    write_text(target.args, yaml.safe_dump(run.config().to_options() | shapes, sort_keys=True))
    return target.path
