"""`viv1t-data`: makes, checks and prepares recordings."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from viv1t.cli.options import Parser, add_options, given_options, run_main
from viv1t.config.data import ReadingConfig
from viv1t.data.formats.sensorium.trial_video import video_cost
from viv1t.data.inspect.check import check_folder
from viv1t.data.inspect.finding import Finding
from viv1t.data.inspect.info import format_table, session_info, sessions_in
from viv1t.data.rules import Rules
from viv1t.data.store.pack import pack
from viv1t.data.store.packed import video_file
from viv1t.data.store.verify import verify
from viv1t.data.survey import recordings_in
from viv1t.data.synthetic import mice as synthetic
from viv1t.errors import ConfigError

PROGRAM = "viv1t-data"


def _report(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _add_reading(parser: argparse.ArgumentParser) -> None:
    """Adds what says how recordings become trials."""
    add_options(parser, ReadingConfig, "how recordings become trials, as in training")


def _rules(args: argparse.Namespace) -> Rules:
    return Rules.of(given_options(args, ReadingConfig))


def _mice(text: str) -> int | list[str]:
    return int(text) if text.isdecimal() else text.split(",")


# The options of `synth` that say how much to record, with their defaults; `--full_scale` sets them itself.
_SYNTH_SIZE = {
    "neurons": (100, "neurons of each mouse"),
    "trials": (40, "training trials of each mouse"),
    "frames": (300, "frames of a trial"),
    "movies": (3, "movies of the tier oracle"),
    "repeats": (4, "repeats of each of these"),
    "test_movies": (2, "movies of each test tier; 0: no test tiers"),
    "test_repeats": (2, "repeats of each of these"),
}


def add_synth(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = commands.add_parser(
        "synth",
        help="write synthetic mice whose truth is known",
        description="Writes synthetic mice in the format of Sensorium 2023 or experanto, their truth beside the data.",
    )
    parser.add_argument("out", type=Path, help="folder of the sessions")
    parser.add_argument("--mice", type=_mice, default=2, help="number of mice, or letters and names: F,G (default 2)")
    for flag, (default, words) in _SYNTH_SIZE.items():
        parser.add_argument(f"--{flag}", type=int, metavar="N", help=f"{words} (default {default})")
    parser.add_argument("--full_scale", action="store_true", help="neurons and trials of the published mice")
    parser.add_argument("--seed", type=int, default=1234, help="seed of everything (default 1234)")
    parser.add_argument(
        "--format", default="sensorium", metavar="sensorium|experanto", help="of the folders (default sensorium)"
    )
    parser.add_argument("--reveal", action="store_true", help="test responses of every mouse, not only of A-E")
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("--resume", action="store_true", help="keep complete sessions of the same options")
    existing.add_argument("--overwrite", action="store_true", help="replace synthetic sessions")
    parser.add_argument("--workers", type=int, metavar="N", help="threads (default one per core, at most 4)")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    parser.set_defaults(run=synth)


def synth(args: argparse.Namespace) -> int:
    given = [flag for flag in _SYNTH_SIZE if getattr(args, flag) is not None]
    if args.full_scale and given:
        raise ConfigError(f"--{given[0]} does not go with --full_scale, which sets it")
    if args.workers is not None and args.workers < 1:
        raise ConfigError(f"--workers must be at least 1, not {args.workers}")
    n = {flag: default if flag not in given else getattr(args, flag) for flag, (default, _) in _SYNTH_SIZE.items()}
    tests = (n["test_movies"], n["test_repeats"])
    sessions = synthetic.synthesize(
        args.out,
        mice=args.mice,
        size=synthetic.full_scale
        if args.full_scale
        else synthetic.Size(
            neurons=n["neurons"],
            trials=n["trials"],
            frames=n["frames"],
            evaluation=((n["movies"], n["repeats"]), *[tests] * 4),
        ),
        seed=args.seed,
        reveal=args.reveal,
        format=args.format,
        existing="resume" if args.resume else "overwrite" if args.overwrite else "refuse",
        workers=args.workers,
        report=None if args.quiet else _report,
    )
    for session in sessions:
        print(session)
    return 0


def add_check(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = commands.add_parser(
        "check",
        help="find what is wrong with recordings",
        description="Reads every array of a folder of recordings and says what is wrong and what to do; the exit "
        "status is 1 when there are errors. Archives are unpacked first, as for training.",
    )
    parser.add_argument("folder", type=Path, help="folder of the sessions, or one session")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    _add_reading(parser)
    parser.set_defaults(run=check)


def check(args: argparse.Namespace) -> int:
    return _print_findings(args.folder, check_folder(args.folder, _rules(args), print, show_progress=not args.quiet))


def _print_findings(folder: Path, findings: Iterable[Finding]) -> int:
    count = {"error": 0, "warning": 0}
    for finding in findings:
        print(finding, flush=True)
        count[finding.severity] += 1
    print(f"{folder}: {count['error']} errors, {count['warning']} warnings")
    return 1 if count["error"] else 0


def add_info(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = commands.add_parser(
        "info",
        help="list what a folder of recordings holds",
        description="Lists the mice of a folder of recordings: neurons, trials by tier, frames, size on disk.",
    )
    parser.add_argument("folder", type=Path, help="folder of the sessions, or one session")
    _add_reading(parser)
    parser.set_defaults(run=info)


def info(args: argparse.Namespace) -> int:
    found, rules = recordings_in(args.folder), _rules(args)
    print(format_table([session_info(mouse_id, path, rules) for mouse_id, path in found.sessions.items()]))
    for finding in found.left_out:
        print(finding.line)
    return 0


def add_pack(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = commands.add_parser(
        "pack",
        help="write recordings in the form that is read fastest",
        description="Packs recordings into stores: per mouse one .npy array of each variable, trials first and time "
        "before neurons and pixels. A folder of stores is a data folder like any other. Interrupted, the same command "
        "continues; the recordings are left as they are.",
    )
    parser.add_argument("data", type=Path, help="folder of the sessions, or one session")
    parser.add_argument("out", type=Path, help="folder of the stores")
    parser.add_argument("--mouse_ids", nargs="+", metavar="ID", help="pack these mice only")
    parser.add_argument(
        "--responses",
        default="float32",
        metavar="float32|float16",
        help="type of the responses; float16 halves their size, and its error is reported (default float32)",
    )
    parser.add_argument(
        "--video", action="store_true", help="movies as lossless VP9 video, a file per trial: smaller, slower to read"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress")
    _add_reading(parser)
    parser.set_defaults(run=run_pack)


def run_pack(args: argparse.Namespace) -> int:
    if not args.quiet:  # statistics log how far they are
        logging.getLogger("viv1t").setLevel(logging.INFO)
    options = {"video": args.video, "rules": _rules(args), "show_progress": not args.quiet}
    for packed in pack(args.data, args.out, args.mouse_ids, args.responses, **options):
        document = packed.document
        movies = "lossless video" if document.has_videos else document.arrays["videos.npy"]["dtype"]
        print(
            f"mouse {packed.mouse_id}: {packed.path}: {len(document.trials)} trials, {document.neurons:,} neurons, "
            f"movies {movies}, {packed.size / 2**20:,.1f} MiB"
            + ("" if packed.fresh else ", packed before")
        )
        if document.has_videos:
            cost = video_cost([video_file(packed.path, trial) for trial in document.trials])
            print(
                f"mouse {packed.mouse_id}: video takes {cost.video_bytes / cost.array_bytes:.2f} of the bytes of uint8 "
                f"arrays ({cost.video_bytes / 2**20:,.1f} MiB), and is read at {cost.video_speed:,.0f} frames/s "
                f"instead of {cost.array_speed:,.0f}"
            )
        if (error := document.response_error) is not None:
            print(
                f"mouse {packed.mouse_id}: float16 responses: relative error at most {error['largest']:.2g}, mean "
                f"{error['mean']:.2g}"
            )
    return 0


def add_verify(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = commands.add_parser(
        "verify",
        help="find damage in packed recordings",
        description="Reads every byte of packed recordings again and compares checksums, shapes and durations; the "
        "exit status is 1 when something is damaged.",
    )
    parser.add_argument("folder", type=Path, help="folder of the stores, or one store")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    parser.set_defaults(run=run_verify)


def run_verify(args: argparse.Namespace) -> int:
    return _print_findings(args.folder, verify(args.folder, show_progress=not args.quiet))


def add_statistics(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = commands.add_parser(
        "statistics",
        help="write what predictions need to know of recordings",
        description="Writes statistics, median behaviour and gaze, neuron ids and positions of recordings into a file, "
        "which stands in for the recordings where viv1t-predict --statistics predicts movies. Runs of this engine keep "
        "all this themselves; published ones do not.",
    )
    parser.add_argument("data", type=Path, help="folder of the sessions, or one session")
    parser.add_argument("out", type=Path, metavar="FILE", help="file to write, FILE.safetensors")
    parser.add_argument("--mouse_ids", nargs="+", metavar="ID", help="these mice only")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    _add_reading(parser)
    parser.set_defaults(run=run_statistics)


def run_statistics(args: argparse.Namespace) -> int:
    from viv1t.data.metadata import write_statistics  # brings PyTorch

    if not args.quiet:  # statistics log how far they are
        logging.getLogger("viv1t").setLevel(logging.INFO)
    if args.out.is_dir() or args.out.suffix != ".safetensors":
        raise ConfigError(f"{args.out}: give the name of a file to write, that ends in .safetensors")
    found = sessions_in(args.data)
    if unknown := [mouse for mouse in args.mouse_ids or () if mouse not in found]:
        raise ConfigError(f"--mouse_ids {' '.join(unknown)}: not in {args.data}, which has {', '.join(found)}")
    mice = write_statistics(args.out, {mouse: found[mouse] for mouse in args.mouse_ids or found}, _rules(args))
    print(f"{args.out}: mice {', '.join(mice)}, {args.out.stat().st_size / 2**20:,.1f} MiB")
    return 0


def build_parser() -> Parser:
    parser = Parser(prog=PROGRAM, description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    add_synth(commands)
    add_check(commands)
    add_info(commands)
    add_pack(commands)
    add_verify(commands)
    add_statistics(commands)
    return parser


def _work(argv: Sequence[str] | None) -> int:
    args = build_parser().parse_args(argv)
    return int(args.run(args))


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return run_main(PROGRAM, _work, argv)


if __name__ == "__main__":
    raise SystemExit(main())
