"""Names of the published checkpoints, both ways.

One table of rules turns a name of ours into the published one; applied to every entry of a model it gives both
directions. Entries that the published code stores although they follow from the options are constants: recognised when
read, written back with their values.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping

import torch
from torch import Tensor

from viv1t.errors import CheckpointError
from viv1t.families.sensorium2023.options import MlpModulatorConfig, VivitConfig
from viv1t.model.cores.factorized import FactorizedBaseline
from viv1t.model.cores.vivit import Vivit
from viv1t.model.readout import FactorizedReadout
from viv1t.model.twin import ViV1T

Rules = tuple[tuple[str, str], ...]

_BLOCK = r"core.vivit.\1_transformer.blocks.\2"

_COMMON: Rules = (
    (r"core\.tokenizer\.spatial_position", "core.vivit.tokenizer.spatial_pos_embedding"),
    (r"core\.tokenizer\.temporal_position", "core.vivit.tokenizer.temporal_pos_embedding"),
    (r"core\.tokenizer\.position", "core.vivit.tokenizer.pos_embedding"),
    (r"core\.(\w+)\.state_encoders\.(\d+)\.models\.(.+)\.0\.(\w+)", rf"{_BLOCK}.state_encoder.models.\3.0.\4"),
    (r"core\.(\w+)\.state_encoders\.(\d+)\.models\.(.+)\.2\.(\w+)", rf"{_BLOCK}.state_encoder.models.\3.3.\4"),
    (r"core\.layers\.0\.(spatial|temporal)\.(\w+)", r"core.cnn.features.layer0.conv_\1.\2"),
    (r"core\.layers\.(\d+)\.(spatial|temporal)\.(\w+)", r"core.cnn.features.layer\1.conv_\2_\1.\3"),
    (r"core\.layers\.(\d+)\.norm\.(\w+)", r"core.cnn.features.layer\1.norm.\2"),
    (r"core\.gru\.(\w+)", r"core.modulator.\1"),
    (r"readouts\.(.+)\.mu", r"readouts.\1._mu"),
    (r"modulators\.(.+)\.gru\.(weight|bias)_([ih]h)_l0", r"modulators.\1.gru_cell.\2_\3"),
    (r"modulators\.(.+)\.decoder\.(\w+)", r"modulators.\1.decoder.0.\2"),
    (r"modulators\.(.+)\.encoder_in\.(\w+)", r"modulators.\1.encoder.0.\2"),
    (r"modulators\.(.+)\.encoder_out\.(\w+)", r"modulators.\1.encoder.3.\2"),
    (r"modulators\.(.+)\.linear\.(\w+)", r"modulators.\1.modulator.0.\2"),
)  # fmt: skip
_PARALLEL: Rules = (
    (r"core\.(\w+)\.blocks\.(\d+)\.attention_out\.(\w+)", rf"{_BLOCK}.attn_out.\3"),
    (r"core\.(\w+)\.blocks\.(\d+)\.ff_out\.(\w+)", rf"{_BLOCK}.ff_out.2.\3"),
    (r"core\.(\w+)\.blocks\.(.+)", rf"{_BLOCK}"),
)
_SEQUENTIAL: Rules = (
    (r"core\.(\w+)\.blocks\.(\d+)\.attention_norm\.(\w+)", rf"{_BLOCK}.attention.norm.\3"),
    (r"core\.(\w+)\.blocks\.(\d+)\.qkv\.(\w+)", rf"{_BLOCK}.attention.to_qkv.\3"),
    (r"core\.(\w+)\.blocks\.(\d+)\.attention_out\.(\w+)", rf"{_BLOCK}.attention.attn_out.0.\3"),
    (r"core\.(\w+)\.blocks\.(\d+)\.(norm_[qk])\.(\w+)", rf"{_BLOCK}.attention.\3.\4"),
    (r"core\.(\w+)\.blocks\.(\d+)\.ff_norm\.(\w+)", rf"{_BLOCK}.ff.0.\3"),
    (r"core\.(\w+)\.blocks\.(\d+)\.ff_in\.(\w+)", rf"{_BLOCK}.ff.1.\3"),
    (r"core\.(\w+)\.blocks\.(\d+)\.ff_out\.(\w+)", rf"{_BLOCK}.ff.4.\3"),
    (r"core\.(\w+)\.blocks\.(\d+)\.position_generator\.conv\.(\w+)", rf"{_BLOCK}.pos_encoding.pos_embedding.\3"),
)  # fmt: skip


def _rules(model: ViV1T) -> Rules:
    rules: Rules = _COMMON
    core = model.config.core
    if isinstance(core, VivitConfig):
        name = "tokenizer2" if core.patch == "normalized_alias" else "tokenizer"
        slots = {"patch_norm": 1, "projection": 2, "norm": 3}
        if core.patch == "convolution":
            slots = {"projection": 0, "norm": 2}
        for ours, slot in slots.items():
            rules += ((rf"core\.tokenizer\.{ours}\.(\w+)", rf"core.vivit.tokenizer.{name}.{slot}.\1"),)
        rules += _PARALLEL if core.parallel_attention else _SEQUENTIAL
    if any(isinstance(r, FactorizedReadout) for r in model.readouts.values()):
        rules += ((r"readouts\.(.+)\.features", r"readouts.\1._features"),)
    return rules


def published_names(model: ViV1T) -> dict[str, str]:
    """Our name -> published name of every entry of the model's state."""
    rules = _rules(model)
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
    config, core = model.config, model.config.core
    if isinstance(core, VivitConfig):
        constants["core.vivit.reg_scale"] = zero
        assert isinstance(model.core, Vivit)
        tokenizer = model.core.tokenizer
        if tokenizer.spatial_sinusoid is not None:
            constants["core.vivit.tokenizer.spatial_pos_embedding.pos_encoding"] = tokenizer.spatial_sinusoid
        if tokenizer.temporal_sinusoid is not None:
            constants["core.vivit.tokenizer.temporal_pos_encoding.pos_encoding"] = tokenizer.temporal_sinusoid
        for name, depth in (("spatial", core.spatial_depth), ("temporal", core.temporal_depth)):
            for i in range(depth):
                block = f"core.vivit.{name}_transformer.blocks.{i}"
                if core.parallel_attention:
                    constants[f"{block}.scale"] = torch.tensor(core.head_dim**-0.5)
                else:
                    constants[f"{block}.attention.scale"] = torch.tensor(core.emb_dim**-0.5)
                for j in (1, 2):
                    constants[f"{block}.drop_path{j}.keep_prob"] = torch.tensor(1 - core.drop_path)
    elif isinstance(model.core, FactorizedBaseline):
        constants["core.cnn.gamma_input_spatial"] = zero
        constants["core.cnn.gamma_input_temporal"] = zero
        laplacian = torch.tensor([[0.0, -1.0, 0.0], [-1.0, 4.0, -1.0], [0.0, -1.0, 0.0]])
        constants["core.cnn._input_weight_regularizer.laplace.filter"] = laplacian[None, None]
        constants["core.cnn.temporal_regularizer.laplace.filter"] = torch.tensor([[[-1.0, 4.0, -1.0]]])
        if model.core.positions is not None:
            constants["core.pos_encoding"] = model.core.positions
    for mouse in model.readouts:
        constants[f"readouts.{mouse}.reg_scale"] = zero
        if mouse in model.shifters:
            constants[f"shifters.{mouse}.reg_scale"] = zero
        if isinstance(config.modulator, MlpModulatorConfig):
            constants[f"modulators.{mouse}.history_reg"] = zero
            constants[f"modulators.{mouse}.behavior_reg"] = zero
    if config.output == "elu":
        constants["output_activation.one"] = torch.tensor(1.0)
    return constants


