"""`viv1t-predict RUN [RUN ...]`: predicted responses of a run, of several as an ensemble, or of exported files."""

from __future__ import annotations

import argparse
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from viv1t.cli.options import Parser, run_main
from viv1t.cli.predict_live import OPTIONS, add_live_options, follow
from viv1t.errors import ConfigError, DataError, Interrupted, check_run_folders
from viv1t.system.progress import Progress
from viv1t.types import NEW_MICE, TEST_TIERS, TIERS

if TYPE_CHECKING:
    from viv1t.prediction.files import TrialPrediction

_MOVIE_ONLY = ("statistics", "fit", "behavior", "pupil_center", "plot", "decoder", "window", "passes")

# What predicts is imported where it is used: each way needs other packages.


def positive(word: str) -> int:
    """A whole number above 0."""
    if not word.isdecimal() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, not {word}")
    return int(word)


def _parser() -> Parser:
    parser = Parser(
        prog="viv1t-predict",
        description="Predicts the responses to recorded movies. Several runs form an ensemble: the mean of their "
        "predictions. Files that viv1t-export has written, one per mouse, need neither PyTorch nor the run.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folder, or MOUSE.onnx")
    parser.add_argument("--data", help="folder of recordings; default the one the run was trained on")
    parser.add_argument(
        "--tier", nargs="+", choices=[*TIERS, "all"], metavar="TIER",
        help=f"{', '.join(TIERS)} or all (default validation; with --submission the test tiers)",
    )  # fmt: skip
    parser.add_argument(
        "--mouse_ids", nargs="+", metavar="ID",
        help="predict these mice only (default all of the run; with --submission those of the challenge, F-J)",
    )  # fmt: skip
    parser.add_argument("--output_dir", "--out", default="predictions", help="folder to write to (default predictions)")
    parser.add_argument(
        "--format", choices=("npy", "parquet", "jsonl", "csv", "float32"), metavar="npy|parquet",
        help="npy, the default: SESSION/TIER/TRIAL.npy, (N, T), NaN before the first predicted frame; parquet: a file "
        "per tier, a row per trial",
    )  # fmt: skip
    parser.add_argument(
        "--submission", action="store_true",
        help="the challenge's files: parquet, one per test tier, without the first 50 frames of a trial",
    )  # fmt: skip
    parser.add_argument(
        "--units", choices=("scaled", "recorded"), default="scaled", metavar="scaled|recorded",
        help="scaled: responses divided by their standard deviation, as the model was trained; recorded: of the "
        "recording (default scaled)",
    )  # fmt: skip
    movie = parser.add_argument_group("responses to a video file")
    movie.add_argument("--movie", metavar="FILE", help="video to predict responses to, instead of recorded trials")
    movie.add_argument(
        "--statistics", nargs="+", metavar="FILE",
        help="what is known of the recordings, in their place: written by viv1t-data statistics or viv1t-export "
        "(.onnx), or the authors' published metadata folder (default what the run keeps, else the recordings)",
    )  # fmt: skip
    movie.add_argument("--fit", metavar="crop|pad|stretch", help="how it gets the model's proportions (default crop)")
    for name, what in (("behavior", "pupil dilation and running speed"), ("pupil_center", "gaze")):
        words = f"{what} as recorded, .npy of (2,) or (2, T) numbers (default the training median)"
        movie.add_argument(f"--{name}", metavar="FILE", help=words)
    movie.add_argument(
        "--plot", nargs="?", const="", metavar="FILE",
        help="draw responses beside the movie (default OUTPUT_DIR/MOVIE.png)",
    )  # fmt: skip
    movie.add_argument(
        "--window", type=positive, metavar="N",
        help="frames of a window, where a movie is longer than 300 (default 300; --crop_frame of the run where the "
        "model has positions in time, of which it knows no more)",
    )  # fmt: skip
    movie.add_argument(
        "--passes", type=positive, metavar="N",
        help="how many times as many windows as the fewest, at as many times the cost; their rhythm shows less in the "
        "responses (default 1)",
    )  # fmt: skip
    movie.add_argument("--decoder", metavar="dali|pyav", help="what decodes it (default DALI on a GPU, else PyAV)")
    add_live_options(parser)
    parser.add_argument("--device", choices=("cpu", "cuda", "mps"), help="default the best there is")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    return parser


def _work(argv: Sequence[str] | None) -> int:
    args = _parser().parse_args(argv)
    exported = [run.endswith(".onnx") for run in args.runs]
    if any(exported) and not all(exported):
        raise ConfigError("give run folders or exported files, not both")
    if not any(exported):
        check_run_folders(args.runs)
    if args.live is not None:
        return follow(args)
    if given := [name for name in OPTIONS if getattr(args, name) is not None]:
        raise ConfigError(f"--{given[0]} is for --live, which was not given")
    if args.format not in (None, "npy", "parquet"):
        raise ConfigError(f"--format {args.format} is for --live, which was not given")
    if args.movie is not None:
        if any(exported):
            raise ConfigError("--movie needs run folders: exported files predict recorded trials")
        from viv1t.cli.predict_movie import predict_to_movie

        return predict_to_movie(args)
    if given := [name for name in _MOVIE_ONLY if getattr(args, name) is not None]:
        raise ConfigError(f"--{given[0]} is for --movie, which was not given")
    return _predict_files(args) if all(exported) else _predict_runs(args)


