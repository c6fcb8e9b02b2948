"""`viv1t-lab EXPERIMENT RUN [RUN ...]`: in-silico experiments on a trained twin."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from viv1t.cli.options import Parser, run_main
from viv1t.errors import ConfigError, DataError, check_run_folders

if TYPE_CHECKING:
    import numpy as np

# What computes is imported where it is used, when options have been looked at.

_EXPERIMENTS = {
    "rf": "receptive fields: maps from dots, and the Gaussians that fit them",
    "direction": "direction and orientation tuning at each neuron's best frequencies",
    "frequency": "spatial and temporal frequency, and F1/F0",
    "contrast": "responses over contrast at a grating that drives the neuron nearly best",
    "size": "size tuning, of circles and holes at each neuron's field",
    "context": "gratings at each neuron's field, and what surrounds them",
    "onset": "how long after a pattern responses start; causal cores",
    "all": "rf, direction, frequency, contrast and, with --neurons or --budget, size and context",
}
_GRID = ("direction", "frequency", "contrast")
_AT_FIELDS = ("size", "context", "onset")
_STIMULI = ("grating", "plaid", "gabor", "dot", "noise", "smooth", "grey")
_WORDS = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(s|m|h)?")


def seconds(word: str) -> float:
    """A time as 90, 90s, 20m or 1.5h."""
    found = _WORDS.fullmatch(word)
    if found is None or not float(found[1]) > 0:
        raise argparse.ArgumentTypeError(f"expected a time above 0, as 90s, 20m or 1.5h, not {word}")
    return float(found[1]) * {None: 1, "s": 1, "m": 60, "h": 3600}[found[2]]


def places(word: str) -> str | list[int]:
    """`all`, or numbers of neurons, as 0,12,80."""
    if word == "all":
        return word
    if not re.fullmatch(r"\d+(,\d+)*", word):
        raise argparse.ArgumentTypeError(f"expected all, or numbers of neurons as 0,12,80, not {word}")
    return [int(part) for part in word.split(",")]


def numbers(word: str) -> tuple[float, ...]:
    """Numbers, as 1,2,4."""
    try:
        return tuple(float(part) for part in word.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected numbers, as 1,2,4, not {word}") from error


def _parser() -> Parser:
    parser = Parser(
        prog="viv1t-lab",
        description="In-silico experiments on a trained twin, for every neuron: a table, a row a neuron, and a picture "
        "of each, in OUT/SESSION. What is finished is not computed again, what was interrupted goes on.",
    )
    commands = parser.add_subparsers(dest="experiment", required=True, metavar="EXPERIMENT")
    for name, words in _EXPERIMENTS.items():
        _add_experiment(commands.add_parser(name, help=words, description=words[0].upper() + words[1:] + "."), name)
    _add_stimulus(commands.add_parser("stimulus", help="write a stimulus as lossless video or .npy"))
    return parser


def _add_experiment(parser: argparse.ArgumentParser, name: str) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folder; several are an ensemble, their mean")
    parser.add_argument("--out", "--output_dir", default="lab", metavar="DIR", help="folder to write to (default lab)")
    parser.add_argument("--mouse_ids", nargs="+", metavar="ID", help="these mice only (default all of the run)")
    parser.add_argument(
        "--neurons", type=places, default="all", metavar="N,N", help="rows of the tables: all, or numbers from 0"
    )
    parser.add_argument(
        "--budget", type=seconds, metavar="TIME",
        help="as 90s, 20m or 1.5h: leaner protocols are taken, and with all experiments left out, to keep within it",
    )  # fmt: skip
    parser.add_argument("--data", metavar="DIR", help="folder of recordings; default what the run keeps of them")
    parser.add_argument(
        "--statistics", nargs="+", metavar="FILE",
        help="what is known of the recordings, in their place, as for viv1t-predict",
    )  # fmt: skip
    parser.add_argument("--format", default="parquet", metavar="parquet|csv", help="of the tables (default parquet)")
    parser.add_argument(
        "--monitor", default="56.5,31.8,15", metavar="W,H,D",
        help="width, height and distance of the screen in cm (default 56.5,31.8,15)",
    )  # fmt: skip
    for state, words in (("behavior", "pupil dilation and running speed"), ("pupil_center", "gaze")):
        parser.add_argument(
            f"--{state}", type=numbers, metavar="X,Y", help=f"{words} as recorded (default the training medians)"
        )
    if name in ("rf", "all"):
        parser.add_argument("--step", type=int, metavar="N", help="pixels between dots (default 2)")
    if name in (*_GRID, "all"):
        parser.add_argument("--directions", type=int, metavar="N", help="in equal steps, a multiple of 4 (default 8)")
        parser.add_argument(
            "--frequencies", type=numbers, metavar="F,F", help="cycles a pixel (default 0.03,0.05,0.07,0.1,0.135)"
        )
        parser.add_argument("--hertz", type=numbers, metavar="F,F", help="temporal frequencies (default 1,2,4)")
        parser.add_argument("--phases", type=int, metavar="N", help="of each grating (default 4)")
    if name in (*_AT_FIELDS, "all"):
        parser.add_argument(
            "--centre_grid", type=int, metavar="N",
            help="pixels to whose multiples centres are rounded, so that neurons share them (default 2)",
        )  # fmt: skip
    if name in _AT_FIELDS:
        parser.add_argument(
            "--own", action="store_true", default=None,
            help="each neuron's own best grating (default with --neurons; else the nearest of four directions at the "
            "mouse's median frequencies)",
        )  # fmt: skip
    if name == "size":
        parser.add_argument(
            "--published", action="store_true", help="directions 90 and 270, 0.04 cpd, 2 Hz, 12 repeats, random phases"
        )
    parser.add_argument("--seed", type=int, default=1234, metavar="N", help="of the order of patterns (default 1234)")
    parser.add_argument("--batch_size", type=int, metavar="N", help="trials in a batch (default by memory)")
    parser.add_argument("--no_plots", action="store_true", help="tables alone")
    parser.add_argument("--device", choices=("cpu", "cuda", "mps"), help="default the best there is")
    parser.add_argument("--quiet", action="store_true", help="no progress, no estimates")
    parser.set_defaults(work=_experiment)


def _add_stimulus(parser: argparse.ArgumentParser) -> None:
    parser.description = "Writes a stimulus: FFV1 video (.mkv, .avi), which keeps every grey level, or .npy."
    parser.add_argument("kind", choices=_STIMULI, metavar="KIND", help=", ".join(_STIMULI))
    parser.add_argument("--out", required=True, metavar="FILE", help="ending in .mkv, .avi or .npy")
    parser.add_argument("--frames", type=int, metavar="N", help="length at 30 Hz (default 30)")
    parser.add_argument("--direction", type=float, metavar="DEG", help="0 left, 90 down, 180 right, 270 up (default 0)")
    parser.add_argument("--cpd", type=float, metavar="F", help="cycles a degree (default 0.04)")
    parser.add_argument("--hertz", type=float, metavar="F", help="temporal frequency (default 2)")
    parser.add_argument("--contrast", type=float, metavar="C", help="0 to 1 (default 1)")
    parser.add_argument("--phase", type=float, metavar="DEG", help="in the first frame (default 0)")
    parser.add_argument("--size", type=float, metavar="DEG", help="of a circle that holds it, grey around it")
    parser.add_argument("--inverse", action="store_true", help="grey in the circle, the film around it")
    parser.add_argument("--center", type=numbers, metavar="X,Y", help="of a circle or dot, pixels (default the middle)")
    parser.add_argument("--off", action="store_true", help="a dark dot")
    parser.add_argument("--seed", type=int, metavar="N", help="of noise (default 1234)")
    parser.add_argument(
        "--frame_size", type=numbers, metavar="H,W", help="rows and columns (default 36,64, those of Sensorium)"
    )
    parser.add_argument("--monitor", default="56.5,31.8,15", metavar="W,H,D", help="screen in cm")
    parser.set_defaults(work=_stimulus)


def _experiment(args: argparse.Namespace) -> int:
    """Runs an experiment, or all."""
    check_run_folders(args.runs)
    from viv1t.lab.tables import check_packages

    check_packages()
    from viv1t.lab.gratings import FREQUENCIES, HERTZ, Grid
    from viv1t.lab.lab import Lab
    from viv1t.stimuli.geometry import Monitor

    grid = None
    chosen = {n: getattr(args, n, None) for n in ("directions", "frequencies", "hertz", "phases")}
    if any(value is not None for value in chosen.values()):
        default: dict[str, Any] = {"directions": 8, "frequencies": FREQUENCIES, "hertz": HERTZ, "phases": 4}
        grid = Grid(**(default | {n: v for n, v in chosen.items() if v is not None}))
    with Lab(
        args.runs, args.data, args.mouse_ids, args.out, args.device, statistics=args.statistics or (),
        neurons=args.neurons, format=args.format, monitor=Monitor.from_text(args.monitor), behavior=args.behavior,
        pupil_center=args.pupil_center, budget=args.budget, batch_size=args.batch_size, seed=args.seed,
        plots=not args.no_plots, progress=not args.quiet, say=_quiet if args.quiet else _say,
    ) as lab:  # fmt: skip
        names = lab.experiments if args.experiment == "all" else (args.experiment,)
        options: dict[str, dict[str, Any]] = {name: {"grid": grid} for name in _GRID}
        options["rf"] = {"step": getattr(args, "step", None)}
        for name in _AT_FIELDS:
            chosen = {n: getattr(args, n, None) for n in ("centre_grid", "own", "published")}
            options[name] = {n: value for n, value in chosen.items() if value is not None}
        tables = lab.all(options) if args.experiment == "all" else {
            name: getattr(lab, name)(**options.get(name, {})) for name in names
        }  # fmt: skip
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


def _stimulus(args: argparse.Namespace) -> int:
    """Writes a stimulus."""
    from viv1t.stimuli.files import ENDINGS, write_film

    path = Path(args.out)
    if path.suffix not in ENDINGS:
        raise ConfigError(f"--out {path}: its name must end in one of {', '.join(ENDINGS)}")
    if path.is_dir():
        raise DataError(f"--out {path}: is a folder")
    film = _film(args)
    write_film(path, film)
    print(f"{path}: {len(film)} frames of {film.shape[1]} x {film.shape[2]} pixels at 30 Hz")
    return 0


# Options that say something of one kind of stimulus or another.
_OF_KIND = {
    "grating": ("direction", "cpd", "hertz", "contrast", "phase"),
    "plaid": ("direction", "cpd", "hertz", "contrast", "phase"),
    "gabor": ("direction",),
    "dot": ("center", "off"),
    "noise": ("seed",),
    "smooth": ("seed",),
    "grey": (),
}
_CIRCLE = ("size", "inverse", "center")


def _film(args: argparse.Namespace) -> np.ndarray:
    import numpy as np

    from viv1t.stimuli import parametric as p
    from viv1t.stimuli.geometry import FRAME_SIZE, Monitor

    masked = args.size is not None
    known = {*_OF_KIND[args.kind], *(_CIRCLE if masked else ("size",))}
    every = {option for options in _OF_KIND.values() for option in options} | set(_CIRCLE)
    if other := [o for o in sorted(every - known) if getattr(args, o) not in (None, False)]:
        without = " without --size" if other[0] in _CIRCLE else ""
        raise ConfigError(f"--{other[0]} has no effect on {args.kind}{without}: leave it out")
    monitor = Monitor.from_text(args.monitor)
    frames = _whole("frames", 30 if args.frames is None else args.frames)
    size = args.frame_size or FRAME_SIZE
    if len(size) != 2 or any(n != int(n) or n < 1 for n in size):
        raise ConfigError(f"--frame_size takes rows and columns, as 36,64, not {','.join(f'{n:g}' for n in size)}")
    frame_size = int(size[0]), int(size[1])
    if args.center is not None and len(args.center) != 2:
        raise ConfigError("--center takes X,Y in pixels")
    center = None if args.center is None else (args.center[0], args.center[1])

    def value(name: str, default: float) -> float:
        given: float | None = getattr(args, name)
        return default if given is None else given

    rng = np.random.default_rng(_whole("seed", 1234 if args.seed is None else args.seed, 0))
    if args.kind in ("grating", "plaid"):
        make = p.grating if args.kind == "grating" else p.plaid
        film = make(
            value("direction", 0), cpd=value("cpd", 0.04), cpf=value("hertz", 2) / 30, frames=frames,
            contrast=value("contrast", 1), phase=value("phase", 0), frame_size=frame_size,
            degrees_per_pixel=monitor.degrees_per_pixel(frame_size[1]),
        )  # fmt: skip
    elif args.kind == "gabor":
        if frame_size != FRAME_SIZE:
            raise ConfigError("--frame_size: gabor films are those of Sensorium, of 36 x 64 pixels")
        film = np.clip(p.gabor_film(value("direction", 0), 0.38, 0.022, frames=frames), 0, 255).astype(np.uint8)
    elif args.kind == "dot":
        film = p.dot(
            center or (frame_size[1] // 2, frame_size[0] // 2), on=not args.off, frames=frames, frame_size=frame_size
        )
    elif args.kind == "grey":
        film = p.grey(frames, frame_size)
    else:
        film = (p.white_noise if args.kind == "noise" else p.smooth_images)(rng, frames, frame_size=frame_size)
    return p.masked(film, args.size, center, inverse=args.inverse, monitor=monitor) if masked else film


def _whole(name: str, number: int, least: int = 1) -> int:
    if number < least:
        raise ConfigError(f"--{name} must be at least {least}, not {number}")
    return number


def _work(argv: Sequence[str] | None) -> int:
    args = _parser().parse_args(argv)
    status: int = args.work(args)
    return status


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return run_main("viv1t-lab", _work, argv)


if __name__ == "__main__":
    raise SystemExit(main())
