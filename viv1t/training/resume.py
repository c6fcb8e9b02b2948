"""Where a run begins: anew, from another run's weights or core, or where it stopped."""

from __future__ import annotations

import logging
from typing import Any

from viv1t.data.formats.sensorium.recorded import write_recorded
from viv1t.data.order import Cursor
from viv1t.data.recordings import Recordings
from viv1t.errors import CheckpointError, ConfigError, DataError
from viv1t.families.known import family_for
from viv1t.model.twin import ViV1T
from viv1t.optim.optimization import Optimization
from viv1t.runs.ensemble import check_neurons
from viv1t.runs.folder import RunFolder
from viv1t.runs.published_file import read_archive
from viv1t.system.files import write_text
from viv1t.training.new_model import summary
from viv1t.training.validate import check_length

log = logging.getLogger("viv1t.train")


def start(
    config: Any, recordings: Recordings, run: RunFolder, model: ViV1T, optimization: Optimization, *, writes: bool
) -> None:
    """Begins a run anew; `writes`, and only when everything else has worked, what makes the folder a run.

    Raises:
        CheckpointError: a checkpoint to start from is damaged or does not fit.
        ConfigError: the options fit neither the recordings nor what is started from.
        DataError: a trial of the tier validation is damaged, or too short to be scored.
    """
    # Training reaches these trials only after an epoch: better to know now.
    for mouse_id in recordings.served:
        for batch in recordings.trials(mouse_id, "validation"):
            check_length([model], batch)
    family, core_of = family_for(config), config.pretrained_core
    if config.train.restore is not None:
        restore(model, recordings, config.train.restore)
        # Beside published weights, which best weights of ours are not.
        place = (RunFolder(config.train.restore).path / family.weights).with_name("optimizer.pt")
        if family.take_optimizer is not None and place.is_file():
            family.take_optimizer(model, optimization, read_archive(place), str(place))
            log.info("and from the optimizer of %s", place)
    origin = core_of or config.train.restore
    before: Any = None if origin is None else RunFolder(origin).config()
    family.check_start(config, recordings.frame_size, before)
    if core_of is not None:
        family.same_core(config.core, before.core, core_of)
        for name in family.core_data:
            if getattr(before.data, name) != getattr(config.data, name):
                log.warning("the core of %s was trained with another %s of the data", core_of, name)
        restore(model, recordings, core_of, "core.")
    if not writes:
        return
    recorded = {mouse: recordings.recorded(mouse) for mouse in recordings.mice}
    if config.train.clear_output_dir:
        run.clear()
    run.discard_results()
    # Before what makes the folder a run: every run has it.
    write_recorded(run.recordings, recorded, recordings.frame_size, config.data)
    run.write_args(config, family.facts(model, recordings))
    write_text(run.path / "model.txt", summary(model))


def restore(model: ViV1T, recordings: Recordings, folder: str, prefix: str = "") -> None:
    """Takes the weights of the run in `folder`, or those alone whose names begin with `prefix`.

    Raises:
        CheckpointError: its checkpoint is damaged, or has other weights.
        ConfigError: it was trained on other neurons.
    """
    of_other, own = RunFolder(folder).family(), family_for(model.config)
    if of_other is not own:
        raise CheckpointError(
            f"{folder}: a run of the family of {of_other.name}, but this one is of that of {own.name}: start from one "
            "of the same family"
        )
    other = RunFolder(folder).load_model()
    if not prefix:  # readouts belong to neurons, a core to none
        for mouse in model.mouse_ids:
            check_neurons(other.unit_ids.get(mouse), recordings.session(mouse), f"{folder} (--restore)")
    source, target = other.state_dict(), model.state_dict()
    wanted = {k for k in target if k.startswith(prefix)}
    misfit = sorted(k for k in wanted if k not in source or source[k].shape != target[k].shape)
    if misfit:
        raise CheckpointError(f"{folder} does not fit this model; missing or misshaped: {', '.join(misfit[:20])}")
    model.load_state_dict({k: source[k] for k in wanted}, strict=False)
    log.info("started from the %s of %s", "core" if prefix else "weights", folder)


def check_same_recordings(run: RunFolder, recordings: Recordings, cursor: Cursor, transform: str) -> None:
    """Whether the recordings are those that the run in the folder began with, wherever they lie now.

    Raises:
        ConfigError: they are of other mice.
        CheckpointError: its order of training was another.
        DataError: they are not, or not as they were.
    """
    mice, now = run.mouse_ids(), list(recordings.mice)
    if set(mice) != set(now):
        raise ConfigError(
            f"{run.path} holds a run on the mice {', '.join(sorted(mice))}, not {', '.join(now)}: give the "
            "same recordings and --mouse_ids to continue it, or choose another --output_dir"
        )
    cursor.check(recordings.cursor(0, 0).order, recordings.batches_per_epoch)
    recorded = run.recorded()
    if recorded is None:
        log.warning(
            "%s does not say which neurons it was trained on (there is no %s): that they are those of the "
            "recordings, in the same order, cannot be checked", run.path, run.recordings.name,
        )  # fmt: skip
        return
    for mouse in now:
        check_neurons(recorded.mice[mouse].unit_ids, recordings.session(mouse))
        if changed := recorded.changed(recordings.recorded(mouse), transform):
            raise DataError(
                f"mouse {mouse}: {recordings.session(mouse).path}: not the recording that {run.path} "
                f"began with; they differ in {', '.join(changed[:3])}: give --data as it was, or choose another "
                "--output_dir"
            )
