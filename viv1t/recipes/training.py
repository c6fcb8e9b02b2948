"""One training, from its options to its scores and pictures."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from dataclasses import replace

from viv1t.data.recordings import Recordings
from viv1t.families.known import AnyConfig, family_for
from viv1t.model.twin import ViV1T
from viv1t.plot import learning_curves
from viv1t.prediction.evaluate import family_scores
from viv1t.report import draw_model
from viv1t.runs.folder import RunFolder
from viv1t.runs.score_file import earlier_scores, merged, weights_checksum, write_scores
from viv1t.training.log import RunLog
from viv1t.training.ranks import started
from viv1t.training.trackers import Row, Tracker, check_trackers, trackers
from viv1t.training.trainer import Trainer, best_device, check_trainable
from viv1t.training.validate import Validation
from viv1t.training.watch import Watch


def run(config: AnyConfig) -> tuple[Trainer, Validation]:
    """Trains, or continues, the run that `config` describes; returns the trainer and its final scores."""
    check_trainable(config)
    check_trackers(config)
    folder = RunFolder(config.train.output_dir)
    device = best_device(config.train.device)
    with Watch() as watch, started(device) as ranks, RunLog(config.train.verbose if ranks.first else 0) as log:
        if config.train.clear_output_dir and not ranks.may_clear():
            config = replace(config, train=replace(config.train, clear_output_dir=False))  # type: ignore[arg-type]
        family = family_for(config)
        for line in family.without_effect(config) if ranks.first else ():
            logging.getLogger("viv1t.train").warning("%s", line)
        with folder.locked() if ranks.first else nullcontext():
            if ranks.first:
                folder.check_start(config)
            with ranks.in_turn():  # the first computes statistics and unpacks archives for all
                recordings = family.open_recordings(config.data, config.train.seed, ranks.rank, ranks.size, device)
            with closing(recordings):
                trainer = Trainer(config, recordings, folder, watch, ranks)
                trainer.begin()
                if not ranks.first:
                    return trainer, trainer.fit()
                log.open(folder.log)
                with trackers(config, folder, trainer.epoch) as chosen:
                    final = trainer.fit(_after_epoch(config, folder, chosen))
                add_family_scores(folder, trainer.model.eval(), recordings)
                if config.train.save_plots:
                    _draw_curves(config, folder)
                    form, dpi = config.train.format, config.train.dpi
                    draw_model(trainer.model.eval(), recordings, folder.plots, format=form, dpi=dpi)
                return trainer, final


def add_family_scores(folder: RunFolder, model: ViV1T, recordings: Recordings) -> None:
    """Adds what the family's own run folders hold of the final weights to `evaluation.yaml`, of all tiers they score.

    Those are `validation` and the live test tiers, where their responses are known.
    """
    family = family_for(model.config)
    if family.scorer is None:
        return
    checksum = weights_checksum([model])
    scores = family_scores([model], recordings, ["validation", "live_test_main", "live_test_bonus"], family)
    earlier = earlier_scores(folder.evaluation, checksum, own=True)
    write_scores(folder.evaluation, merged(earlier, scores), checksum)


def _after_epoch(config: AnyConfig, folder: RunFolder, chosen: Sequence[Tracker]) -> Callable[[Row], None]:
    """Draws and logs each epoch, as asked for."""

    def after_epoch(row: Row) -> None:
        if config.train.save_plots:
            _draw_curves(config, folder)
        for tracker in chosen:
            tracker.log(row)

    return after_epoch


def _draw_curves(config: AnyConfig, folder: RunFolder) -> None:
    if folder.metrics.is_file():
        folder.plots.mkdir(exist_ok=True)
        learning_curves(folder.metrics, folder.plots / f"learning_curves.{config.train.format}", dpi=config.train.dpi)
