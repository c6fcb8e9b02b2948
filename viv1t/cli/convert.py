"""`viv1t-convert RUN OUT`: writes a run as a published run folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from viv1t.cli.options import Parser, run_main
from viv1t.errors import check_run_folders


def _work(argv: Sequence[str] | None) -> int:
    parser = Parser(
        prog="viv1t-convert",
        description="Writes a run in the layout of the published code (args.yaml and ckpt/model_state.pt), for the "
        "authors' own analysis code.",
    )
    parser.add_argument("run", metavar="RUN", help="run folder")
    parser.add_argument("out", metavar="OUT", help="new folder")
    args = parser.parse_args(argv)
    check_run_folders([args.run])

    from viv1t.runs.folder import RunFolder, save_published

    print(f"written to {save_published(RunFolder(args.run), Path(args.out))}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return run_main("viv1t-convert", _work, argv)


if __name__ == "__main__":
    raise SystemExit(main())
