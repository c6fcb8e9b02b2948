"""A predicted trial, and the files that predictions are written to; of no use to it is how they were made."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from viv1t.errors import ConfigError, DataError
from viv1t.system.files import replacing, save_npy
from viv1t.types import UNSCORED_FRAMES, Mouse

if TYPE_CHECKING:
    import pyarrow as pa

_ROWS = 8  # trials in a row group of a parquet file, which is what is held in memory: 130 MB at 8,000 neurons


@dataclass(frozen=True)
class TrialPrediction:
    """The predicted responses of one trial.

    Attributes:
        mouse: whose trial it is.
        trial_id: its number.
        response: (N, t) float32, the last t of its frames.
        frames: T, how many frames of the trial were predicted from its first on.
    """

    mouse: Mouse
    trial_id: int
    response: np.ndarray
    frames: int

    def __post_init__(self) -> None:
        """Raises a DataError if a prediction is not finite: such numbers are never written."""
        check_finite(self.response, self.mouse.id, self.trial_id, self.frames - self.response.shape[1])

    def aligned(self) -> np.ndarray:
        """(N, T), frame by frame beside the recording; NaN where nothing is predicted, before the core's reach."""
        before = self.frames - self.response.shape[1]
        return np.pad(self.response, ((0, 0), (before, 0)), constant_values=np.nan)

    def scored(self) -> np.ndarray:
        """(N, T - 50): without the first 50 frames, which every score leaves out.

        Raises:
            ConfigError: some of these frames are not predicted.
        """
        frames = self.frames - UNSCORED_FRAMES
        if self.response.shape[1] < frames:
            raise ConfigError(
                f"mouse {self.mouse.id}, trial {self.trial_id}: the core predicts the last {self.response.shape[1]} of "
                f"{self.frames} frames, but the challenge scores all after the first {UNSCORED_FRAMES}"
            )
        return self.response[:, -frames:]


def check_finite(response: np.ndarray, mouse_id: str, trial: int | None, first_frame: int) -> None:
    """Raises a DataError for predictions that are not finite.

    Args:
        response: (N, t).
        mouse_id: whose.
        trial: number of the trial; None of a movie.
        first_frame: the frame of the first column.
    """
    finite = np.isfinite(response)
    if finite.all():
        return
    frames = np.flatnonzero(~finite.all(axis=0)) + first_frame
    neurons = int((~finite.all(axis=1)).sum())
    where = "the movie" if trial is None else f"trial {trial}"
    raise DataError(
        f"mouse {mouse_id}, {where}: predictions of {neurons} of {len(response)} neurons are not finite, between the "
        f"frames {frames[0]} and {frames[-1]}: movie, behavior or gaze lie far outside what the model was trained on; "
        "compare their units with those of its recordings"
    )


def write_npy(folder: Path, predictions: Iterable[TrialPrediction], tier: str) -> int:
    """Writes `<folder>/<session>/<tier>/<trial>.npy`, (N, T) float32 as `TrialPrediction.aligned`; returns how many."""
    count = 0
    for prediction in predictions:
        path = folder / prediction.mouse.session / tier / f"{prediction.trial_id}.npy"
        with replacing(path) as temporary, open(temporary, "wb") as file:
            save_npy(file, prediction.aligned())
        count += 1
    return count


def check_pyarrow() -> None:
    """Raises a ConfigError where parquet files cannot be written."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "parquet files need the package pyarrow: install it with `pip install 'viv1t[submission]'`"
        ) from error


def write_parquet(
    path: Path,
    predictions: Iterable[TrialPrediction],
    values: Callable[[TrialPrediction], np.ndarray],
    *,
    submission: bool = False,
) -> int:
    """Writes the challenge's columns, brotli-compressed, a row per trial; returns how many.

    `prediction` (list of N lists of float64), `mouse` (session name), `trial_indices` (int64) and `neuron_ids` (list of
    N int64). Memory is bounded: a row group of 8 trials at a time.

    Args:
        path: the file, replaced when all of it is written.
        predictions: rows, in order.
        values: what of a prediction goes into the file.
        submission: `neuron_ids` are uint32, as the organisers' own code writes them.

    Raises:
        DataError: a neuron's number is none of the challenge's.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    id_type = np.uint32 if submission else np.int64
    schema = pa.schema(
        [
            ("prediction", pa.list_(pa.list_(pa.float64()))),
            ("mouse", pa.string()),
            ("trial_indices", pa.int64()),
            ("neuron_ids", pa.list_(pa.from_numpy_dtype(id_type))),
        ]
    )
    count = 0
    group: list[TrialPrediction] = []
    with (
        replacing(path) as temporary,
        # Predictions hardly ever repeat: a dictionary of them would cost memory and gain nothing.
        # Higher levels of compression save a few per cent more, and take several times as long.
        pq.ParquetWriter(
            temporary, schema, compression="brotli", compression_level=4, use_dictionary=["mouse"]
        ) as writer,
    ):

        def write_group() -> None:
            columns = [
                _lists(pa, [values(p).astype(np.float64) for p in group]),
                pa.array([p.mouse.session for p in group], pa.string()),
                pa.array([p.trial_id for p in group], pa.int64()),
                _lists(pa, [_ids(p.mouse, id_type) for p in group]),
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))
            group.clear()

        for prediction in predictions:
            count += 1
            group.append(prediction)
            if len(group) == _ROWS:
                write_group()
        if group:
            write_group()
    return count


def _ids(mouse: Mouse, kind: type[np.integer[Any]]) -> np.ndarray:
    ids = mouse.unit_ids.astype(kind)
    if (changed := ids != mouse.unit_ids).any():
        raise DataError(
            f"mouse {mouse.id}: unit_ids.npy: the challenge's files hold numbers from 0 to {np.iinfo(kind).max}, found "
            f"{mouse.unit_ids[changed][0]}; write other files with --format parquet"
        )
    return ids


def _lists(pa: Any, rows: list[np.ndarray]) -> pa.Array:
    """Arrays (a,) or (a, b) as lists (of lists) without a Python object per number."""
    values = pa.array(np.concatenate([row.ravel() for row in rows]))
    if rows[0].ndim == 2:
        lengths = np.concatenate([[row.shape[1]] * row.shape[0] for row in rows])
        values = pa.ListArray.from_arrays(pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32()), values)
    ends = np.cumsum([len(row) for row in rows])
    return pa.ListArray.from_arrays(pa.array(np.concatenate([[0], ends]), pa.int32()), values)
