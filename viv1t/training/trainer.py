"""The training loop: epochs, validation, schedule, checkpoints, and going on where a run stopped."""

from __future__ import annotations

import hashlib
import logging
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch

from viv1t.config.run import CriticConfig, RunConfig, VivitConfig, check_same_core
from viv1t.data.formats.sensorium.recorded import write_recorded
from viv1t.data.order import Cursor
from viv1t.data.reading.reader import Batches
from viv1t.data.recordings import Recordings
from viv1t.errors import CheckpointError, ConfigError, DataError, Interrupted, TrainingError
from viv1t.families.sensorium2023.grid import check_grid
from viv1t.model.critic import Critic, check_size
from viv1t.model.twin import module_key
from viv1t.optim.parts import build_optimizer
from viv1t.optim.schedule import PlateauSchedule, cosine_factor
from viv1t.runs.checkpoint import (
    Progressed,
    load_module_entries,
    load_optimizer_entries,
    module_entries,
    optimizer_entries,
    read_checkpoint,
    read_newest,
    write_checkpoint,
)
from viv1t.runs.ensemble import check_neurons
from viv1t.runs.folder import RunFolder, shapes_of
from viv1t.system.files import remove_leftovers, write_text
from viv1t.system.memory import available_bytes
from viv1t.system.progress import Progress, duration
from viv1t.system.switches import deterministic, tensor_cores
from viv1t.training.failure import Attempt, examine
from viv1t.training.frozen import CoreOutputs
from viv1t.training.new_model import new_model, summary
from viv1t.training.ranks import Ranks
from viv1t.training.records import Records, write_evaluation
from viv1t.training.step import NotFinite, Step, largest_batch
from viv1t.training.validate import Validation, check_every_frame, check_length, check_recordings, validate
from viv1t.training.watch import Watch
from viv1t.types import MAX_FRAMES

log = logging.getLogger("viv1t.train")


MEMORY_SHARE = 0.8  # of what is free on a CPU, that a micro batch may take


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


