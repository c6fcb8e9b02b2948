"""Options of 2023 that do nothing beside the others that were given, and what models oddly do as published."""

from __future__ import annotations

from collections.abc import Iterator

from viv1t.config.effects import Parts, told
from viv1t.config.parts import NoModulatorConfig
from viv1t.families.sensorium2023.options import (
    OPTIMIZER_DEFAULTS,
    FactorizedBaselineConfig,
    FactorizedReadoutConfig,
    Gaussian2dConfig,
    MlpModulatorConfig,
    RandomReadoutConfig,
    VivitConfig,
)
from viv1t.families.sensorium2023.run import RunConfig


def without_effect(config: RunConfig) -> list[str]:
    """A line for every option that differs from its default and changes nothing."""
    return told(_idle(config), OPTIMIZER_DEFAULTS[config.core.name])


def published_slips(config: RunConfig) -> list[str]:
    """A line for everything that a model does as the published code does, where that is not what one expects."""
    lines = []
    core = config.core
    state = isinstance(config.readout, Gaussian2dConfig) or not isinstance(config.modulator, NoModulatorConfig)
    if isinstance(core, VivitConfig) and core.temporal_patch_stride > 1 and state:
        lines.append(
            f"--core_temporal_patch_stride {core.temporal_patch_stride}: as in the published code, t maps are read out "
            "with behavior and pupil_center of the last t frames, not of the frames that the maps are of"
        )
    return lines


def _idle(config: RunConfig) -> Iterator[Parts]:
    data, core, readout, shifter, train = config.data, config.core, config.readout, config.shifter, config.train
    modulator, optimizer = config.modulator, config.optimizer
    if data.transform == "none":
        yield data, ("center_crop", "response_scale", "statistics"), "--transform_mode 0 leaves the data as they are"
    if data.cache_data == "gpu":
        yield data, ("transfer",), "--cache_data gpu holds the trials where they are used"
    if isinstance(core, VivitConfig):
        if core.parallel_attention:
            if core.pos_encoding == "generated":
                why = "positions by convolution are for sequential blocks; parallel ones get no positions at all"
                yield core, ("pos_encoding",), why
            yield core, ("flash_attention",), "parallel blocks have one scale (--core_parallel_attention)"
        if core.freeze:
            dropouts = ("p_dropout", "mha_dropout", "ff_dropout", "drop_path")
            yield core, dropouts, "a core that --freeze_core leaves as it is has no dropout"
    elif core.freeze:
        names = ("dropout", "reg_spatial", "reg_temporal")
        yield core, names, "a core that --freeze_core leaves as it is has no dropout and no penalty"
    if core.freeze:
        yield optimizer, ("core_lr", "core_weight_decay"), "--freeze_core leaves the core as it is"
    if isinstance(core, FactorizedBaselineConfig):
        yield train, ("grad_checkpointing",), "the core factorized_baseline has no blocks to recompute"
    if isinstance(readout, FactorizedReadoutConfig):
        yield readout, ("bias",), "the readout factorized has no bias"
    if shifter.mode == "none":
        yield shifter, ("layers", "size"), "--shifter_mode 0 has no shifter"
    elif isinstance(readout, FactorizedReadoutConfig | RandomReadoutConfig):
        yield shifter, None, f"the readout {readout.name} has no positions to shift"
    if isinstance(modulator, NoModulatorConfig):
        yield optimizer, ("modulator_weight_decay",), "--modulator_mode 0 has no modulator"
    if isinstance(modulator, MlpModulatorConfig):
        if not modulator.include_history:
            yield modulator, ("history_size", "history_dropout"), "--modulator_include_history 0 leaves the history out"
        if modulator.behaviors == "none":
            yield modulator, ("behaviors_dropout",), "--modulator_include_behaviors 0 leaves the behaviour out"
    if not train.save_plots:
        yield train, ("dpi", "format"), "--save_plots is not given"
