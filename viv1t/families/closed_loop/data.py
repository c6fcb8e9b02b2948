"""Recordings as models of 2025 see them: whole trials, one statistic per variable, the movie's over its pixels too.

| | video | behavior | pupil_center |
| --- | --- | --- | --- |
| standardize | (v - mean) / (std + e) | b / std | (p - mean) / (std + e) |
| min_max | (v - min) / (max - min) | (b - min) / (max - min) | (p - min) / (max - min) |

Responses are multiplied by `response_precision` of each neuron's standard deviation (`deviation`), taken between each
neuron's extremes (`min_max`), or only kept from being negative (`none`). `e` is the float32 machine epsilon. Where
statistics leave nothing to divide by, values are 0, with a warning.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from viv1t.config.data import DataConfig
from viv1t.data.metadata import read_metadata
from viv1t.data.mice import discover, open_recording
from viv1t.data.npy import read_npy
from viv1t.data.recordings import Recordings
from viv1t.data.rules import Rules
from viv1t.data.session import Session
from viv1t.data.statistics import Moments, MouseStatistics, computed_statistics, response_precision
from viv1t.data.transform import EPSILON, Affine, Transform
from viv1t.errors import DataError, missing_folder
from viv1t.families.closed_loop.options import ROCHEFORT_SESSIONS, ClosedLoopDataConfig

log = logging.getLogger("viv1t")


def over_pixels(of_pixels: Moments) -> Moments:
    """Statistics over trials, frames and pixels, from those (H, W) over trials and frames."""
    mean = of_pixels.mean.astype(np.float64)
    variance = of_pixels.std.astype(np.float64) ** 2
    whole = mean.mean()
    values = of_pixels.min.min(), of_pixels.max.max(), whole, np.sqrt(variance.mean() + ((mean - whole) ** 2).mean())
    return Moments(*(np.asarray(value, np.float32) for value in values))


def build_transform(
    mouse_id: str,
    statistics: MouseStatistics,
    inputs: str,
    outputs: str,
    center_crop: float,
    frame_size: tuple[int, int],
    missing: str = "fill",
) -> Transform:
    """What is done to the trials of one mouse.

    Args:
        mouse_id: named in warnings and errors.
        statistics: of the mouse, computed from its recording.
        inputs, outputs: as of `ClosedLoopDataConfig`.
        center_crop: share of the frame kept.
        frame_size: (H, W) in pixels.
        missing: `fill` makes behavior or gaze 0 where they are the same in every trial, `refuse` is an error.

    Raises:
        DataError: a variable is the same in every trial.
    """
    assert statistics.time is not None
    moments = {**statistics.time, "video": over_pixels(statistics.time["video"])}
    affine = {v: _input_affine(mouse_id, inputs, v, moments[v], missing) for v in ("video", "behavior", "pupil_center")}
    affine["response"] = _response_affine(mouse_id, outputs, moments["response"])
    video = affine["video"]  # for every pixel, as the readers take it
    offset, scale = (np.full((*frame_size, 1), x, np.float32) for x in (video.offset.item(), video.scale.item()))
    affine["video"] = Affine(offset, scale)
    return Transform.of(mouse_id, affine, center_crop, frame_size, floor=outputs == "none")


def _input_affine(mouse_id: str, kind: str, variable: str, s: Moments, missing: str) -> Affine:
    if kind == "none":
        return _affine(mouse_id, variable, np.zeros_like(s.mean), np.ones_like(s.mean), missing)
    if kind == "min_max":
        return _affine(mouse_id, variable, s.min, s.max - s.min, missing)
    if variable == "behavior":
        return _affine(mouse_id, variable, np.zeros_like(s.std), s.std, missing)
    return _affine(mouse_id, variable, s.mean, s.std + EPSILON, missing)


def _response_affine(mouse_id: str, kind: str, s: Moments) -> Affine:
    if kind == "min_max":
        return _affine(mouse_id, "response", s.min, s.max - s.min)
    if kind == "none":
        return _affine(mouse_id, "response", np.zeros_like(s.std), np.ones_like(s.std))
    try:
        precision = response_precision(s.std)
    except ValueError as error:
        raise DataError(f"mouse {mouse_id}, response: {error}: there is nothing to learn here") from error
    return Affine(np.zeros_like(precision), precision)


def _affine(
    mouse_id: str, variable: str, offset: np.ndarray, divisor: np.ndarray, missing: str = "refuse"
) -> Affine:
    constant = np.asarray(divisor == 0)
    if constant.all() and (missing == "refuse" or variable == "video"):
        raise DataError(
            f"mouse {mouse_id}, {variable}: is the same in every trial of the tier train, which leaves nothing to "
            "divide by; use --transform_input 0, or leave the mouse out with --mouse_ids"
        )
    if constant.all():
        log.warning(
            "mouse %s, %s: is the same in every trial of the tier train: the model is given 0 in its place",
            mouse_id, variable,
        )  # fmt: skip
    elif constant.any():
        log.warning(
            "mouse %s, %s: %d of %d statistics leave nothing to divide by; the values are set to 0 there",
            mouse_id, variable, constant.sum(), constant.size,
        )  # fmt: skip
    scale = np.where(constant, 0, 1 / np.where(constant, 1, divisor)).astype(np.float32)
    return Affine(np.asarray(offset, np.float32)[..., None], scale[..., None])


def limited_trials(trials: Sequence[int], limit: int | None, seed: int) -> list[int]:
    """`limit` of a mouse's training trials, drawn as published, ascending; all of them where there are not more."""
    if limit is None or limit >= len(trials):
        return sorted(trials)
    return sorted(np.random.default_rng(seed).choice(list(trials), limit, replace=False).tolist())


