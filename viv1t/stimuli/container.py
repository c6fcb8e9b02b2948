"""What FFmpeg does not tell of a container: the edit list of an mp4 or mov file, and whether an AVI file is whole."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from viv1t.errors import DataError

_MOST_EDITS = 1000  # of a list: each is a pass over the file


@dataclass(frozen=True)
class Edit:
    """A part of a film, as ISO 14496-12 (8.6.6) has it.

    Attributes:
        length: seconds for which it is shown.
        start: seconds in the media from which on it shows them; None where nothing is shown.
        rate: seconds of media in each second of the film; 0 for a still.
        rounding: seconds by which `length` may be off.
    """

    length: float
    start: float | None
    rate: float
    rounding: float


def edit_list(path: Path, track: int) -> list[Edit]:
    """The edits of a track of an mp4 or mov file, in order; none where it has no edit list.

    Raises:
        DataError: the list is damaged.
    """
    with open(path, "rb") as file:
        try:
            return _edit_list(path, file, track)
        except struct.error as error:
            raise DataError(f"{path}: damaged (its edit list); copy or convert it anew") from error


def _edit_list(path: Path, file: BinaryIO, track: int) -> list[Edit]:
    size = path.stat().st_size
    for movie in _boxes(file, 0, size, b"moov"):
        header = next(_boxes(file, *movie, b"mvhd"), None)
        for trak in _boxes(file, *movie, b"trak"):
            ids = next(_boxes(file, *trak, b"tkhd"), None)
            if header is None or ids is None or _after_times(file, ids[0]) != track:
                continue
            media = next((m for m in _boxes(file, *trak, b"mdia")), None)
            media_header = next(_boxes(file, *media, b"mdhd"), None) if media else None
            edits = next((e for e in _boxes(file, *trak, b"edts")), None)
            table = next(_boxes(file, *edits, b"elst"), None) if edits else None
            if table is None or media_header is None:
                return []
            scales = _after_times(file, header[0]), _after_times(file, media_header[0])
            if not all(scales):
                raise DataError(f"{path}: damaged (time scale 0); copy or convert it anew")
            return _edits(path, file, table, *scales)
    return []


def _edits(path: Path, file: BinaryIO, table: tuple[int, int], movie_scale: int, media_scale: int) -> list[Edit]:
    version, count = _read(file, table[0], ">B3xI")
    row = ">Qqi" if version == 1 else ">Iii"
    width = struct.calcsize(row)
    if count > min(_MOST_EDITS, (table[1] - table[0] - 8) // width):
        raise DataError(f"{path}: has an edit list of {count} parts, at most {_MOST_EDITS} are taken; convert it anew")
    edits = []
    for index in range(count):
        length, start, rate = _read(file, table[0] + 8 + index * width, row)
        if rate < 0:
            raise DataError(f"{path}: a part of it is played backwards by its edit list; convert it anew")
        shown = None if start < 0 else start / media_scale
        edits.append(Edit(length / movie_scale, shown, rate / 65536, 1 / movie_scale))
    return edits


def _boxes(file: BinaryIO, start: int, stop: int, wanted: bytes) -> Iterator[tuple[int, int]]:
    """Where the contents of each box of a kind lie, of those between two places of the file."""
    while start + 8 <= stop:
        size, kind = _read(file, start, ">I4s")
        header = 8
        if size == 1:
            (size,), header = _read(file, start + 8, ">Q"), 16
        elif size == 0:
            size = stop - start
        if size < header:
            return
        if kind == wanted:
            yield start + header, min(start + size, stop)
        start += size


def _after_times(file: BinaryIO, start: int) -> int:
    """The number after the times of creation and change: of mvhd and mdhd the time scale, of tkhd the track's."""
    (version,) = _read(file, start, ">B")
    (number,) = _read(file, start + (20 if version == 1 else 12), ">I")
    return int(number)


def _read(file: BinaryIO, start: int, form: str) -> tuple[Any, ...]:
    file.seek(start)
    return struct.unpack(form, file.read(struct.calcsize(form)))


def is_cut_short(path: Path) -> bool:
    """Whether an AVI file promises more bytes than there are; one that was never finished promises none."""
    size = path.stat().st_size
    start = 0
    with open(path, "rb") as file:
        while start + 12 <= size:  # large files have several of these lists
            name, length = _read(file, start, "<4sI")
            if name != b"RIFF":
                return False
            start += 8 + length + length % 2
    return start > size + 1
