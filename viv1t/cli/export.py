"""`viv1t-export RUN [RUN ...]`: a run, or an ensemble of several, as files for ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from viv1t.cli.options import Parser, run_main
from viv1t.errors import check_run_folders
from viv1t.onnx_model import OPSET, PRECISIONS


def _work(argv: Sequence[str] | None) -> int:
    parser = Parser(
        prog="viv1t-export",
        description="Writes a file for ONNX Runtime for every mouse: inputs video, behavior, pupil_center, output "
        "response, any number of trials and frames. Several runs make one file, their mean prediction. Each file is "
        "compared with PyTorch before it is kept.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folder")
    parser.add_argument("--output_dir", required=True, help="folder to write to: MOUSE.onnx")
    parser.add_argument("--mouse_ids", nargs="+", metavar="ID", help="these mice only (default all of the run)")
    parser.add_argument(
        "--data", help="folder of recordings, for statistics, neuron ids and real trials; default the one the run was "
        "trained on, if it is there",
    )  # fmt: skip
    parser.add_argument(
        "--transforms", action="store_true",
        help="the file takes grey levels and behaviour as recorded; without, transformed as in training",
    )  # fmt: skip
    parser.add_argument(
        "--split", action="store_true", help="core.onnx, which all mice share, and readout_MOUSE.onnx for each"
    )
    parser.add_argument(
        "--live", action="store_true",
        help="for viv1t.OnnxStream: live_core.onnx, which takes one frame of a causal model after the other, and "
        "live_MOUSE.onnx for each mouse",
    )  # fmt: skip
    parser.add_argument(
        "--precision", choices=PRECISIONS, default="fp32", metavar="|".join(PRECISIONS),
        help="fp16: weights in half the bytes; int8: products of integers, faster. What it costs is reported "
        "(default fp32)",
    )  # fmt: skip
    parser.add_argument(
        "--opset", type=int, choices=range(18, OPSET + 1), default=OPSET, metavar="N",
        help=f"version of ONNX's operators, 18 to {OPSET}; lower ones also run in older releases (default {OPSET})",
    )  # fmt: skip
    args = parser.parse_args(argv)
    check_run_folders(args.runs)

    from viv1t.export.files import Settings, export_runs

    settings = Settings(args.transforms, args.split, args.live, args.precision, args.opset)
    for file in export_runs(args.runs, Path(args.output_dir), settings, args.data, args.mouse_ids):
        print(f"written to {file.path} (differs from PyTorch by {file.error:.0e}, relative)", flush=True)
        if file.loss:
            print(f"  {file.loss}", flush=True)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return run_main("viv1t-export", _work, argv)


if __name__ == "__main__":
    raise SystemExit(main())
