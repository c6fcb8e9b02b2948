"""`viv1t-predict RUN --movie FILE`: responses to a video file."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from torch import Tensor

from viv1t.data.npy import read_npy
from viv1t.errors import ConfigError, DataError, check_choice
from viv1t.inputs import STATES
from viv1t.plot.movie import MovieSummary, movie_responses
from viv1t.plot.style import figure_path
from viv1t.prediction.files import check_pyarrow
from viv1t.prediction.film import movie_windows, predict_movie
from viv1t.prediction.film_files import npy_file, parquet_file, source_of
from viv1t.prediction.sources import opened_subjects
from viv1t.prediction.windows import rhythm
from viv1t.runs.ensemble import load_models
from viv1t.runs.folder import RunFolder
from viv1t.stimuli.film import Movie
from viv1t.stimuli.frames import FITS
from viv1t.system.device import best_device
from viv1t.system.progress import Progress

AUDIBLE = 0.1  # share of variance from which the windows' rhythm is told


def predict_to_movie(args: argparse.Namespace) -> int:
    """Predicts the responses of every mouse of a run, or of several as an ensemble, to `args.movie`."""
    if args.tier or args.submission:
        raise ConfigError("--movie predicts a video file: leave --tier and --submission out")
    if args.fit is not None:
        check_choice("--fit", args.fit, FITS)
    path, out = Path(args.movie), Path(args.output_dir)
    figure = None if args.plot is None else Path(args.plot or out / f"{path.stem}.png")
    if figure is not None:
        figure_path(figure, None)
    if args.format == "parquet":
        check_pyarrow()
    if not path.is_file():
        raise DataError(f"--movie {path}: no such file")
    states = {name: _read(name, file) for name in STATES if (file := getattr(args, name)) is not None}
    device = best_device(args.device)
    folders = [RunFolder(run) for run in args.runs]
    models, chosen = load_models(folders, device, args.mouse_ids)
    source = opened_subjects(folders, models, chosen, args.data, args.statistics or ())
    with source as subjects, ExitStack() as files:
        movie = Movie(path, models[0].frame_size, args.fit or "crop", device, args.decoder)
        mice = {id: subject.mouse for id, subject in subjects.items()}
        windows = movie_windows(models, subjects, movie.frames, args.window, args.passes)
        write, ending = (parquet_file, "parquet") if args.format == "parquet" else (npy_file, "npy")
        targets = {id: out / mouse.session / f"{path.stem}.{ending}" for id, mouse in mice.items()}
        writers = {id: files.enter_context(write(targets[id], mouse, movie.frames)) for id, mouse in mice.items()}
        for target in targets.values():
            files.enter_context(source_of(target, path))
        summary = MovieSummary(movie.frames, {id: mouse.neurons for id, mouse in mice.items()})
        progress = Progress("predicting", movie.frames * len(mice), "frames", show=not args.quiet)
        means: dict[str, list[np.ndarray]] = {id: [] for id in mice}

        def stimulus() -> Iterator[Tensor]:
            for piece in movie.chunks():
                summary.add_stimulus(piece.cpu().numpy())
                yield piece

        for id, responses in predict_movie(models, subjects, stimulus(), windows, states, args.units):
            writers[id](responses)
            summary.add_response(id, responses)
            means[id].append(responses.mean(axis=0))
            progress.step(f"mouse {id}", responses.shape[1])
        progress.close()
    info = movie.info
    print(
        f"{path}: {info.frames} frames of {info.size[0]} x {info.size[1]} pixels in {info.end:.2f} s became "
        f"{movie.frames} of {models[0].frame_size[0]} x {models[0].frame_size[1]} at 30 Hz, decoded by {movie.decoder}"
    )
    for id, target in targets.items():
        scaled = (
            "; trained on grey levels of 0 to 1: the film's were divided by 255" if subjects[id].unit_levels else ""
        )
        print(f"mouse {id}: {mice[id].neurons} neurons written to {target}{scaled}")
    for id, parts in means.items():
        if (share := rhythm(np.concatenate(parts), windows.step)) > AUDIBLE:
            print(
                f"viv1t-predict: warning: mouse {id}: {share:.0%} of the variance of the mean response repeats from "
                f"window to window, every {windows.step} frames, and is not of the film; --passes "
                f"{2 * windows.passes} lessens it, at twice the time", file=sys.stderr,
            )  # fmt: skip
    if figure is not None:
        print(f"drawn in {movie_responses(summary, figure, title=path.name)}")
    return 0


def _read(name: str, file: str) -> np.ndarray:
    try:
        return read_npy(Path(file))
    except FileNotFoundError as error:
        raise DataError(f"--{name} {file}: no such file") from error
    except (OSError, ValueError) as error:
        raise DataError(f"--{name} {file}: {error}") from error
