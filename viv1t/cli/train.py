"""`viv1t-train`: trains a model; takes the published commands, of both families of models, as they stand."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from viv1t.cli.options import Parser, add_run_options, plain_word, read_config_file, run_main
from viv1t.config.fields import Options
from viv1t.recipes.configuration import configuration, options_of
from viv1t.recipes.train import run

_ABOUT = (
    "Trains a digital twin of mouse visual cortex. Options keep their published names; interrupted, the same command "
    "continues the run. An option that has no default takes none for no value, also in a file. These are the options "
    "of the models of {}; --help --family {} shows those of {}. Which family is meant follows from options that one "
    "alone has."
)


def _parser(**more: bool) -> Parser:
    """What every family's command takes."""
    parser = Parser(prog="viv1t-train", **more)
    parser.add_argument("--config", help="YAML file of options; the command line wins")
    parser.add_argument("--family", metavar="2023|2025", help="the family of models, where no option tells it")
    parser.add_argument(
        "--demo", action="store_true", help="make synthetic mice, train a small model on them and report"
    )
    return parser


def _as_options(words: Sequence[str]) -> Options:
    """The words of a command line by the option before them, before anything of them is judged."""
    found: Options = {}
    for word, following in zip(words, [*words[1:], ""], strict=True):
        flag, equals, value = word[2:].partition("=")
        if word.startswith("--"):
            found[flag] = value if equals or following.startswith("--") else following
    return {flag: value for flag, value in found.items() if flag not in ("config", "family", "demo", "help")}


def _work(argv: Sequence[str] | None) -> int:
    words = [plain_word(word) for word in (sys.argv[1:] if argv is None else argv)]
    general, _ = _parser(add_help=False).parse_known_args(words)
    file = read_config_file(general.config) if general.config else {}
    wanted = general.family or file.pop("family", None)
    name, options = options_of(file | _as_options(words), None if wanted is None else str(wanted))
    parser = _parser()
    other = "2025" if name == "2023" else "2023"
    parser.description = _ABOUT.format(name, other, other)
    add_run_options(parser, options)
    given = vars(parser.parse_args(argv))
    demo = given.pop("demo")
    del given["config"], given["family"]
    given = file | given | {"family": name}
    if demo:
        from viv1t.recipes.demo import run_demo

        return run_demo(given)
    config = configuration(given)
    trainer, final = run(config)
    if config.train.verbose and trainer.ranks.first:
        print(f"correlation on the tier validation: {final.mean:.4f}; run folder: {trainer.run.path}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return run_main("viv1t-train", _work, argv)


if __name__ == "__main__":
    raise SystemExit(main())
