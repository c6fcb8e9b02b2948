"""What is done to a trial before the model sees it.

| mode | family | video | behavior | pupil_center |
| --- | --- | --- | --- | --- |
| standardize_per_frame | trial | (v - mean) / (std + e) | b / std | (p - mean) / (std + e) |
| published | trial | (v - mean) / (std - mean) | (b - min) / (max - min) | (p - min) / (max - min) |
| standardize | time | (v - mean) / (std + e) | b / std | (p - mean) / (std + e) |
| min_max | time | (v - min) / (max - min) | (b - min) / (max - min) | (p - min) / (max - min) |
| balanced | time | (v - mean) / (std + e) | (b - min) / (max - min) | (p - min) / (max - min) |

`e` is the float32 machine epsilon. The movie's row of `published` is a slip of the published code, which the published
checkpoints were trained with. `balanced` gives movie, behavior and gaze values of like size, whose normalisation over a
patch keeps contrast, and takes extremes over all frames, which few trials estimate badly frame by frame. Responses are
multiplied by `response_precision`. The mode `none` leaves everything as it is, the number of frames included.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from viv1t.data.inspect.finding import ONE_TRIAL
from viv1t.data.session import VARIABLES
from viv1t.data.statistics import Moments, MouseStatistics, response_precision
from viv1t.errors import ConfigError, DataError
from viv1t.types import MAX_FRAMES, Trial

logger = logging.getLogger("viv1t")

EPSILON = np.float32(np.finfo(np.float32).eps)
_FAMILY = {
    "standardize_per_frame": "trial",
    "published": "trial",
    "standardize": "time",
    "min_max": "time",
    "balanced": "time",
}


@dataclass(frozen=True)
class Affine:
    """value = (raw - offset) * scale, where both broadcast over the last axis, frames, if its length is 1.

    Frames past the end of a longer last axis cannot be transformed. `scale` is 0 where the statistics leave nothing to
    divide by.
    """

    offset: np.ndarray
    scale: np.ndarray

    @property
    def frames(self) -> int | None:
        """How many frames it knows; None for any."""
        return None if self.scale.shape[-1] == 1 else self.scale.shape[-1]

    def part(self, first: int, frames: int) -> tuple[np.ndarray, np.ndarray]:
        """Offset and scale of some frames."""
        if self.frames is None:
            return self.offset, self.scale
        return self.offset[..., first : first + frames], self.scale[..., first : first + frames]


@dataclass(frozen=True)
class CenterCrop:
    """The central part of every frame, resized to the whole.

    Attributes:
        rows: indices of the pixels kept, (h, 1).
        columns: (w,).
    """

    rows: torch.Tensor
    columns: torch.Tensor

    @classmethod
    def of(cls, frame_size: tuple[int, int], share: float) -> CenterCrop:
        """Keeps a share of each axis; raises a ConfigError if that leaves no pixel."""
        rows, columns = (_central(size, share) for size in frame_size)
        return cls(rows[:, None], columns)

    def to(self, device: torch.device) -> CenterCrop:
        """The same for movies on `device`."""
        return CenterCrop(self.rows.to(device), self.columns.to(device))

    def __call__(self, video: torch.Tensor) -> torch.Tensor:
        """(frames, H, W) to (frames, H, W)."""
        inner = video[:, self.rows, self.columns][:, None]
        resized = F.interpolate(inner, size=video.shape[1:], mode="bilinear", align_corners=False, antialias=False)
        return resized[:, 0]


class Transform:
    """One mouse's transform, built from its statistics.

    Args:
        mouse_id: named in errors and carried by the trials.
        mode: none, standardize_per_frame, published, standardize or min_max.
        statistics: of the mouse; None for the mode none.
        center_crop: share of the frame kept around its centre, above 0 and at most 1.
        frame_size: (H, W) in pixels.
        response_scale: responses are divided by the standard deviation of each `frame` or of each `neuron`.
        missing: `fill` makes behavior or gaze 0 where they are the same in every trial, `refuse` is an error.

    Attributes:
        affine: per variable, what is subtracted and multiplied; empty for the mode none.
        center: what is done to movies after that; None if they are kept whole.
        floor: whether negative responses become 0.

    Raises:
        ConfigError: the statistics lack the family the mode needs, or `center_crop` leaves no pixel.
        DataError: the movies are constant, so that there is nothing to divide by, or behavior or gaze with `refuse`.
    """

    def __init__(
        self,
        mouse_id: str,
        mode: str,
        statistics: MouseStatistics | None,
        center_crop: float,
        frame_size: tuple[int, int],
        response_scale: str = "frame",
        missing: str = "fill",
    ) -> None:
        self.mouse_id = mouse_id
        self.affine: Mapping[str, Affine] = {}
        self.center: CenterCrop | None = None
        self.floor = False
        self._max_frames = None if mode == "none" else MAX_FRAMES
        if mode == "none":
            return
        assert statistics is not None
        if len(statistics.trial_ids) == 1 and response_scale == "frame":
            raise ONE_TRIAL.found(mouse_id).error
        family = statistics.trial if _FAMILY[mode] == "trial" else statistics.time
        if family is None:
            raise ConfigError("--transform_mode 3, 4 and 5 need computed statistics: use --stat_mode 1")
        affine = {v: self._affine(mode, v, family[v], missing) for v in VARIABLES if v != "response"}
        self.affine = affine | {"response": response_affine(mouse_id, statistics, response_scale)}
        if center_crop < 1:
            self.center = CenterCrop.of(frame_size, center_crop)

    @classmethod
    def of(
        cls,
        mouse_id: str,
        affine: Mapping[str, Affine],
        center_crop: float,
        frame_size: tuple[int, int],
        floor: bool = False,
    ) -> Transform:
        """A transform of known parts: what is subtracted and multiplied, the share of the frame kept, `floor`."""
        known = cls(mouse_id, "none", None, 1, frame_size)
        known.affine, known._max_frames = affine, MAX_FRAMES if affine else None
        known.floor = floor
        if center_crop < 1 and affine:
            known.center = CenterCrop.of(frame_size, center_crop)
        return known

    def without_center_crop(self) -> Transform:
        """The same but for the center crop."""
        other = copy(self)
        other.center = None
        return other

    def limited(self, kept: np.ndarray) -> Transform:
        """The same for some of the neurons alone, by their indices."""
        other = copy(self)
        if (whole := self.affine.get("response")) is not None:
            other.affine = {**self.affine, "response": Affine(whole.offset[kept], whole.scale[kept])}
        return other

    def frames(self, duration: int) -> int:
        """How many frames of a trial of `duration` recorded frames are used."""
        return duration if self._max_frames is None else min(duration, self._max_frames)

    def apply(self, trial_id: int, raw: Mapping[str, np.ndarray], first_frame: int, frames: int) -> Trial:
        """Transforms some frames of a trial.

        Args:
            trial_id: number of the trial.
            raw: per variable the array of the whole trial, as on disk: video (H, W, T), response (N, T), behavior
                (2, T), pupil_center (2, T).
            first_frame: index in the recording of the first frame to take.
            frames: how many, all of them recorded.

        Returns:
            The trial's frames, float32, contiguous.

        Raises:
            DataError: the statistics do not reach that far.
        """
        values = {v: self._values(v, trial_id, raw[v], first_frame, frames) for v in VARIABLES}
        video = np.ascontiguousarray(values["video"].transpose(2, 0, 1))
        if self.center is not None:
            video = self.center(torch.from_numpy(video)).numpy()
        return Trial(
            mouse_id=self.mouse_id,
            trial_id=trial_id,
            first_frame=first_frame,
            video=video[None],
            response=values["response"],
            behavior=values["behavior"],
            pupil_center=values["pupil_center"],
        )

    def state(self, variable: str, raw: np.ndarray) -> np.ndarray:
        """Behavior or pupil_center, (2, T), of a trial's first T frames, float32."""
        return self._values(variable, 0, raw, 0, raw.shape[-1])

    def response(self, trial_id: int, raw: np.ndarray, first_frame: int, frames: int) -> np.ndarray:
        """The response alone, (N, frames) float32; arguments as for `apply`."""
        return self._values("response", trial_id, raw, first_frame, frames)

    def recorded_units(self, response: np.ndarray, frames: int) -> np.ndarray:
        """Responses (N, t) of the last t of a trial's first `frames` frames, as a recording would hold them."""
        if not self.affine:
            return response
        offset, scale = (part[:, -response.shape[1] :] for part in self.affine["response"].part(0, frames))
        recorded: np.ndarray = response / np.where(scale, scale, np.inf) + offset  # constant neurons keep their value
        return recorded.astype(response.dtype)

    def _values(self, variable: str, trial_id: int, raw: np.ndarray, first: int, frames: int) -> np.ndarray:
        array = raw[..., first : first + frames].astype(np.float32, order="C")
        if self.affine:
            affine = self.affine[variable]
            if affine.frames is not None and affine.frames < first + frames:
                raise DataError(
                    f"mouse {self.mouse_id}, trial {trial_id}: has {first + frames} frames, but the statistics of "
                    f"{variable} reach frame {affine.frames} only; use --transform_mode 3 or 4"
                )
            offset, scale = affine.part(first, frames)
            array -= offset
            array *= scale
        if self.floor and variable == "response":
            np.maximum(array, 0, out=array)
        return array

    def _affine(self, mode: str, variable: str, s: Moments, missing: str) -> Affine:
        if mode == "published" and variable == "video":
            offset, divisor = s.mean, s.std - s.mean
        elif mode in ("published", "min_max") or (mode == "balanced" and variable != "video"):
            offset, divisor = s.min, s.max - s.min
        elif variable == "behavior":
            offset, divisor = np.zeros_like(s.std), s.std
        else:
            offset, divisor = s.mean, s.std + EPSILON
        known = np.isfinite(divisor)
        if not known.all():  # frames that no trial of the training tier has
            frames = int(known.reshape(-1, known.shape[-1]).all(0).argmin())
            offset, divisor = offset[..., :frames], divisor[..., :frames]
        constant = np.abs(divisor) < np.finfo(np.float32).tiny  # whose reciprocal float32 does not hold
        if constant.all() and (variable == "video" or missing == "refuse"):
            raise DataError(
                f"mouse {self.mouse_id}, {variable}: is the same in every trial of the tier train, which leaves "
                "nothing to divide by; use --transform_mode 0, or leave the mouse out with --mouse_ids"
            )
        if constant.all():
            logger.warning(
                "mouse %s, %s: is the same in every trial of the tier train: the model is given 0 in its place",
                self.mouse_id, variable,
            )  # fmt: skip
        elif constant.any():
            logger.warning(
                "mouse %s, %s: %d of %d statistics leave nothing to divide by; the values are set to 0 there",
                self.mouse_id, variable, constant.sum(), constant.size,
            )  # fmt: skip
        scale = np.where(constant, 0, 1 / np.where(constant, 1, divisor)).astype(np.float32)
        if _FAMILY[mode] == "time":
            offset, scale = offset[..., None], scale[..., None]
        return Affine(np.ascontiguousarray(offset, np.float32), scale)


