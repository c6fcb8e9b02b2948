"""The training loop: epochs, validation, schedule, checkpoints, and going on where a run stopped."""

from __future__ import annotations

import csv
import io
import logging
import os
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import yaml

from viv1t.config import CriticConfig, Gaussian2dConfig, RunConfig
from viv1t.data.loader import Recordings
from viv1t.errors import CheckpointError, ConfigError, DataError
from viv1t.files import write_text
from viv1t.model.critic import Critic, check_size
from viv1t.model.viv1t import Neurons, ViV1T, build_model
from viv1t.progress import Progress, duration
from viv1t.train.checkpoint import (
    load_module_entries,
    load_optimizer_entries,
    module_entries,
    optimizer_entries,
    read_checkpoint,
    write_checkpoint,
)
from viv1t.train.optimizer import build_optimizer
from viv1t.train.run_folder import RunFolder, shapes_of
from viv1t.train.schedule import PlateauSchedule, cosine_factor
from viv1t.train.step import Step
from viv1t.train.validate import Validation, check_every_frame, check_length, validate
from viv1t.types import MAX_FRAMES, Batch

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


def epoch_seed(seed: int, epoch: int) -> int:
    """A seed for one epoch's noise, so that a run that goes on draws what an uninterrupted one would."""
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0] >> 1)


def new_model(config: RunConfig, recordings: Recordings) -> ViV1T:
    """A freshly initialised model for the recordings' mice, drawn from the run's seed."""
    mice = {}
    for mouse_id, mouse in recordings.mice.items():
        needs_mean = isinstance(config.readout, Gaussian2dConfig) and config.readout.bias == "mean_response"
        mean = torch.from_numpy(recordings.mean_response(mouse_id)) if needs_mean else None
        mice[mouse_id] = Neurons(mouse.neurons, torch.from_numpy(mouse.coordinates).float(), mean)
    torch.manual_seed(config.train.seed)
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


def check_trainable(config: RunConfig) -> None:
    """What can be refused before any data are read.

    Raises:
        ConfigError: the device is not available, or the core does not predict every frame.
    """
    best_device(config.train.device)
    check_every_frame(config)


