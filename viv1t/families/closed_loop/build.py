"""The model that options of 2025 describe."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from viv1t.families.closed_loop.options import ClosedLoopConfig, ClosedLoopVivitConfig, FcnnConfig
from viv1t.model.cores.factorized import STATE_CHANNELS, FactorizedBaseline
from viv1t.model.cores.vivit import Vivit
from viv1t.model.layers.blocks import BlockShape, ParallelBlock
from viv1t.model.layers.positions import Rotary
from viv1t.model.layers.tokenizer import Tokenizer
from viv1t.model.layers.transformer import Transformer
from viv1t.model.output import build_output
from viv1t.model.readout import Gaussian2dReadout
from viv1t.model.shifter import Shifter
from viv1t.model.twin import MouseModules, Neurons, ViV1T

# positions -> (what is added to tokens, whether space and time are rotary)
_POSITIONS = {
    "rotary": ("none", True, True),
    "learned_rotary": ("learned_spatial", False, True),
    "planar_rotary": ("planar", False, True),
}
_AUTOCAST = {"auto": "capable", "enable": "always", "disable": "never"}


def _build_vivit(config: ClosedLoopVivitConfig, frame_size: tuple[int, int]) -> Vivit:
    added, rotary_in_space, rotary_in_time = _POSITIONS.get(config.pos_encoding, (config.pos_encoding, False, False))
    ps, ss = config.spatial_patch_size, config.spatial_patch_stride
    channels = STATE_CHANNELS[config.behavior]
    tokenizer = Tokenizer(
        frame_size,
        channels,
        config.emb_dim,
        (config.temporal_patch_size, ps, ps),
        (config.temporal_patch_stride, ss, ss),
        padded=config.padded,
        normalized=config.patch != "convolution",
        norm=config.norm,
        positions=added,
        dropout=config.p_dropout,
        whole_tokens=True,
    )

    def transformer(axis: int, depth: int, tokens: int, rotary: bool, causal: bool) -> Transformer:
        shape = BlockShape(
            depth=config.emb_dim,
            heads=config.num_heads,
            head_dim=config.head_dim,
            hidden=config.ff_dim,
            activation=config.ff_activation,
            norm=config.norm,
            norm_qk=config.norm_qk,
            causal=causal,
            attention_dropout=config.mha_dropout,
            ff_dropout=config.ff_dropout,
            drop_path=config.drop_path,
        )
        return Transformer(
            axis,
            [ParallelBlock(shape) for _ in range(depth)],
            registers=torch.randn(config.registers, config.emb_dim) if config.registers else None,
            rotary=Rotary(config.head_dim, tokens) if rotary else None,
        )

    patches = tokenizer.grid[0] * tokenizer.grid[1]
    return Vivit(
        tokenizer,
        transformer(2, config.spatial_depth, patches, rotary_in_space, False),
        transformer(1, config.temporal_depth, tokenizer.frames, rotary_in_time, config.causal),
        depth=config.emb_dim,
        grid=tokenizer.grid,
        state_channels=channels,
        activation=config.activation,
    )


def _build_fcnn(config: FcnnConfig, frame_size: tuple[int, int]) -> FactorizedBaseline:
    return FactorizedBaseline(
        frame_size,
        config.behavior,
        input_kernels=(config.spatial_input_kernel, config.temporal_input_kernel),
        hidden_kernels=(config.spatial_hidden_kernel, config.temporal_hidden_kernel),
        num_layers=config.num_layers,
        hidden_dim=config.hidden_dim,
        dropout=config.dropout,
        linear=config.linear,
    )


def build_model(config: ClosedLoopConfig, mice: Mapping[str, Neurons], frame_size: tuple[int, int]) -> ViV1T:
    """A freshly initialised model on the CPU; draws from PyTorch's global generator.

    Args:
        config: the run's configuration; only its model parts are used.
        mice: the mice, in order.
        frame_size: (H, W) of the video in pixels.
    """
    core: Vivit | FactorizedBaseline
    if isinstance(config.core, ClosedLoopVivitConfig):
        core = _build_vivit(config.core, frame_size)
    else:
        core = _build_fcnn(config.core, frame_size)
    shifter, readout = config.shifter, config.readout
    modules = {
        mouse: MouseModules(
            None if shifter.mode == "none" else Shifter(shifter.mode, shifter.layers, shifter.size),
            Gaussian2dReadout(
                core.output_shape[0], neurons.count, neurons.coordinates, neurons.mean_response,
                grid=readout.grid, bias=readout.bias, encode_state=False,
            ),
            None,
            build_output(config.output),
        )
        for mouse, neurons in mice.items()
    }  # fmt: skip
    model = ViV1T(config, core, modules, mice, frame_size, _AUTOCAST[config.train.autocast])
    model.core.set_recompute(config.train.grad_checkpointing)
    return model
