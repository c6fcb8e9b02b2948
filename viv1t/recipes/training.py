"""One training, from its options to its scores and pictures."""

from __future__ import annotations

import logging
from contextlib import closing, nullcontext
from dataclasses import replace
from typing import Any

from viv1t.data.recordings import Recordings
from viv1t.families.known import AnyConfig, family_for
from viv1t.model.twin import ViV1T
from viv1t.plot import learning_curves
from viv1t.prediction.evaluate import family_scores
from viv1t.report import draw_model
from viv1t.runs.folder import RunFolder
from viv1t.runs.score_file import earlier_scores, merged, weights_checksum, write_scores
from viv1t.system.device import best_device
from viv1t.training.log import RunLog
from viv1t.training.ranks import started
from viv1t.training.trackers import Row, check_trackers, trackers
from viv1t.training.trainer import Trainer
from viv1t.training.validate import Validation, check_every_frame
from viv1t.training.watch import Watch


def run(config: AnyConfig) -> tuple[Trainer, Validation]:
    """Trains, or continues, the run that `config` describes; returns the trainer and its final scores."""
    check_every_frame(config)
    check_trackers(config.train.wandb)
    device, folder = best_device(config.train.device), RunFolder(config.train.output_dir)
    with Watch() as watch, started(device) as ranks, RunLog(config.train.verbose if ranks.first else 0) as log:
        if config.train.clear_output_dir and not ranks.may_clear():
            config = replace(config, train=replace(config.train, clear_output_dir=False))  # type: ignore[arg-type]
        with folder.locked() if ranks.first else nullcontext():
            if ranks.first:
                folder.check_start(config)
            family = family_for(config)
            for line in family.without_effect(config) if ranks.first else ():
                logging.getLogger("viv1t.train").warning("%s", line)
            with ranks.in_turn():  # the first computes statistics and unpacks archives for all
                recordings = family.open_recordings(config.data, config.train.seed, ranks.rank, ranks.size, device)
            with closing(recordings):
                trainer = Trainer(config, recordings, folder, watch, ranks, device)
                trainer.begin()
                if not ranks.first:
                    return trainer, trainer.fit()
                log.open(folder.log)
                drawing: dict[str, Any] = {"format": config.train.format, "dpi": config.train.dpi}
                with trackers(config, folder, trainer.epoch) as chosen:

                    def after_epoch(row: Row) -> None:
                        """Draws and logs an epoch, as asked for."""
                        if config.train.save_plots:
                            _draw_curves(folder, **drawing)
                        for tracker in chosen:
                            tracker.log(row)

                    final = trainer.fit(after_epoch)
                add_family_scores(folder, trainer.model.eval(), recordings)
                if config.train.save_plots:
                    _draw_curves(folder, **drawing)
                    draw_model(trainer.model.eval(), recordings, folder.plots, **drawing)
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


def _draw_curves(folder: RunFolder, format: str, dpi: int) -> None:
    if folder.metrics.is_file():
        folder.plots.mkdir(exist_ok=True)
        learning_curves(folder.metrics, folder.plots / f"learning_curves.{format}", dpi=dpi)
