"""`viv1t-train`: trains a model; takes the published command as it stands."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from viv1t.cli.options import Parser, add_run_options, read_config_file, run_main
from viv1t.config import RunConfig
from viv1t.data.loader import Recordings
from viv1t.errors import ConfigError
from viv1t.train.run_folder import RunFolder
from viv1t.train.trainer import Trainer, start_logging
from viv1t.train.validate import Validation, validate


def run(config: RunConfig) -> tuple[Trainer, Validation]:
    """Trains, or continues, the run that `config` describes; returns the trainer and its final scores."""
    folder = RunFolder(config.train.output_dir)
    folder.lock()
    recordings = None
    try:
        if config.train.clear_output_dir:
            folder.clear()
        elif folder.exists() and folder.last.is_file():
            folder.check_same(config)
        recordings = Recordings.open(config.data, config.train.seed)
        trainer = Trainer(config, recordings, folder)
        handler = start_logging(folder.log, config.train.verbose)
        try:
            trainer.begin()
            if trainer.finished:
                logging.getLogger("viv1t").info("%s is finished after epoch %d", folder.path, trainer.epoch)
            trainer.fit()
            final = validate(trainer.model, recordings, config.optimizer)
            trainer.write_evaluation(final)
        finally:
            handler.close()
        return trainer, final
    finally:
        if recordings is not None:
            recordings.close()
        folder.unlock()


def _work(argv: Sequence[str] | None) -> int:
    parser = Parser(
        prog="viv1t-train",
        description="Trains a digital twin of mouse visual cortex. Options keep their published names; interrupted, "
        "the same command continues the run.",
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
    if "data" in options and not isinstance(options["data"], str):
        raise ConfigError(f"--data takes a folder, not {options['data']!r}")
    config = RunConfig.from_options(options)
    _, final = run(config)
    if config.train.verbose:
        print(f"correlation on the tier validation: {final.mean:.4f}; run folder: {config.train.output_dir}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return run_main("viv1t-train", _work, argv)


if __name__ == "__main__":
    raise SystemExit(main())
