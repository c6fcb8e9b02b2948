"""The training loop: epochs, validation, schedule, checkpoints, and going on where a run stopped."""

from __future__ import annotations

import csv
import io
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from viv1t.config import RunConfig
from viv1t.data.loader import Recordings
from viv1t.errors import CheckpointError, ConfigError, DataError
from viv1t.files import write_text
from viv1t.model.viv1t import Neurons, ViV1T, build_model
from viv1t.progress import Progress, duration
from viv1t.train.checkpoint import (
    load_model_entries,
    load_optimizer_entries,
    model_entries,
    optimizer_entries,
    read_checkpoint,
    write_checkpoint,
)
from viv1t.train.optimizer import build_optimizer
from viv1t.train.run_folder import RunFolder, shapes_of
from viv1t.train.schedule import PlateauSchedule, cosine_factor
from viv1t.train.step import Step
from viv1t.train.validate import Validation, validate

log = logging.getLogger("viv1t.train")


def best_device(name: str | None) -> torch.device:
    """The device asked for, or the best there is.

    Raises:
        ConfigError: it is not available on this machine.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name is None:
        name = next(device for device, there in available.items() if there)
    if not available[name]:
        raise ConfigError(
            f"--device {name} is not available here; use {' or '.join(d for d, ok in available.items() if ok)}"
        )
    return torch.device(name)


def seed_everything(seed: int) -> None:
    """Seeds the generators that models draw from."""
    torch.manual_seed(seed)


def epoch_seed(seed: int, epoch: int) -> int:
    """A seed for one epoch's noise, so that a run that goes on draws what an uninterrupted one would."""
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0] >> 1)


def new_model(config: RunConfig, recordings: Recordings) -> ViV1T:
    """A freshly initialised model for the recordings' mice, drawn from the run's seed."""
    mice = {}
    for mouse_id, mouse in recordings.mice.items():
        needs_mean = getattr(config.readout, "bias", "none") == "mean_response" and config.readout.name == "gaussian2d"
        mean = torch.from_numpy(recordings.mean_response(mouse_id)) if needs_mean else None
        mice[mouse_id] = Neurons(mouse.neurons, torch.from_numpy(mouse.coordinates).float(), mean)
    seed_everything(config.train.seed)
    return build_model(config, mice, recordings.frame_size)


def summary(model: ViV1T) -> str:
    """Modules and parameter counts, for `model.txt`."""
    lines = [str(model), ""]
    parts: list[tuple[str, torch.nn.Module]] = [("core", model.core)]
    for group in ("shifters", "readouts", "modulators"):
        parts += [(f"{group}.{mouse}", module) for mouse, module in getattr(model, group).items()]
    counts = [(name, sum(p.numel() for p in module.parameters())) for name, module in parts]
    lines += [f"{name:<40} {count:>12,}" for name, count in counts]
    lines.append(f"{'trainable parameters':<40} {sum(n for _, n in counts):>12,}")
    return "\n".join(lines) + "\n"


