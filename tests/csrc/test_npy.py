"""The .npy header reader agrees with NumPy, and is never more permissive."""

from __future__ import annotations

import io
import os
import struct
from pathlib import Path

import numpy as np
import pytest

from viv1t._prefetcher import Dtype, NpyError, NpyHeader, parse_npy_header, read_npy_header
from viv1t.data.npy import NpyHeader as PythonHeader
from viv1t.data.npy import read_header, read_npy

NUMPY_NAMES = {
    Dtype.f16: "f2", Dtype.f32: "f4", Dtype.f64: "f8", Dtype.i8: "i1", Dtype.i16: "i2", Dtype.i32: "i4",
    Dtype.i64: "i8", Dtype.u8: "u1", Dtype.u16: "u2", Dtype.u32: "u4", Dtype.u64: "u8", Dtype.boolean: "b1",
}  # fmt: skip


def dtype_of(header: NpyHeader) -> np.dtype:
    return np.dtype((">" if header.big_endian else "<") + NUMPY_NAMES[header.dtype])


def saved(array: np.ndarray, version: tuple[int, int] | None = None) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, version=version, allow_pickle=False)
    return buffer.getvalue()


def with_header(text: str, version: int = 1, data: bytes = b"\0" * 64) -> bytes:
    """A file with a header of any text."""
    raw = text.encode("latin1")
    length = struct.pack("<H" if version == 1 else "<I", len(raw))
    return b"\x93NUMPY" + bytes([version, 0]) + length + raw + data


def parse(content: bytes) -> NpyHeader:
    return parse_npy_header(content[:10_012], len(content))


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("kind", sorted(NUMPY_NAMES.values()))
@pytest.mark.parametrize("endian", ["<", ">"])
def test_headers_agree_with_numpy(version: tuple[int, int], order: str, kind: str, endian: str) -> None:
    for shape in [(), (0,), (5,), (2, 3), (4, 1, 3)]:
        array = np.zeros(shape, np.dtype(endian + kind), order=order)  # type: ignore[call-overload]
        content = saved(array, version)
        header = parse(content)
        assert dtype_of(header) == array.dtype
        assert tuple(header.shape) == shape
        assert header.fortran_order == (array.flags.f_contiguous and not array.flags.c_contiguous)
        assert header.data_offset == len(content) - array.nbytes


def test_an_open_file_is_read(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(6, dtype="<f8").reshape(2, 3))
    with (tmp_path / "a.npy").open("rb") as file:
        assert list(read_npy_header(file.fileno()).shape) == [2, 3]
    with (tmp_path / "empty.npy").open("wb+") as file, pytest.raises(NpyError, match="magic"):
        read_npy_header(file.fileno())
    descriptor = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(NpyError, match="regular file"):
        read_npy_header(descriptor)
    os.close(descriptor)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", "not supported"),
        ("{'descr': '<V2', 'fortran_order': False, 'shape': (1,), }", "not supported"),
        ("{'descr': '<c8', 'fortran_order': False, 'shape': (1,), }", "not supported"),
        ("{'descr': '<U4', 'fortran_order': False, 'shape': (1,), }", "not supported"),
        ("{'descr': '|f4', 'fortran_order': False, 'shape': (1,), }", "not supported"),
        ("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,), }", "malformed"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (1,), 'more': 1}", "unexpected key"),
        ("{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (1,)}", "unexpected key"),
        ("{'descr': '<f4', 'fortran_order': False}", "lacks"),
        ("{'descr': '<f4', 'fortran_order': 0, 'shape': (1,)}", "malformed"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (1)}", "malformed"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}", "malformed"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (01,)}", "malformed"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (,)}", "malformed"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (1,)} x", "malformed"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (1,)", "malformed"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999,)}", "too large"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (4294967296, 4294967296)}", "too large"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (0, 4294967296, 4294967296)}", "too large"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (17,)}", "cut short: its header promises 68"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (" + "1," * 33 + ")}", "32 axes"),
        ("", "malformed"),
        ("[]", "malformed"),
        ("{" + " " * 20_000 + "}", "at most 10000"),
    ],
)
@pytest.mark.parametrize("version", [1, 2, 3])
def test_what_is_refused(text: str, words: str, version: int) -> None:
    with pytest.raises(NpyError, match=words):
        parse(with_header(text, version))


@pytest.mark.parametrize(
    "text",
    [
        '{"descr":"<f4","fortran_order":False,"shape":(2,3)}',
        "{ 'shape' : ( 2 , 3 , ) , 'descr' : '<f4' , 'fortran_order' : True , }   \n",
    ],
)
def test_other_spellings_of_the_same_literal(text: str) -> None:
    assert list(parse(with_header(text)).shape) == [2, 3]


