"""Trials of one mouse stacked in one array per variable, with time before neurons and pixels: a crop is one read.

    videos.npy        (trials, T, H, W)   uint8 where all grey levels are whole numbers from 0 to 255, else float32
    responses.npy     (trials, T, N)      float32 or float16
    behavior.npy      (trials, T, 2)      float32
    pupil_center.npy  (trials, T, 2)      float32

T is the longest trial's; shorter ones are padded at the end, with NaN or, in uint8, with zeros. A grey level of -0
counts as 0.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import numpy as np

from viv1t.data.session import FOLDERS, VARIABLES, Session
from viv1t.errors import DataError
from viv1t.system.files import FULL, allocate, write_all

FILES = {variable: f"{folder}.npy" for variable, folder in FOLDERS.items()}


@dataclass(frozen=True)
class Layout:
    """Shapes and element types of the stacked arrays.

    Attributes:
        trials: how many.
        frames: T.
        rows: per variable, the axes after time: (H, W), (N,), (2,), (2,).
        dtypes: per variable, the type of the elements.
    """

    trials: int
    frames: int
    rows: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, np.dtype]

    @classmethod
    def of(cls, session: Session, trials: int, frames: int, video: str, response: str) -> Layout:
        """The layout for some trials of a session, given the element types that are not always float32."""
        names = {"video": video, "response": response}
        return cls(
            trials,
            frames,
            {v: session.rows(v) for v in VARIABLES},
            {v: np.dtype(names.get(v, "float32")).newbyteorder("<") for v in VARIABLES},
        )

    def shape(self, variable: str) -> tuple[int, ...]:
        return (self.trials, self.frames, *self.rows[variable])

    def trial_bytes(self, variable: str) -> int:
        """Bytes of one trial in the variable's array."""
        return prod(self.shape(variable)[1:]) * self.dtypes[variable].itemsize

    def header(self, variable: str) -> bytes:
        """What comes before the elements in the variable's file."""
        head = io.BytesIO()
        descr = np.lib.format.dtype_to_descr(self.dtypes[variable])
        fields = {"descr": descr, "fortran_order": False, "shape": self.shape(variable)}
        np.lib.format.write_array_header_1_0(head, fields)
        return head.getvalue()

    def file_bytes(self, variable: str) -> int:
        """Length of the variable's file."""
        return len(self.header(variable)) + self.trials * self.trial_bytes(variable)

    @property
    def total_bytes(self) -> int:
        """Length of all files together."""
        return sum(self.file_bytes(variable) for variable in VARIABLES)


class NotWholeError(ValueError):
    """A grey level that uint8 cannot hold."""


def stacked(layout: Layout, session: Session, variable: str, trial: int, array: np.ndarray) -> np.ndarray:
    """One trial as it lies in the stacked array, (T, rows...).

    Args:
        layout: of the array.
        session: whose trial it is.
        variable: video, response, behavior or pupil_center.
        trial: its number.
        array: (rows..., frames), of which the recorded ones are taken.

    Raises:
        NotWholeError: the movie has a grey level that uint8 cannot hold, and the layout is uint8.
        DataError: a value is beyond the range of the layout's type.
    """
    dtype, duration = layout.dtypes[variable], session.duration(trial)
    block = np.full(layout.shape(variable)[1:], np.nan if dtype.kind == "f" else 0, dtype)
    values = array[..., :duration]
    with np.errstate(invalid="ignore", over="ignore"):
        converted = values.astype(dtype)
    if dtype == np.uint8:
        if not np.array_equal(converted, values):
            raise NotWholeError
    elif not np.isfinite(converted).all():
        raise DataError(
            f"mouse {session.mouse.id}, trial {trial}: {session.file(variable, trial)}: {variable} reaches "
            f"{np.abs(values).max():g}, but {dtype.name} ends at {np.finfo(dtype).max:g}; keep float32"
        )
    block[:duration] = np.moveaxis(converted, -1, 0)
    return block


def holds_whole_numbers(session: Session, trial: int) -> bool:
    """Whether a trial's movie fits uint8."""
    video = session.read("video", trial)[..., : session.duration(trial)]
    with np.errstate(invalid="ignore", over="ignore"):
        return np.array_equal(video.astype(np.uint8), video)


class StackWriter:
    """Writes stacked arrays trial by trial, in any order, into open files.

    Args:
        layout: of the arrays.
        files: per variable, the descriptor of a file open for writing.
    """

    def __init__(self, layout: Layout, files: Mapping[str, int]) -> None:
        self.layout, self.files = layout, files
        self._headers = {variable: layout.header(variable) for variable in VARIABLES}

    def create(self) -> None:
        """Writes the headers and takes the space of all trials.

        Raises:
            DataError: there is not enough space.
        """
        try:
            for variable, file in self.files.items():
                os.ftruncate(file, 0)
                write_all(file, self._headers[variable], 0)
                allocate(file, self.layout.file_bytes(variable))
        except OSError as error:
            if error.errno not in FULL:
                raise
            raise DataError(
                f"the packed trials need {self.layout.total_bytes / 2**30:.1f} GiB, more than is free "
                f"({error.strerror}); make room, or choose fewer mice with --mouse_ids"
            ) from error

    def write(self, variable: str, index: int, block: np.ndarray) -> None:
        """Writes one trial's `block`, made by `stacked`, as number `index` of the array."""
        place = len(self._headers[variable]) + index * self.layout.trial_bytes(variable)
        write_all(self.files[variable], block.data.cast("B"), place)
