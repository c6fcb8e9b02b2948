"""Options: published names both ways, defaults, and one clear error for every mistake."""

from __future__ import annotations

import dataclasses
import math
import typing
from typing import Any

import pytest
import yaml
from golden_files import golden_folder

from viv1t.config.data import DataConfig
from viv1t.config.fields import Options
from viv1t.errors import ConfigError
from viv1t.families.sensorium2023.options import Gaussian2dConfig, VivitConfig
from viv1t.families.sensorium2023.run import (
    DERIVED,
    SELECTORS,
    RunConfig,
    all_components,
    component_classes,
    option_set,
)

BASE: Options = {"output_dir": "runs/test", "ds_mode": 3, "transform_mode": 2, "core": "vivit", "readout": "gaussian2d"}

# The published defaults; those of `core_lr` and the like depend on the core.
SHARED = {
    "data": "data/sensorium", "stat_mode": 1, "center_crop": 1.0, "mouse_ids": None, "limit_data": None,
    "cache_data": False, "num_workers": 2, "epochs": 400, "batch_size": 8, "micro_batch_size": 0, "crop_frame": 150,
    "device": None, "seed": 1234, "deterministic": False, "precision": "32", "grad_checkpointing": None,
    "restore": None, "adam_beta1": 0.9, "adam_beta2": 0.999, "adam_eps": 1e-8, "criterion": "poisson_correlation",
    "ds_scale": 1, "grad_norm": None, "save_plots": False, "dpi": 120, "format": "svg", "wandb": None, "wandb_id": None,
    "clear_output_dir": False, "verbose": 2, "core_compile": False, "shifter_mode": 1, "modulator_mode": 0,
    "critic_mode": 0, "output_mode": 0, "shifter_layers": 3, "shifter_size": 5, "modulator_weight_decay": 0.0,
}  # fmt: skip
DEFAULTS: list[tuple[Options, Options]] = [
    ({"core": "vivit"}, {
        "lr": 0.0036, "core_lr": 0.0048, "weight_decay": 0.3939, "core_weight_decay": 0.1789, "core_behavior_mode": 2,
        "core_patch_mode": 0, "core_pos_encoding": 3, "core_spatial_patch_size": 7, "core_spatial_patch_stride": 2,
        "core_spatial_depth": 3, "core_temporal_patch_size": 25, "core_temporal_patch_stride": 1,
        "core_temporal_depth": 5, "core_num_heads": 11, "core_emb_dim": 112, "core_head_dim": 48, "core_mlp_dim": 136,
        "core_ff_activation": "gelu", "core_p_dropout": 0.1338, "core_mha_dropout": 0.3580, "core_ff_dropout": 0.0592,
        "core_drop_path": 0.0505, "core_parallel_attention": False, "core_flash_attention": 1, "core_norm_qk": False,
        "pretrain_core": None,
    }),
    ({"core": "factorized_baseline"}, {
        "lr": 0.005, "core_lr": None, "weight_decay": 0.0, "core_weight_decay": 0.0, "core_behavior_mode": 1,
        "core_spatial_input_kernel": 11, "core_temporal_input_kernel": 11, "core_spatial_hidden_kernel": 5,
        "core_temporal_hidden_kernel": 5, "core_num_layers": 4, "core_hidden_dim": 16, "core_dropout": 0.0,
    }),
    ({"readout": "gaussian2d"}, {"readout_grid_mode": 1, "readout_bias_mode": 2, "readout_dropout": 0.0}),
    ({"readout": "factorized"}, {"readout_bias_mode": 2, "readout_dropout": 0.0}),
    ({"modulator_mode": 1}, {
        "modulator_include_history": 1, "modulator_history_size": 5, "modulator_history_dropout": 0.0,
        "modulator_include_behaviors": 2, "modulator_behaviors_dropout": 0.0,
    }),
    ({"modulator_mode": 2}, {"modulator_hidden_dim": 16, "modulator_dropout": 0.0}),
    ({"modulator_mode": 3}, {"modulator_history_size": 5, "modulator_history_dropout": 0.0}),
    ({"modulator_mode": 4}, {"modulator_activation": "tanh", "modulator_dropout": 0.0}),
    ({"critic_mode": 1}, {"critic_hidden_dim": 64, "critic_dropout": 0.2, "critic_weight_decay": 0.01}),
]  # fmt: skip


