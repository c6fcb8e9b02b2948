"""Training as one call: the options are judged before anything heavy is imported."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from viv1t.config.effects import check_effects
from viv1t.config.fields import flag_of
from viv1t.errors import missing_folder

if TYPE_CHECKING:
    from viv1t.families.known import AnyConfig
    from viv1t.training.trainer import Trainer
    from viv1t.training.validate import Validation


def run(config: AnyConfig) -> tuple[Trainer, Validation]:
    """Trains, or continues, the run that `config` describes; returns the trainer and its final scores."""
    check_effects(config)
    folder = Path(config.data.path)
    if not folder.is_dir():
        option = f"--{flag_of(config.data, 'path')} "
        raise missing_folder(folder, "give the folder that holds the recording sessions", option=option)
    from viv1t.recipes.training import (
        run as trained,  # not before the options are known to be good: PyTorch takes seconds
    )

    return trained(config)
