"""Reading an array of a trial in C++ equals slicing, converting and transforming it in NumPy, bit for bit."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from growth import assert_no_growth

from viv1t._prefetcher import Element, Prefetcher, Read, Transform

DTYPES = [
    "<f2", "<f4", "<f8", "|i1", "<i2", "<i4", "<i8", "|u1", "<u2", "<u4", "<u8", "|b1", ">f2", ">f4", ">f8", ">i4",
    ">u2",
]  # fmt: skip


@pytest.fixture
def engine() -> Any:
    prefetcher = Prefetcher(threads=2, slots=2)
    yield prefetcher
    prefetcher.close()


def perform(engine: Prefetcher, **read: Any) -> tuple[int, str] | None:
    engine.submit([Read(**read)])
    return engine.take()


def perform_small(engine: Prefetcher, path: Path) -> tuple[int, str] | None:
    out = np.empty((5, 10), np.float32)
    return perform(engine, path=str(path), rows=[5], file_frames=10, frames=10, out=out.ctypes.data, out_frames=10)


def values(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Any values of the type, without NaN."""
    kind = np.dtype(dtype)
    bits = rng.integers(0, 256, int(np.prod(shape)) * kind.itemsize, dtype=np.uint8)
    if kind.kind == "b":
        bits &= 1
    array = bits.view(kind).reshape(shape)
    if kind.kind == "f":
        with np.errstate(all="ignore"):
            array = np.where(np.isfinite(array.astype("f4")), array, 1.5).astype(kind)
    return array


def random_case(
    rng: np.random.Generator, folder: Path, dtype: str
) -> tuple[dict[str, Any], np.ndarray, np.ndarray, list[np.ndarray]]:
    """A read, the array it fills (poisoned), what it must hold afterwards, and what must stay alive."""
    rows = [int(rng.choice([1, 2, 15, 16, 17, 300])), int(rng.choice([1, 3, 8]))][: rng.integers(1, 3)]
    total = int(rng.choice([1, 5, 16, 40, 333]))
    frames_first, stacked = bool(rng.integers(2)), bool(rng.integers(2))
    fortran = not (frames_first or stacked) and bool(rng.integers(2))
    frames = int(rng.integers(0, total + 1))
    first = int(rng.integers(0, total - frames + 1))
    trial = int(rng.integers(0, 3)) if stacked else -1
    out_frames_first, out_frames = bool(rng.integers(2)), frames + int(rng.choice([0, 1, 20]))

    shape = (total, *rows) if frames_first else (*rows, total)
    array = values(rng, (3, *shape) if stacked else shape, dtype)
    np.save(folder / "a.npy", np.asfortranarray(array) if fortran else array)
    one = array[trial] if stacked else array
    one = np.moveaxis(one, 0, -1) if frames_first else one  # (rows..., T)
    with np.errstate(all="ignore"):
        x = one[..., first : first + frames].astype(np.float32).reshape(int(np.prod(rows)), frames)

    count, timed = len(x), bool(rng.integers(2))
    subtract, scale = (rng.standard_normal((2, count, total if timed else 1)) * 3).astype(np.float32)
    has_subtract, has_scale = bool(rng.integers(2)), bool(rng.integers(2))
    cut = slice(first, first + frames) if timed else slice(None)
    with np.errstate(all="ignore"):
        if has_subtract:
            x = x - subtract[:, cut]
        if has_scale:
            x = x * scale[:, cut]
    wanted = np.zeros((count, out_frames), np.float32)
    wanted[:, :frames] = x
    tables = [np.ascontiguousarray(t.T if out_frames_first else t) for t in (subtract, scale)]
    transform = Transform(
        subtract=tables[0].ctypes.data if has_subtract else 0,
        scale=tables[1].ctypes.data if has_scale else 0,
        frames=total if timed else 0,
    )
    wanted = np.ascontiguousarray(wanted.T if out_frames_first else wanted)
    out = np.full(wanted.size + 32, np.float32(7e7))  # the last 32 must stay as they are
    read = {
        "path": str(folder / "a.npy"), "rows": rows, "frames_first": frames_first, "trial": trial, "file_frames": total,
        "first_frame": first, "frames": frames, "transform": transform, "out": out.ctypes.data,
        "out_frames_first": out_frames_first, "out_frames": out_frames,
    }  # fmt: skip
    return read, out, wanted, tables


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_layout_and_type_equals_numpy(engine: Prefetcher, tmp_path: Path, dtype: str) -> None:
    rng = np.random.default_rng(DTYPES.index(dtype))
    for _ in range(60):
        read, out, wanted, alive = random_case(rng, tmp_path, dtype)
        assert perform(engine, **read) is None, read
        assert out[: wanted.size].tobytes() == wanted.tobytes(), read
        assert (out[wanted.size :] == np.float32(7e7)).all()
        del alive