@pytest.mark.parametrize(("chosen", "expected"), DEFAULTS, ids=[str(c) for c, _ in DEFAULTS])
def test_published_defaults(chosen: Options, expected: Options) -> None:
    options = RunConfig.from_options(BASE | chosen).to_options()
    for flag, value in (SHARED | expected | chosen).items():
        assert options[flag] == value, flag
        assert type(options[flag]) is type(value), flag


def args_files() -> list[Any]:
    files = sorted(golden_folder().glob("*/*/args.yaml"))
    if not files:
        return [pytest.param(None, marks=pytest.mark.skip(reason=f"golden numbers not found at {golden_folder()}"))]
    return [pytest.param(f, id=f.parent.name) for f in files]


@pytest.mark.parametrize("path", args_files())
def test_published_args_come_back_unchanged(path: Any) -> None:
    args = yaml.safe_load(path.read_text())
    config = RunConfig.from_published(args)
    options = config.to_options()
    for flag in args.keys() - set(DERIVED):
        expected = float(args[flag]) if isinstance(options[flag], float) else args[flag]
        assert options[flag] == expected, flag
    assert RunConfig.from_options(options) == config
    assert RunConfig.from_options(yaml.safe_load(yaml.safe_dump(options))) == config


def test_the_published_command_runs_as_it_stands() -> None:
    switches = {"core_parallel_attention": True, "grad_checkpointing": 0}
    config = RunConfig.from_options(BASE | switches | {"crop_frame": 140, "output_mode": 1, "batch_size": 6})
    assert (config.data.mice, config.data.transform, config.output) == ("all_with_test", "published", "exp")
    assert isinstance(config.core, VivitConfig)
    assert config.core.parallel_attention
    assert config.train.grad_checkpointing is False


def test_names_stand_for_codes() -> None:
    names = {"ds_mode": "old", "core_behavior_mode": "none", "output_mode": "softplus", "readout_grid_mode": "free"}
    codes = {"ds_mode": 0, "core_behavior_mode": 0, "output_mode": 2, "readout_grid_mode": 0}
    assert RunConfig.from_options(BASE | names) == RunConfig.from_options(BASE | codes)


def test_options_older_than_a_published_run() -> None:
    old = BASE | {"core_mha_dropout": 0.25}
    core = RunConfig.from_published(old).core
    assert isinstance(core, VivitConfig)
    assert (core.parallel_attention, core.norm_qk, core.ff_activation, core.ff_dropout) == (False, False, "gelu", 0.25)
    core = RunConfig.from_published(BASE).core
    assert isinstance(core, VivitConfig)
    assert core.ff_dropout == core.mha_dropout
    core = RunConfig.from_published(old | {"core_ff_dropout": 0.1, "core_norm_qk": True}).core
    assert isinstance(core, VivitConfig)
    assert (core.ff_dropout, core.norm_qk) == (0.1, True)


def test_published_runs_may_hold_options_of_other_components() -> None:
    extra = {"core_num_layers": 4, "input_shapes": {}}
    assert RunConfig.from_published(BASE | extra) == RunConfig.from_published(BASE)
    with pytest.raises(ConfigError, match="unknown option --some_later_option"):
        RunConfig.from_published(BASE | extra | {"some_later_option": 1})


def test_text_is_read_as_a_number() -> None:
    assert RunConfig.from_options(BASE | {"adam_eps": "1e-08"}).optimizer.eps == 1e-8  # YAML 1.1 needs a point


@pytest.mark.parametrize(
    ("flag", "words", "values"),
    [
        ("core_lr", ["none", "None", "NULL", "null"], None),
        ("mouse_ids", ["none", ["none"]], None),
        ("device", ["none"], None),
        ("grad_norm", ["none"], None),
        ("mouse_ids", ["F", ["F"]], ["F"]),
        ("ds_scale", ["true", "TRUE", "1", 1, True], 1),
        ("ds_scale", ["false", "0", 0, False], 0),
        ("grad_checkpointing", ["none"], None),
        ("grad_checkpointing", ["true", 1], 1),
        ("core_norm_qk", ["true", "1", 1, True], True),
        ("core_norm_qk", ["false", "0", 0, False], False),
        ("cache_data", ["true", True, "cpu"], True),
        ("cache_data", ["none", "false", False, None], False),
        ("batch_size", ["6", "06", 6], 6),
        ("lr", ["0.5", ".5", "5e-1", 0.5], 0.5),
        ("core_behavior_mode", ["3", 3, "behavior_encoding"], 3),
        ("modulator_mode", ["2", 2], 2),
        ("output_mode", ["1", 1, "exp"], 1),
        ("precision", ["32", 32], "32"),
    ],
    ids=str,
)
def test_words_and_values_are_judged_alike(flag: str, words: list[Any], values: Any) -> None:
    """What a command line gives as a word, a file may hold as text or as a value."""
    for word in words:
        assert RunConfig.from_options(BASE | {flag: word}).to_options()[flag] == values, word


