"""ViV1T of 2023, as the authors trained it for the Sensorium challenge."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from viv1t.config.data import DataConfig, ReadingConfig
from viv1t.config.parts import check_same_core
from viv1t.data.recordings import Recordings
from viv1t.errors import ConfigError
from viv1t.families.family import Family, shapes_of
from viv1t.families.sensorium2023.build import build_model
from viv1t.families.sensorium2023.effects import published_slips, without_effect
from viv1t.families.sensorium2023.grid import check_grid, is_torn
from viv1t.families.sensorium2023.names import from_published, to_published
from viv1t.families.sensorium2023.options import OF_TRAINING, VivitConfig
from viv1t.families.sensorium2023.run import RunConfig, option_set
from viv1t.families.sensorium2023.training import training
from viv1t.model.twin import ViV1T
from viv1t.types import MAX_FRAMES


def _to_args(model: ViV1T, args: Mapping[str, Any]) -> dict[str, Any]:
    """Options in values that the published code knows, and facts.

    Raises:
        ConfigError: the published code cannot do what the model does.
    """
    core = model.config.core
    if isinstance(core, VivitConfig) and core.grid == "true" and is_torn(core, model.frame_size):
        raise ConfigError(
            "it was trained with --core_grid true, which the published code does not have: it would read out other "
            "places"
        )
    options = model.config.to_options()
    options["precision"] = {"tf32": "32"}.get(options["precision"], options["precision"])
    options["cache_data"] = bool(options["cache_data"])
    shapes = {key: value for key, value in args.items() if key in ("input_shapes", "output_shapes")}
    trainable = sum(parameter.numel() for parameter in model.parameters())
    return options | shapes | {"max_frame": MAX_FRAMES, "trainable_params": trainable}


def _reading(data: DataConfig, path: str | None, mouse_ids: Sequence[str]) -> DataConfig:
    allowed = "all" if data.mice == "all_with_test" else data.mice  # which tiers are for training does not matter
    return dataclasses.replace(
        data, path=path or data.path, mice=allowed, mouse_ids=tuple(mouse_ids), limit_data=None, cache_data=None
    )


def _check_start(config: RunConfig, frame_size: tuple[int, int], before: Any) -> None:
    if isinstance(config.core, VivitConfig):
        origin = None if before is None else before.core
        check_grid(config.core, frame_size, origin if isinstance(origin, VivitConfig) else None)


def _same_core(core: Any, other: Any, folder: str) -> None:
    def said(core: Any) -> Any:
        return dataclasses.replace(core, grid=core.grid or "published") if isinstance(core, VivitConfig) else core

    check_same_core(said(core), said(other), folder, "--pretrain_core", OF_TRAINING)


SENSORIUM2023 = Family(
    name="2023",
    kind=RunConfig,
    options=option_set(),
    weights="ckpt/model_state.pt",
    wrapped=True,
    from_options=RunConfig.from_options,
    config=RunConfig.from_published,
    build_model=build_model,
    from_published=from_published,
    to_published=to_published,
    to_args=_to_args,
    same_data=(
        "statistics",
        "transform",
        "response_scale",
        "center_crop",
        *(f.name for f in dataclasses.fields(ReadingConfig)),
    ),
    reading=_reading,
    open_recordings=Recordings.open,
    remarks=published_slips,
    training=training,
    check_start=_check_start,
    same_core=_same_core,
    core_data=("transform", "center_crop"),
    without_effect=without_effect,
    facts=lambda model, recordings: shapes_of(model, model.config.data.crop_frame),
)