@pytest.mark.parametrize("dtype", DTYPES)
def test_bf16_is_the_float32_result_rounded_to_nearest_even(engine: Prefetcher, tmp_path: Path, dtype: str) -> None:
    rng = np.random.default_rng(DTYPES.index(dtype))
    for _ in range(60):
        read, _, wanted, alive = random_case(rng, tmp_path, dtype)
        out = np.full(wanted.size + 32, 0xABCD, np.uint16)
        assert perform(engine, **{**read, "out": out.ctypes.data, "element": Element.bf16}) is None, read
        rounded = torch.from_numpy(wanted).bfloat16().view(torch.uint16).numpy()
        assert out[: wanted.size].tobytes() == rounded.tobytes(), read
        assert (out[wanted.size :] == 0xABCD).all()
        del alive


def test_every_rounding_to_bf16(engine: Prefetcher, tmp_path: Path) -> None:
    """All 65,536 lower halves of some numbers, small, large and subnormal, of both signs."""
    upper = np.array([0x0000, 0x0001, 0x3F80, 0x3F81, 0x4049, 0x7F7F, 0x8000, 0xBF80, 0xC0FF, 0xFF7F], np.uint32)
    bits = upper[:, None] << 16 | np.arange(2**16, dtype=np.uint32)
    np.save(tmp_path / "a.npy", bits.view(np.float32))
    out = np.empty(bits.shape, np.uint16)
    assert not perform(
        engine, path=str(tmp_path / "a.npy"), rows=[len(upper)], file_frames=2**16, frames=2**16, out=out.ctypes.data,
        out_frames=2**16, element=Element.bf16,
    )  # fmt: skip
    np.testing.assert_array_equal(out, torch.from_numpy(bits.view(np.float32)).bfloat16().view(torch.uint16).numpy())


@pytest.mark.parametrize("dtype", [d for d in DTYPES if d not in ("|i1", "|b1")])
def test_whole_numbers_become_uint8(engine: Prefetcher, tmp_path: Path, dtype: str) -> None:
    rng = np.random.default_rng(DTYPES.index(dtype))
    for case in range(30):
        array = rng.integers(0, 256, (6, 5, 40)).astype(dtype)
        array[0, 0, 20] = (0, 255)[case % 2]
        fortran, out_frames_first, frames_first = (bool(x) for x in rng.integers(2, size=3))
        stored = np.moveaxis(array, -1, 0) if frames_first else array
        np.save(tmp_path / "a.npy", np.asfortranarray(stored) if fortran and not frames_first else stored.copy())
        wanted = np.zeros((30, 25), np.uint8)
        wanted[:, :21] = array.reshape(30, 40)[:, 7:28]
        wanted = np.ascontiguousarray(wanted.T if out_frames_first else wanted)
        out = np.full(wanted.size + 32, 77, np.uint8)
        read = {
            "path": str(tmp_path / "a.npy"), "rows": [6, 5], "frames_first": frames_first, "file_frames": 40,
            "first_frame": 7, "frames": 21, "out": out.ctypes.data, "out_frames_first": out_frames_first,
            "out_frames": 25, "element": Element.u8,
        }  # fmt: skip
        assert perform(engine, **read) is None, read
        assert out[: wanted.size].tobytes() == wanted.tobytes(), read
        assert (out[wanted.size :] == 77).all()