def test_words_that_stand_for_nothing_else() -> None:
    for flag, word in (("lr", "none"), ("batch_size", "none"), ("lr", "0x1"), ("lr", "1_0"), ("batch_size", "1.0"),
                       ("core_norm_qk", "yes"), ("ds_scale", "on"), ("data", None)):  # fmt: skip
        assert refused(BASE | {flag: word}).startswith(f"--{flag} ")


def choosing(flag: str) -> Options:
    """Options under which `flag` applies."""
    owner = all_components()[flag][0]
    for selector, table in SELECTORS.items():
        for key, component in table.items():
            if component is owner:
                return BASE | {selector: key}
    return BASE


def refused(options: Options) -> str:
    with pytest.raises(ConfigError) as info:
        RunConfig.from_options(options)
    message = str(info.value)
    assert "\n" not in message
    return message


def wrong_values(field: dataclasses.Field[Any], annotation: Any) -> list[Any]:
    """Values that this option cannot take."""
    flag, kinds = field.metadata["flag"], typing.get_args(annotation) or (annotation,)
    kind, optional = kinds[0], type(None) in kinds
    values: list[Any] = [{}, [1]] + ([] if optional else [None])
    if field.metadata["codes"]:
        values += [99, -1, True, 1.5, "nonsense"]
    elif field.metadata["choices"]:
        values += [1, "nonsense"] if flag == "cache_data" else [1, True, "nonsense"]  # a switch once
    elif kind is int:
        values += ["many", 1.5, True, math.nan]
    elif kind is float:
        values += ["much", True, math.nan, math.inf, -math.inf, "nan"]
    elif kind is bool:
        values += ["maybe", 2, 0.5]
    elif kind is str:
        values += [0, "10s", "m", "", True] if flag == "save_every" else [3, True]
    low, high = field.metadata["low"], field.metadata["high"]
    values += [low - 1] if low > -math.inf else []
    values += [high + 1] if high < math.inf else []
    return values


@pytest.mark.parametrize("flag", all_components())
def test_a_value_that_an_option_cannot_take_is_refused_by_name(flag: str) -> None:
    owner = all_components()[flag][0]
    field = next(f for f in dataclasses.fields(owner) if f.metadata["flag"] == flag)  # type: ignore[arg-type]
    for value in wrong_values(field, typing.get_type_hints(owner)[field.name]):
        message = refused(choosing(flag) | {flag: value})
        assert message.startswith(f"--{flag} "), (value, message)


@pytest.mark.parametrize("flag", [*SELECTORS, "output_mode"])
@pytest.mark.parametrize("value", [7, "nonsense", True, [], {}, None])
def test_a_component_that_does_not_exist_is_refused(flag: str, value: Any) -> None:
    assert refused(BASE | {flag: value}).startswith(f"--{flag} ")


