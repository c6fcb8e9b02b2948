"""Names of the checkpoints published in 2025, both ways: `ckpt/model.pt`, the state itself."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from viv1t.errors import CheckpointError
from viv1t.families.sensorium2023.names import check_entries
from viv1t.model.cores.vivit import Vivit
from viv1t.model.output import LearnableSoftplus
from viv1t.model.twin import ViV1T

_BLOCK = r"core.vivit.\1_transformer.blocks.\2"
_RULES: tuple[tuple[str, str], ...] = (
    (r"core\.tokenizer\.patch_norm\.(\w+)", r"core.tokenizer.tokenizer.norm.\1"),
    (r"core\.tokenizer\.spatial_position", "core.tokenizer.spatial_pos_embedding"),
    (r"core\.tokenizer\.temporal_position", "core.tokenizer.temporal_pos_embedding"),
    (r"core\.tokenizer\.position", "core.tokenizer.pos_embedding"),
    (r"core\.spatial\.registers", "core.vivit.reg_s_tokens"),
    (r"core\.temporal\.registers", "core.vivit.reg_t_tokens"),
    (r"core\.(\w+)\.blocks\.(\d+)\.attention_out\.(\w+)", rf"{_BLOCK}.attn_out.\3"),
    (r"core\.(\w+)\.blocks\.(\d+)\.ff_out\.(\w+)", rf"{_BLOCK}.ff_out.2.\3"),
    (r"core\.(\w+)\.blocks\.(.+)", _BLOCK),
    (r"core\.layers\.0\.(spatial|temporal)\.(\w+)", r"core.cnn.features.layer0.conv_\1.\2"),
    (r"core\.layers\.(\d+)\.(spatial|temporal)\.(\w+)", r"core.cnn.features.layer\1.conv_\2_\1.\3"),
    (r"core\.layers\.(\d+)\.norm\.(\w+)", r"core.cnn.features.layer\1.norm.\2"),
    (r"readouts\.(.+)\.mu", r"readouts.\1._mu"),
    (r"outputs\.(.+)\.(\w+)", r"output_activation.\1.\2"),
)


def published_names(model: ViV1T) -> dict[str, str]:
    """Our name -> published name of every entry of the model's state."""
    projection = "tokenizer.linear"
    if isinstance(model.core, Vivit) and not model.core.tokenizer.normalized:
        projection = "tokenizer.0"
    rules = ((r"core\.tokenizer\.projection\.(\w+)", rf"core.tokenizer.{projection}.\1"), *_RULES)
    names = {}
    for key in model.state_dict():
        names[key] = key
        for pattern, replacement in rules:
            if match := re.fullmatch(pattern, key):
                names[key] = match.expand(replacement)
                break
    return names


def published_constants(model: ViV1T) -> dict[str, Tensor]:
    """Published entries that follow from the options, with their values."""
    constants: dict[str, Tensor] = {}
    zero = torch.tensor(0.0)
    core = model.core
    if isinstance(core, Vivit):
        constants["core.vivit.reg_scale"] = zero
        tokenizer = core.tokenizer
        if tokenizer.spatial_sinusoid is not None:
            constants["core.tokenizer.spatial_pos_embedding.pos_encoding"] = tokenizer.spatial_sinusoid
        if tokenizer.temporal_sinusoid is not None:
            constants["core.tokenizer.temporal_pos_encoding.pos_encoding"] = tokenizer.temporal_sinusoid
        if model.config.core.patch == "normalized_alias":  # a convolution with a kernel for every pixel
            pt, ps, _ = tokenizer.size
            channels = 1 + core.channels
            every = torch.eye(pt * ps * ps, device=zero.device).view(-1, 1, pt, ps, ps)
            constants["core.tokenizer.tokenizer.weight"] = every.repeat(channels, 1, 1, 1, 1)
        for name, transformer in (("spatial", core.spatial), ("temporal", core.temporal)):
            for i, block in enumerate(transformer.blocks):
                prefix = f"core.vivit.{name}_transformer.blocks.{i}"
                constants[f"{prefix}.scale"] = torch.tensor(block.scale)
                if transformer.rotary is not None:
                    rotary = f"{prefix}.rotary_position_embedding"
                    constants[f"{rotary}.inv_freq"] = transformer.rotary.frequency
                    constants[f"{rotary}.scale"] = transformer.rotary.zeta
    else:
        constants["core.cnn.gamma_input_spatial"] = zero
        constants["core.cnn.gamma_input_temporal"] = zero
        laplacian = torch.tensor([[0.0, -1.0, 0.0], [-1.0, 4.0, -1.0], [0.0, -1.0, 0.0]])
        constants["core.cnn._input_weight_regularizer.laplace.filter"] = laplacian[None, None]
        constants["core.cnn.temporal_regularizer.laplace.filter"] = torch.tensor([[[-1.0, 4.0, -1.0]]])
    for mouse in model.readouts:
        constants[f"readouts.{mouse}.reg_scale"] = zero
        if mouse in model.shifters:
            constants[f"shifters.{mouse}.reg_scale"] = zero
        if model.config.output == "elu":
            constants[f"output_activation.{mouse}.one"] = torch.tensor(1.0)
        if model.config.output == "learnable_softplus":
            constants[f"output_activation.{mouse}.threshold"] = torch.tensor(LearnableSoftplus.THRESHOLD)
    return constants


def from_published(model: ViV1T, state: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Our state from a published one; `where` names the file in errors.

    Raises:
        CheckpointError: entries are missing, surplus or misshaped, which it lists, or a constant has another value.
    """
    names, ours, constants = published_names(model), model.state_dict(), published_constants(model)
    check_entries({names[k]: v for k, v in ours.items()}, state, where, constants)
    for name, expected in constants.items():
        found = state.get(name)
        if found is None or expected.is_meta:
            continue
        if found.shape != expected.shape or not torch.allclose(found.float(), expected.float(), rtol=1e-5, atol=1e-7):
            raise CheckpointError(f"{where}: {name} is not what the options say: the model would be another one")
    return {key: state[names[key]] for key in ours}


def to_published(model: ViV1T) -> dict[str, Tensor]:
    """The published state of a model, constants included."""
    names = published_names(model)
    state = {names[key]: value for key, value in model.state_dict().items()}
    return {key: value.detach().cpu().contiguous() for key, value in (published_constants(model) | state).items()}
