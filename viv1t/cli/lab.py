"""`viv1t-lab EXPERIMENT RUN [RUN ...]`: in-silico experiments on a trained twin."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from viv1t.cli.lab_options import OF_EXPERIMENTS, add_shared, seconds
from viv1t.cli.lab_stimulus import add_stimulus
from viv1t.cli.options import Parser, run_main
from viv1t.errors import check_run_folders
from viv1t.lab.catalogue import EXPERIMENTS, GRID

__all__ = ["main", "seconds"]

# What computes is imported where it is used, when options have been looked at.

_ALL = "rf, direction, frequency, contrast and, with --neurons or --budget, size and context"
_OF_ALL = ("step", *GRID, "centre_grid")


def _parser() -> Parser:
    parser = Parser(
        prog="viv1t-lab",
        description="In-silico experiments on a trained twin, for every neuron: a table, a row a neuron, and a picture "
        "of each, in OUT/SESSION. What is finished is not computed again, what was interrupted goes on.",
    )
    commands = parser.add_subparsers(dest="experiment", required=True, metavar="EXPERIMENT")
    said = {name: (kind.words, kind.options) for name, kind in EXPERIMENTS.items()}
    for name, (words, options) in (said | {"all": (_ALL, _OF_ALL)}).items():
        command = commands.add_parser(name, help=words, description=words[0].upper() + words[1:] + ".")
        add_shared(command)
        own = command.add_argument_group(f"options of {name}")
        for option in options:
            own.add_argument(f"--{option}", **({"default": None} | OF_EXPERIMENTS[option]))
        command.set_defaults(work=_experiment)
    add_stimulus(commands.add_parser("stimulus", help="write a stimulus as lossless video or .npy"))
    return parser


def _given(args: argparse.Namespace, options: Sequence[str]) -> dict[str, Any]:
    """What was said of an experiment's options, as `Lab` takes them."""
    from viv1t.lab.gratings import Grid

    said = {n: getattr(args, n) for n in options if getattr(args, n, None) is not None}
    grid = {n: said.pop(n) for n in GRID if n in said}
    return said | ({"grid": Grid(**grid)} if grid else {})


def _experiment(args: argparse.Namespace) -> int:
    """Runs an experiment, or all."""
    check_run_folders(args.runs)
    from viv1t.lab.tables import check_packages

    check_packages()
    from viv1t.lab.lab import Lab
    from viv1t.stimuli.geometry import Monitor

    every = args.experiment == "all"
    options = {n: _given(args, kind.options) for n, kind in EXPERIMENTS.items() if every or n == args.experiment}
    with Lab(
        args.runs, args.data, args.mouse_ids, args.out, args.device, statistics=args.statistics or (),
        mean_statistics=args.mean_statistics, states_of=args.states_of, neurons=args.neurons, format=args.format,
        monitor=Monitor.from_text(args.monitor), state=args.state, behavior=args.behavior,
        pupil_center=args.pupil_center, budget=args.budget, batch_size=args.batch_size, seed=args.seed,
        plots=not args.no_plots, progress=not args.quiet, say=_quiet if args.quiet else _say,
    ) as lab:  # fmt: skip
        tables: Mapping[str, Any]
        if every:
            tables = lab.all(options)
        else:
            tables = {args.experiment: getattr(lab, args.experiment)(**options[args.experiment])}
        for name, table in tables.items():
            failed = int((table["reason"] != "").sum())
            words = f", {failed} of them not good or without a result, for the reason that it says" if failed else ""
            where = Path(args.out) / "SESSION" / f"{name}.{args.format}"
            print(f"{name}: {len(table)} neurons of {len(lab.mice)} mice{words}; in {where}")
    return 0


def _say(words: str) -> None:
    print(words, flush=True)


def _quiet(_: str) -> None:
    pass


def _work(argv: Sequence[str] | None) -> int:
    args = _parser().parse_args(argv)
    status: int = args.work(args)
    return status


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return run_main("viv1t-lab", _work, argv)


if __name__ == "__main__":
    raise SystemExit(main())
