"""The training loop: epochs of optimizer steps, validation, and what the schedule decides."""

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

from viv1t.data.reading.reader import Batches
from viv1t.data.recordings import Recordings
from viv1t.errors import CheckpointError, ConfigError, Interrupted, TrainingError
from viv1t.families.known import family_for
from viv1t.model.twin import ViV1T
from viv1t.optim.schedule import Schedule
from viv1t.runs.folder import RunFolder
from viv1t.scoring.criterion import TrainingLoss
from viv1t.system.device import best_device
from viv1t.system.files import remove_leftovers
from viv1t.system.switches import deterministic, tensor_cores
from viv1t.training.failure import Attempt, examine
from viv1t.training.frozen import CoreOutputs
from viv1t.training.micro_batch import choose_micro_batch, largest_batch
from viv1t.training.new_model import new_model
from viv1t.training.ranks import Ranks
from viv1t.training.records import Records, write_evaluation
from viv1t.training.report import Report
from viv1t.training.resume import check_same_recordings, start
from viv1t.training.saves import Saves
from viv1t.training.step import NotFinite, Step
from viv1t.training.validate import Validation, check_recordings, validate
from viv1t.training.watch import Watch
from viv1t.types import sample_frames

log = logging.getLogger("viv1t.train")


def noise_seed(seed: int, epoch: int, batch: int) -> int:
    """The seed of one batch's noise: a run that goes on draws what an uninterrupted one would, in any division."""
    digest = hashlib.blake2b(f"noise {seed} {epoch} {batch}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@dataclass
class Trainer:
    """A run in progress.

    Args:
        config: everything about the run, of any family: what is the family's own comes from `Family.training`.
        recordings: its data.
        run: its folder, locked by the caller.
        watch: hears of signals and stuck readers, if the caller has entered it.
        ranks: the processes that train together. All do the same at the same time; the first alone writes.
        device: to train on; default the one of the options.

    Attributes:
        model: in training.
        epoch: the epochs that are finished.
        batch: how many batches of the next epoch have been used, over all mice.
        losses: of the optimizer steps of that epoch.

    Raises:
        DataError: a mouse cannot be trained or scored.
    """

    config: Any
    recordings: Recordings
    run: RunFolder
    watch: Watch = field(default_factory=Watch)
    ranks: Ranks = field(default_factory=Ranks)
    device: torch.device = None  # type: ignore[assignment]  # never, once it is made

    def __post_init__(self) -> None:
        train = self.config.train
        self.device = self.device or best_device(train.device)
        check_recordings(self.recordings)
        self.model: ViV1T = new_model(self.config, self.recordings).to(self.device)
        if self.config.frozen_core:
            if self.ranks.size > 1:
                raise ConfigError("--freeze_core trains in one process, which is quick: start it without torchrun")
            self.model.freeze_core()
        self.outputs: CoreOutputs | None = None
        training = family_for(self.config).training(self.model, self.config, self.recordings.train_sizes)
        self.optimization = training.optimization
        self.modules: dict[str, torch.nn.Module] = {"model": self.model}
        if training.critic is not None:
            self.modules["critic"] = training.critic
        self.step = Step(
            self.model, training, micro_batch_size=train.micro_batch_size, checkpointing=train.grad_checkpointing,
            ranks=self.ranks, compiled=train.compiles(self.device.type),
        )  # fmt: skip
        self.epoch = self.batch = 0
        self.losses: list[float] = []
        self.report = self._new_report(training.loss)
        owned = {
            rank: [
                m for mouse in self.recordings.served_by(rank) for m in self.model.modules_of(mouse) if m is not None
            ]
            for rank in range(self.ranks.size)
        }
        self._saves = Saves(self.run, self.modules, self.optimization, owned, self.ranks, train.save_interval)

    def _new_report(self, loss: TrainingLoss) -> Report:
        """It takes the first trial of each mouse and tier for all: reading how long each is would take time."""
        data, train, mice = self.config.data, self.config.train, self.recordings
        longest = {
            tier: np.mean([mice.frames(mouse, mice.trial_ids(mouse, tier)[0]) for mouse in mice.mice])
            for tier in ("train", "validation")
        }
        frames = sample_frames(data.crop_frame, int(longest["train"]))
        trials = sum(len(mice.trial_ids(mouse, "validation")) for mouse in mice.mice)
        return Report(
            self.run, list(mice.mice), train.epochs, train.verbose, writes=self.ranks.first,
            loss_size=loss.step_size(
                self.model.neurons, data.batch_size, max(1, self.model.core.output_frames(frames))
            ),
            # Without a backward, which takes twice the time of the forward.
            validation_steps=trials * longest["validation"] / (3 * len(mice.mice) * data.batch_size * frames),
        )  # fmt: skip

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """Over all that is trained."""
        return self.optimization.optimizer

    @property
    def schedule(self) -> Schedule:
        """Decides after each epoch."""
        return self.optimization.schedule

    @property
    def records(self) -> Records:
        """The rows of `metrics.csv`."""
        return self.report.records

    # -- beginning ---------------------------------------------------------------------------------------------------

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
                start(
                    self.config, self.recordings, self.run, self.model, self.optimization, writes=self.ranks.first
                )  # fmt: skip
            else:
                self._continue()

    def _continue(self) -> None:
        save = self._saves.newest()
        state = save.state
        check_same_recordings(self.run, self.recordings, state.cursor, self.config.data.transform)
        if state.cursor.batch % len(self.recordings.mice):
            raise CheckpointError(f"{save.path}: not the state of this run")
        self._saves.load(save)
        self.epoch, self.batch, self.losses = state.cursor.epoch - 1, state.cursor.batch, list(state.losses)
        self.step.micro_batch_size = self.config.train.micro_batch_size or state.micro_batch_size
        if self.step.micro_batch_size != state.micro_batch_size:
            log.warning(
                "micro batches are of %d trials from here on, not of %d, and so are correlations in the criterion",
                self.step.micro_batch_size, state.micro_batch_size,
            )  # fmt: skip
        self.records.read(self.epoch)
        if self.ranks.first:
            self._saves.set_aside(save)
            self.run.note_data(self.config.data)
        log.info("continuing %s after %s", self.run.path, self._where())

    def _where(self) -> str:
        """How far the run has come, in words."""
        steps = self.batch // len(self.recordings.mice)
        return f"epoch {self.epoch}" + (f" and {steps} steps" if steps else "")

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
        ended, data = self.finished, self.config.data
        if not ended and self.step.micro_batch_size == 0 and data.batch_size > 1:
            batch = largest_batch(self.model, data.batch_size, data.crop_frame)
            self.step.micro_batch_size = choose_micro_batch(self.step, batch, self.device)
        # Alone, the second thread can save as well; with others it would have to ask them.
        with self.watch.saving(self._save_last if self.ranks.size == 1 else None):
            try:
                self._run_frozen_core()
                while not self.finished:
                    began = time.monotonic()
                    with tensor_cores(self.config.train.tf32 and self.device.type == "cuda"):
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
                how = f"--output_dir {self.run.path}" if self._saves.moved else "the same command"
                log.info("saved after %s; %s continues", self._where(), how)
                raise
        self.optimization.to_evaluation()  # before the best weights come, which are in that form
        if self.run.best.is_file():
            self._load_best()
        final = self._validate()
        if self.ranks.first:
            self._saves.follow()
            write_evaluation(self.run, final, self.model)
            self.report.end(self.epoch, stopped=self.schedule.terminated, before=ended)
        return final

    def _run_frozen_core(self) -> None:
        """Computes what a frozen core says of every trial."""
        if self.config.frozen_core:
            show = self.config.train.verbose > 1
            self.outputs = CoreOutputs(self.model, self.recordings, self.run.path, show=show)
            self.step.objective.maps = self.outputs.maps

    def _train_epoch(self) -> None:
        """The optimizer steps of the next epoch that have not been made."""
        epoch, mice = self.epoch + 1, len(self.recordings.mice)
        steps, done = self.recordings.batches_per_epoch // mice, self.batch // mice
        for module in self.modules.values():
            module.train()
        with self.watch.changing:
            self.optimization.begin_epoch(epoch)
            if done < steps:  # each turn rounds: a run that was stopped at the epoch's last step makes none more
                self.optimization.to_training()
        progress = self.report.steps(epoch, steps, done)
        # Closed here, so that no thread goes on reading when training is interrupted.
        with closing(self.recordings.resume(self.recordings.cursor(epoch, self.batch))) as batches:
            for _ in range(done, steps):
                self._train_step(epoch, batches)
                self.report.step(progress, self.losses[-1])
                self._stop_or_save()
        progress.close()

    def _train_step(self, epoch: int, batches: Batches) -> None:
        self._saves.step_begins()
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
            self._saves.step_made()

    def _examined(self, error: NotFinite, epoch: int) -> TrainingError:
        """The error of a step that was not made, once its batch and the state before it are kept in the run folder."""

        def again() -> Iterator[Attempt]:
            places = map(list(self.recordings.mice).index, self.recordings.served)
            with closing(self.recordings.train_batches(epoch, self.batch)) as batches:
                for place, batch in zip(places, batches, strict=False):
                    self._saves.rewind()
                    seed = noise_seed(self.config.train.seed, epoch, self.batch + place)
                    yield Attempt(place, batch.to(self.device), seed)

        facts = {
            "epoch": epoch, "step": self.batch // len(self.recordings.mice) + 1,
            "train_sizes": dict(self.recordings.train_sizes),
        }  # fmt: skip
        return examine(error, self.step, again(), self.run, self._saves.entries, facts)

    def _stop_or_save(self) -> None:
        """Raises Interrupted if a process was told to stop; saves if it is time to, by the first one's clock."""
        stop, due = self.ranks.agree(self.watch.signal > 0, self._saves.due and self.ranks.first)
        if stop:
            raise Interrupted(self.watch.signal or signal.SIGTERM)
        if due:
            with self.watch.changing:
                self._save_last()
        self._end_if_moved()

    def _save_last(self) -> None:
        """Saves the state after the last optimizer step, or after an epoch's end; the caller holds `watch.changing`."""
        cursor = self.recordings.cursor(self.epoch + 1, self.batch)
        self._saves.write(cursor, self.losses, self.step.micro_batch_size)

    def _load_best(self) -> None:
        self._saves.load_best()

    def _end_if_moved(self) -> None:
        """Raises a CheckpointError once a moved run folder holds a save."""
        if self._saves.moved:
            raise CheckpointError(
                f"the run folder was moved while training; saved in {self.run.path} after {self._where()}: go on with "
                f"--output_dir {self.run.path}"
            )

    def _name(self, epoch: int, batch: int) -> str:
        mouse_id, trials = self.recordings.order(epoch)[batch]
        return f"mouse {mouse_id}, trials {', '.join(map(str, trials))}"

    def _stuck(self, what: Callable[[], str]) -> TrainingError:
        seconds, path = self.config.train.reader_timeout, self.config.data.path
        return TrainingError(
            f"{what()}: not read within {seconds} s (--reader_timeout); look at the disk or network that holds {path}"
        )

    def _validate(self) -> Validation:
        with self.watch.changing:
            self.optimization.to_evaluation()
        progress = self.report.validation(
            sum(len(self.recordings.trial_ids(m, "validation")) for m in self.recordings.served)
        )

        def advance() -> None:
            progress.step()
            if self.ranks.size == 1:  # others would wait for this one's scores
                self.watch.check()
            restart()

        # The random readout draws in evaluation too.
        torch.manual_seed(self.config.train.seed)
        loss, predict = self.step.objective.loss, self.step.objective.predict
        stuck = partial(self._stuck, lambda: "the next trial of the tier validation")
        with self.watch.limit(self.config.train.reader_timeout, stuck) as restart:
            result = validate(self.model, self.recordings, loss, advance, self.ranks, predict)
        progress.close()
        return result

    def _end_epoch(self, validation: Validation, seconds: float) -> None:
        """Takes the schedule's decision, and writes down what the epoch came to."""
        if self.ranks.first:
            self._saves.follow()
        loss = float(np.mean(self.losses))
        self.epoch += 1
        self.batch, self.losses = 0, []
        decision = self.optimization.end_epoch(validation.mean, self.epoch)
        if decision.save:
            self._saves.write_best(self.epoch, validation.mean)
        restored = decision.restore and self.run.best.is_file()
        if restored:
            self._load_best()
        self.report.decided(decision, self.epoch, self.optimization, restored=restored)
        self.report.epoch(self.epoch, loss, validation, self.optimization, seconds)
        self._save_last()
