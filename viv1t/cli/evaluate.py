"""`viv1t-evaluate RUN [RUN ...]`: correlations of a run, or of several as an ensemble."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from viv1t.cli.options import Parser, run_main
from viv1t.errors import DataError, check_run_folders
from viv1t.types import OLD_MICE, TEST_TIERS, TIERS


def _work(argv: Sequence[str] | None) -> int:
    parser = Parser(
        prog="viv1t-evaluate",
        description="Single-trial correlation and correlation to average per mouse. Several runs are scored as an "
        "ensemble: the mean of their predictions.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folder")
    parser.add_argument("--data", help="folder of recordings; default the one the run was trained on")
    parser.add_argument(
        "--tier", nargs="+", default=["validation"], choices=[*TIERS, "all"], metavar="TIER",
        help=f"{', '.join(TIERS)} or all (default validation)",
    )  # fmt: skip
    parser.add_argument("--mouse_ids", nargs="+", metavar="ID", help="score these mice only")
    parser.add_argument(
        "--all_metrics", "--all-metrics", action="store_true",
        help="also per-trial correlation, CCnorm and FEVE, without the first 50 and the first 51 frames of each "
        "trial, with responses scaled by frame and by neuron",
    )  # fmt: skip
    parser.add_argument("--device", choices=("cpu", "cuda", "mps"), help="default the best there is")
    parser.add_argument(
        "--output", help="YAML file, where earlier scores of the same weights stay; default RUN/evaluation.yaml, or "
        "./evaluation.yaml for several runs",
    )
    args = parser.parse_args(argv)
    check_run_folders(args.runs)

    from viv1t.prediction.evaluate import VIEWS, as_mapping, evaluate, family_scores
    from viv1t.prediction.tables import NOTES, as_table, as_tables, own_table
    from viv1t.runs.ensemble import open_ensemble
    from viv1t.runs.folder import RunFolder
    from viv1t.runs.score_file import earlier_scores, merged, weights_checksum, write_scores
    from viv1t.system.device import best_device

    runs = [RunFolder(run) for run in args.runs]
    tiers = list(TIERS) if "all" in args.tier else list(dict.fromkeys(args.tier))
    models, recordings = open_ensemble(args.runs, best_device(args.device), args.data, args.mouse_ids)
    checksum = weights_checksum(models)
    output = Path(args.output) if args.output else runs[0].evaluation if len(runs) == 1 else Path("evaluation.yaml")
    in_run = len(runs) == 1 and output.resolve() == runs[0].evaluation.resolve()
    with closing(recordings):
        earlier = earlier_scores(output, checksum, own=in_run, named=args.output is not None)  # before minutes pass
        views = [v for v in VIEWS if v.scale == "neuron" or runs[0].config().data.transform != "none"]
        scores = evaluate(models, recordings, tiers, views if args.all_metrics else ())
        own = family_scores(models, recordings, tiers, runs[0].family())
    for tier, score in scores.items():
        if score.hidden:
            print(f"{tier}: the responses of mouse {', '.join(score.hidden)} are withheld; left out")
        elif not score.single_trial:
            print(f"{tier}: no trials; left out")
        trained = [m for m in score.single_trial if m in OLD_MICE and tier in TEST_TIERS]
        if trained and any(run.config().data.mice == "all_with_test" for run in runs):
            print(f"{tier}: with --ds_mode 3, mouse {', '.join(trained)} was trained on these very trials")
    if not any(score.single_trial for score in scores.values()):
        raise DataError(f"nothing to score: no responses in {', '.join(tiers)}")
    print(as_table(scores))
    if args.all_metrics:
        for tier, score in scores.items():
            if score.single_trial:
                print("", as_tables(tier, score), sep="\n")
        print(f"\n{NOTES}")
    if own:
        print("", own_table(own), sep="\n")
    write_scores(output, merged(earlier, own or as_mapping(scores)), checksum)
    print(f"written to {output}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return run_main("viv1t-evaluate", _work, argv)


if __name__ == "__main__":
    raise SystemExit(main())
