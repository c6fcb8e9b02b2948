"""The run folder: what a run leaves behind, ours and published ones."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from viv1t.config.fields import flag_of
from viv1t.data.formats.sensorium.recorded import Recorded
from viv1t.data.survey import LETTERS
from viv1t.errors import CheckpointError, ConfigError, check_run_folders
from viv1t.families.family import Family
from viv1t.families.known import FAMILIES, AnyConfig, family_for, family_of
from viv1t.system.files import replacing, write_text
from viv1t.system.locks import Lock, LockedError, NoLocksError
from viv1t.families.sensorium2023.names import check_entries
from viv1t.model.twin import Neurons, ViV1T
from viv1t.optim.optimization import weights_to_evaluate
from viv1t.system.safe_yaml import dump_yaml, read_yaml
from viv1t.runs.checkpoint import Progressed, read_checkpoint, read_newest
from viv1t.runs.clearing import RECORDINGS, clear, is_ours, links
from viv1t.runs.published_file import read_published
from viv1t.types import sample_frames

log = logging.getLogger("viv1t.train")

# Options that may differ when a run goes on: they do not change what is computed. With cosine rates, epochs do. Which
# recordings `data` and `mouse_ids` come to is compared by what they hold. Micro batches change a little, as the
# criterion's correlations are within them, but memory may leave no choice.
_FREE = {
    "output_dir", "epochs", "num_workers", "device", "verbose", "save_plots", "dpi", "format", "wandb", "wandb_id",
    "clear_output_dir", "cache_data", "grad_checkpointing", "core_compile", "no_compile", "save_every",
    "reader_timeout", "data", "data_dir", "mouse_ids", "micro_batch_size", "compile",
}  # fmt: skip


class RunFolder:
    """Paths and records of one run."""

    def __init__(self, path: str | Path) -> None:
        self._folder: int | None = None  # a descriptor, while locked
        self._place(Path(path))

    def _place(self, path: Path) -> None:
        self.path = path
        self.args = self.path / "args.yaml"
        self.best = self.path / "ckpt" / "best.safetensors"
        self.last = self.path / "ckpt" / "last.safetensors"
        self.previous = self.path / "ckpt" / "previous.safetensors"
        self.metrics = self.path / "metrics.csv"
        self.evaluation = self.path / "evaluation.yaml"
        self.log = self.path / "output.log"
        self.plots = self.path / "plots"
        self.failure = self.path / "failure"
        self.recordings = self.path / RECORDINGS

    @property
    def published(self) -> Path | None:
        """The checkpoint of a published run, of whatever family; None where there is none."""
        found = [self.path / family.weights for family in FAMILIES.values() if (self.path / family.weights).is_file()]
        return found[0] if found else None

    def exists(self) -> bool:
        """Whether a run was started here."""
        return self.args.is_file()

    @property
    def started(self) -> bool:
        """Whether there is a save to go on from."""
        return self.last.is_file() or self.previous.is_file()

    def check_start(self, config: AnyConfig) -> None:
        """Whether a run can be started, continued or, with `clear_output_dir`, replaced here; changes nothing.

        Raises:
            ConfigError: the folder holds something else, or a run with other options.
        """
        # The lock is taken before this, and hidden files are nobody's results.
        strangers = [p for p in self.path.iterdir() if not p.name.startswith(".") and p != self.recordings]
        if not self.exists() and strangers:
            raise ConfigError(
                f"--output_dir {self.path} is not a run folder (it has no args.yaml), and not empty; nothing was "
                "deleted: choose another folder"
            )
        if self.published is not None and not self.started:
            raise ConfigError(
                f"--output_dir {self.path} holds a published run, which cannot be continued in place: start from it "
                f"with --restore {self.path} and another --output_dir"
            )
        if self.exists():
            self._check_ours()
        if config.train.clear_output_dir:
            if linked := links(self.path):
                raise ConfigError(
                    f"--clear_output_dir: {linked[0]} is a link, or not what a run writes by this name; nothing was "
                    "deleted: delete it yourself, or choose another --output_dir"
                )
        elif self.started:
            self._check_same(config)
        elif self.best.is_file() and (epoch := read_checkpoint(self.best)[1].get("epoch", 0)) > 1:
            raise ConfigError(
                f"{self.path} holds the weights of epoch {epoch}, but no save to go on from ({self.last.name}): start "
                f"from them with --restore {self.path} and another --output_dir, or pass --clear_output_dir"
            )

    def _check_ours(self) -> None:
        """Raises a ConfigError unless the folder proves to be a run of this program: a name alone is no proof."""
        try:
            self.config()
            _shapes(self.read_args(), self.args)
            if is_ours(self.path):
                return
            reason = "nothing else in it is of a run"
        except CheckpointError as error:
            reason = str(error)
        raise ConfigError(
            f"--output_dir {self.path} is not a run folder of this program, though it has a file args.yaml ({reason}); "
            "nothing was deleted: choose another folder"
        )

    def clear(self) -> None:
        """Deletes what the run in the folder has written; names what else is there, which stays."""
        if self.exists() and (left := clear(self.path, self.mouse_ids())):
            log.warning("--clear_output_dir: %s: not written by a run, and left as it is", ", ".join(left))

    def discard_results(self) -> None:
        """Deletes what a run interrupted in its first epoch may have left."""
        for path in (self.best, self.metrics, self.evaluation):
            path.unlink(missing_ok=True)

    def follow(self) -> Path | None:
        """Where the folder was before it was moved while it was locked, once its paths are those of the new place.

        Returns:
            None where it has not been moved.

        Raises:
            CheckpointError: it was deleted, or is nowhere to be found.
        """
        if self._folder is None:
            return None
        known = os.fstat(self._folder)

        def is_at(path: Path) -> bool:
            try:
                return os.path.samestat(known, path.stat())
            except OSError:
                return False

        if is_at(self.path):
            return None
        before = self.path
        with contextlib.suppress(OSError):
            now = Path(os.readlink(f"/proc/self/fd/{self._folder}"))
            if is_at(now):
                self._place(now)
                return before
        raise CheckpointError(
            f"--output_dir {before} was deleted or moved to another disk while it was used, and nothing more can be "
            "saved in it: if there is a copy, it goes on from its last save with --output_dir and its path"
        )

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Claims the folder, made when missing, for this process; folders that stay empty are taken away again.

        Raises:
            CheckpointError: the folder cannot be written, or another process is at work in it.
        """
        try:
            made = [p for p in (self.path, *self.path.parents) if not p.exists()]
            self.path.mkdir(parents=True, exist_ok=True)
            lock = Lock(self.path / ".lock")
            self._folder = folder = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except LockedError as error:
            holder = f" ({error.holder})" if error.holder else ""
            raise CheckpointError(
                f"another process is training in {self.path}{holder}: wait for it or choose another --output_dir"
            ) from error
        except NoLocksError as error:
            raise CheckpointError(
                f"--output_dir {self.path}: its disk has no file locks ({error.strerror}), so nothing would keep a "
                "second process out: choose a folder on another disk"
            ) from error
        except OSError as error:
            raise CheckpointError(f"--output_dir {self.path} cannot be written: {error.strerror or error}") from error
        try:
            yield
        finally:
            with contextlib.suppress(CheckpointError):  # what is there in place of this folder is another's
                self.follow()
            lock.path = self.path / ".lock"
            lock.release()
            self._folder = None
            os.close(folder)
            with contextlib.suppress(OSError):
                for empty in made:
                    empty.rmdir()

    def write_args(self, config: AnyConfig, facts: Mapping[str, Any]) -> None:
        """Writes `args.yaml`: every option by its published name, and facts, as the shapes of inputs and outputs."""
        write_text(self.args, dump_yaml(config.to_options() | dict(facts), sort_keys=True))

    def note_data(self, data: Any) -> None:
        """Writes down where the run's recordings lie now, from its data's configuration."""
        args, flag = self.read_args(), flag_of(data, "path")
        if args.get(flag) != data.path:
            write_text(self.args, dump_yaml(args | {flag: data.path}, sort_keys=True))

    def read_args(self) -> dict[str, Any]:
        """The mapping in `args.yaml`.

        Raises:
            CheckpointError: it is missing or not a mapping.
        """
        check_run_folders([self.path])
        try:
            args = read_yaml(self.args)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self.args}: {error}") from error
        if not isinstance(args, dict):
            raise CheckpointError(f"{self.args}: a mapping of options was expected, not {type(args).__name__}")
        return args

    def family(self) -> Family:
        """The family of models that the run belongs to.

        Raises:
            CheckpointError: its options are of several.
        """
        try:
            return family_of(self.read_args())
        except ConfigError as error:
            raise CheckpointError(f"{self.args}: {error}") from error

    def config(self) -> Any:
        """The run's configuration, of its family's kind."""
        try:
            return self.family().config(self.read_args())
        except ConfigError as error:
            raise CheckpointError(f"{self.args}: {error}") from error

    def _check_same(self, config: AnyConfig) -> None:
        family = family_for(config)
        if self.family() is not family:
            raise ConfigError(
                f"{self.path} holds a run of the family of {self.family().name}, and these options are of that of "
                f"{family.name}: choose another --output_dir, or pass --clear_output_dir to start anew"
            )
        before, now = self.config().to_options(), config.to_options()
        free = _FREE - {"epochs"} if getattr(config.optimizer, "schedule", None) == "cosine" else _FREE
        differ = [k for k in sorted(before.keys() | now.keys()) if k not in free and before.get(k) != now.get(k)]
        mice = [frozenset(LETTERS.get(m, m) for m in options.get("mouse_ids") or ()) for options in (before, now)]
        if all(mice) and mice[0] != mice[1]:
            differ.append("mouse_ids")
        if differ:
            words = ", ".join(f"--{k} {before.get(k)} (now {now.get(k)})" for k in differ)
            raise ConfigError(
                f"{self.path} holds a run made with {words}: give the same options to continue it, choose another "
                "--output_dir, or pass --clear_output_dir to start anew"
            )

    def mouse_ids(self) -> list[str]:
        """The run's mice."""
        return list(_shapes(self.read_args(), self.args)[0])

    def recorded(self) -> Recorded | None:
        """What the run knows of its recordings; None for published runs, and those of releases that kept nothing.

        Raises:
            CheckpointError: the file is damaged, or another run's.
        """
        if not self.recordings.is_file():
            return None
        recorded = Recorded(self.recordings)
        counts = {mouse: known.neurons for mouse, known in recorded.mice.items()}
        if counts != {mouse: neurons.count for mouse, neurons in _shapes(self.read_args(), self.args)[0].items()}:
            raise CheckpointError(f"{self.recordings}: belongs to another run: its mice or neurons are not the run's")
        return recorded

    def build_model(self) -> ViV1T:
        """A model as the run's options describe it, with weights still to come.

        Raises:
            CheckpointError: the folder is no run, or its options describe no model.
        """
        config = self.config()
        mice, frame_size = _shapes(self.read_args(), self.args)
        if (recorded := self.recorded()) is not None:
            mice = {id: replace(neurons, unit_ids=recorded.mice[id].unit_ids) for id, neurons in mice.items()}
        try:
            return self.family().build_model(config, mice, frame_size)
        except (RuntimeError, MemoryError, OverflowError, TypeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(f"{self.args}: describes a model that cannot be built ({reason})") from error

    def weights(self) -> tuple[Path, dict[str, Tensor], dict[str, Any]]:
        """The weights that stand for the run: of the best epoch, or, with a warning, of the last where none was good.

        Returns:
            The file, its entries of the model (as published in a published file), and their `epoch` and `value`.

        Raises:
            CheckpointError: there is no checkpoint, or it is damaged.
        """
        if self.best.is_file():
            entries, facts = read_checkpoint(self.best)
            return self.best, _of_model(entries), facts
        family = self.family()
        published = self.path / family.weights
        if published.is_file():
            state, facts = read_published(published, family.wrapped)
            return published, state, facts if family.wrapped else self._told_facts()
        if (other := self.published) is not None:
            name = next(f.name for f in FAMILIES.values() if self.path / f.weights == other)
            raise CheckpointError(
                f"{self.path}: args.yaml holds options of the family of {family.name}, but "
                f"{other.relative_to(self.path)} is a checkpoint of the family of {name}: two runs are mixed here"
            )
        if not self.started:
            raise CheckpointError(
                f"{self.path} has no checkpoint: none of {self.best.relative_to(self.path)}, "
                f"{self.last.relative_to(self.path)} and {family.weights}"
            )
        path, entries, facts = read_newest(self.last, self.previous)
        reached = Progressed.from_facts(facts, path)
        if best := reached.best_epoch:
            raise CheckpointError(
                f"{self.path} has no checkpoint {self.best.relative_to(self.path)}, though epoch {best} was the best: "
                "restore the file from a copy"
            )
        epochs = reached.cursor.epoch - 1
        log.warning(
            "%s: no epoch's correlation has been above 0, so there are no best weights: the last ones are used, %s",
            self.path, f"of epoch {epochs}" if epochs else "of the first epoch, which is not finished",
        )  # fmt: skip
        return path, _of_model(weights_to_evaluate(entries, reached.optimization)), {"epoch": epochs, "value": 0.0}

    def _told_facts(self) -> dict[str, Any]:
        """`epoch` and `value` of a published checkpoint that does not hold them itself, where the run says them."""
        info = self.path / "ckpt" / "info.yaml"
        try:
            content = read_yaml(info) if info.is_file() else {}
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{info}: {error}") from error
        known = content if isinstance(content, dict) else {}
        return {"epoch": known.get("epoch", 0), "value": known.get("best_corr", 0.0)}

    def load_model(self, device: str | torch.device = "cpu") -> ViV1T:
        """The run's best model in evaluation mode, or its last where none was good; needs no data on disk.

        Raises:
            CheckpointError: the folder is no run, or its checkpoint is missing, damaged or does not fit.
        """
        return self.load_with_facts()[0].to(device)

    def load_with_facts(self) -> tuple[ViV1T, dict[str, Any]]:
        """The same on the CPU, with the `epoch` and `value` of its weights."""
        family = self.family()
        weights = self.path / family.weights
        path, state, facts = self.weights()
        # Without memory first: options that do not fit the file may describe a model of any size.
        with torch.device("meta"):
            outline = self.build_model()
        published, state = state, family.from_published(outline, state, str(path)) if path == weights else state
        check_entries(outline.state_dict(), state, str(path), {})
        model = self.build_model()
        if path == weights:  # now that what follows from the options has values to compare
            state = family.from_published(model, published, str(path))
        model.load_state_dict(state)
        for line in family.remarks(model.config):
            log.warning("%s: %s", self.path, line)
        return model.eval(), facts


def _of_model(entries: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix("model/"): v for k, v in entries.items() if k.startswith("model/")}


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


def save_published(run: RunFolder, out: Path) -> Path:
    """Writes a run as a published run folder of its family: `args.yaml` and the checkpoint.

    The published format is PyTorch's own, read by the authors' analysis code.

    Raises:
        CheckpointError: `run` is no run folder, or its checkpoint is missing or damaged.
        ConfigError: `out` is there and not empty, or the published code cannot do what the run's model does.
    """
    target = RunFolder(out)
    if target.path.exists() and (not target.path.is_dir() or any(target.path.iterdir())):
        raise ConfigError(f"{out} exists and is not an empty folder: choose another")
    family, (model, facts) = run.family(), run.load_with_facts()
    weights = target.path / family.weights
    try:
        args = family.to_args(model, run.read_args())
    except ConfigError as error:
        raise ConfigError(f"{run.path}: {error}") from error
    content: dict[str, Any] = family.to_published(model)
    if family.wrapped:
        content = {"epoch": facts.get("epoch", 0), "value": facts.get("value", 0.0), "model": content}
    with replacing(weights) as temporary:
        torch.save(content, temporary)
    if family.to_optimizer is not None and run.best.is_file():
        entries, known = read_checkpoint(run.best)
        if "optimization" in known:
            with replacing(weights.with_name("optimizer.pt")) as temporary:
                torch.save(family.to_optimizer(model, entries, known["optimization"]), temporary)
    if not family.wrapped:
        info = {"best_corr": float(facts.get("value", 0.0)), "epoch": int(facts.get("epoch", 0))}
        write_text(weights.with_name("info.yaml"), dump_yaml(info, sort_keys=True))
    write_text(target.args, dump_yaml(args, sort_keys=True))
    return target.path