def _predict_runs(args: argparse.Namespace) -> int:
    """Predicts recorded trials with one run or several."""
    from viv1t.prediction.trials import predict
    from viv1t.runs.ensemble import open_ensemble
    from viv1t.runs.folder import RunFolder
    from viv1t.system.device import best_device

    tiers = _check(args)
    mice = args.mouse_ids
    if args.submission and not mice:
        mice = [m for m in RunFolder(args.runs[0]).mouse_ids() if m in NEW_MICE]
    models, recordings = open_ensemble(args.runs, best_device(args.device), args.data, mice)
    with closing(recordings):
        counts = {tier: {m: len(recordings.trial_ids(m, tier)) for m in recordings.mice} for tier in tiers}
        whole = not args.submission  # which is made of the frames that the challenge scores

        def predicted(mouse: str, tier: str) -> Iterator[TrialPrediction]:
            return predict(models, recordings, mouse, tier, args.units, whole=whole)

        return _write(args, counts, predicted)


def _predict_files(args: argparse.Namespace) -> int:
    """Predicts recorded trials with exported models."""
    from viv1t.prediction.exported import open_models, predict_files

    tiers = _check(args)
    if args.data is None:
        raise ConfigError("exported files need --data: the folder of recordings to predict")
    if args.units == "recorded":
        raise ConfigError("--units recorded needs the run: exported files do not hold the responses' deviations")
    if args.device not in (None, "cpu"):
        raise ConfigError(f"--device {args.device}: exported files run on the CPU here")
    opened = open_models(args.runs, args.data, args.mouse_ids)
    mice = [m for m in opened if m in NEW_MICE or not args.submission or args.mouse_ids]
    counts = {tier: {m: len(opened[m][1].trials(tier)) for m in mice} for tier in tiers}
    return _write(args, counts, lambda mouse, tier: predict_files(*opened[mouse], tier))


def _check(args: argparse.Namespace) -> list[str]:
    """The tiers to predict, and whether they can be written as asked."""
    if args.submission and args.format == "npy":
        raise ConfigError("--submission writes parquet files: leave --format out")
    chosen = args.tier or (TEST_TIERS if args.submission else ("validation",))
    tiers = list(dict.fromkeys(TIERS if "all" in chosen else chosen))
    if args.submission and (other := [tier for tier in tiers if tier not in TEST_TIERS]):
        raise ConfigError(f"--submission is for the test tiers {', '.join(TEST_TIERS)}, not {', '.join(other)}")
    if args.submission or args.format == "parquet":
        from viv1t.prediction.files import check_pyarrow

        check_pyarrow()
    return tiers


def _write(
    args: argparse.Namespace,
    counts: Mapping[str, Mapping[str, int]],
    predict: Callable[[str, str], Iterator[TrialPrediction]],
) -> int:
    """Writes the files; `counts` are the trials of each tier and mouse, and `predict` takes mouse and tier."""
    from viv1t.prediction.files import TrialPrediction, write_npy, write_parquet

    out = Path(args.output_dir)
    trials = {tier: sum(of_mice.values()) for tier, of_mice in counts.items()}
    if not any(trials.values()):
        raise DataError(f"nothing to predict: no trials in {', '.join(counts)}")
    progress = Progress("predicting", sum(trials.values()), "trials", show=not args.quiet)

    def rows(tier: str) -> Iterator[TrialPrediction]:
        for mouse_id in counts[tier]:
            for prediction in predict(mouse_id, tier):
                yield prediction
                progress.step(f"{tier}, mouse {mouse_id}")

    lines = []
    for tier, count in trials.items():
        if not count:
            lines.append(f"{tier}: no trials; left out")
        elif args.submission:
            path = out / f"predictions_file_{tier}_track.parquet.brotli"
            write_parquet(path, rows(tier), TrialPrediction.scored, submission=True)
        elif args.format == "parquet":
            path = out / f"{tier}.parquet"
            write_parquet(path, rows(tier), TrialPrediction.aligned)
        else:
            path = out
            write_npy(out, rows(tier), tier)
        if count:
            lines.append(f"{tier}: {count} trials written to {path}")
    progress.close()
    print("\n".join(lines))
    return 0


def _stoppable(argv: Sequence[str] | None) -> int:
    """`_work`, which SIGTERM ends as Ctrl-C does: what is half written goes."""

    def stop(number: int, _: object) -> None:
        raise Interrupted(number)

    if threading.current_thread() is not threading.main_thread():
        return _work(argv)
    before = signal.signal(signal.SIGTERM, stop)
    try:
        return _work(argv)
    finally:
        signal.signal(signal.SIGTERM, before)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return run_main("viv1t-predict", _stoppable, argv)


if __name__ == "__main__":
    raise SystemExit(main())
