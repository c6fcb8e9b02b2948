"""Run folders of 2025: loaded, written again, and refused where they are not whole or not alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from closed_loop_cases import case_names, closed_loop_folder, error, required
from golden_files import golden_folder
from safetensors.torch import load_file

import viv1t
from viv1t.errors import CheckpointError, ConfigError
from viv1t.families.closed_loop.options import ClosedLoopConfig
from viv1t.families.known import FAMILIES, family_of
from viv1t.runs.folder import RunFolder, save_published


@pytest.mark.parametrize("name", case_names("model"))
def test_published_runs_load_and_predict(name: str) -> None:
    folder = closed_loop_folder() / "model" / name
    model = viv1t.load_model(str(folder))
    tensors = load_file(folder / "tensors.safetensors")
    for mouse in model.mouse_ids[: 1 if name == "01_published" else None]:
        video, behavior, pupil_center = (tensors[f"inputs/{v}/{mouse}"] for v in ("video", "behavior", "pupil_center"))
        with torch.no_grad():
            response = model(video, mouse_id=mouse, behavior=behavior, pupil_center=pupil_center)
        assert error(response, tensors[f"outputs/{mouse}"]) < 1e-5


INFO = {"best_corr": 0.0, "epoch": 0}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of a small published run, to damage."""
    source = required() / "model" / "02_default_small"
    (tmp_path / "run" / "ckpt").mkdir(parents=True)
    for name in ("args.yaml", "ckpt/model.pt", "ckpt/info.yaml"):
        shutil.copyfile(source / name, tmp_path / "run" / name)
    return tmp_path / "run"


def with_args(run: Path, **changed: object) -> None:
    """Changes options; None takes one away."""
    args = yaml.safe_load((run / "args.yaml").read_text()) | changed
    (run / "args.yaml").write_text(yaml.safe_dump({k: v for k, v in args.items() if v is not None}))


@pytest.mark.parametrize("name", ["02_default_small", "08_learned_spatial_rotary_time", "11_fcnn"])
def test_published_runs_go_round_unchanged(name: str, tmp_path: Path) -> None:
    source = required() / "model" / name
    out = save_published(RunFolder(source), tmp_path / "out")
    before, after = (torch.load(f / "ckpt" / "model.pt", weights_only=True) for f in (source, out))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    args, again = (RunFolder(f).read_args() for f in (source, out))
    assert args.keys() == again.keys()
    assert {k: (args[k], again[k]) for k in args if args[k] != again[k]} == {}
    assert [yaml.safe_load((f / "ckpt" / "info.yaml").read_text()) for f in (source, out)].count(INFO) == 2


def test_numbers_of_yaml_1_2_are_numbers(copy: Path) -> None:
    assert "1e-08" in (copy / "args.yaml").read_text()
    assert RunFolder(copy).config().optimizer.eps == 1e-8


def test_options_that_older_runs_lack_take_what_they_had(copy: Path) -> None:
    for flag in ("core_norm", "core_pad_frame", "core_activation", "core_norm_qk", "clip_grad", "center_crop"):
        with_args(copy, **{flag: None})
    config = RunFolder(copy).config()
    assert (config.core.norm, config.core.padded, config.core.activation) == ("layernorm", True, "none")
    assert (config.optimizer.clip_grad, config.data.center_crop, config.core.norm_qk) == (0, 1, False)


def test_an_unknown_option_is_named(copy: Path) -> None:
    with_args(copy, core_sparse_attention=True)
    with pytest.raises(CheckpointError, match=r"args\.yaml: unknown option --core_sparse_attention"):
        viv1t.load_model(copy)


def test_an_unknown_option_of_2023_is_named(tmp_path: Path) -> None:
    source = golden_folder() / "model" / "02_parallel"
    if not source.is_dir():
        pytest.skip(f"golden numbers not found at {golden_folder()}")
    (tmp_path / "ckpt").mkdir()
    shutil.copyfile(source / "ckpt" / "model_state.pt", tmp_path / "ckpt" / "model_state.pt")
    args = yaml.safe_load((source / "args.yaml").read_text())
    (tmp_path / "args.yaml").write_text(yaml.safe_dump(args | {"core_sparse_attention": True}))
    with pytest.raises(CheckpointError, match="unknown option --core_sparse_attention"):
        viv1t.load_model(tmp_path)
    (tmp_path / "args.yaml").write_text(yaml.safe_dump(args | {"core_use_causal_attention": True}))
    with pytest.raises(CheckpointError, match=r"options of two families .*--core_use_causal_attention"):
        viv1t.load_model(tmp_path)


def test_a_checkpoint_of_the_other_family_is_one_clear_error(copy: Path) -> None:
    (copy / "ckpt" / "model.pt").rename(copy / "ckpt" / "model_state.pt")
    words = r"options of the family of 2025, but ckpt/model_state\.pt is a checkpoint of the family of 2023"
    with pytest.raises(CheckpointError, match=words):
        viv1t.load_model(copy)


