"""`viv1t-predict RUN [RUN ...]`: predicted responses of a run, or of several as an ensemble."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from viv1t.cli.options import Parser, run_main
from viv1t.errors import ConfigError, DataError
from viv1t.progress import Progress
from viv1t.types import NEW_MICE, TEST_TIERS, TIERS

if TYPE_CHECKING:
    from viv1t.predict import TrialPrediction

# What predicts is imported where it is used: each way needs other packages.


def _parser() -> Parser:
    parser = Parser(
        prog="viv1t-predict",
        description="Predicts the responses to recorded movies. Several runs form an ensemble: the mean of their "
        "predictions.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folder")
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
        "--format", choices=("npy", "parquet"), metavar="npy|parquet",
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
    parser.add_argument("--device", choices=("cpu", "cuda", "mps"), help="default the best there is")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    return parser


def _work(argv: Sequence[str] | None) -> int:
    args = _parser().parse_args(argv)
    return _predict_runs(args)


def _predict_runs(args: argparse.Namespace) -> int:
    """Predicts recorded trials with one run or several."""
    from viv1t.predict import TrialPrediction, check_pyarrow, predict, write_npy, write_parquet
    from viv1t.train.ensemble import open_ensemble
    from viv1t.train.run_folder import RunFolder
    from viv1t.train.trainer import best_device

    if args.submission and args.format == "npy":
        raise ConfigError("--submission writes parquet files: leave --format out")
    parquet = args.submission or args.format == "parquet"
    chosen = args.tier or (TEST_TIERS if args.submission else ("validation",))
    tiers = list(dict.fromkeys(TIERS if "all" in chosen else chosen))
    if args.submission and (other := [tier for tier in tiers if tier not in TEST_TIERS]):
        raise ConfigError(f"--submission is for the test tiers {', '.join(TEST_TIERS)}, not {', '.join(other)}")
    if parquet:
        check_pyarrow()
    mice = args.mouse_ids
    if args.submission and not mice:
        mice = [m for m in RunFolder(args.runs[0]).mouse_ids() if m in NEW_MICE]
    models, recordings = open_ensemble(args.runs, best_device(args.device), args.data, mice)
    out = Path(args.output_dir)
    lines = []
    with closing(recordings):
        trials = {tier: sum(len(recordings.trial_ids(m, tier)) for m in recordings.mice) for tier in tiers}
        if not any(trials.values()):
            raise DataError(f"nothing to predict: no trials in {', '.join(tiers)}")
        progress = Progress("predicting", sum(trials.values()), "trials", show=not args.quiet)

        def rows(tier: str) -> Iterator[TrialPrediction]:
            for mouse_id in recordings.mice:
                for prediction in predict(models, recordings, mouse_id, tier, args.units):
                    yield prediction
                    progress.step(f"{tier}, mouse {mouse_id}")

        for tier, count in trials.items():
            if not count:
                lines.append(f"{tier}: no trials; left out")
            elif args.submission:
                path = out / f"predictions_file_{tier}_track.parquet.brotli"
                write_parquet(path, rows(tier), TrialPrediction.scored)
            elif parquet:
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


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return run_main("viv1t-predict", _work, argv)


if __name__ == "__main__":
    raise SystemExit(main())
