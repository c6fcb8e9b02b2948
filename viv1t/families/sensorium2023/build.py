"""The model that options of 2023 describe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from viv1t.config.parts import ShifterConfig
from viv1t.families.sensorium2023.grid import Grid, map_grid
from viv1t.families.sensorium2023.options import (
    FactorizedBaselineConfig,
    FactorizedReadoutConfig,
    Gaussian2dConfig,
    GruModulatorConfig,
    MlpModulatorConfig,
    MlpV2ModulatorConfig,
    MlpV3ModulatorConfig,
    ModulatorConfig,
    ReadoutConfig,
    VivitConfig,
)
from viv1t.families.sensorium2023.run import RunConfig
from viv1t.model.cores.factorized import FactorizedBaseline
from viv1t.model.cores.vivit import Vivit
from viv1t.model.layers.blocks import BlockShape, ParallelBlock, SequentialBlock
from viv1t.model.layers.positions import PositionGenerator
from viv1t.model.layers.state import StateEncoder
from viv1t.model.layers.tokenizer import Tokenizer
from viv1t.model.layers.transformer import Transformer
from viv1t.model.modulator import GruModulator, MlpModulator, MlpV2Modulator, MlpV3Modulator
from viv1t.model.output import build_output
from viv1t.model.readout import FactorizedReadout, Gaussian2dReadout, RandomReadout
from viv1t.model.shifter import Shifter
from viv1t.model.twin import MouseModules, Neurons, ViV1T, module_key

# behavior mode -> (channels joined to the video, variables encoded in blocks)
_STATE_USE = {
    "none": (0, 0),
    "behavior_channels": (2, 0),
    "state_channels": (4, 0),
    "behavior_encoding": (0, 2),
    "state_encoding": (0, 4),
    "state_encoding_per_mouse": (0, 4),
}


def build_tokenizer(config: VivitConfig, frame_size: tuple[int, int], state_channels: int) -> Tokenizer:
    """The tokenizer of a core `vivit`."""
    pt, ps = config.temporal_patch_size, config.spatial_patch_size
    st, ss = config.temporal_patch_stride, config.spatial_patch_stride
    return Tokenizer(
        frame_size,
        state_channels,
        config.emb_dim,
        (pt, ps, ps),
        (st, ss, ss),
        normalized=config.patch != "convolution",
        positions="none" if config.pos_encoding == "generated" else config.pos_encoding,
        dropout=config.p_dropout,
    )


def build_transformer(
    config: VivitConfig, axis: int, depth: int, grid: Grid, state_inputs: int, state_mice: Sequence[str] | None
) -> Transformer:
    """Blocks over patches (`axis` 2) or frames (`axis` 1).

    Args:
        config: the core's options.
        axis: 1 attends over frames, 2 over patches.
        depth: number of blocks.
        grid: rows and columns that the patches are taken to have.
        state_inputs: size of a state window for blocks that add its encoding, 0 for none.
        state_mice: mice with an encoder of their own; None shares one.
    """
    # The published sequential block scales by the embedding's size unless flash attention is on.
    by_depth = not config.parallel_attention and not config.flash_attention
    shape = BlockShape(
        depth=config.emb_dim,
        heads=config.num_heads,
        head_dim=config.head_dim,
        hidden=config.mlp_dim,
        activation=config.ff_activation,
        norm_qk=config.norm_qk,
        scale=config.emb_dim**-0.5 if by_depth else None,
        attention_dropout=config.mha_dropout,
        ff_dropout=config.ff_dropout,
        drop_path=config.drop_path,
    )
    kind = ParallelBlock if config.parallel_attention else SequentialBlock
    blocks = [kind(shape) for _ in range(depth)]
    # Parallel blocks ignore generated positions, as the published ones do.
    if config.pos_encoding == "generated" and blocks and isinstance(blocks[0], SequentialBlock):
        blocks[0].position_generator = PositionGenerator(config.emb_dim, grid if axis == 2 else ())
    encoders = [StateEncoder(state_inputs, config.emb_dim, state_mice) for _ in range(depth if state_inputs else 0)]
    return Transformer(axis, blocks, state_encoders=encoders)


def _build_vivit(config: VivitConfig, frame_size: tuple[int, int], mice: Sequence[str]) -> Vivit:
    channels, encoded = _STATE_USE[config.behavior]
    tokenizer = build_tokenizer(config, frame_size, channels)
    grid = map_grid(config, tokenizer.grid)
    inputs = encoded * config.temporal_patch_size
    owners = mice if config.behavior == "state_encoding_per_mouse" else None
    return Vivit(
        tokenizer,
        build_transformer(config, 2, config.spatial_depth, grid, inputs, owners),
        build_transformer(config, 1, config.temporal_depth, grid, inputs, owners),
        depth=config.emb_dim,
        grid=grid,
        state_channels=channels,
        encoded=encoded,
    )


def _build_factorized(config: FactorizedBaselineConfig, frame_size: tuple[int, int]) -> FactorizedBaseline:
    return FactorizedBaseline(
        frame_size,
        config.behavior,
        input_kernels=(config.spatial_input_kernel, config.temporal_input_kernel),
        hidden_kernels=(config.spatial_hidden_kernel, config.temporal_hidden_kernel),
        num_layers=config.num_layers,
        hidden_dim=config.hidden_dim,
        dropout=config.dropout,
        reg_spatial=config.reg_spatial,
        reg_temporal=config.reg_temporal,
    )


def build_shifter(config: ShifterConfig) -> Shifter | None:
    """The shifter of one mouse; None for none."""
    return None if config.mode == "none" else Shifter(config.mode, config.layers, config.size)


def build_readout(config: ReadoutConfig, shape: tuple[int, int, int], neurons: Neurons) -> nn.Module:
    """The readout of one mouse from maps of `shape` (D, h, w)."""
    if isinstance(config, Gaussian2dConfig):
        return Gaussian2dReadout(
            shape[0], neurons.count, neurons.coordinates, neurons.mean_response,
            grid=config.grid, bias=config.bias, dropout=config.dropout,
        )  # fmt: skip
    if isinstance(config, FactorizedReadoutConfig):
        return FactorizedReadout(shape, neurons.count, config.dropout)
    return RandomReadout(neurons.count)


def build_modulator(config: ModulatorConfig, neurons: int) -> nn.Module | None:
    """The modulator of one mouse, None for none."""
    match config:
        case MlpModulatorConfig():
            state = {"none": 0, "behavior": 2, "state": 4}[config.behaviors]
            history = config.history_size if config.include_history else 0
            return MlpModulator(neurons, history, state, config.history_dropout, config.behaviors_dropout)
        case GruModulatorConfig():
            return GruModulator(neurons, config.hidden_dim, config.dropout)
        case MlpV2ModulatorConfig():
            return MlpV2Modulator(config.history_size, config.history_dropout)
        case MlpV3ModulatorConfig():
            return MlpV3Modulator(neurons, config.activation, config.dropout)
    return None


def build_model(config: RunConfig, mice: Mapping[str, Neurons], frame_size: tuple[int, int]) -> ViV1T:
    """A freshly initialised model on the CPU; draws from PyTorch's global generator.

    Args:
        config: the run's configuration; only its model parts are used.
        mice: the mice, in order.
        frame_size: (H, W) of the video in pixels.
    """
    core: Vivit | FactorizedBaseline
    if isinstance(config.core, VivitConfig):
        core = _build_vivit(config.core, frame_size, [module_key(m) for m in mice])
    else:
        core = _build_factorized(config.core, frame_size)
    modules = {
        mouse: MouseModules(
            build_shifter(config.shifter),
            build_readout(config.readout, core.output_shape, neurons),
            build_modulator(config.modulator, neurons.count),
            build_output(config.output),
        )
        for mouse, neurons in mice.items()
    }
    autocast = "always" if config.train.precision == "bf16" else "never"
    model = ViV1T(config, core, modules, mice, frame_size, autocast)
    model.core.set_recompute(config.train.grad_checkpointing)
    return model
