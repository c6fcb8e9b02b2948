"""Files that responses to a movie are written to as they come, and that replace earlier ones when they are complete."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from viv1t.errors import DataError
from viv1t.system.files import replacing, write_text
from viv1t.types import FRAME_RATE, Mouse

Write = Callable[[np.ndarray], None]


@contextmanager
def npy_file(path: Path, mouse: Mouse, frames: int) -> Iterator[Write]:
    """Takes responses (N, n) float32 piece by piece; the file is one array (N, `frames`), neurons varying fastest."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        header = {"descr": "<f4", "fortran_order": True, "shape": (mouse.neurons, frames)}
        np.lib.format.write_array_header_1_0(file, header)
        yield lambda responses: _write(file, responses)


def _write(file: Any, responses: np.ndarray) -> None:
    file.write(np.ascontiguousarray(responses.T, "<f4").data)


@contextmanager
def parquet_file(path: Path, mouse: Mouse, frames: int) -> Iterator[Write]:
    """Takes responses (N, n) float32 piece by piece; the file has a row per frame.

    Columns: `frame` (int32, from 0), `time` (float64, seconds) and `response` (list of N float32). The schema's
    metadata name the `mouse` and its `neuron_ids` (JSON).
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    kind = pa.list_(pa.float32(), mouse.neurons)
    known = {"mouse": mouse.session, "neuron_ids": json.dumps(mouse.unit_ids.tolist())}
    schema = pa.schema([("frame", pa.int32()), ("time", pa.float64()), ("response", kind)], metadata=known)
    first = 0
    with replacing(path) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:

        def write(responses: np.ndarray) -> None:
            nonlocal first
            index = np.arange(first, first + responses.shape[1], dtype=np.int32)
            values = pa.array(np.ascontiguousarray(responses.T, np.float32).ravel())
            rows = pa.FixedSizeListArray.from_arrays(values, mouse.neurons)
            writer.write_table(pa.Table.from_arrays([index, index / FRAME_RATE, rows], schema=schema))
            first += responses.shape[1]

        yield write


@contextmanager
def source_of(path: Path, movie: Path) -> Iterator[None]:
    """Says beside responses which movie they are to, in a JSON file, once they are complete; keeps those to another.

    Args:
        path: of the responses, whatever its suffix.
        movie: the video file. Those of one name in several folders or formats would write the same file.

    Raises:
        DataError: there are responses to another movie.
    """
    record = path.with_suffix(".json")
    try:
        other = json.loads(record.read_text(encoding="utf-8"))["movie"]
    except (OSError, ValueError, KeyError, TypeError):  # none, or of something else
        other = None
    written = [file for ending in (".npy", ".parquet") if (file := path.with_suffix(ending)).is_file()]
    if written and other not in (None, str(movie.absolute())):
        raise DataError(f"{written[0]}: holds responses to {other}; give another --output_dir, or rename the movie")
    yield
    write_text(record, json.dumps({"movie": str(movie.absolute())}) + "\n")
