"""The options of `viv1t-lab`: those of every experiment, and those of each."""

from __future__ import annotations

import argparse
import re
from typing import Any

_WORDS = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(s|m|h)?")


def seconds(word: str) -> float:
    """A time as 90, 90s, 20m or 1.5h."""
    found = _WORDS.fullmatch(word)
    if found is None or not float(found[1]) > 0:
        raise argparse.ArgumentTypeError(f"expected a time above 0, as 90s, 20m or 1.5h, not {word}")
    return float(found[1]) * {None: 1, "s": 1, "m": 60, "h": 3600}[found[2]]


def places(word: str) -> str | list[int]:
    """`all`, `best:K`, or numbers of neurons, as 0,12,80."""
    if word == "all" or re.fullmatch(r"best:\d+", word):
        return word
    if not re.fullmatch(r"\d+(,\d+)*", word):
        raise argparse.ArgumentTypeError(f"expected all, best:K, or numbers of neurons as 0,12,80, not {word}")
    return [int(part) for part in word.split(",")]


def numbers(word: str) -> tuple[float, ...]:
    """Numbers, as 1,2,4."""
    try:
        return tuple(float(part) for part in word.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected numbers, as 1,2,4, not {word}") from error


def groups(word: str) -> tuple[tuple[int, ...], ...]:
    """Groups of neurons, as 0,12/80,3."""
    if not re.fullmatch(r"\d+(,\d+)*(/\d+(,\d+)*)*", word):
        raise argparse.ArgumentTypeError(f"expected groups of neurons, as 0,12/80,3, not {word}")
    return tuple(tuple(int(n) for n in part.split(",")) for part in word.split("/"))


def sigmas(word: str) -> tuple[float, ...]:
    """Two sigmas, as 1.5:0.01."""
    try:
        first, last = (float(part) for part in word.split(":"))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected two sigmas in pixels, as 1.5:0.01, not {word}") from error
    return first, last


# What argparse is told of each experiment's own options.
OF_EXPERIMENTS: dict[str, dict[str, Any]] = {
    "step": {"type": int, "metavar": "N", "help": "pixels between dots (default 2)"},
    "directions": {"type": int, "metavar": "N", "help": "in equal steps, a multiple of 4 (default 8)"},
    "frequencies": {"type": numbers, "metavar": "F,F", "help": "cycles a pixel (default 0.03,0.05,0.07,0.1,0.135)"},
    "hertz": {"type": numbers, "metavar": "F,F", "help": "temporal frequencies (default 1,2,4)"},
    "phases": {"type": int, "metavar": "N", "help": "of each grating (default 4)"},
    "centre_grid": {
        "type": int,
        "metavar": "N",
        "help": "pixels to whose multiples centres are rounded, so that neurons share them (default 2)",
    },
    "own": {
        "action": "store_true",
        "help": "each neuron's own best grating (default with --neurons; else the nearest of four directions at the "
        "mouse's median frequencies)",
    },
    "fields": {"action": "store_true", "help": "leave out neurons without a good receptive field"},
    "mask": {
        "metavar": "full|preferred|DEG",
        "help": "of the frame, what films lie in: all, or a circle at each field (of mei full, of search 20)",
    },
    "surround": {"metavar": "exciting|inhibiting", "help": "the film lies around a centre that stays as it is"},
    "centre": {"metavar": "KIND", "help": "of a surround: grating (default) or natural, the best, or optimised"},
    "outer": {"type": float, "metavar": "DEG", "help": "a surround is grey beyond this size"},
    "inhibit": {"action": "store_true", "help": "look for the least response"},
    "population": {"action": "store_true", "help": "one film for all chosen neurons"},
    "weights": {
        "metavar": "KIND",
        "help": "of a population: grating (shares of the response to the best one; default), correlation or equal",
    },
    "against": {"type": groups, "metavar": "N,N/N,N", "help": "groups that a population's film is to drive less"},
    "over": {"metavar": "sum|max", "help": "of the response over the film (default sum)"},
    "method": {"metavar": "KIND", "help": "cutoff (low frequencies; default), kl (near natural spectra) or pixel"},
    "still": {"action": "store_true", "help": "one frame throughout: an image"},
    "start": {"metavar": "noise|natural", "help": "what films start from (default noise)"},
    "constraint": {"metavar": "KIND", "help": "rms (contrast as of natural clips; default), norm, range or none"},
    "contrast": {"type": float, "metavar": "LEVELS", "help": "grey levels of rms or norm (default of natural clips)"},
    "precondition": {"metavar": "KIND", "help": "of the gradient: none (default), blur:S in pixels or fft:A"},
    "blur": {"type": sigmas, "metavar": "S:S", "help": "pixels are blurred after each step, as 1.5:0.01"},
    "jitter": {"type": int, "metavar": "K", "help": "random shifts by up to K pixels and frames (default 0)"},
    "tv": {"type": float, "metavar": "W", "help": "weight of the total variation a pixel (default 0)"},
    "smooth_time": {"type": float, "metavar": "W", "help": "weight of squared differences of frames (default 0)"},
    "dropout": {"action": "store_true", "help": "each step asks one model of the ensemble"},
    "starts": {"type": int, "metavar": "N", "help": "films from different starts, whose spread is told (default 3)"},
    "steps": {
        "type": int,
        "metavar": "N",
        "help": "at most (default 1000); earlier where 100 gain less than 0.1 percent",
    },
    "lr": {"type": float, "metavar": "RATE", "help": "of AdamW (default 0.05)"},
    "windows": {"metavar": "short|single", "help": "85 frames of grey, film, grey (default), or 300"},
    "library": {"metavar": "PATH", "help": "films, or a folder of recordings (default those of the run)"},
    "judge": {"nargs": "+", "metavar": "RUN", "help": "scores what was found: without it no ratio is told"},
    "listed": {"type": int, "metavar": "N", "help": "clips a neuron that are shown alone (default 200)"},
    "recall": {
        "type": int,
        "metavar": "N",
        "help": "neurons of which all clips are shown, to tell what the lists miss (default 5 on a GPU, else 0)",
    },
    "films": {"metavar": "npy|mkv|avi", "help": "how films are written (default npy)"},
    "published": {
        "action": "store_true",
        "help": "directions 90 and 270, 0.04 cycles a degree, 2 Hz, 12 repeats, random phases",
    },
}


def add_shared(parser: argparse.ArgumentParser) -> None:
    """Options of every experiment on runs."""
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folder; several are an ensemble, their mean")
    parser.add_argument("--out", "--output_dir", default="lab", metavar="DIR", help="folder to write to (default lab)")
    parser.add_argument("--mouse_ids", nargs="+", metavar="ID", help="these mice only (default all of the run)")
    parser.add_argument(
        "--neurons", type=places, default="all", metavar="N,N",
        help="rows of the tables: all, numbers from 0, or best:K, the K most reliable in repeated trials",
    )  # fmt: skip
    parser.add_argument(
        "--budget", type=seconds, metavar="TIME",
        help="as 90s, 20m or 1.5h: leaner protocols are taken, and with all experiments left out, to keep within it",
    )  # fmt: skip
    parser.add_argument("--data", metavar="DIR", help="folder of recordings; default what the run keeps of them")
    parser.add_argument(
        "--statistics", nargs="+", metavar="FILE",
        help="what is known of the recordings, in their place, as for viv1t-predict",
    )  # fmt: skip
    parser.add_argument(
        "--mean_statistics", action="store_true",
        help="statistics of each frame are replaced by their means over frames: a pattern is the same input everywhere",
    )  # fmt: skip
    parser.add_argument("--states_of", metavar="ID", help="the mouse with whose statistics and states all are examined")
    parser.add_argument("--format", default="parquet", metavar="parquet|csv", help="of the tables (default parquet)")
    parser.add_argument(
        "--monitor", default="56.5,31.8,15", metavar="W,H,D",
        help="width, height and distance of the screen in cm (default 56.5,31.8,15)",
    )  # fmt: skip
    parser.add_argument(
        "--state", metavar="STATE", help="behavior: running, still, or a percentile of the training trials"
    )
    for state, words in (("behavior", "pupil dilation and running speed"), ("pupil_center", "gaze")):
        parser.add_argument(
            f"--{state}", type=numbers, metavar="X,Y", help=f"{words} as recorded (default the training medians)"
        )
    parser.add_argument("--seed", type=int, default=1234, metavar="N", help="of the order of patterns (default 1234)")
    parser.add_argument("--batch_size", type=int, metavar="N", help="trials in a batch (default by memory)")
    parser.add_argument("--no_plots", action="store_true", help="tables alone")
    parser.add_argument("--device", choices=("cpu", "cuda", "mps"), help="default the best there is")
    parser.add_argument("--quiet", action="store_true", help="no progress, no estimates")