@dataclass
class Trainer:
    """A run in progress.

    Args:
        config: everything about the run.
        recordings: its data.
        run: its folder, locked by the caller.

    Raises:
        DataError: a mouse cannot be trained or scored.
    """

    config: RunConfig
    recordings: Recordings
    run: RunFolder

    def __post_init__(self) -> None:
        train = self.config.train
        self.device = best_device(train.device)
        if train.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            # Not everything has a deterministic form on a GPU: PyTorch then warns and names it.
            torch.use_deterministic_algorithms(True, warn_only=self.device.type != "cpu")
        self._check_data()
        self.model = new_model(self.config, self.recordings).to(self.device)
        self.modules: dict[str, torch.nn.Module] = {"model": self.model}
        critic = None
        if isinstance(self.config.critic, CriticConfig):
            depth, *grid = self.model.core.output_shape
            crop = self.config.data.crop_frame
            check_size(self.model.core.output_frames(crop if crop > 0 else MAX_FRAMES), *grid)
            critic = Critic(self.config.critic, depth, len(self.model.neurons)).to(self.device)
            self.modules["critic"] = critic
        self.optimizer = build_optimizer(self.model, self.config, critic)
        # With cosine rates there is nothing to wait for.
        self.cosine = self.config.optimizer.schedule == "cosine"
        self.schedule = PlateauSchedule(min_epochs=train.epochs if self.cosine else 0)
        self.base_lr = [group["lr"] for group in self.optimizer.param_groups]
        self.epoch = 0
        self.rows: list[dict[str, Any]] = []
        if train.compile:
            self.model.core.compile_blocks()
        self.step = Step(self.model, self.optimizer, self.config, self.recordings.train_sizes, critic)

    def _check_data(self) -> None:
        for mouse_id, size in self.recordings.train_sizes.items():
            if not size:
                raise DataError(f"mouse {mouse_id}: no trial of the tier train; leave it out with --mouse_ids")
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
        """Continues the run in the folder, or starts one; writes only when everything else has worked.

        Raises:
            CheckpointError: a checkpoint to go on or start from is damaged or does not fit.
            DataError: a trial of the tier validation is damaged, or too short to be scored.
        """
        if self.run.last.is_file() and not self.config.train.clear_output_dir:
            self._continue()
            return
        # Training reaches these trials only after an epoch: better to know now.
        for mouse_id in self.recordings.mice:
            for batch in self.recordings.trials(mouse_id, "validation"):
                check_length([self.model], batch)
        if self.config.train.restore is not None:
            self._restore(self.config.train.restore, "")
        pretrain = getattr(self.config.core, "pretrain", None)
        if pretrain is not None:
            self._restore(pretrain, "core.")
        if self.config.train.clear_output_dir:
            self.run.clear()
        self.run.discard_results()
        self.run.write_args(self.config, shapes_of(self.model, self.config.data.crop_frame))
        write_text(self.run.path / "model.txt", summary(self.model))

    def _continue(self) -> None:
        entries, facts = read_checkpoint(self.run.last)
        load_module_entries(self.modules, entries, str(self.run.last))
        load_optimizer_entries(self.modules, self.optimizer, entries)
        self.epoch = facts["epoch"]
        self.schedule.load_state_dict(facts["schedule"])
        self.step.micro_batch_size = facts["micro_batch_size"]
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
            "micro_batch_size": self.step.micro_batch_size,
        }
        entries = module_entries(self.modules) | optimizer_entries(self.modules, self.optimizer)
        write_checkpoint(self.run.last, entries, facts)

    def _load_best(self) -> None:
        entries, _ = read_checkpoint(self.run.best)
        load_module_entries(self.modules, entries, str(self.run.best))

    # -- the loop ----------------------------------------------------------------------------------------------------

    @property
    def finished(self) -> bool:
        """Whether nothing is left to train."""
        return self.epoch >= self.config.train.epochs or self.schedule.terminated

    def fit(self, after_epoch: Callable[[dict[str, Any]], None] | None = None) -> Validation:
        """Trains until the schedule or the number of epochs ends it, and scores the best weights.

        Args:
            after_epoch: called with each epoch's row of `metrics.csv` once it is written.

        Returns:
            The scores of the best weights, which are left in the model; they are in `evaluation.yaml` too.

        Raises:
            DataError: a trial is missing or damaged.
            TrainingError: a loss is not finite, or memory does not suffice.
        """
        if self.finished:
            log.info("%s is finished after epoch %d", self.run.path, self.epoch)
        elif self.step.micro_batch_size == 0 and self.device.type == "cuda":
            self.step.micro_batch_size = self._find_micro_batch()
        while not self.finished:
            self.epoch += 1
            began = time.monotonic()
            loss = self._train_epoch()
            validation = self._validate()
            self._schedule(validation)
            self._record(loss, validation, time.monotonic() - began)
            self._save_last()
            if after_epoch is not None:
                after_epoch(self.rows[-1])
        if self.run.best.is_file():
            self._load_best()
        torch.manual_seed(self.config.train.seed)  # the random readout draws in evaluation too
        final = self._validate()
        self._write_evaluation(final)
        return final

    def _find_micro_batch(self) -> int:
        """The largest micro batch that fits, for the mouse with the most neurons."""
        mouse_id = max(self.model.neurons, key=lambda m: self.model.neurons[m])
        count = self.config.data.batch_size
        frames = self.config.data.crop_frame if self.config.data.crop_frame > 0 else MAX_FRAMES
        batch = Batch(
            mouse_id=mouse_id,
            trial_ids=tuple(range(count)),
            video=torch.zeros(count, 1, frames, *self.model.frame_size),
            response=torch.zeros(count, self.model.neurons[mouse_id], frames),
            behavior=torch.zeros(count, 2, frames),
            pupil_center=torch.zeros(count, 2, frames),
            frames=torch.full((count,), frames),
        )
        self.model.train()
        size = self.step.find_micro_batch(batch.to(self.device))
        if size < count:
            log.info("batches of %d are taken %d trials at a time, to fit in the GPU's memory", count, size)
        return size

    def _train_epoch(self) -> float:
        torch.manual_seed(epoch_seed(self.config.train.seed, self.epoch))
        for module in self.modules.values():
            module.train()
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
        # Closed here, so that no thread goes on reading when training is interrupted.
        with closing(self.recordings.train_batches(self.epoch)) as batches:
            for i, batch in enumerate(batches, start=1):
                self.step.accumulate(batch.to(self.device))
                if i % mice == 0:
                    loss, _ = self.step.update()
                    losses.append(loss)
                    progress.step(f"loss {loss:.1f}")
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
            facts = {"epoch": self.epoch, "value": validation.mean}
            write_checkpoint(self.run.best, module_entries(self.modules), facts)
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

    def _write_evaluation(self, validation: Validation) -> None:
        """`evaluation.yaml` in the published layout."""
        scores = {m: float(r) for m, r in validation.correlation.items()}
        scores["average"] = validation.mean
        write_text(self.run.evaluation, yaml.safe_dump({"validation": scores}, sort_keys=False))