def test_versions_that_are_not_known() -> None:
    good = bytearray(saved(np.zeros(3, "f4")))
    for major, minor in [(0, 0), (1, 1), (4, 0), (255, 255)]:
        good[6:8] = bytes([major, minor])
        with pytest.raises(NpyError, match="version"):
            parse(bytes(good))


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("kind", ["|u1", "<f4", ">f8"])
def test_every_truncation_is_refused(version: tuple[int, int], order: str, kind: str) -> None:
    content = saved(np.ones((2, 3), np.dtype(kind), order=order), version)  # type: ignore[call-overload]
    assert parse(content).shape == [2, 3]
    for length in range(len(content)):
        with pytest.raises(NpyError):
            parse(content[:length])


def mutated(rng: np.random.Generator, original: bytes) -> bytes:
    """A file with some bytes of its header changed, added or taken out."""
    content = bytearray(original)
    for _ in range(rng.integers(1, 4)):
        at = int(rng.integers(0, 128))
        choice = rng.integers(5)
        if choice == 0:
            content[at] = rng.integers(256)
        elif choice == 1:
            content[at] = rng.choice(list(b"0123456789(){},:' \n<>|=TrueFalsedshcp_fiub\"\\"))
        elif choice == 2:
            content[at:at] = bytes([content[int(rng.integers(10, 128))]])
        elif choice == 3:
            del content[at]
        else:
            other = int(rng.integers(0, 128))
            content[at], content[other] = content[other], content[at]
    return bytes(content)


def compare_mutated_files(version: tuple[int, int], count: int) -> int:
    """Whatever the reader accepts NumPy reads as well, and finds the same; returns how many that were."""
    rng = np.random.default_rng(version[0])
    originals = [
        saved(np.arange(24).astype(kind).reshape(2, 3, 4, order=order), version)
        for kind in ("<f4", ">i2", "|u1", "<f8")
        for order in ("C", "F")
    ]
    accepted = 0
    for i in range(count):
        content = mutated(rng, originals[i % len(originals)])
        try:
            header = parse(content)
        except NpyError:
            continue
        accepted += 1
        loaded = np.load(io.BytesIO(content), allow_pickle=False)
        assert loaded.dtype == dtype_of(header)
        assert loaded.shape == tuple(header.shape)
        order = "F" if header.fortran_order else "C"
        mine = np.frombuffer(content, dtype_of(header), loaded.size, header.data_offset)
        mine = mine.reshape(loaded.shape, order=order)  # type: ignore[call-overload]
        assert mine.tobytes() == loaded.tobytes()
    return accepted


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_whatever_a_mutated_header_says_numpy_says_too(version: tuple[int, int]) -> None:
    assert compare_mutated_files(version, 4000) > 50, "the mutations should leave some headers readable"


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_both_readers_accept_the_same_files(version: tuple[int, int], tmp_path: Path) -> None:
    """Python's reader, which reads text and other spellings as well, takes every number the C++ one takes, alike."""
    rng = np.random.default_rng(sum(version))
    path, both = tmp_path / "a.npy", 0
    kinds = [endian + kind for kind in NUMPY_NAMES.values() for endian in "<>"]
    for index in range(600):
        array = np.arange(24).astype(kinds[index % len(kinds)]).reshape(2, 3, 4, order="CF"[index % 2])  # type: ignore[call-overload]
        content = saved(array, version)
        if index >= 2 * len(kinds):
            content = mutated(rng, content)
        path.write_bytes(content)
        try:
            python = read_header(path)
        except ValueError:
            python = None
        try:
            header = parse(content)
        except NpyError:
            assert index >= 2 * len(kinds), "both read what NumPy writes"
            continue
        assert python is not None, content
        assert python == PythonHeader(tuple(header.shape), header.fortran_order, dtype_of(header), header.data_offset)
        np.testing.assert_array_equal(read_npy(path), np.load(path, allow_pickle=False))
        both += 1
    assert both > 2 * len(kinds) + 10


@pytest.mark.parametrize("version", [1, 2, 3])
@pytest.mark.parametrize(
    "text", ["{'descr': '<f4', [[[", "{" * 500, "(" * 9000, "{'a'", "\0\0", "{[1]: 2}", "'" * 3, "x\n  y\n z"]
)
def test_headers_that_are_no_literal_are_a_value_error(text: str, version: int, tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(with_header(text, version))
    with pytest.raises(ValueError, match="header"):
        read_header(tmp_path / "a.npy")


@pytest.mark.slow
def test_whatever_a_hundred_thousand_mutated_headers_say_numpy_says_too() -> None:
    accepted = [compare_mutated_files((major, 0), 40_000) for major in (1, 2, 3)]
    print(f"120,000 mutated files, of which {sum(accepted):,} were accepted, all as NumPy does")
    assert min(accepted) > 500