def family_of(mode: str) -> str | None:
    """The family of statistics, `trial` or `time`, that a mode reads of everything but responses; None of `none`."""
    return _FAMILY.get(mode)


def response_affine(mouse_id: str, statistics: MouseStatistics, scale: str) -> Affine:
    """How responses are scaled: by the standard deviation of each `frame` or of each `neuron`.

    Raises:
        DataError: the responses are the same in every trial.
    """
    deviation = statistics.trial["response"].std
    if scale == "neuron":
        assert statistics.time is not None  # the configuration asks for computed statistics
        deviation = np.broadcast_to(statistics.time["response"].std[:, None], deviation.shape)
    try:
        precision = response_precision(_padded(deviation))
    except ValueError as error:
        raise DataError(f"mouse {mouse_id}, response: {error}: there is nothing to learn here") from error
    return Affine(np.zeros_like(precision), precision)


def _padded(std: np.ndarray) -> np.ndarray:
    """(N, T) standard deviations with NaN at frames up to the last one used that no trial of the statistics has."""
    missing = MAX_FRAMES - std.shape[-1] if std.ndim == 2 else 0
    return np.pad(std, ((0, 0), (0, missing)), constant_values=np.nan) if missing > 0 else std


def _central(size: int, share: float) -> torch.Tensor:
    """The pixels of one axis at linspace(-share, share, int(size * share)): -1 and 1 are the outer pixels."""
    kept = int(size * share)
    if kept < 1:
        raise ConfigError(f"--center_crop {share} leaves no pixel of {size}")
    positions = (torch.linspace(-share, share, kept) + 1) / 2 * (size - 1)
    return positions.round().long()