@pytest.mark.parametrize("odd", [-1.0, -0.001, 0.5, 254.999, 255.5, 256.0, 1e30, -1e30])
@pytest.mark.parametrize("out_frames_first", [False, True])
def test_what_uint8_cannot_hold_is_refused(
    engine: Prefetcher, tmp_path: Path, odd: float, out_frames_first: bool
) -> None:
    array = np.full((33, 20), 255.0)
    array[31, 12] = odd
    np.save(tmp_path / "a.npy", array)
    out = np.empty(array.shape, np.uint8)
    failure = perform(
        engine, path=str(tmp_path / "a.npy"), rows=[33], file_frames=20, frames=20, out=out.ctypes.data, out_frames=20,
        out_frames_first=out_frames_first, element=Element.u8,
    )  # fmt: skip
    assert failure is not None
    assert failure[1].endswith(" at frame 12, which uint8 cannot hold")


@pytest.mark.parametrize(("rows", "total"), [([8000], 300), ([36, 64], 320), ([2], 300), ([3, 2], 40_000)])
@pytest.mark.parametrize("fortran", [False, True])
@pytest.mark.parametrize("out_frames_first", [False, True])
def test_full_sizes(
    engine: Prefetcher, tmp_path: Path, rows: list[int], total: int, fortran: bool, out_frames_first: bool
) -> None:
    array = np.random.default_rng(0).integers(0, 2**16, (*rows, total)).astype("<f4")
    np.save(tmp_path / "a.npy", np.asfortranarray(array) if fortran else array)
    wanted = array.reshape(-1, total)[:, 17:157]
    wanted = wanted.T if out_frames_first else wanted
    out = np.empty(wanted.shape, np.float32)
    assert not perform(
        engine, path=str(tmp_path / "a.npy"), rows=rows, file_frames=total, first_frame=17, frames=140,
        out=out.ctypes.data, out_frames_first=out_frames_first, out_frames=140,
    )  # fmt: skip
    np.testing.assert_array_equal(out, wanted)


def test_what_is_not_finite_is_refused_where_it_is_read_and_nowhere_else(engine: Prefetcher, tmp_path: Path) -> None:
    out = np.empty(64 * 10, np.float32)
    for fortran in (False, True):
        for out_frames_first in (False, True):
            for dtype, odd in (("f2", np.nan), ("f4", np.inf), ("f8", -np.inf), (">f4", -np.nan), ("f8", 1e300)):
                array = np.zeros((64, 20), dtype)
                array[33, 12] = odd
                array[:, 15:] = np.nan
                np.save(tmp_path / "a.npy", np.asfortranarray(array) if fortran else array)
                read = {
                    "path": str(tmp_path / "a.npy"), "rows": [64], "file_frames": 20, "out": out.ctypes.data,
                    "out_frames": 10, "out_frames_first": out_frames_first,
                }  # fmt: skip
                assert perform(engine, **read, first_frame=2, frames=10) is None
                failure = perform(engine, **read, first_frame=4, frames=10)
                assert failure == (0, "NaN or infinity at frame 12")


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((5, 9)), "expected shape (5, 10), found shape (5, 9)"),
        (np.zeros((4, 10)), "expected shape (5, 10)"),
        (np.zeros((5, 11)), "expected shape (5, 10)"),
        (np.zeros((5, 10, 1)), "expected shape (5, 10)"),
        (np.zeros(5), "expected shape (5, 10)"),
        (np.array("text"), "not supported"),
    ],
)
def test_files_of_another_shape_or_type(engine: Prefetcher, tmp_path: Path, array: np.ndarray, words: str) -> None:
    np.save(tmp_path / "a.npy", array)
    failure = perform_small(engine, tmp_path / "a.npy")
    assert failure is not None
    assert words in failure[1]


