"""ViV1T of 2023, as the authors trained it for the Sensorium challenge."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from viv1t.config import CORES, READOUTS, SELECTORS, RunConfig, VivitConfig, all_components
from viv1t.effects import published_slips
from viv1t.errors import ConfigError
from viv1t.families.family import Family
from viv1t.families.sensorium2023.build import build_model
from viv1t.families.sensorium2023.grid import is_torn
from viv1t.model.published import from_published, to_published
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


SENSORIUM2023 = Family(
    name="2023",
    flags=frozenset(all_components()) | frozenset(SELECTORS) | {"output_mode"},
    components={"core": frozenset(CORES), "readout": frozenset(READOUTS)},
    weights="ckpt/model_state.pt",
    wrapped=True,
    config=RunConfig.from_published,
    build_model=build_model,
    from_published=from_published,
    to_published=to_published,
    to_args=_to_args,
    remarks=published_slips,
)
