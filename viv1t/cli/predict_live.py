"""`viv1t-predict RUN --live`: a causal twin follows frames as they come, and its responses go out frame by frame."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from viv1t.data.npy import read_npy
from viv1t.errors import ConfigError, DataError
from viv1t.inputs import OVERSHOOT, STATES
from viv1t.live import Live
from viv1t.prediction.live import (
    PIXELS,
    States,
    check_format,
    onnx_files,
    raw_frames,
    scaled_frames,
    writer,
)

OPTIONS = ("pixels", "after", "with_state", "transformed", "live_out")  # for --live alone
_NOT_HERE = ("tier", "submission", "movie", "plot", "window", "passes")


def add_live_options(parser: argparse.ArgumentParser) -> None:
    """The options of frames that come one after the other."""
    live = parser.add_argument_group("responses to frames as they come, of a causal model")
    live.add_argument(
        "--live", nargs="?", const="-", metavar="FILE",
        help="follow frames one by one: raw ones from standard input (default), a named pipe or a file .raw, or those "
        "of a video file; RUN is a run folder, or live_MOUSE.onnx of viv1t-export --live. Responses go to standard "
        "output, a frame at a time, as --format jsonl (default), csv or float32 says",
    )  # fmt: skip
    live.add_argument("--pixels", choices=tuple(PIXELS), help="of raw frames, of the model's size (default gray8)")
    live.add_argument(
        "--with_state", action="store_true", default=None,
        help="four float32 numbers follow each raw frame: pupil dilation, running speed, gaze x and y",
    )  # fmt: skip
    live.add_argument(
        "--transformed", action="store_true", default=None,
        help="frames and states are as the model takes them, not as recorded: no statistics are needed",
    )  # fmt: skip
    live.add_argument(
        "--after", choices=("overlap", "restart", "stop"), metavar="overlap|restart|stop",
        help="after 300 frames, where positions end: windows overlap by 50 frames (default), begin anew, or stop",
    )  # fmt: skip
    live.add_argument("--live_out", metavar="FILE", help="file to write to, instead of standard output")


def follow(args: argparse.Namespace) -> int:
    """Follows what `args.live` gives to its end."""
    if given := [name for name in _NOT_HERE if getattr(args, name)]:
        raise ConfigError(f"--live follows frames as they come: leave --{given[0]} out")
    format, after = check_format(args.format), args.after or "overlap"
    states = {name: _read(name, file) for name in STATES if (file := getattr(args, name)) is not None}
    if args.with_state and states:
        raise ConfigError("--with_state brings behaviour and gaze with each frame: leave --behavior and "
                          "--pupil_center out")  # fmt: skip
    if args.transformed and len(states) < 2 and not args.with_state:
        raise ConfigError("--transformed needs --behavior and --pupil_center as the model takes them, or --with_state")
    with ExitStack() as open_files:
        if all(run.endswith(".onnx") for run in args.runs):
            live, scales, medians = _exported(args, after)
        else:
            live, scales, medians = _run(args, after, open_files)
        neurons = {mouse: live.neurons(mouse) for mouse in live.mouse_ids}
        frames = _frames(args, live, open_files)
        known = States(states)
        to = open_files.enter_context(open(args.live_out, "wb")) if args.live_out else sys.stdout.buffer
        write = writer(to, format, neurons)
        number = 0
        for frame, state in frames:
            given_states: dict[str, Any] = dict(known.at(number, state))
            for name in STATES:
                if given_states[name] is None:
                    given_states[name] = {mouse: median[name] for mouse, median in medians.items()}
            write(number, live.step(scaled_frames(frame, scales), **given_states))
            number += 1
    if not number:
        raise DataError(f"--live {args.live}: no frame came")
    if not args.quiet:
        print(f"viv1t-predict: {number} frames followed", file=sys.stderr)
    return 0


_Model = tuple[Live[Any], Mapping[str, float], Mapping[str, Mapping[str, Any]]]


def _exported(args: argparse.Namespace, after: str) -> _Model:
    """What follows with ONNX Runtime; what grey levels are multiplied by; the medians of each mouse's states."""
    from viv1t.onnx_stream import OnnxStream

    if args.device not in (None, "cpu"):
        raise ConfigError(f"--device {args.device}: exported files run on the CPU here")
    if args.units == "recorded":
        raise ConfigError("--units recorded needs the run: exported files do not hold the responses' deviations")
    stream = OnnxStream(onnx_files(args.runs, args.mouse_ids), after=after, recorded=not args.transformed)
    scales = {
        mouse: 1 / 255 if not args.transformed and file.levels is not None and file.levels[1] <= 1 + OVERSHOOT else 1.0
        for mouse, file in stream.files.items()
    }
    if args.pixels == "float32":
        scales = dict.fromkeys(scales, 1.0)
    return stream, scales, {mouse: _Medians(mouse, file.medians.get) for mouse, file in stream.files.items()}