def test_files_that_are_missing_damaged_or_not_files(engine: Prefetcher, tmp_path: Path) -> None:
    good = tmp_path / "good.npy"
    np.save(good, np.zeros((5, 10)))
    (tmp_path / "short.npy").write_bytes(good.read_bytes()[:-1])
    (tmp_path / "text.npy").write_text("no array")
    os.symlink(tmp_path / "nowhere", tmp_path / "link.npy")
    expected = {
        "missing.npy": "cannot be opened: No such file or directory", "link.npy": "cannot be opened",
        "short.npy": "cut short", "text.npy": "not a .npy file", ".": "not a regular file",
    }  # fmt: skip
    for name, words in expected.items():
        failure = perform_small(engine, tmp_path / name)
        assert failure is not None
        assert words in failure[1]
    assert perform_small(engine, good) is None


def test_the_first_failure_of_a_batch_is_told_and_the_next_is_unharmed(engine: Prefetcher, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((5, 10)))
    out = np.zeros((3, 5, 10), np.float32)
    names = ["a.npy", "x.npy", "y.npy"]
    reads = [
        Read(path=str(tmp_path / n), rows=[5], file_frames=10, frames=10, out=out[i].ctypes.data, out_frames=10)
        for i, n in enumerate(names)
    ]
    for _ in range(50):
        engine.submit(reads)
        engine.submit(reads[:1])
        failure = engine.take()
        assert failure is not None
        assert failure[0] == 1
        assert engine.take() is None
    assert (out[0] == 1).all()


def test_reads_that_make_no_sense_are_refused_before_anything_is_written(engine: Prefetcher) -> None:
    out = np.zeros(4, np.float32)
    good: dict[str, Any] = {"path": "x", "rows": [2], "file_frames": 2, "frames": 2, "out": out.ctypes.data}
    good["out_frames"] = 2
    for bad in (
        {"rows": []}, {"rows": [0]}, {"frames": -1}, {"frames": 3}, {"first_frame": -1}, {"first_frame": 1}, {"out": 0},
        {"transform": Transform(scale=out.ctypes.data, frames=1)},
    ):  # fmt: skip
        with pytest.raises(ValueError, match="sizes do not fit"):
            engine.submit([Read(**{**good, **bad})])
    assert engine.pending() == 0


def open_and_close(folder: Path, times: int) -> None:
    np.save(folder / "a.npy", np.zeros((500, 300)))
    out = np.empty((4, 500, 300), np.float32)
    reads = [
        Read(path=str(folder / name), rows=[500], file_frames=300, frames=300, out=out[i].ctypes.data, out_frames=300)
        for i, name in enumerate(["a.npy", "a.npy", "missing.npy", "a.npy"])
    ]

    def cycle(i: int) -> None:
        prefetcher = Prefetcher(threads=4, slots=3)
        for _ in range(i % 4):
            prefetcher.submit(reads)
            if prefetcher.pending() == 3:
                prefetcher.take()
        if i % 2:  # else the destructor does it, with reads under way
            prefetcher.close()
            prefetcher.close()

    assert_no_growth(cycle, times, allowed=2 << 20)


def test_opening_and_closing_leaves_nothing_behind(tmp_path: Path) -> None:
    open_and_close(tmp_path, 50)


@pytest.mark.slow
def test_opening_and_closing_a_thousand_times_leaves_nothing_behind(tmp_path: Path) -> None:
    open_and_close(tmp_path, 1000)


def test_a_closed_or_idle_prefetcher_says_so() -> None:
    prefetcher = Prefetcher(threads=1, slots=1)
    with pytest.raises(RuntimeError, match="no batch is pending"):
        prefetcher.take()
    prefetcher.close()
    with pytest.raises(RuntimeError, match="closed"):
        prefetcher.submit([])
    for threads, slots in ((0, 1), (1, 0)):
        with pytest.raises(ValueError, match="at least one"):
            Prefetcher(threads=threads, slots=slots)


def test_a_forked_child_neither_hangs_nor_disturbs_its_parent(engine: Prefetcher, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((5, 10)))
    out = np.empty((5, 10), np.float32)
    prefetcher = Prefetcher(threads=2, slots=2)
    child = os.fork()
    if child == 0:
        del prefetcher
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    read = Read(path=str(tmp_path / "a.npy"), rows=[5], file_frames=10, frames=10, out=out.ctypes.data, out_frames=10)
    prefetcher.submit([read])
    assert prefetcher.take() is None
    prefetcher.close()
