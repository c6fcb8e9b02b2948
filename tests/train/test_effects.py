"""Options that do nothing are named, and so is what the published code does otherwise than one would think."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pytest
from commands import viv1t_train as main
from tiny_runs import as_arguments, options

import viv1t
from viv1t.config.effects import check_effects
from viv1t.config.fields import Options
from viv1t.errors import ConfigError
from viv1t.families.sensorium2023.effects import published_slips, without_effect
from viv1t.families.sensorium2023.run import RunConfig
from viv1t.recipes.train import run

BASE: Options = {"output_dir": "runs/test", "ds_mode": 3, "transform_mode": 2, "core": "vivit", "readout": "gaussian2d"}
PARALLEL: Options = {"core_parallel_attention": True}
FROZEN: Options = {"pretrain_core": "run", "freeze_core": True}


@pytest.mark.parametrize(
    ("given", "idle"),
    [
        ({"transform_mode": 0, "center_crop": 0.8, "response_scale": "neuron"}, ["center_crop", "response_scale"]),
        ({"center_crop": 0.8, "response_scale": "neuron"}, []),
        (PARALLEL | {"core_pos_encoding": 2, "core_flash_attention": 0}, ["core_pos_encoding", "core_flash_attention"]),
        ({"core_pos_encoding": 2, "core_flash_attention": 0}, []),
        (PARALLEL | {"core_pos_encoding": 4}, []),
        (FROZEN | {"core_p_dropout": 0.5, "core_lr": 0.1}, ["core_p_dropout", "core_lr"]),
        ({"pretrain_core": "run", "core_p_dropout": 0.5, "core_lr": 0.1}, []),
        ({"core": "factorized_baseline", "grad_checkpointing": 1}, ["grad_checkpointing"]),
        ({"core": "factorized_baseline", **FROZEN, "core_reg_spatial": 1.0}, ["core_reg_spatial"]),
        ({"readout": "factorized", "readout_bias_mode": 1}, ["readout_bias_mode"]),
        ({"readout": "factorized", "shifter_mode": 2}, ["shifter_mode"]),
        ({"shifter_mode": 0, "shifter_layers": 1}, ["shifter_layers"]),
        ({"shifter_layers": 1}, []),
        ({"modulator_weight_decay": 0.5}, ["modulator_weight_decay"]),
        ({"modulator_mode": 4, "modulator_weight_decay": 0.5}, []),
        (
            {"modulator_mode": 1, "modulator_include_history": 0, "modulator_history_size": 9,
             "modulator_include_behaviors": 0, "modulator_behaviors_dropout": 0.1},
            ["modulator_history_size", "modulator_behaviors_dropout"],
        ),
        ({"modulator_mode": 1, "modulator_history_size": 9, "modulator_behaviors_dropout": 0.1}, []),
        ({"dpi": 300, "format": "png"}, ["dpi", "format"]),
        ({"dpi": 300, "format": "png", "save_plots": True}, []),
        ({"cache_data": "gpu", "transfer": "compact"}, ["transfer"]),
    ],
    ids=str,
)  # fmt: skip
def test_options_without_effect_are_named_with_the_reason(given: Options, idle: list[str]) -> None:
    lines = without_effect(RunConfig.from_options(BASE | given))
    assert sorted(line.split(" ")[0] for line in lines) == sorted(f"--{flag}" for flag in idle)
    assert all(" has no effect: " in line for line in lines)


def test_defaults_are_never_named() -> None:
    for core in ("vivit", "factorized_baseline"):
        for readout in ("gaussian2d", "factorized", "random"):
            for modulator in range(5):
                given = {"core": core, "readout": readout, "modulator_mode": modulator, "transform_mode": 0}
                assert without_effect(RunConfig.from_options(BASE | given)) == []


def test_a_run_to_resume_that_nothing_is_logged_to_is_refused(tmp_path: Path, capsys: Any) -> None:
    with pytest.raises(ConfigError, match=r"--wandb_id resumes .* give --wandb GROUP, too"):
        check_effects(RunConfig.from_options(BASE | {"wandb_id": "x"}))
    check_effects(RunConfig.from_options(BASE | {"wandb_id": "x", "wandb": "group"}))
    words = [f"--{k}={v}" for k, v in BASE.items() if k != "output_dir"]
    assert main([*words, f"--output_dir={tmp_path / 'run'}", "--wandb_id=x"]) == 2
    assert not (tmp_path / "run").exists()


def test_training_says_it_on_the_console_and_in_its_log(
    mice: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(RunConfig.from_options(options(mice, tmp_path / "run", epochs=0, shifter_mode=0, shifter_size=9, verbose=1)))
    line = "warning: --shifter_size has no effect: --shifter_mode 0 has no shifter"
    assert line in capsys.readouterr().err
    assert line in (tmp_path / "run" / "output.log").read_text()


def test_a_model_of_every_second_frame_says_which_behaviour_it_is_given(
    golden: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        viv1t.load_model(golden / "model" / "02_parallel")
        assert caplog.messages == []
        viv1t.load_model(golden / "model" / "09_conv_sequential_stride2_mod4")
    (message,) = caplog.messages
    assert "--core_temporal_patch_stride 2: as in the published code, t maps are read out with behavior" in message


def test_no_word_of_behaviour_where_none_is_read_out() -> None:
    given = {"core_temporal_patch_stride": 2}
    assert len(published_slips(RunConfig.from_options(BASE | given))) == 1
    assert published_slips(RunConfig.from_options(BASE | given | {"readout": "factorized"})) == []
    assert len(published_slips(RunConfig.from_options(BASE | given | {"readout": "factorized", "modulator_mode": 4})))


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"core_mlp_dim": 10**6, "core_emb_dim": 10**6}, r"a model of [\d,.]+ GiB of weights, and [\d.]+ GiB"),
        ({"core_num_heads": 10**6, "core_head_dim": 10**6, "core_emb_dim": 10**6}, "cannot be built|GiB of weights"),
        ({"core_spatial_depth": 1000, "core_mlp_dim": 10**6, "core_emb_dim": 10**5}, "GiB of weights"),
        (
            {"core": "factorized_baseline", "core_num_layers": 40, "core_temporal_hidden_kernel": 1},
            "cannot be built|GiB of weights",
        ),
        ({"core": "factorized_baseline", "core_hidden_dim": 10**6}, "cannot be built|GiB of weights"),
        ({"shifter_size": 10**6}, "GiB of weights"),
        ({"batch_size": 10**12}, "--batch_size must be at most 1000000, not 1000000000000"),
        ({"epochs": 10**12}, "--epochs must be at most 1000000"),
    ],
    ids=str,
)  # fmt: skip
def test_absurd_sizes_end_in_one_line(
    mice: Path, tmp_path: Path, sizes: Options, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = options(mice, tmp_path / "run", **sizes)
    assert main(as_arguments(given)) == 2
    line = capsys.readouterr().err
    assert re.search(words, line), line
    assert line.count("\n") == 1
    assert not (tmp_path / "run").exists()
