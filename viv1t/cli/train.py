"""`viv1t-train`: trains a model; takes the published command as it stands."""

from __future__ import annotations

import sys
from collections.abc import Container, Sequence

from viv1t.cli.options import Parser, add_run_options, read_config_file, run_main
from viv1t.config.run import RunConfig
from viv1t.errors import ConfigError
from viv1t.recipes.train import run


def _check_family(words: Sequence[str], known: Container[str]) -> None:
    """Raises a ConfigError where options not `known` are of a family that is not trained here, or are mixed."""
    options: dict[str, str] = {}
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word.startswith("--"):
            flag, _, value = word[2:].partition("=")
            options[flag] = value or following
    if all(f"--{flag}" in known for flag in options):
        return
    from viv1t.families.known import family_of, signs  # brings PyTorch, long to import

    family = family_of(options)
    if not family.trained_here:
        raise ConfigError(
            f"{', '.join(signs(options, family)[:5])}: options of the models of {family.name}, which are loaded, "
            "evaluated, predicted and streamed here, but not trained yet"
        )


def _work(argv: Sequence[str] | None) -> int:
    parser = Parser(
        prog="viv1t-train",
        description="Trains a digital twin of mouse visual cortex. Options keep their published names; interrupted, "
        "the same command continues the run. An option that has no default takes none for no value, also in a file.",
    )
    parser.add_argument("--config", help="YAML file of options; the command line wins")
    parser.add_argument(
        "--demo", action="store_true", help="make synthetic mice, train a small model on them and report"
    )
    add_run_options(parser)
    _check_family(sys.argv[1:] if argv is None else argv, parser._option_string_actions)
    given = vars(parser.parse_args(argv))
    demo, file = given.pop("demo"), given.pop("config")
    options = (read_config_file(file) if file else {}) | given
    if demo:
        from viv1t.recipes.demo import run_demo

        return run_demo(options)
    config = RunConfig.from_options(options)
    trainer, final = run(config)
    if config.train.verbose and trainer.ranks.first:
        print(f"correlation on the tier validation: {final.mean:.4f}; run folder: {trainer.run.path}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return run_main("viv1t-train", _work, argv)


if __name__ == "__main__":
    raise SystemExit(main())