def noise_seed(seed: int, epoch: int, batch: int) -> int:
    """The seed of one batch's noise: a run that goes on draws what an uninterrupted one would, in any division."""
    digest = hashlib.blake2b(f"noise {seed} {epoch} {batch}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


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
        watch: hears of signals and stuck readers, if the caller has entered it.
        ranks: the processes that train together. All do the same at the same time; the first alone writes.

    Attributes:
        epoch: the epochs that are finished.
        batch: how many batches of the next epoch have been used, over all mice.
        losses: of the optimizer steps of that epoch.

    Raises:
        DataError: a mouse cannot be trained or scored.
    """

    config: RunConfig
    recordings: Recordings
    run: RunFolder
    watch: Watch = field(default_factory=Watch)
    ranks: Ranks = field(default_factory=Ranks)

    def __post_init__(self) -> None:
        train = self.config.train
        self.device = best_device(train.device)
        check_recordings(self.recordings)
        self.model = new_model(self.config, self.recordings).to(self.device)
        if self.config.core.freeze:
            if self.ranks.size > 1:
                raise ConfigError("--freeze_core trains in one process, which is quick: start it without torchrun")
            self.model.freeze_core()
        self.outputs: CoreOutputs | None = None
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
        self.epoch = self.batch = 0
        self.losses: list[float] = []
        self.records = Records(self.run, list(self.recordings.mice))
        compiled = train.compiles(self.device.type)
        self.step = Step(
            self.model, self.optimizer, self.config, self.recordings.train_sizes, critic, self.ranks, compiled
        )
        entries = module_entries(self.modules)
        self._buffers = {
            name: value
            for module, parts in self.modules.items()
            for name, value in ((f"{module}/{key}", value) for key, value in parts.named_buffers())
            if name in entries
        }
        self._before: dict[str, torch.Tensor] = {}  # those buffers before the step under way
        self._saved = Cursor(-1, 0, "")
        self._steps_since, self._time_saved = 0, time.monotonic()
        self._moved = False

    # -- starting, stopping, going on ------------------------------------------------------------------------------

    def begin(self) -> None:
        """Continues the run in the folder, or starts one; writes only when everything else has worked.

        Raises:
            CheckpointError: a checkpoint to go on or start from is damaged or does not fit.
            DataError: a trial of the tier validation is damaged, or too short to be scored.
        """
        if self.ranks.first:
            for folder in (self.run.path, self.run.last.parent):
                remove_leftovers(folder)
        anew = self.config.train.clear_output_dir or not self.run.started
        anew, *_ = self.ranks.agree(anew and self.ranks.first)
        with self.ranks.in_turn():
            if anew:
                self._start()
            else:
                self._continue()

    def _start(self) -> None:
        # Training reaches these trials only after an epoch: better to know now.
        for mouse_id in self.recordings.served:
            for batch in self.recordings.trials(mouse_id, "validation"):
                check_length([self.model], batch)
        if self.config.train.restore is not None:
            self._restore(self.config.train.restore, "")
        pretrain = self.config.core.pretrain
        if isinstance(self.config.core, VivitConfig):
            origin = pretrain or self.config.train.restore
            before = None if origin is None else RunFolder(origin).config().core
            before = before if isinstance(before, VivitConfig) else None
            check_grid(self.config.core, self.recordings.frame_size, before)
        if pretrain is not None:
            source = RunFolder(pretrain).config()
            check_same_core(self.config.core, source.core, pretrain)
            for name in ("transform", "center_crop"):
                if getattr(source.data, name) != getattr(self.config.data, name):
                    log.warning("--pretrain_core %s was trained with another %s of the data", pretrain, name)
            self._restore(pretrain, "core.")
        if not self.ranks.first:
            return
        recorded = {mouse: self.recordings.recorded(mouse) for mouse in self.recordings.mice}
        if self.config.train.clear_output_dir:
            self.run.clear()
        self.run.discard_results()
        # Before what makes the folder a run: every run has it.
        write_recorded(self.run.recordings, recorded, self.recordings.frame_size, self.config.data)
        self.run.write_args(self.config, shapes_of(self.model, self.config.data.crop_frame))
        write_text(self.run.path / "model.txt", summary(self.model))

    def _continue(self) -> None:
        path, entries, facts = read_newest(self.run.last, self.run.previous)
        state = Progressed.from_facts(facts, path)
        self._check_recordings(state.cursor)
        groups = self.optimizer.param_groups
        if len(state.lr) != len(groups) or state.cursor.batch % len(self.recordings.mice):
            raise CheckpointError(f"{path}: not the state of this run")
        load_module_entries(self.modules, entries, str(path))
        load_optimizer_entries(self.modules, self.optimizer, entries)
        self.epoch, self.batch, self.losses = state.cursor.epoch - 1, state.cursor.batch, list(state.losses)
        self.schedule.load_state_dict(state.schedule)
        self.step.micro_batch_size = self.config.train.micro_batch_size or state.micro_batch_size
        if self.step.micro_batch_size != state.micro_batch_size:
            log.warning(
                "micro batches are of %d trials from here on, not of %d, and so are correlations in the criterion",
                self.step.micro_batch_size, state.micro_batch_size,
            )  # fmt: skip
        for group, lr in zip(groups, state.lr, strict=True):
            group["lr"] = lr
        self.records.read(self.epoch)
        self._saved = state.cursor
        if self.ranks.first and path != self.run.last and self.run.last.is_file():
            # It must not become the save before the next one.
            self.run.last.replace(self.run.last.with_name("damaged.safetensors"))
        if self.ranks.first:
            self.run.note_data(self.config.data.path)
        log.info("continuing %s after %s", self.run.path, self._where())

    def _check_recordings(self, cursor: Cursor) -> None:
        """Whether the recordings are those that the run in the folder began with, wherever they lie now."""
        mice, now = self.run.mouse_ids(), list(self.recordings.mice)
        if set(mice) != set(now):
            raise ConfigError(
                f"{self.run.path} holds a run on the mice {', '.join(sorted(mice))}, not {', '.join(now)}: give the "
                "same --data, --ds_mode and --mouse_ids to continue it, or choose another --output_dir"
            )
        cursor.check(self.recordings.cursor(0, 0).order, self.recordings.batches_per_epoch)
        recorded = self.run.recorded()
        if recorded is None:
            log.warning(
                "%s does not say which neurons it was trained on (there is no %s): that they are those of the "
                "recordings, in the same order, cannot be checked", self.run.path, self.run.recordings.name,
            )  # fmt: skip
            return
        for mouse in now:
            check_neurons(recorded.mice[mouse].unit_ids, self.recordings.session(mouse))
            if changed := recorded.changed(self.recordings.recorded(mouse), self.config.data.transform):
                raise DataError(
                    f"mouse {mouse}: {self.recordings.session(mouse).path}: not the recording that {self.run.path} "
                    f"began with; they differ in {', '.join(changed[:3])}: give --data as it was, or choose another "
                    "--output_dir"
                )

    def _restore(self, folder: str, prefix: str) -> None:
        model = RunFolder(folder).load_model()
        if not prefix:  # readouts belong to neurons, a core to none
            for mouse in self.model.mouse_ids:
                check_neurons(model.unit_ids.get(mouse), self.recordings.session(mouse), f"{folder} (--restore)")
        source = model.state_dict()
        target = self.model.state_dict()
        wanted = {k for k in target if k.startswith(prefix)}
        misfit = sorted(k for k in wanted if k not in source or source[k].shape != target[k].shape)
        if misfit:
            raise CheckpointError(f"{folder} does not fit this model; missing or misshaped: {', '.join(misfit[:20])}")
        self.model.load_state_dict({k: source[k] for k in wanted}, strict=False)
        log.info("started from the %s of %s", "core" if prefix else "weights", folder)

    def _where(self) -> str:
        """How far the run has come, in words."""
        steps = self.batch // len(self.recordings.mice)
        return f"epoch {self.epoch}" + (f" and {steps} steps" if steps else "")

    def _save_last(self) -> None:
        """Saves the state after the last optimizer step, or after an epoch's end; the caller holds `watch.changing`."""
        cursor = self.recordings.cursor(self.epoch + 1, self.batch)
        if cursor == self._saved:
            return
        self._saved, self._steps_since, self._time_saved = cursor, 0, time.monotonic()
        self._collect()
        if not self.ranks.first:
            return
        self._follow()
        state = Progressed(
            cursor=cursor,
            losses=self.losses,
            lr=[group["lr"] for group in self.optimizer.param_groups],
            schedule=self.schedule.state_dict(),
            micro_batch_size=self.step.micro_batch_size,
        )
        entries = module_entries(self.modules) | self._before | optimizer_entries(self.modules, self.optimizer)
        write_checkpoint(self.run.last, entries, state.facts(), self.run.previous)

    def _follow(self) -> None:
        """Goes after a run folder that was moved: nothing is written where it was."""
        if (before := self.run.follow()) is not None:
            self._moved = True
            log.warning("%s was moved to %s while training", before, self.run.path)

    def _end_if_moved(self) -> None:
        """Raises a CheckpointError once a moved run folder holds a save."""
        if self._moved:
            raise CheckpointError(
                f"the run folder was moved while training; saved in {self.run.path} after {self._where()}: go on with "
                f"--output_dir {self.run.path}"
            )

    def _collect(self) -> None:
        """Gives every process the readouts that others train, to be saved or gone back to."""
        owned = {}
        for rank in range(self.ranks.size):
            keys = [module_key(mouse) for mouse in self.recordings.served_by(rank)]
            parts = (self.model.readouts, self.model.shifters, self.model.modulators)
            owned[rank] = [part[key] for part in parts for key in keys if key in part]
        self.ranks.collect(owned, self.optimizer)

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
            Interrupted: a signal came; the run was saved and goes on from there.
            TrainingError: a loss or a gradient is not finite, or memory does not suffice.
        """
        with deterministic(self.config.train.deterministic, warn_only=self.device.type != "cpu"):
            return self._fit(after_epoch)

    def _fit(self, after_epoch: Callable[[dict[str, Any]], None] | None) -> Validation:
        ended = self.finished
        if not ended and self.step.micro_batch_size == 0 and self.config.data.batch_size > 1:
            self.step.micro_batch_size = self._find_micro_batch()
        # Alone, the second thread can save as well; with others it would have to ask them.
        with self.watch.saving(self._save_last if self.ranks.size == 1 else None):
            try:
                self._run_frozen_core()
                while not self.finished:
                    began = time.monotonic()
                    with tensor_cores(self.config.train.precision == "tf32" and self.device.type == "cuda"):
                        self._train_epoch()
                    validation = self._validate()
                    with self.watch.changing:
                        self._end_epoch(validation, time.monotonic() - began)
                    self._end_if_moved()
                    if after_epoch is not None:
                        after_epoch(self.records.rows[-1])
                    self._stop_or_save()
            except Interrupted:
                with self.watch.changing:
                    self.watch.answer()
                    self._save_last()
                how = f"--output_dir {self.run.path}" if self._moved else "the same command"
                log.info("saved after %s; %s continues", self._where(), how)
                raise
        if self.run.best.is_file():
            self._load_best()
        final = self._validate()
        if self.ranks.first:
            self._follow()
            write_evaluation(self.run, final, self.model)
            self._tell_end(ended)
        return final

    def _tell_end(self, ended: bool) -> None:
        """Says why nothing is left to train, and which weights the run comes to."""
        if self.schedule.terminated:
            why = "its correlation had stopped rising"
        else:
            why = f"that is all of --epochs {self.config.train.epochs}; more go on from here"
        if ended:
            why += "; nothing was trained now"
        log.info("%s is finished after epoch %d: %s", self.run.path, self.epoch, why)
        if not self.run.best.is_file():
            log.warning(
                "no epoch's correlation was above 0, so there are no best weights: the last ones stand for the run; "
                "see %s", self.run.metrics,
            )  # fmt: skip

    def _run_frozen_core(self) -> None:
        """Computes what a frozen core says of every trial."""
        if self.config.core.freeze:
            show = self.config.train.verbose > 1
            self.outputs = CoreOutputs(self.model, self.recordings, self.run.path, show=show)
            self.step.objective.maps = self.outputs.maps

    def _find_micro_batch(self) -> int:
        """The largest micro batch that fits in every process's memory, for the mouse with the most neurons."""
        self.model.train()
        batch = largest_batch(self.model, self.config.data)
        if self.device.type == "cuda":
            size = self.step.find_micro_batch(batch.to(self.device))
        elif self.device.type == "cpu" and not self.step.objective.compiled:
            size = self.step.micro_batch_within(batch, MEMORY_SHARE * available_bytes() / self.ranks.size)
        else:
            size = len(batch)
        size = self.ranks.least(size)
        if size < len(batch):
            log.warning(
                "batches of %d are taken %d trials at a time, to fit in memory, so correlations in the criterion are "
                "of as many%s", len(batch), size,
                "; --grad_checkpointing 1 takes less" if self.step.can_recompute else "",
            )  # fmt: skip
        return size

    def _train_epoch(self) -> None:
        """The optimizer steps of the next epoch that have not been made."""
        epoch, mice = self.epoch + 1, len(self.recordings.mice)
        for module in self.modules.values():
            module.train()
        if self.cosine:
            factor = cosine_factor(epoch, self.config.train.epochs)
            for group, lr in zip(self.optimizer.param_groups, self.base_lr, strict=True):
                group["lr"] = lr * factor
        steps, done = self.recordings.batches_per_epoch // mice, self.batch // mice
        show = self.config.train.verbose > 1 and self.ranks.first
        progress = Progress(f"epoch {epoch}/{self.config.train.epochs}", steps, done=done, show=show)
        # Closed here, so that no thread goes on reading when training is interrupted.
        with closing(self.recordings.resume(self.recordings.cursor(epoch, self.batch))) as batches:
            for _ in range(done, steps):
                self._train_step(epoch, batches)
                progress.step(f"loss {self.losses[-1]:.1f}")
                self._stop_or_save()
        progress.close()

    def _train_step(self, epoch: int, batches: Batches) -> None:
        # Batch norm's statistics change with every batch, the weights only when all have been seen.
        self._before = {name: value.clone() for name, value in self._buffers.items()}
        mice = list(self.recordings.mice)
        for i in map(mice.index, self.recordings.served):
            name = partial(self._name, epoch, self.batch + i)
            with self.watch.limit(self.config.train.reader_timeout, partial(self._stuck, name)):
                batch = next(batches)
            torch.manual_seed(noise_seed(self.config.train.seed, epoch, self.batch + i))
            self.step.accumulate(batch.to(self.device))
        with self.watch.changing:
            try:
                loss, _ = self.step.update()
            except NotFinite as error:
                raise self._examined(error, epoch) from error
            self.losses.append(loss)
            self.batch += len(mice)
            self._before = {}
        self._steps_since += 1

    def _examined(self, error: NotFinite, epoch: int) -> TrainingError:
        """The error of a step that was not made, once its batch and the state before it are kept in the run folder."""

        def again() -> Iterator[Attempt]:
            places = map(list(self.recordings.mice).index, self.recordings.served)
            with closing(self.recordings.train_batches(epoch, self.batch)) as batches:
                for place, batch in zip(places, batches, strict=False):
                    for name, value in self._before.items():
                        self._buffers[name].copy_(value)
                    seed = noise_seed(self.config.train.seed, epoch, self.batch + place)
                    yield Attempt(place, batch.to(self.device), seed)

        facts = {"epoch": epoch, "step": self.batch // len(self.recordings.mice) + 1}
        return examine(error, self.step, again(), self.run, module_entries(self.modules) | self._before, facts)

    def _stop_or_save(self) -> None:
        """Raises Interrupted if a process was told to stop; saves if it is time to, by the first one's clock."""
        steps, seconds = self.config.train.save_interval
        due = self._steps_since >= steps or time.monotonic() - self._time_saved >= seconds
        stop, due = self.ranks.agree(self.watch.signal > 0, due and self.ranks.first)
        if stop:
            raise Interrupted(self.watch.signal or signal.SIGTERM)
        if due:
            with self.watch.changing:
                self._save_last()
        self._end_if_moved()

    def _name(self, epoch: int, batch: int) -> str:
        mouse_id, trials = self.recordings.order(epoch)[batch]
        return f"mouse {mouse_id}, trials {', '.join(map(str, trials))}"

    def _stuck(self, what: Callable[[], str]) -> TrainingError:
        seconds, path = self.config.train.reader_timeout, self.config.data.path
        return TrainingError(
            f"{what()}: not read within {seconds} s (--reader_timeout); look at the disk or network that holds {path}"
        )

    def _validate(self) -> Validation:
        trials = sum(len(self.recordings.trial_ids(m, "validation")) for m in self.recordings.served)
        progress = Progress("validation", trials, "trials", show=self.config.train.verbose > 1 and self.ranks.first)

        def advance() -> None:
            progress.step()
            if self.ranks.size == 1:  # others would wait for this one's scores
                self.watch.check()
            restart()

        # The random readout draws in evaluation too.
        torch.manual_seed(self.config.train.seed)
        options, predict = self.config.optimizer, self.step.objective.predict
        stuck = partial(self._stuck, lambda: "the next trial of the tier validation")
        with self.watch.limit(self.config.train.reader_timeout, stuck) as restart:
            result = validate(self.model, self.recordings, options, advance, self.ranks, predict)
        progress.close()
        return result

    def _end_epoch(self, validation: Validation, seconds: float) -> None:
        """Takes the schedule's decision, and writes down what the epoch came to."""
        if self.ranks.first:
            self._follow()
        loss = float(np.mean(self.losses))
        self.epoch += 1
        self.batch, self.losses = 0, []
        self._schedule(validation)
        if self.ranks.first:
            self.records.add(self.epoch, loss, validation, self.optimizer.param_groups[0]["lr"], seconds)
            self._report(loss, validation, seconds)
        self._save_last()

    def _report(self, loss: float, validation: Validation, seconds: float) -> None:
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

    def _schedule(self, validation: Validation) -> None:
        decision = self.schedule.step(validation.mean, self.epoch)
        if decision.save:
            self._collect()
        if decision.save and self.ranks.first:
            facts = {"epoch": self.epoch, "value": validation.mean}
            write_checkpoint(self.run.best, module_entries(self.modules), facts)
        if decision.restore and self.run.best.is_file():
            self._load_best()
            log.info("epoch %d: back to the weights of epoch %s", self.epoch, self.schedule.best_epoch)
        if decision.reduce_lr:
            for group in self.optimizer.param_groups:
                group["lr"] = self.schedule.reduced(group["lr"])
            first = self.optimizer.param_groups[0]
            log.info("learning rate of the %s is now %.3g", first["name"], first["lr"])
