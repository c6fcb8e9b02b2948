"""The laboratory: experiments on the twins of mice, one method each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from viv1t.data.session import Session
from viv1t.lab.experiments import reliability
from viv1t.lab.present import OverBudget, Theatre
from viv1t.lab.searches import Searches


class Lab(Searches):
    """Experiments on the twins of the mice of a run.

    Every experiment gives a table, a row a neuron, and writes it to `<out>/<session>/<experiment>.parquet` beside
    `<experiment>.json`, which says everything that is needed to repeat it. What was shown is kept: an interrupted
    experiment goes on where it was, and a finished one is read.

    Args:
        runs: a run folder, several as an ensemble (their mean prediction), or observers by mouse, such as
            `viv1t.lab.observers.TrueNeurons`.
        data: folder of recordings, for what is known of the mice; default what the run keeps.
        mice: ids; default all of the run.
        out: folder to write to; None writes nothing.
        device: of the models; default the best there is.
        statistics: files in the recordings' place, as for `viv1t-predict`.
        mean_statistics: whether statistics of each frame are replaced by their means over frames, so that a pattern is
            the same input wherever in a trial it lies.
        states_of: a mouse whose statistics of movies, behavior and gaze all are examined with.
        neurons: places of the neurons that tables hold, `all`, or `best:K`, the K most reliable in repeated trials.
        format: `parquet` or `csv`.
        monitor: turns pixels into degrees.
        state: behavior over every film: `running`, `still`, or a percentile of the training trials.
        behavior: (2,) as recorded, the same over every film; default the training medians.
        pupil_center: likewise.
        budget: seconds that all experiments together may take; leaner protocols are chosen by it. None is no limit.
        batch_size: trials in a batch; default by memory.
        seed: of the order of patterns, and of shufflings.
        plots: whether pictures are drawn beside the tables.
        say: is told what is about to be done and how long it will take.
        progress: whether a line shows how far it is.

    Raises:
        viv1t.errors.Viv1tError: a run, its statistics or recordings are missing or damaged, or an option is wrong.
    """

    def reliability(self, *, fields: bool = False) -> pd.DataFrame:
        """Which neurons are worth an experiment of their own: recorded repeats, and how well they are predicted.

        Args:
            fields: leave out those without a good receptive field in the order.

        Returns:
            See `viv1t.lab.experiments.reliability.table`.

        Raises:
            ConfigError: there is no recording.
            DataError: no movie was shown twice with its responses given.
        """
        tables, found = [], self.rf() if fields else None
        for id, theatre in self._theatres.items():
            good = None if found is None else found.loc[found["mouse"] == id, "good"].to_numpy(bool)
            session = self.recording(id)

            def make(theatre: Theatre = theatre, session: Session = session, good: Any = good) -> dict[str, Any]:
                return reliability.table(theatre.observer, session, self._neurons[theatre.observer.mouse.id], good)

            parts = [str(session.path), "" if good is None else str(good.tolist())]
            tables.append(self._keep("reliability", {"fields": fields}, theatre.observer, parts, make))
        return pd.concat(tables, ignore_index=True)

    def all(self, options: Mapping[str, Mapping[str, Any]] | None = None) -> dict[str, pd.DataFrame]:
        """Every experiment for which there is time, those that say most a minute first; says what is left out.

        Those at each neuron's field take days for thousands of neurons: they are done where neurons were chosen, or
        where there is a budget.

        Args:
            options: of each experiment that is not to have its defaults.
        """
        tables = {}
        for name in self.experiments:
            try:
                tables[name] = getattr(self, name)(**(options or {}).get(name, {}))
            except OverBudget as error:
                self._say(f"{name} is left out: {error}")
        return tables
