"""`viv1t-lab stimulus`: writes a stimulus as lossless video or an array."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from viv1t.cli.lab_options import numbers
from viv1t.errors import ConfigError, DataError

if TYPE_CHECKING:
    import numpy as np

_STIMULI = ("grating", "plaid", "gabor", "dot", "noise", "smooth", "grey")


def add_stimulus(parser: argparse.ArgumentParser) -> None:
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
