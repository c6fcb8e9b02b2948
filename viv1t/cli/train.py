"""`viv1t-train`: trains a model; takes the published command as it stands."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from viv1t.cli.options import Parser, add_run_options, read_config_file, run_main
from viv1t.config import RunConfig
from viv1t.effects import check_effects
from viv1t.errors import missing_folder

if TYPE_CHECKING:
    from viv1t.train.trainer import Trainer
    from viv1t.train.validate import Validation


def run(config: RunConfig) -> tuple[Trainer, Validation]:
    """Trains, or continues, the run that `config` describes; returns the trainer and its final scores."""
    check_effects(config)
    folder = Path(config.data.path)
    if not folder.is_dir():
        raise missing_folder(folder, "give the folder that holds the recording sessions", option="--data ")
    from viv1t.cli.training import run as trained  # not before the options are known to be good: PyTorch takes seconds

    return trained(config)


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
    given = vars(parser.parse_args(argv))
    demo, file = given.pop("demo"), given.pop("config")
    options = (read_config_file(file) if file else {}) | given
    if demo:
        from viv1t.cli.demo import run_demo

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
