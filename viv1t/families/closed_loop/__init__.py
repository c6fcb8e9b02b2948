"""ViV1T of 2025 (Li et al., bioRxiv 2025.09.16.676524): causal, with rotary positions, whole trials, registers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from viv1t.config.option_set import owners_of
from viv1t.config.run import KeepingConfig, ReadingConfig
from viv1t.families.closed_loop.build import build_model
from viv1t.families.closed_loop.data import open_recordings
from viv1t.families.closed_loop.metrics import VideoScores
from viv1t.families.closed_loop.names import from_published, to_published
from viv1t.families.closed_loop.options import DERIVED, ClosedLoopConfig, ClosedLoopDataConfig, option_set
from viv1t.families.closed_loop.training import training
from viv1t.families.family import Family
from viv1t.model.twin import ViV1T
from viv1t.types import MAX_FRAMES

_OURS = owners_of([KeepingConfig, ReadingConfig])  # which the published code does not know


def _to_args(model: ViV1T, args: Mapping[str, Any]) -> dict[str, Any]:
    """Every option and every derived fact that the published code reads."""
    crop = model.config.data.crop_frame
    frames = crop if crop > 0 else MAX_FRAMES
    shapes = {
        "input_shapes": {
            "behavior": [2, frames], "pupil_center": [2, frames], "video": [1, frames, *model.frame_size],
        },
        "output_shapes": {mouse: [count, frames] for mouse, count in model.neurons.items()},
    }  # fmt: skip
    facts = {
        "max_frame": MAX_FRAMES,
        "neuron_idx": {mouse: list(range(count)) for mouse, count in model.neurons.items()},
        "trainable_params": sum(parameter.numel() for parameter in model.parameters()),
    }
    known = {key: value for key, value in args.items() if key in DERIVED}
    options = {k: v for k, v in model.config.to_options().items() if k not in _OURS}
    options["core_parallel_attention"] = True
    if not hasattr(model.config.core, "parallel_attention"):
        del options["core_parallel_attention"]
    options["mouse_ids"] = model.mouse_ids
    return options | shapes | facts | known


def _reading(data: ClosedLoopDataConfig, path: str | None, mouse_ids: Sequence[str]) -> ClosedLoopDataConfig:
    return dataclasses.replace(data, path=path or data.path, mouse_ids=tuple(mouse_ids), limit_data=None)


CLOSED_LOOP = Family(
    name="2025",
    options=option_set(),
    kind=ClosedLoopConfig,
    weights="ckpt/model.pt",
    wrapped=False,
    from_options=ClosedLoopConfig.from_options,
    config=ClosedLoopConfig.from_published,
    build_model=build_model,
    from_published=from_published,
    to_published=to_published,
    to_args=_to_args,
    same_data=("inputs", "outputs", "center_crop", *(f.name for f in dataclasses.fields(ReadingConfig))),
    reading=_reading,
    open_recordings=open_recordings,
    scorer=VideoScores,
    from_statistics=False,
    trained_here=False,
    training=training,
    core_data=("inputs", "center_crop"),
)
