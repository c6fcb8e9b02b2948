"""The command line of training: the published command, files of options, and one line for every mistake."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from viv1t.cli import convert, data, evaluate, predict, train
from viv1t.cli.options import Parser, add_run_options, plain_word, read_config_file, run_main
from viv1t.config.fields import Options
from viv1t.errors import CheckpointError, ConfigError
from viv1t.families.sensorium2023.options import VivitConfig
from viv1t.families.sensorium2023.run import RunConfig
from viv1t.training.ranks import Ranks

PUBLISHED = (
    "--data=data/sensorium --output_dir=runs/vivit/test --transform_mode=2 --crop_frame=140 --ds_mode=3 --core=vivit "
    "--core_parallel_attention --grad_checkpointing=0 --output_mode=1 --readout=gaussian2d --batch_size=6 "
    "--clear_output_dir"
)
SHORT = ["--output_dir=run", "--transform_mode=2", "--ds_mode=3", "--core=vivit", "--readout=gaussian2d"]


def parse(words: Sequence[str]) -> Options:
    parser = Parser(prog="viv1t-train")
    add_run_options(parser)
    return vars(parser.parse_args(words))


def parsed(words: Sequence[str]) -> RunConfig:
    return RunConfig.from_options(parse(words))


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[RunConfig]:
    """The configurations that the command would have trained; in an empty folder."""
    configs: list[RunConfig] = []

    def run(config: RunConfig) -> Any:
        configs.append(config)
        folder = argparse.Namespace(path=config.train.output_dir)
        return argparse.Namespace(ranks=Ranks(), run=folder), argparse.Namespace(mean=0.5)

    monkeypatch.setattr(train, "run", run)
    monkeypatch.chdir(tmp_path)
    return configs


def refused(words: Sequence[str], capsys: pytest.CaptureFixture[str], program: Any = train) -> str:
    """The one line on standard error of a command that ends with status 2 and writes nothing."""
    try:
        status = program.main(words)
    except SystemExit as exit:
        status = exit.code
    out, err = capsys.readouterr()
    assert status == 2, err
    assert out == ""
    assert err.endswith("\n")
    assert err.count("\n") == 1, err
    assert list(Path.cwd().iterdir()) == []
    return err


def test_the_published_command_word_for_word(started: list[RunConfig]) -> None:
    assert train.main(PUBLISHED.split()) == 0
    (config,) = started
    assert config.data.path == "data/sensorium"
    assert (config.data.mice, config.data.transform) == ("all_with_test", "published")
    assert (config.data.crop_frame, config.data.batch_size) == (140, 6)
    assert isinstance(config.core, VivitConfig)
    assert config.core.parallel_attention
    assert (config.core.emb_dim, config.core.temporal_depth) == (112, 5)
    assert (config.readout.name, config.output) == ("gaussian2d", "exp")
    assert config.train.output_dir == "runs/vivit/test"
    assert config.train.grad_checkpointing is False
    assert config.train.clear_output_dir
    assert (config.optimizer.lr, config.optimizer.core_lr) == (0.0036, 0.0048)


def test_every_option_of_a_run_goes_through_the_command_line() -> None:
    for extra in (
        [], ["--core=factorized_baseline"], ["--readout=factorized", "--modulator_mode=1", "--critic_mode=1"],
        ["--modulator_mode=2"], ["--modulator_mode=3"], ["--modulator_mode=4", "--mouse_ids", "A", "F"],
    ):  # fmt: skip
        config = parsed(SHORT + extra)
        words: list[str] = []
        for name, value in config.to_options().items():
            if isinstance(value, list):
                words += [f"--{name}", *value]
            elif value is not None:
                words.append(f"--{name}={value}")
        assert parsed(words) == config


@pytest.mark.parametrize("words", [["--core_compile"], ["--core_compile", "true"], ["--core_compile=1"]])
def test_switches_take_a_word_or_none(words: list[str]) -> None:
    assert parsed([*SHORT, *words]).train.compile
    assert not parsed([*SHORT, *words, "--core_compile=false"]).train.compile


@pytest.mark.parametrize(
    ("words", "mode", "published"),
    [
        ([], None, False), (["--cache_data"], "cpu", True), (["--cache_data", "true"], "cpu", True),
        (["--cache_data", "false"], None, False), (["--cache_data", "cpu"], "cpu", True),
        (["--cache_data=gpu"], "gpu", "gpu"), (["--cache_data=false"], None, False),
    ],
)  # fmt: skip
def test_cache_data_is_the_published_switch_and_more(words: list[str], mode: str | None, published: object) -> None:
    config = parsed([*SHORT, *words])
    assert config.data.cache_data == mode
    options = config.to_options()
    assert options["cache_data"] == published  # what a published args.yaml says
    assert RunConfig.from_options(options) == config


def test_published_integers_and_their_names_are_the_same() -> None:
    numbers = parsed([*SHORT, "--output_mode=1", "--core_behavior_mode=3"])
    names = parsed([*SHORT, "--output_mode=exp", "--core_behavior_mode=behavior_encoding"])
    assert numbers == names
    for flag in ("ds_scale", "grad_checkpointing", "core_flash_attention"):
        assert parsed([*SHORT, f"--{flag}=1"]) != parsed([*SHORT, f"--{flag}=0"])


def test_the_command_line_wins_over_a_file(started: list[RunConfig], tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump({
        "core": "vivit", "readout": "gaussian2d", "ds_mode": 1, "transform_mode": 2, "output_dir": "of-the-file",
        "lr": 0.5, "adam_eps": "1e-08", "mouse_ids": ["F", "G"], "core_parallel_attention": True, "precision": 32,
        "grad_checkpointing": 1,
    }))  # fmt: skip
    assert train.main([f"--config={file}", "--output_dir=of-the-line", "--lr=0.25"]) == 0
    (config,) = started
    assert (config.train.output_dir, config.optimizer.lr) == ("of-the-line", 0.25)
    assert config.data.mouse_ids == ("F", "G")
    assert isinstance(config.core, VivitConfig)
    assert config.core.parallel_attention
    assert (config.train.precision, config.train.grad_checkpointing) == ("32", True)


def test_a_file_takes_what_the_command_line_takes(started: list[RunConfig], tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(
        "mouse_ids: F\ncore_parallel_attention: 'true'\nds_scale: \"true\"\ncore_lr: none\nbatch_size: '06'\n"
        'epochs: 010\nadam_eps: 1e-08\ngrad_checkpointing: "0"\n'
    )
    words = ["--mouse_ids=F", "--core_parallel_attention=true", "--ds_scale=true", "--core_lr=none", "--batch_size=06",
             "--epochs=010", "--adam_eps=1e-08", "--grad_checkpointing=0"]  # fmt: skip
    assert train.main([*SHORT, "--config", str(tmp_path / "run.yaml")]) == 0
    assert train.main([*SHORT, *words]) == 0
    of_file, of_line = started
    assert of_file == of_line
    assert (of_line.optimizer.core_lr, of_line.optimizer.ds_scale, of_line.data.mouse_ids) == (None, True, ("F",))
    assert (of_line.train.epochs, of_line.optimizer.eps, of_line.train.grad_checkpointing) == (10, 1e-8, False)


def test_args_of_a_run_are_a_file_of_options(started: list[RunConfig], tmp_path: Path) -> None:
    config = parsed(SHORT)
    shapes = {"input_shapes": {"video": [1, 2, 3, 4]}, "output_shapes": {"F": [3, 2]}}
    (tmp_path / "args.yaml").write_text(yaml.safe_dump(config.to_options() | shapes))
    assert train.main(["--config", str(tmp_path / "args.yaml")]) == 0
    assert started == [config]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--batchsize=3"], "unknown option --batchsize; did you mean --batch_size?"),
        (["--batch", "3"], "unknown option --batch; did you mean"),
        (["--zzzzzz"], "unknown option --zzzzzz; see viv1t-train --help"),
        (["surplus"], "unexpected word 'surplus'"),
        (["--batch_size"], "argument --batch_size: expected one argument"),
        (["--mouse_ids"], "argument --mouse_ids: expected at least one argument"),
        (["--batch_size=two"], "--batch_size takes a whole number, not 'two'"),
        (["--batch_size=2.5"], "--batch_size takes a whole number, not '2.5'"),
        (["--batch_size=-3"], "--batch_size must be at least 1, not -3"),
        (["--batch_size", "-3"], "--batch_size must be at least 1, not -3"),
        (["--lr=nan"], "--lr must be at least 0, not nan"),
        (["--lr=inf"], "--lr must be at least 0, not inf"),
        (["--lr=-0.1"], "--lr must be at least 0, not -0.1"),
        (["--lr="], "--lr takes a number, not ''"),
        (["--core_p_dropout=1.5"], "--core_p_dropout must be from 0 to 1, not 1.5"),
        (["--seed=-1"], "--seed must be from 0"),
        (["--crop_frame=0"], "--crop_frame must be -1 or at least 1, not 0"),
        (["--crop_frame=10"], "the core's temporal extent is longer than --crop_frame 10"),
        (["--ds_mode=7"], "--ds_mode must be one of 0 (old), 1 (new), 2 (all), 3 (all_with_test), not 7"),
        (["--transform_mode=x"], "--transform_mode must be one of 0 (none)"),
        (["--core=resnet"], "--core must be one of vivit, factorized_baseline, not 'resnet'"),
        (["--modulator_mode=9"], "--modulator_mode must be one of 0, 1, 2, 3, 4, not 9"),
        (["--output_mode=5"], "--output_mode must be one of 0 (elu), 1 (exp), 2 (softplus), not 5"),
        (["--device=tpu"], "--device must be one of cpu, cuda, mps, not 'tpu'"),
        (["--core_compile=maybe"], "--core_compile takes true or false, not 'maybe'"),
        (["--core_num_layers=3"], "--core_num_layers belongs to --core factorized_baseline, but --core is vivit"),
        (["--modulator_dropout=0.1"], "--modulator_dropout belongs to --modulator_mode 2 or 4, but"),
        (["--config=nowhere.yaml"], "--config nowhere.yaml: No such file or directory"),
        (["--config=/"], "--config /: Is a directory"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_a_mistake_is_one_line(
    words: list[str], line: str, started: list[RunConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    assert refused([*SHORT, *words], capsys).startswith(f"viv1t-train: error: {line}")
    assert started == []


@pytest.mark.parametrize("missing", [word.split("=")[0] for word in SHORT])
def test_a_required_option_is_named(missing: str, started: list[RunConfig], capsys: pytest.CaptureFixture[str]) -> None:
    line = refused([word for word in SHORT if not word.startswith(missing)], capsys)
    assert line.startswith(f"viv1t-train: error: {missing} is required")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("- 1", "a mapping of option names to values was expected"),
        ("1: 2", "a mapping of option names to values was expected"),
        ("lr: [", "not readable as YAML"),
        ("!!python/object/apply:os.getcwd []", "not readable as YAML"),
        ("batchsize: 3", "unknown option --batchsize; did you mean --batch_size?"),
        ("lr: fast", "--lr takes a number, not 'fast'"),
        ("lr: .nan", "--lr must be at least 0, not nan"),
        ("lr: null", "--lr needs a value"),
        ("batch_size: true", "--batch_size takes a whole number, not True"),
        ("mouse_ids: 3", "--mouse_ids takes a list of words, not 3"),
        ("lr: 1\nepochs: 2\nlr: 3", "not readable as YAML: the key 'lr' is given twice, in lines 1 and 3"),
        ("batch_size: 1:30", "--batch_size takes a whole number, not '1:30'"),
        ("lr: 2001-01-01", "--lr takes a number, not '2001-01-01'"),
        ("core_norm_qk: yes", "--core_norm_qk takes true or false, not 'yes'"),
        ("data: 3", "--data takes a word, not 3"),
        ("core: [vivit]", "--core must be one of"),
        ("output_mode: true", "--output_mode must be one of"),
        ("output_mode: [1]", "--output_mode must be one of"),
        ("demo: true", "unknown option --demo"),
    ],
)
def test_a_mistake_in_a_file_is_one_line(
    text: str, line: str, started: list[RunConfig], capsys: pytest.CaptureFixture[str], tmp_path_factory: Any
) -> None:
    file = tmp_path_factory.mktemp("options") / "run.yaml"
    file.write_text(text)
    words = [word for word in SHORT if not word.startswith(f"--{text.split(':')[0]}=")]
    assert line in refused([f"--config={file}", *words], capsys)


@pytest.mark.parametrize("program", [train, evaluate, predict, convert, data])
def test_help_is_printed(program: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        program.main(["--help"])
    assert exit.value.code == 0
    assert "usage: viv1t-" in capsys.readouterr().out


def test_help_names_every_option_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        train.main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    for flag in (*parsed(SHORT).to_options(), "core_num_layers", "modulator_activation", "critic_hidden_dim"):
        assert f"--{flag} " in text, flag
    assert "trials per mouse in an optimizer step (default 8)" in text
    assert "(default 2)" in text
    # Of an option that several components share, each one's codes and defaults.
    assert "5 like 4 with an encoder per mouse (default 2); with --core factorized_baseline: 0 video only;" in text
    assert "options of --core vivit and --core factorized_baseline:" in text
    assert "modulator_mode 2 and --modulator_mode 4" in text
    assert "(default 0.0036; with --core factorized_baseline: 0.005)" in text
    assert "none: as --lr (default 0.0048; with --core factorized_baseline: none)" in text
    assert "(default 1)" in text.partition("--ds_scale N scale the loss")[2][:80]


def test_help_marks_what_is_required(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        train.main(["--help"])
    text = " ".join(capsys.readouterr().out.split("options:", 1)[1].split())
    required = [part.split(" --")[-1].split()[0] for part in f" {text}".split("(required)")[:-1]]
    assert sorted(f"--{flag}" for flag in required) == sorted(word.split("=")[0] for word in SHORT)


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (ConfigError("--lr: no"), 2, "prog: error: --lr: no\n"),
        (CheckpointError("does not fit:\n  missing (1): a\n  surplus (1): b"), 1,
         "prog: error: does not fit: missing (1): a surplus (1): b\n"),
        (KeyboardInterrupt(), 130, "\nprog: interrupted\n"),
        (OSError(5, "Input/output error", "/disk/file"), 1, "prog: error: /disk/file: Input/output error\n"),
        (OSError("odd"), 1, "prog: error: odd\n"),
    ],
)  # fmt: skip
def test_errors_become_a_line_and_a_status(
    error: BaseException, status: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def work(argv: Sequence[str] | None) -> int:
        raise error

    assert run_main("prog", work, []) == status
    assert capsys.readouterr().err == line


def test_a_full_disk_comes_with_advice(capsys: pytest.CaptureFixture[str]) -> None:
    def work(argv: Sequence[str] | None) -> int:
        raise OSError(28, "No space left on device", "/disk/file")

    assert run_main("prog", work, []) == 1
    line = capsys.readouterr().err
    assert line.startswith("prog: error: /disk/file: No space left on device (")
    assert line.endswith(" MB are free); make room on its disk, or choose a folder on another\n")


def test_a_mistake_of_the_program_keeps_its_traceback() -> None:
    def work(argv: Sequence[str] | None) -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_main("prog", work, [])


class TestWords:
    """Folders as shells and scripts leave them."""

    @pytest.mark.parametrize("word", ["~/runs/x", "--data=~/runs/x", "--output_dir=~"])
    def test_the_home_folder_is_meant_by_a_tilde(self, word: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", "/home/lab")
        assert plain_word(word) == word.replace("~", "/home/lab")

    @pytest.mark.parametrize("word", ["--lr=0.1", "--quiet", "-1", "a~b", "./~", "--mouse_ids", "--x=a=~"])
    def test_other_words_are_left(self, word: str) -> None:
        assert plain_word(word) == word

    @pytest.mark.parametrize(
        ("word", "words"),
        [
            ("--data=", "--data: the value is empty: is a variable unset"),
            ("", "the value is empty"),
            ("--data=~nobody-of-this-name/x", "no such home"),
            ("--data=souris_\udce9", r"--data: souris_\\udce9: the name is not UTF-8"),
        ],
    )
    def test_words_without_meaning_are_one_line(
        self, word: str, words: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        with pytest.raises(ConfigError, match=words):
            plain_word(word)
        with pytest.raises(SystemExit, match="2"):
            Parser(prog="viv1t-test").parse_args([word])
        assert capsys.readouterr().err.count("\n") == 1

    def test_a_file_of_options_is_read_the_same(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", "/home/lab")
        file = tmp_path / "run.yaml"
        file.write_text("output_dir: ~/runs/x\nlr: 0.1\n")
        assert read_config_file(str(file))["output_dir"] == "/home/lab/runs/x"
        file.write_text("data: ''\n")
        with pytest.raises(ConfigError, match="--data: the value is empty"):
            read_config_file(str(file))