@pytest.mark.parametrize("flag", BASE)
def test_required_options(flag: str) -> None:
    assert refused({k: v for k, v in BASE.items() if k != flag}).startswith(f"--{flag} is required: ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"core_behavior_mode": 6}, "--core_behavior_mode must be one of 0 (none), 1 (behavior_channels), "),
        ({"batch_size": 0}, "--batch_size must be at least 1, not 0"),
        ({"batch_size": "six"}, "--batch_size takes a whole number, not 'six'"),
        ({"core_p_dropout": 1.5}, "--core_p_dropout must be from 0 to 1, not 1.5"),
        ({"core_norm_qk": "yes"}, "--core_norm_qk takes true or false, not 'yes'"),
        ({"mouse_ids": [1, 2]}, "--mouse_ids takes a list of words, not (1, 2)"),
        ({"mouse_ids": 3}, "--mouse_ids takes a list of words, not 3"),
        ({"batch_size": 10**12}, "--batch_size must be at most 1000000, not 1000000000000"),
        ({"batch_size": "1" * 5000}, "--batch_size takes a whole number, not '111"),
        ({"batch_size": 10**5000}, "--batch_size must be at most 1000000, not a number of thousands of digits"),
        ({"epochs": 10**30}, "--epochs must be at most 1000000"),
        ({"core_emb_dim": 10**30}, "--core_emb_dim must be at most 1000000"),
        ({"num_workers": 10**5}, "--num_workers must be from 0 to 1024"),
        ({"dpi": 10**6}, "--dpi must be from 1 to 2400"),
        ({"data": "x" * 10_000, "core": "y" * 10_000}, "--core must be one of vivit, factorized_baseline, not 'yyy"),
        ({"mouse_ids": []}, "--mouse_ids needs at least one mouse"),
        ({"crop_frame": 0}, "--crop_frame must be -1 or at least 1, not 0"),
        ({"center_crop": 0}, "--center_crop must be above 0, not 0.0"),
        ({"adam_beta2": 1}, "--adam_beta1 and --adam_beta2 must be below 1"),
        ({"core_drop_path": 1}, "--core_drop_path must be below 1"),
        ({"core_emb_dim": 7, "core_pos_encoding": 4}, "--core_pos_encoding 4 and 5 need an even --core_emb_dim"),
        (
            {"stat_mode": 0, "transform_mode": 3},
            "--transform_mode 3, 4 and 5 need computed statistics: use --stat_mode 1",
        ),
        ({"crop_frame": 24}, "the core's temporal extent is longer than --crop_frame 24"),
        ({"core_temporal_patch_size": 301}, "the core's temporal extent is longer than a 300-frame trial"),
        ({"core": "factorized_baseline", "core_spatial_input_kernel": 4}, "--core_spatial_input_kernel must be odd"),
        ({"core_num_layers": 4}, "--core_num_layers belongs to --core factorized_baseline, but --core is vivit"),
        ({"modulator_dropout": 0.1}, "--modulator_dropout belongs to --modulator_mode 2 or 4, but"),
        ({"readout": "random", "readout_dropout": 0}, "--readout_dropout belongs to --readout gaussian2d or"),
        ({"critic_dropout": 0.1}, "--critic_dropout belongs to --critic_mode 1, but --critic_mode is 0"),
        ({"core_emb_dims": 8}, "unknown option --core_emb_dims; did you mean --core_emb_dim?"),
        ({"xyz": 8}, "unknown option --xyz"),
        ({3: 8}, "unknown option --3"),
    ],
    ids=lambda x: str(x)[:60] if isinstance(x, str) else "",
)  # fmt: skip
def test_messages(options: dict[Any, Any], message: str) -> None:
    assert refused(BASE | options).startswith(message)


def test_numbers_at_the_bounds_are_taken() -> None:
    options = {
        "crop_frame": -1,
        "center_crop": 0.01,
        "core_p_dropout": 1,
        "epochs": 0,
        "seed": 2**63 - 1,
        "limit_data": 1,
    }
    config = RunConfig.from_options(BASE | options)
    assert config.data.crop_frame == -1
    assert isinstance(config.core, VivitConfig)
    assert type(config.core.p_dropout) is float


def test_constructors_check_as_well() -> None:
    with pytest.raises(ConfigError, match="--readout_grid_mode must be one of"):
        Gaussian2dConfig(grid="xx")
    with pytest.raises(ConfigError, match="--batch_size"):
        dataclasses.replace(DataConfig(mice="old", transform="none"), batch_size=0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        Gaussian2dConfig().grid = "free"  # type: ignore[misc]


def test_learning_rate_of_the_core() -> None:
    assert RunConfig.from_options(BASE).core_lr == 0.0048
    assert RunConfig.from_options(BASE | {"core_lr": None}).core_lr == 0.0036
    assert RunConfig.from_options(BASE | {"core": "factorized_baseline", "lr": 0.1}).core_lr == 0.1


def test_frames_out() -> None:
    core = RunConfig.from_options(BASE).core
    assert [core.output_frames(n) for n in (24, 25, 140, 300)] == [0, 1, 116, 276]
    core = RunConfig.from_options(BASE | {"core_temporal_patch_stride": 3}).core
    assert [core.output_frames(n) for n in (25, 27, 28)] == [1, 1, 2]
    core = RunConfig.from_options(BASE | {"core": "factorized_baseline"}).core
    assert core.output_frames(300) == 278


def test_every_option_has_one_meaning() -> None:
    """A flag of several components has the same kind of value in all of them, and a helping word."""
    for flag, owners in all_components().items():
        fields = [next(f for f in dataclasses.fields(o) if f.metadata["flag"] == flag) for o in owners]  # type: ignore[arg-type]
        assert len({str(f.type) for f in fields}) == 1, flag
        assert all(f.metadata["help"] for f in fields), flag
    integers = {"ds_scale", "grad_checkpointing", "core_flash_attention", "modulator_include_history"}
    assert option_set().switches == integers
    assert len(component_classes(BASE)) == 8