def test_what_is_not_written_yet_is_refused_with_its_reason(copy: Path, tmp_path: Path) -> None:
    from viv1t.prediction.attention_rollout import attention_rollout

    model = viv1t.load_model(copy)
    zeros = torch.zeros(2, 60)
    with pytest.raises(ConfigError, match="attention rollout does not know causal attention"):
        attention_rollout(model, torch.zeros(1, 60, 16, 28), zeros, zeros, "A")


PUBLISHED_COMMAND = (
    "--data_dir=data/ --output_dir=runs/001_viv1t --core=vivit --core_behavior_mode=2 --core_use_causal_attention "
    "--core_parallel_attention --readout=gaussian --output_mode=1 --schedule_free --compile --batch_size=1 "
    "--wandb=vivit --clear_output_dir"
)


def test_the_published_command_is_understood() -> None:
    words = dict(word[2:].partition("=")[::2] for word in PUBLISHED_COMMAND.split())
    options = {flag: int(value) if value.isdigit() else value or True for flag, value in words.items()}
    config = ClosedLoopConfig.from_options(options)
    assert (config.core.causal, config.optimizer.schedule_free, config.data.path) == (True, True, "data/")
    assert (config.core.spatial_depth, config.output, config.optimizer.clip_grad) == (14, "elu", -1)


def test_a_core_of_the_other_family_is_no_start(copy: Path) -> None:
    from viv1t.families.sensorium2023.definition import SENSORIUM2023
    from viv1t.families.sensorium2023.options import VivitConfig

    with pytest.raises(ConfigError, match="has a core vivit of another family of models"):
        SENSORIUM2023.same_core(VivitConfig(), RunFolder(copy).config().core, "folder")


def test_films_are_not_predicted_from_statistics_with_another_transform(tmp_path: Path) -> None:
    from viv1t.prediction.sources import opened_subjects
    from viv1t.runs.ensemble import load_models

    folders = [RunFolder(required() / "run" / "run")]
    models, mice = load_models(folders, torch.device("cpu"))
    with pytest.raises(ConfigError, match=r"leave out --statistics and give --data"):
        opened_subjects(folders, models, mice, None, [str(tmp_path)]).__enter__()


def test_a_wrapped_state_is_one_clear_error(copy: Path) -> None:
    state = torch.load(copy / "ckpt" / "model.pt", weights_only=True)
    torch.save({"epoch": 1, "model": state}, copy / "ckpt" / "model.pt")
    with pytest.raises(CheckpointError, match=r"model\.pt: a mapping of named tensors was expected"):
        viv1t.load_model(copy)


def test_entries_that_do_not_fit_are_listed(copy: Path) -> None:
    state = torch.load(copy / "ckpt" / "model.pt", weights_only=True)
    state["core.vivit.extra"] = torch.ones(1)
    del state["core.vivit.reg_s_tokens"]
    torch.save(state, copy / "ckpt" / "model.pt")
    with pytest.raises(CheckpointError, match=r"(?s)missing \(1\): core.vivit.reg_s_tokens.*surplus \(1\): core.vivit"):
        viv1t.load_model(copy)


def test_other_rotary_positions_than_the_options_say_are_refused(copy: Path) -> None:
    state = torch.load(copy / "ckpt" / "model.pt", weights_only=True)
    name = "core.vivit.temporal_transformer.blocks.1.rotary_position_embedding.scale"
    state[name] = state[name] * 1.5
    torch.save(state, copy / "ckpt" / "model.pt")
    with pytest.raises(CheckpointError, match=f"{name} is not what the options say"):
        viv1t.load_model(copy)


def test_the_family_follows_from_options_that_one_alone_has() -> None:
    names = {
        "2025": [{"schedule_free": True}, {"core": "fcnn"}, {"readout": "gaussian"}, {"transform_input": 1}],
        "2023": [{}, {"core": "vivit"}, {"ds_mode": 0}, {"core_mlp_dim": 3}, {"core": "factorized_baseline"}],
    }
    for name, several in names.items():
        for options in several:
            assert family_of(options).name == name, options
    with pytest.raises(ConfigError, match=r"two families .*mixed .2023 has --ds_mode; 2025 has --clip_grad"):
        family_of({"ds_mode": 0, "clip_grad": -1, "core": "vivit"})
    with pytest.raises(ConfigError, match="2023 has --ds_mode; 2025 has --family 2025"):
        family_of({"ds_mode": 0}, "2025")
    assert family_of({"core": "vivit"}, "2025") is FAMILIES["2025"]
    with pytest.raises(ConfigError, match="--family must be one of 2023, 2025"):
        family_of({}, "2024")
