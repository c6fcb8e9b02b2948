"""`viv1t-train` for both families of models: whose options are shown, taken and refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from viv1t.cli import train
from viv1t.cli.options import Parser, add_run_options
from viv1t.errors import ConfigError
from viv1t.families.closed_loop.options import ClosedLoopConfig, FcnnConfig, option_set
from viv1t.families.sensorium2023.run import RunConfig
from viv1t.recipes.configuration import configuration, options_of

SHORT = {"output_dir": "run", "core": "vivit", "readout": "gaussian", "transform_input": 1}


def shown(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as exit:
        train.main(words)
    assert exit.value.code == 0
    return " ".join(capsys.readouterr().out.split())


def test_help_shows_one_family_at_a_time(capsys: pytest.CaptureFixture[str]) -> None:
    first = shown(["--help"], capsys)
    assert "--ds_mode N" in first
    assert "--schedule_free" not in first
    assert "options of the models of 2023; --help --family 2025 shows those of 2025" in first
    second = shown(["--help", "--family", "2025"], capsys)
    assert "--ds_mode" not in second
    assert "options of the models of 2025; --help --family 2023 shows those of 2023" in second
    for flag in (*option_set().owners, *option_set().selectors):
        assert f"--{flag} " in second, flag
    assert "trials per mouse in an optimizer step (default 1)" in second
    assert "(default 0.0073; with --core fcnn: 0.005)" in second
    assert "--output_dir VALUE run folder (required)" in second
    assert "options of --core vivit and --core fcnn:" in second
    # The family follows from options here as well.
    assert "--ds_mode" not in shown(["--schedule_free", "--help"], capsys)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--schedule_free", "--ds_mode=0"], "are mixed (2023 has --ds_mode; 2025 has --schedule_free)"),
        (["--family=2023", "--core", "fcnn"], "are mixed (2025 has --core fcnn; 2023 has --family 2023)"),
        (["--family=2025", "--readout=gaussian2d"], "are mixed (2023 has --readout gaussian2d; 2025 has --family"),
        (["--family=2024"], "--family must be one of 2023, 2025, not 2024"),
        (["--family=2025", "--schedulefree"], "unknown option --schedulefree; did you mean --schedule_free?"),
        (["--config=run.yaml", "--ds_mode=0"], "are mixed (2023 has --ds_mode; 2025 has --clip_grad)"),
    ],
)  # fmt: skip
def test_a_mixture_is_refused_with_both_names(
    words: list[str], line: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text("clip_grad: 0\n")
    try:
        status: Any = train.main(words)
    except SystemExit as exit:
        status = exit.code
    assert status == 2
    error = capsys.readouterr().err
    assert line in error
    assert error.count("\n") == 1


def through_the_command(options: dict[str, Any]) -> ClosedLoopConfig:
    parser = Parser(prog="viv1t-train")
    add_run_options(parser, option_set())
    words: list[str] = []
    for name, value in options.items():
        words += [f"--{name}", *value] if isinstance(value, list) else [f"--{name}={value}"]
    config = configuration(vars(parser.parse_args(words)))
    assert isinstance(config, ClosedLoopConfig)
    return config


@pytest.mark.parametrize("more", [{}, {"core": "fcnn", "core_linear": True}, {"output_mode": 3, "mouse_ids": ["K"]}])
def test_every_option_goes_through_the_command_line(more: dict[str, Any]) -> None:
    config = configuration(SHORT | more)
    given = {name: value for name, value in config.to_options().items() if value is not None}
    assert through_the_command(given) == config
    assert configuration(yaml.safe_load(yaml.safe_dump(given))) == config


def test_words_are_read_as_numbers_are() -> None:
    words = {
        "output_mode": "2", "core_pad_frame": "0", "core_flash_attention": "1", "clip_grad": "-1",
        "schedule_free": "true", "core_lr": "none", "limit_neurons": "5", "crop_frame": "-1",
    }  # fmt: skip
    config = configuration(SHORT | words)
    assert isinstance(config, ClosedLoopConfig)
    assert (config.output, config.core.padded, config.optimizer.clip_grad) == ("exp", False, -1)
    assert (config.optimizer.schedule_free, config.core_lr) == (True, config.optimizer.lr)
    assert (config.data.limit_neurons, config.data.crop_frame) == (5, -1)


def test_the_family_can_be_said_where_no_option_tells_it() -> None:
    common = {"output_dir": "run", "core": "vivit", "lr": 0.1}
    assert options_of(common)[0] == "2023"
    assert options_of(common, "2025")[0] == "2025"
    config = configuration({"family": 2025, "core": "fcnn", "readout": "gaussian", "output_dir": "run"})
    assert isinstance(config.core, FcnnConfig)
    config = configuration({
        "family": "2023", "core": "vivit", "readout": "gaussian2d", "ds_mode": 0, "transform_mode": 2,
        "output_dir": "run",
    })  # fmt: skip
    assert isinstance(config, RunConfig)
    with pytest.raises(ConfigError, match="mixed"):
        configuration(SHORT | {"family": "2023"})
