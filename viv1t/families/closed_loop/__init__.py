"""ViV1T of 2025 (Li et al., bioRxiv 2025.09.16.676524): causal, with rotary positions, whole trials, registers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from viv1t.config.data import ReadingConfig
from viv1t.config.option_set import owners_of
from viv1t.config.parts import check_same_core
from viv1t.config.training import KeepingConfig
from viv1t.data.recordings import Recordings
from viv1t.families.closed_loop.build import build_model
from viv1t.families.closed_loop.data import open_recordings
from viv1t.families.closed_loop.effects import without_effect
from viv1t.families.closed_loop.metrics import VideoScores
from viv1t.families.closed_loop.names import from_published, to_published
from viv1t.families.closed_loop.options import DERIVED, ClosedLoopConfig, ClosedLoopDataConfig, option_set
from viv1t.families.closed_loop.training import take_optimizer, to_optimizer, training
from viv1t.families.family import Family, shapes_of
from viv1t.model.twin import ViV1T
from viv1t.types import MAX_FRAMES

# What a core computes in evaluation does not depend on these options.
_CORE_MAY_DIFFER = (
    "p_dropout", "mha_dropout", "ff_dropout", "drop_path", "dropout", "parallel_attention", "flash_attention",
)  # fmt: skip
_OURS = owners_of([KeepingConfig, ReadingConfig])  # which the published code does not know


def _told(model: ViV1T) -> dict[str, Any]:
    """The derived facts that follow from a model alone."""
    trainable = sum(parameter.numel() for parameter in model.parameters())
    shapes = shapes_of(model, model.config.data.crop_frame)
    return shapes | {"max_frame": MAX_FRAMES, "trainable_params": trainable}


def _facts(model: ViV1T, recordings: Recordings) -> dict[str, Any]:
    """Those of a new run; which neurons it has, where they are not all."""
    kept = {mouse: recordings.session(mouse).kept for mouse in recordings.mice}
    neurons = {mouse: indices.tolist() for mouse, indices in kept.items() if indices is not None}
    return _told(model) | {"train_sizes": dict(recordings.train_sizes)} | ({"neuron_idx": neurons} if neurons else {})


def _to_args(model: ViV1T, args: Mapping[str, Any]) -> dict[str, Any]:
    """Every option and every derived fact that the published code reads."""
    neurons = {mouse: list(range(count)) for mouse, count in model.neurons.items()}
    known = {key: value for key, value in args.items() if key in DERIVED}
    options = {k: v for k, v in model.config.to_options().items() if k not in _OURS}
    options["core_parallel_attention"] = True
    if not hasattr(model.config.core, "parallel_attention"):
        del options["core_parallel_attention"]
    options["mouse_ids"] = model.mouse_ids
    return options | _told(model) | {"neuron_idx": neurons} | known


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
    training=training,
    same_core=partial(check_same_core, option="--pretrained_core", ignored=_CORE_MAY_DIFFER),
    core_data=("inputs", "center_crop"),
    without_effect=without_effect,
    facts=_facts,
    take_optimizer=take_optimizer,
    to_optimizer=to_optimizer,
)