def check_entries(
    expected: Mapping[str, Tensor], found: Mapping[str, Tensor], where: str, optional: Mapping[str, Tensor]
) -> None:
    """Raises a CheckpointError that lists every missing, surplus, misshaped, mistyped and not finite entry."""
    missing = sorted(set(expected) - set(found))
    surplus = sorted(set(found) - set(expected) - set(optional))
    common = sorted(set(expected) & set(found))
    misshaped = [
        f"{k}: expected {tuple(expected[k].shape)}, found {tuple(found[k].shape)}"
        for k in common
        if expected[k].shape != found[k].shape
    ]
    mistyped = [f"{k}: {found[k].dtype}" for k in common if _kind(expected[k]) != _kind(found[k])]
    # As they are computed with: a double may be finite where its float is not.
    broken = [k for k in common if _kind(found[k]) == "real" and not found[k].to(expected[k].dtype).isfinite().all()]
    lists = (
        ("missing", missing), ("surplus", surplus), ("misshaped", misshaped), ("mistyped", mistyped),
        ("with values that are not finite", broken),
    )  # fmt: skip
    report = "".join(f"\n  {name} ({len(keys)}): {'; '.join(keys)}" for name, keys in lists if keys)
    if report:
        raise CheckpointError(f"{where} does not fit the model that its options describe:{report}")


def _kind(value: Tensor) -> str:
    if value.is_complex():
        return "complex"
    return "real" if value.is_floating_point() else "whole"


# What PyTorch puts into the names when a model is compiled, or wrapped for several devices.
_WRAPPERS = ("module", "_orig_mod")


def _unwrapped(state: Mapping[str, Tensor], known: Container[str], where: str) -> dict[str, Tensor]:
    """The state by the names that the model has, where it was saved from a wrapped model or a wrapped part."""
    result: dict[str, Tensor] = {}
    for key, value in state.items():
        parts = key.split(".")
        leading = next((i for i, part in enumerate(parts) if part not in _WRAPPERS), len(parts))
        # A mouse may be called `module`: names are taken as they are where they fit.
        names = (key, ".".join(parts[leading:]), ".".join(p for p in parts if p not in _WRAPPERS))
        name = next((n for n in names if n in known), key)
        if name in result:
            raise CheckpointError(f"{where}: {name} is there twice, once as {key}")
        result[name] = value
    return result


def from_published(model: ViV1T, state: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Our state from a published `model` mapping; `where` names the file in errors.

    Names may have the prefixes `module.` and `_orig_mod.` of models that were wrapped when they were saved.

    Raises:
        CheckpointError: entries are missing, surplus, misshaped, or not of finite numbers; lists them.
    """
    names = published_names(model)
    ours = model.state_dict()
    constants = published_constants(model)
    state = _unwrapped(state, {*names.values(), *constants}, where)
    check_entries({names[k]: v for k, v in ours.items()}, state, where, constants)
    return {key: state[names[key]] for key in ours}


def to_published(model: ViV1T) -> dict[str, Tensor]:
    """The published `model` mapping of a model, constants included."""
    names = published_names(model)
    state = {names[key]: value for key, value in model.state_dict().items()}
    return {key: value.detach().cpu().contiguous() for key, value in (published_constants(model) | state).items()}