def limited_neurons(neurons: int, limit: int | None, seed: int) -> np.ndarray:
    """The indices (min(N, limit),) of the neurons that are used, drawn as published, ascending."""
    if limit is None:
        return np.arange(neurons)
    return np.sort(np.random.RandomState(seed).choice(neurons, min(neurons, limit), replace=False))


def find_sessions(config: ClosedLoopDataConfig) -> dict[str, Session]:
    """The mice that are asked for, in that order.

    `data_dir` holds a folder per laboratory, `sensorium` and `rochefort-lab`, or the Sensorium sessions themselves.

    Raises:
        DataError: the folder or a mouse is not there, or damaged.
    """
    root = Path(config.path)
    if not root.is_dir():
        raise missing_folder(root, "give the folder that holds sensorium/", option="--data_dir ")
    sensorium, rochefort = root / "sensorium", root / "rochefort-lab"
    found: dict[str, Path] = {}
    if sensorium.is_dir() or not rochefort.is_dir():
        found = discover(sensorium if sensorium.is_dir() else root)
    for name, path in (discover(rochefort) if rochefort.is_dir() else {}).items():
        letters = [(m, first) for m, first in ROCHEFORT_SESSIONS.items() if name[:-1] == first[:-1]]
        mouse = name if not letters else letters[0][0] + ("" if name == letters[0][1] else f"_day{name[-1]}")
        found[mouse] = path
    wanted = list(found) if config.mouse_ids is None else list(config.mouse_ids)
    if missing := [mouse for mouse in wanted if mouse not in found]:
        raise DataError(
            f"--data_dir {root}: missing mice {', '.join(missing)}; there are {', '.join(found) or 'none'}: choose "
            "with --mouse_ids"
        )
    rules = Rules.of(config)
    return {mouse: open_recording(found[mouse], mouse, rules) for mouse in wanted}


def open_recordings(
    config: ClosedLoopDataConfig, seed: int, rank: int = 0, ranks: int = 1, device: torch.device | None = None
) -> Recordings:
    """As `Recordings.open`, for the options of 2025.

    Where `<data_dir>/metadata` is the authors' folder of statistics, those of the mice in it are taken from there.
    """
    sessions = find_sessions(config)
    frame_size = next(iter(sessions.values())).frame_size
    if odd := [mouse for mouse, session in sessions.items() if session.frame_size != frame_size]:
        raise DataError(f"--data_dir {config.path}: movies of mouse {', '.join(odd)} are of another size")
    statistics = {mouse: _statistics(Path(config.path) / "metadata", session) for mouse, session in sessions.items()}
    transforms = {
        mouse: build_transform(
            mouse, known, config.inputs, config.outputs, config.center_crop, frame_size, config.missing
        )
        for mouse, known in statistics.items()
    }
    if config.limit_neurons is not None:
        for mouse, session in sessions.items():
            kept = limited_neurons(session.mouse.neurons, config.limit_neurons, seed)
            sessions[mouse] = session.limited(kept)
            statistics[mouse] = statistics[mouse].limited(kept)
            transforms[mouse] = transforms[mouse].limited(kept)
    plain = DataConfig(
        path=config.path, mice="all", transform="standardize", response_scale="neuron", center_crop=config.center_crop,
        crop_frame=config.crop_frame, batch_size=config.batch_size, num_workers=config.num_workers,
    )  # fmt: skip
    train = {mouse: limited_trials(s.trials("train"), config.limit_data, seed) for mouse, s in sessions.items()}
    recordings = Recordings(plain, seed, sessions, dict(statistics), transforms, frame_size, rank, ranks, device, train)
    for mouse, session in sessions.items():
        path = Path(config.path) / "metadata" / "video_ids" / f"mouse{mouse}.npy"
        if path.is_file():
            recordings.videos[mouse] = _video_ids(path, len(session.tiers))
    return recordings


def _video_ids(path: Path, trials: int) -> np.ndarray:
    try:
        ids = read_npy(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: {error}; get the file anew") from error
    if ids.shape != (trials,) or ids.dtype.kind not in "iu":
        raise DataError(
            f"{path}: expected {trials} whole numbers, one for each trial of the recording, found {ids.shape} "
            f"{ids.dtype}: it belongs to another recording"
        )
    return ids


def _statistics(metadata: Path, session: Session) -> MouseStatistics:
    known = read_metadata(metadata, session.mouse.id, session.mouse.neurons, session.frame_size)
    if known is None or known.statistics is None or known.statistics.time is None:
        return computed_statistics(session)
    log.info("mouse %s: statistics are those of %s", session.mouse.id, metadata)
    return known.statistics
