"""What a run tells while it trains: lines of the log, progress, and the rows of `metrics.csv`."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from viv1t.optim.optimization import Optimization
from viv1t.optim.schedule import Decision
from viv1t.runs.folder import RunFolder
from viv1t.system.progress import Progress, duration
from viv1t.training.records import Records
from viv1t.training.validate import Validation

log = logging.getLogger("viv1t.train")


class Report:
    """Tells of a run's epochs.

    Args:
        run: whose they are.
        mice: in the run's order.
        epochs: how many there are at most.
        verbose: 0 says nothing of progress, 3 tells of every mouse.
        writes: whether this process writes.

    Attributes:
        records: the rows of `metrics.csv`.
    """

    def __init__(self, run: RunFolder, mice: Sequence[str], epochs: int, verbose: int, *, writes: bool) -> None:
        self.records = Records(run, list(mice))
        self._run, self._epochs, self._verbose, self._writes = run, epochs, verbose, writes

    def steps(self, epoch: int, total: int, done: int) -> Progress:
        """Progress through the steps of an epoch."""
        return Progress(f"epoch {epoch}/{self._epochs}", total, done=done, show=self._verbose > 1 and self._writes)

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
            "epoch %d/%d  train %.1f  validation %.1f  correlation %.4f%s%s  %s, at most %s left",
            epoch,
            self._epochs,
            loss,
            validation.loss,
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