@dataclass
class Trainer:
    """A run in progress.

    Args:
        config: everything about the run.
        recordings: its data.
        run: its folder, locked by the caller.
    """

    config: RunConfig
    recordings: Recordings
    run: RunFolder

    def __post_init__(self) -> None:
        train = self.config.train
        self.device = best_device(train.device)
        if train.deterministic:
            torch.use_deterministic_algorithms(True)
        self._check_data()
        self.model = new_model(self.config, self.recordings).to(self.device)
        self.optimizer = build_optimizer(self.model, self.config)
        # With cosine rates there is nothing to wait for.
        self.cosine = self.config.optimizer.schedule == "cosine"
        self.schedule = PlateauSchedule(min_epochs=train.epochs if self.cosine else 0)
        self.base_lr = [group["lr"] for group in self.optimizer.param_groups]
        self.epoch = 0
        self.rows: list[dict[str, Any]] = []
        self.started = time.monotonic()
        if train.compile:
            self.model.core.compile_blocks()
        self.step = Step(self.model, self.optimizer, self.config, self.recordings.train_sizes)

    def _check_data(self) -> None:
        core = self.config.core
        if getattr(core, "temporal_patch_stride", 1) > 1:
            raise ConfigError(
                "--core_temporal_patch_stride above 1 predicts only every stride-th frame, and scores need every "
                "frame: train with 1 (models with a larger stride can still be loaded and run)"
            )
        crop = self.config.data.crop_frame
        if crop > 0 and core.output_frames(crop) < 1:
            raise ConfigError(
                f"--crop_frame {crop} is shorter than the core's temporal extent: nothing would be predicted"
            )
        for mouse_id in self.recordings.mice:
            if not self.recordings.trial_ids(mouse_id, "validation"):
                raise DataError(
                    f"mouse {mouse_id} has no trials of the tier 'oracle' (validation): the schedule needs them"
                )
            if self.recordings.hidden(mouse_id, "validation"):
                raise DataError(
                    f"mouse {mouse_id}: the responses of the tier 'oracle' (validation) are all zero: nothing to score"
                )

    # -- starting, stopping, going on ------------------------------------------------------------------------------

    def begin(self) -> None:
        """Starts the run folder, or continues the run in it."""
        if self.run.exists() and self.run.last.is_file():
            self.run.check_same(self.config)
            self._continue()
            return
        self.run.write_args(self.config, shapes_of(self.model, self.config.data.crop_frame))
        write_text(self.run.path / "model.txt", summary(self.model))
        if self.config.train.restore is not None:
            self._restore(self.config.train.restore, "")
        pretrain = getattr(self.config.core, "pretrain", None)
        if pretrain is not None:
            self._restore(pretrain, "core.")

    def _continue(self) -> None:
        entries, facts = read_checkpoint(self.run.last)
        load_model_entries(self.model, entries, str(self.run.last))
        load_optimizer_entries(self.model, self.optimizer, entries)
        self.epoch = facts["epoch"]
        self.schedule.load_state_dict(facts["schedule"])
        for group, lr in zip(self.optimizer.param_groups, facts["lr"], strict=True):
            group["lr"] = lr
        self.rows = [row for row in self._read_metrics() if int(row["epoch"]) <= self.epoch]
        log.info("continuing %s after epoch %d", self.run.path, self.epoch)

    def _restore(self, folder: str, prefix: str) -> None:
        source = RunFolder(folder).load_model().state_dict()
        target = self.model.state_dict()
        wanted = {k for k in target if k.startswith(prefix)}
        misfit = sorted(k for k in wanted if k not in source or source[k].shape != target[k].shape)
        if misfit:
            raise CheckpointError(f"{folder} does not fit this model; missing or misshaped: {', '.join(misfit[:20])}")
        self.model.load_state_dict({k: source[k] for k in wanted}, strict=False)
        log.info("started from the %s of %s", "core" if prefix else "weights", folder)

    def _save_last(self) -> None:
        facts = {
            "epoch": self.epoch,
            "schedule": self.schedule.state_dict(),
            "lr": [group["lr"] for group in self.optimizer.param_groups],
            "finished": self.finished,
        }
        write_checkpoint(
            self.run.last, model_entries(self.model) | optimizer_entries(self.model, self.optimizer), facts
        )

    def _load_best(self) -> None:
        entries, _ = read_checkpoint(self.run.best)
        load_model_entries(self.model, entries, str(self.run.best))

    # -- the loop ----------------------------------------------------------------------------------------------------

    @property
    def finished(self) -> bool:
        """Whether nothing is left to train."""
        return self.epoch >= self.config.train.epochs or self.schedule.terminated

    def fit(self) -> None:
        """Trains until the schedule or the number of epochs ends it; leaves the best weights in the model."""
        while not self.finished:
            self.epoch += 1
            began = time.monotonic()
            loss = self._train_epoch()
            validation = self._validate()
            self._schedule(validation)
            self._record(loss, validation, time.monotonic() - began)
            self._save_last()
        if self.run.best.is_file():
            self._load_best()

    def _train_epoch(self) -> float:
        torch.manual_seed(epoch_seed(self.config.train.seed, self.epoch))
        self.model.train()
        if self.cosine:
            factor = cosine_factor(self.epoch, self.config.train.epochs)
            for group, lr in zip(self.optimizer.param_groups, self.base_lr, strict=True):
                group["lr"] = lr * factor
        mice = len(self.recordings.mice)
        rounds = self.recordings.batches_per_epoch // mice
        progress = Progress(
            f"epoch {self.epoch}/{self.config.train.epochs}", rounds, show=self.config.train.verbose > 1
        )
        losses: list[float] = []
        round_loss = 0.0
        for i, batch in enumerate(self.recordings.train_batches(self.epoch), start=1):
            round_loss += float(self.step.accumulate(batch.to(self.device)))
            if i % mice == 0:
                self.step.update()
                losses.append(round_loss / mice)
                progress.step(f"loss {losses[-1]:.1f}")
                round_loss = 0.0
        progress.close()
        return float(np.mean(losses))

    def _validate(self) -> Validation:
        trials = sum(len(self.recordings.trial_ids(m, "validation")) for m in self.recordings.mice)
        progress = Progress("validation", trials, "trials", show=self.config.train.verbose > 1)
        result = validate(self.model, self.recordings, self.config.optimizer, progress.step)
        progress.close()
        return result

    def _schedule(self, validation: Validation) -> None:
        decision = self.schedule.step(validation.mean, self.epoch)
        if decision.save:
            write_checkpoint(self.run.best, model_entries(self.model), {"epoch": self.epoch, "value": validation.mean})
        if decision.restore and self.run.best.is_file():
            self._load_best()
            log.info("epoch %d: back to the weights of epoch %s", self.epoch, self.schedule.best_epoch)
        if decision.reduce_lr:
            for group in self.optimizer.param_groups:
                group["lr"] = self.schedule.reduced(group["lr"])
            log.info("learning rate of the core is now %.3g", self.optimizer.param_groups[0]["lr"])

    # -- records -------------------------------------------------------------------------------------------------------

    def _record(self, loss: float, validation: Validation, seconds: float) -> None:
        row: dict[str, Any] = {
            "epoch": self.epoch,
            "train_loss": loss,
            "validation_loss": validation.loss,
            "correlation": validation.mean,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "seconds": round(seconds, 3),
        }
        row |= {f"correlation/{m}": r for m, r in validation.correlation.items()}
        self.rows.append(row)
        text = io.StringIO()
        writer = csv.DictWriter(text, list(row))
        writer.writeheader()
        writer.writerows(self.rows)
        write_text(self.run.metrics, text.getvalue())
        left = duration(seconds * (self.config.train.epochs - self.epoch))
        mice = "  ".join(f"{m} {r:.3f}" for m, r in validation.correlation.items())
        detail = f"  [{mice}]" if self.config.train.verbose > 2 and len(validation.correlation) > 1 else ""
        log.info(
            "epoch %d/%d  train %.1f  validation %.1f  correlation %.4f%s%s  %s, at most %s left",
            self.epoch,
            self.config.train.epochs,
            loss,
            validation.loss,
            validation.mean,
            " *" if self.schedule.best_epoch == self.epoch else "",
            detail,
            duration(seconds),
            left,
        )

    def _read_metrics(self) -> list[dict[str, Any]]:
        if not self.run.metrics.is_file():
            return []
        with open(self.run.metrics, newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    def write_evaluation(self, validation: Validation) -> None:
        """Writes `evaluation.yaml` in the published layout."""
        scores = {m: float(r) for m, r in validation.correlation.items()}
        scores["average"] = validation.mean
        write_text(self.run.evaluation, yaml.safe_dump({"validation": scores}, sort_keys=False))


def start_logging(path: Path, verbose: int) -> logging.Handler:
    """Sends the run's log to `output.log`, and to the console unless `verbose` is 0; returns the file's handler."""
    logger = logging.getLogger("viv1t")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.handlers.clear()
    file = logging.FileHandler(path, encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    logger.addHandler(file)
    if verbose:
        console = logging.StreamHandler()
        console.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(console)
    return file
