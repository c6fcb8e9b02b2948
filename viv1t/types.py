"""The nouns of the engine.

Shape legend: B trials, C channels, T frames in, t frames out, H W pixels, N neurons, D embedding, P patches, L tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch  # the nouns are used where there is no PyTorch, too

FRAME_RATE = 30.0  # Hz, of movies and responses alike
MAX_FRAMES = 300  # frames of a trial that are used: 10 s
UNSCORED_FRAMES = 50  # first frames of a trial, which every score leaves out


def used_frames(recorded: int) -> int:
    """How many of a trial's recorded frames are used: the first 300."""
    return min(recorded, MAX_FRAMES)


def sample_frames(crop: int, recorded: int = MAX_FRAMES) -> int:
    """Frames of a training sample of a trial; a `crop` of -1 (`--crop_frame`) takes the whole trial."""
    return recorded if crop < 0 else min(crop, recorded)



# The ten mice of the Sensorium 2023 challenge: A-E are the five original ones, F-J the five new ones.
_OLD = "-Video-8744edeac3b4d1ce16b680916b5267ce"
_NEW = "-Video-9b4f6a1a067fe51e15306b9628efea20"
SENSORIUM_SESSIONS: Mapping[str, str] = {
    "A": "dynamic29156-11-10" + _OLD,
    "B": "dynamic29228-2-10" + _OLD,
    "C": "dynamic29234-6-9" + _OLD,
    "D": "dynamic29513-3-5" + _OLD,
    "E": "dynamic29514-2-9" + _OLD,
    "F": "dynamic29515-10-12" + _NEW,
    "G": "dynamic29623-4-9" + _NEW,
    "H": "dynamic29647-19-8" + _NEW,
    "I": "dynamic29712-5-9" + _NEW,
    "J": "dynamic29755-2-8" + _NEW,
}
OLD_MICE = ("A", "B", "C", "D", "E")
NEW_MICE = ("F", "G", "H", "I", "J")

# `oracle` on disk is called `validation` everywhere else; the tier `none` is never used.
TEST_TIERS = ("live_test_main", "live_test_bonus", "final_test_main", "final_test_bonus")
TIERS = ("train", "validation", *TEST_TIERS)


@dataclass(frozen=True)
class Mouse:
    """One recorded animal and its neurons.

    Attributes:
        id: letter A-J for the ten published mice, the session's folder name for any other.
        session: name of the session folder.
        coordinates: (N, 3) float32, cortical x, y, z of each neuron in micrometres.
        unit_ids: (N,) int64, the recording's own neuron numbers.
    """

    id: str
    session: str
    coordinates: np.ndarray
    unit_ids: np.ndarray

    @property
    def neurons(self) -> int:
        return len(self.coordinates)


@dataclass(frozen=True)
class Trial:
    """One transformed trial (or crop of one) as NumPy arrays, float32, contiguous.

    Attributes:
        mouse_id: whose it is.
        trial_id: number of the trial's files.
        first_frame: index in the recording of the first frame held here.
        video: (1, T, H, W) movie.
        response: (N, T).
        behavior: (2, T), pupil dilation and running speed.
        pupil_center: (2, T), horizontal and vertical eye position.
    """

    mouse_id: str
    trial_id: int
    first_frame: int
    video: np.ndarray
    response: np.ndarray
    behavior: np.ndarray
    pupil_center: np.ndarray

    @property
    def frames(self) -> int:
        return self.video.shape[1]


@dataclass(frozen=True)
class Batch:
    """Trials of one mouse, stacked, float32.

    Trials shorter than the longest one are padded at the end with zeros; `frames` holds each one's true length.
    Responses may be a view of (B, T, N) in memory; everything else is contiguous.

    Attributes:
        mouse_id: whose trials they are.
        trial_ids: B trial numbers.
        video: (B, 1, T, H, W).
        response: (B, N, T).
        behavior: (B, 2, T).
        pupil_center: (B, 2, T).
        frames: (B,) int64 on the CPU, valid frames of each trial.
        first_frames: B indices in the recordings of the first frames held here; empty where there is no recording.
    """

    mouse_id: str
    trial_ids: tuple[int, ...]
    video: torch.Tensor
    response: torch.Tensor
    behavior: torch.Tensor
    pupil_center: torch.Tensor
    frames: torch.Tensor
    first_frames: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.trial_ids)

    @property
    def used_frames(self) -> int:
        """How many of the frames held here are used: the first 300."""
        return used_frames(self.video.shape[2])

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on `device`; copies from pinned memory to a GPU do not block."""
        beside = str(device).startswith("cuda")
        return replace(
            self,
            video=self.video.to(device, non_blocking=beside),
            response=self.response.to(device, non_blocking=beside),
            behavior=self.behavior.to(device, non_blocking=beside),
            pupil_center=self.pupil_center.to(device, non_blocking=beside),
        )

    def slice(self, start: int, stop: int) -> Batch:
        """Trials `start` to `stop` (exclusive): a micro batch."""
        return Batch(
            mouse_id=self.mouse_id,
            trial_ids=self.trial_ids[start:stop],
            video=self.video[start:stop],
            response=self.response[start:stop],
            behavior=self.behavior[start:stop],
            pupil_center=self.pupil_center[start:stop],
            frames=self.frames[start:stop],
            first_frames=self.first_frames[start:stop],
        )
