"""What a run tells while it trains: lines of the log, progress, and the rows of `metrics.csv`."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence

from viv1t.optim.optimization import Optimization
from viv1t.optim.schedule import Decision
from viv1t.runs.folder import RunFolder
from viv1t.system.progress import Progress, duration
from viv1t.training.records import Records
from viv1t.training.validate import Validation

log = logging.getLogger("viv1t.train")

# Of steps after the first, before they tell how long training will take.
_FIRST_STEPS, _FIRST_SECONDS = 3, 5.0


def roughly(seconds: float) -> str:
    """`40` -> `40 seconds`, `312` -> `5 minutes`, `30000` -> `8 hours`, `400000` -> `5 days`."""
    units = ((1, "second", 90), (60, "minute", 90 * 60), (3600, "hour", 48 * 3600), (86400, "day", math.inf))
    size, unit = next((size, unit) for size, unit, most in units if seconds < most)
    count = max(1, round(seconds / size))
    return f"{count} {unit}" + ("s" if count > 1 else "")


class Report:
    """Tells of a run's epochs.

    Args:
        run: whose they are.
        mice: in the run's order.
        epochs: how many there are at most.
        verbose: 0 says nothing of progress, 3 tells of every mouse.
        writes: whether this process writes.
        loss_size: what a step's loss is divided by to be read, see `TrainingLoss.step_size`.
        validation_steps: of how many steps a validation takes the time, about.

    Attributes:
        records: the rows of `metrics.csv`, where losses are as the criterion has them.
    """

    def __init__(
        self, run: RunFolder, mice: Sequence[str], epochs: int, verbose: int, *, writes: bool, loss_size: float = 1.0,
        validation_steps: float = 0.0,
    ) -> None:  # fmt: skip
        self.records = Records(run, list(mice))
        self._run, self._epochs, self._verbose, self._writes = run, epochs, verbose, writes
        self._loss_size, self._validation_steps = loss_size, validation_steps
        self._since: float | None = None  # the first step of this process
        self._made, self._left, self._told = 0, 0.0, False  # steps since then; those that are left

    def steps(self, epoch: int, total: int, done: int) -> Progress:
        """Progress through the steps of an epoch."""
        epochs = self._epochs - epoch
        self._left = epochs * total + total - done + (epochs + 2) * self._validation_steps
        return Progress(f"epoch {epoch}/{self._epochs}", total, done=done, show=self._verbose > 1 and self._writes)

    def step(self, progress: Progress, loss: float) -> None:
        """Tells of a step that was made, and, once, how long all of them will take."""
        progress.step(f"loss {loss / self._loss_size:.4f}")
        now = time.monotonic()
        self._left -= 1
        if self._since is None:  # the first step prepares much that later ones find
            self._since = now
            return
        self._made += 1
        took = now - self._since
        if self._told or self._made < _FIRST_STEPS or took < _FIRST_SECONDS:
            return
        self._told = True
        if self._writes:
            left = roughly(self._left * took / self._made)
            log.info("about %s on this machine for all %d epochs, judged by the first steps", left, self._epochs)

    def validation(self, trials: int) -> Progress:
        """Progress through the trials of the tier validation."""
        return Progress("validation", trials, "trials", show=self._verbose > 1 and self._writes)

    def decided(self, decision: Decision, epoch: int, optimization: Optimization, *, restored: bool) -> None:
        """Tells of weights that were gone back to, and of learning rates that were reduced."""
        if restored:
            log.info("epoch %d: back to the weights of epoch %s", epoch, optimization.schedule.best_epoch)
        if decision.reduce_lr:
            first = optimization.groups[0]
            log.info("learning rate of the %s is now %.3g", first["name"], first["lr"])

    def epoch(self, epoch: int, loss: float, validation: Validation, optimization: Optimization, took: float) -> None:
        """Writes down what an epoch came to, `took` seconds of work, and tells of it."""
        if not self._writes:
            return
        self.records.add(epoch, loss, validation, optimization.groups[0]["lr"], took)
        mice = "  ".join(f"{m} {r:.3f}" for m, r in validation.correlation.items())
        log.info(
            "epoch %d/%d  loss %.4f, in validation %.4f  correlation %.4f%s%s  %s, at most %s left",
            epoch,
            self._epochs,
            loss / self._loss_size,
            validation.loss / validation.loss_size,
            validation.mean,
            " *" if optimization.schedule.best_epoch == epoch else "",
            f"  [{mice}]" if self._verbose > 2 and len(validation.correlation) > 1 else "",
            duration(took),
            duration(took * (self._epochs - epoch)),
        )

    def end(self, epoch: int, *, stopped: bool, before: bool) -> None:
        """Says why nothing is left to train, and which weights the run comes to.

        Args:
            epoch: the last one.
            stopped: whether the schedule ended the run.
            before: whether it had ended before this start of it.
        """
        why = "its correlation had stopped rising"
        if not stopped:
            why = f"that is all of --epochs {self._epochs}; more go on from here"
        if before:
            why += "; nothing was trained now"
        log.info("%s is finished after epoch %d: %s", self._run.path, epoch, why)
        if not self._run.best.is_file():
            log.warning(
                "no epoch's correlation was above 0, so there are no best weights: the last ones stand for the run; "
                "see %s", self._run.metrics,
            )  # fmt: skip
