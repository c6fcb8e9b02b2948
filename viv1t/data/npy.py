"""Numeric `.npy` files read with suspicion: no pickle, no header that promises more than the file holds."""

from __future__ import annotations

import math
import os
import tokenize
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from viv1t.system.files import open_file

# Version 3.0 differs from 2.0 in the encoding of field names alone, and arrays with fields are refused.
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
    (3, 0): np.lib.format.read_array_header_2_0,
}


@dataclass(frozen=True)
class NpyHeader:
    """What a `.npy` file says it holds, checked against its length.

    Attributes:
        shape: of the array.
        fortran: whether the first axis varies fastest.
        dtype: of the elements.
        offset: of the first element in the file, in bytes.
    """

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype
    offset: int


def read_header(path: Path) -> NpyHeader:
    """The checked header of a `.npy` file.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not a numeric `.npy` file, or it is shorter than its header promises.
    """
    with open_file(path) as file:
        version = np.lib.format.read_magic(file)
        if version not in _HEADERS:
            raise ValueError(f"npy format {version[0]}.{version[1]} is not supported")
        try:
            shape, fortran, dtype = _HEADERS[version](file)
        except (TypeError, SyntaxError, RecursionError, MemoryError, tokenize.TokenError) as error:
            raise ValueError(f"the npy header is malformed ({error})") from error
        if dtype.kind not in "fiubUS":
            raise ValueError(f"elements of type {dtype} are neither numbers nor text")
        offset = file.tell()
        expected = offset + dtype.itemsize * math.prod(shape)
        found = os.fstat(file.fileno()).st_size
    if min(shape, default=1) < 0 or found < expected:
        raise ValueError(f"the file has {found} bytes, but its header promises {expected}: it is truncated")
    return NpyHeader(shape, fortran, dtype, offset)


def read_npy(path: Path) -> np.ndarray:
    """A whole numeric array, in memory, in the order and element type of the file.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not a numeric `.npy` file, or it is truncated.
    """
    header = read_header(path)
    count = math.prod(header.shape)
    flat = np.fromfile(path, header.dtype, count, offset=header.offset)
    if flat.size < count:
        raise ValueError(f"the file ends after {flat.size} of {count} elements")
    return flat.reshape(header.shape, order="F" if header.fortran else "C")


def read_stacked(path: Path, index: int) -> np.ndarray:
    """One of the arrays that are stacked along the first axis of a file; raises as `read_npy`."""
    header = read_header(path)
    if header.fortran or not header.shape or not 0 <= index < header.shape[0]:
        raise ValueError(f"no array {index} among those stacked along the first axis of {header.shape}")
    count = math.prod(header.shape[1:])
    flat = np.fromfile(path, header.dtype, count, offset=header.offset + index * count * header.dtype.itemsize)
    if flat.size < count:
        raise ValueError(f"the file ends after {flat.size} of {count} elements")
    return flat.reshape(header.shape[1:])


def map_npy(path: Path) -> np.ndarray:
    """The same array mapped from the file, for reading a small part of it; raises as `read_npy`."""
    header = read_header(path)
    if not math.prod(header.shape):
        return np.empty(header.shape, header.dtype)
    order: Literal["F", "C"] = "F" if header.fortran else "C"
    mapped: np.ndarray = np.memmap(path, header.dtype, "r", header.offset, header.shape, order)
    return mapped
