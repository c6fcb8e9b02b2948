"""What a run writes down after each epoch, and at its end."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from viv1t.errors import CheckpointError
from viv1t.families.known import family_for
from viv1t.model.twin import ViV1T
from viv1t.runs.folder import RunFolder
from viv1t.runs.score_file import earlier_scores, merged, weights_checksum, write_scores
from viv1t.system.files import write_text
from viv1t.training.validate import Validation

Row = dict[str, Any]


class Records:
    """The rows of `metrics.csv`.

    Args:
        run: whose they are.
        mice: whose correlations have columns of their own.
    """

    def __init__(self, run: RunFolder, mice: Sequence[str]) -> None:
        self._run = run
        names = ("epoch", "train_loss", "validation_loss", "correlation", "learning_rate", "seconds")
        self.columns = [*names, *(f"correlation/{mouse}" for mouse in mice)]
        self.rows: list[Row] = []

    def read(self, epochs: int) -> None:
        """Takes back the rows of the first epochs, of those that were written.

        Raises:
            CheckpointError: the file is damaged, or another run's.
        """
        path = self._run.metrics
        if not path.is_file():
            return
        try:
            with open(path, newline="", encoding="utf-8") as file:
                rows: list[Row] = [row for row in csv.DictReader(file, strict=True) if int(row["epoch"]) <= epochs]
            if rows and list(rows[0]) != self.columns:
                raise ValueError("other columns")
        except (ValueError, KeyError, TypeError, csv.Error) as error:
            raise CheckpointError(f"{path}: damaged ({error}); delete it to go on without") from error
        self.rows = rows

    def add(self, epoch: int, loss: float, validation: Validation, lr: float, seconds: float) -> None:
        """Adds an epoch's row, and writes the file."""
        values = (epoch, loss, validation.loss, validation.mean, lr, round(seconds, 3))
        self.rows.append(dict(zip(self.columns, [*values, *validation.correlation.values()], strict=True)))
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns)
        writer.writeheader()
        writer.writerows(self.rows)
        write_text(self._run.metrics, text.getvalue())


def write_evaluation(run: RunFolder, validation: Validation, model: ViV1T) -> None:
    """Writes the scores of a run's weights on the tier `validation` to `evaluation.yaml`, with what is there of them.

    Args:
        run: whose scores they are.
        validation: the scores.
        model: with the weights that were scored.
    """
    scores: dict[str, Any] = {mouse: float(r) for mouse, r in validation.correlation.items()}
    scores["average"] = validation.mean
    if family_for(model.config).scorer is not None:  # whose files have several scores under their names
        scores = {"correlation": scores}
    checksum = weights_checksum([model])
    earlier = earlier_scores(run.evaluation, checksum, own=True)
    write_scores(run.evaluation, merged(earlier, {"validation": scores}), checksum)