def _run(args: argparse.Namespace, after: str, files: ExitStack) -> _Model:
    """The same with PyTorch."""
    from viv1t.model.cores.vivit import following_core
    from viv1t.prediction.sources import opened_subjects
    from viv1t.runs.ensemble import load_models
    from viv1t.runs.folder import RunFolder
    from viv1t.stream import Stream
    from viv1t.system.device import best_device

    if len(args.runs) > 1:
        raise ConfigError("--live follows one run: an ensemble's models have no common past")
    folders = [RunFolder(args.runs[0])]
    models, chosen = load_models(folders, best_device(args.device), args.mouse_ids)
    following_core(models[0].core)
    if args.transformed:
        if args.units == "recorded":
            raise ConfigError("--units recorded does not go with --transformed, which needs no statistics")
        return Stream(models[0], chosen, after=after), dict.fromkeys(chosen, 1.0), {}
    subjects = files.enter_context(opened_subjects(folders, models, chosen, args.data, args.statistics or ()))
    transforms = {mouse: subject.transform for mouse, subject in subjects.items()}
    stream = Stream(models[0], chosen, after=after, transforms=transforms, units=args.units)
    raw = args.pixels == "float32"
    scales = {mouse: 1.0 if raw else subject.film_scale() for mouse, subject in subjects.items()}
    return stream, scales, {mouse: _Medians(mouse, subject.median) for mouse, subject in subjects.items()}


class _Medians(dict[str, np.ndarray]):
    """A mouse's median states, looked up when they are first needed."""

    def __init__(self, mouse: str, median: Any) -> None:
        super().__init__()
        self._mouse, self._median = mouse, median

    def __missing__(self, name: str) -> np.ndarray:
        values = self._median(name)
        if values is None:
            raise DataError(f"mouse {self._mouse}: its median {name} is not known: give --{name}")
        self[name] = values
        return values  # type: ignore[no-any-return]


def _frames(
    args: argparse.Namespace, live: Live[Any], files: ExitStack
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """The frames that are followed."""
    pixels, path = args.pixels or "gray8", Path(args.live)
    if args.live == "-":
        if sys.stdin is None or sys.stdin.isatty():
            raise ConfigError("--live: standard input is a terminal: pipe frames in, or name a file")
        return raw_frames(sys.stdin.buffer, live.frame_size, pixels, bool(args.with_state))
    if not path.exists():
        raise DataError(f"--live {path}: no such file")
    if path.suffix == ".raw" or path.is_fifo() or path.is_char_device():
        source = files.enter_context(path.open("rb", buffering=0))
        return raw_frames(source, live.frame_size, pixels, bool(args.with_state))
    if args.pixels or args.with_state:
        raise ConfigError("--pixels and --with_state are for raw frames: a video file has its own pixels")
    try:
        from viv1t.stimuli.film import Movie
    except ImportError as error:
        raise ConfigError(
            f"--live {path}: decoding a video file needs PyTorch and PyAV ({error}); or pipe raw frames in, as ffmpeg "
            "makes them"
        ) from error
    movie = Movie(path, live.frame_size, args.fit or "crop", "cpu", args.decoder)
    return ((frame, None) for piece in movie.chunks() for frame in piece.numpy())


def _read(name: str, file: str) -> np.ndarray:
    try:
        return read_npy(Path(file))
    except FileNotFoundError as error:
        raise DataError(f"--{name} {file}: no such file") from error
    except (OSError, ValueError) as error:
        raise DataError(f"--{name} {file}: {error}") from error
