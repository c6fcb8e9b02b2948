"""Files that cannot be written: one line with the file, the reason and what to do, whoever writes it."""

from __future__ import annotations

import errno
import logging
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from full_disks import largest_file

from viv1t.errors import DataError, WriteError
from viv1t.runs.folder import RunFolder
from viv1t.system.files import advice, allocate, replacing, save_npy, write_text, writing
from viv1t.training.log import RunLog
from viv1t.training.trackers import TensorBoard

WORDS = ("first", "second", "third")
NUMBERS = np.random.default_rng(0).random(40_000)  # does not compress


def by_pyarrow(path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet").write_table(pa.table({"a": NUMBERS}), path)


def by_onnx(path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    graph = onnx.helper.make_graph([], "g", [], [], [onnx.numpy_helper.from_array(NUMBERS, "a")])
    onnx.save(onnx.helper.make_model(graph), path)


def by_matplotlib(path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure()
    figure.figimage(np.random.default_rng(0).random((300, 300, 3)))
    figure.savefig(path, format="png")


def by_pyav(path: Path) -> None:
    pytest.importorskip("av")
    from viv1t.data.formats.sensorium.trial_video import write_trial

    write_trial(path, np.random.default_rng(0).integers(0, 256, (20, 64, 64), np.uint8))


WRITERS: dict[str, Callable[[Path], Any]] = {
    "text": lambda path: path.write_text("x" * 50_000),
    "numpy": lambda path: np.save(path, NUMBERS),
    "safetensors": lambda path: safetensors.numpy.save_file({"a": NUMBERS}, path),
    "torch": lambda path: torch.save({"a": torch.from_numpy(NUMBERS)}, path),
    "pyarrow": by_pyarrow,
    "onnx": by_onnx,
    "matplotlib": by_matplotlib,
    "pyav": by_pyav,
}
SUFFIXES = {"pyav": ".mp4", "numpy": ".npy"}


@pytest.mark.parametrize("writer", WRITERS)
def test_every_writer_s_error_is_one_line(writer: str, tmp_path: Path) -> None:
    path = tmp_path / f"result{SUFFIXES.get(writer, '.bin')}"
    write_text(path, "old")
    with largest_file(10_000), pytest.raises(WriteError) as caught, replacing(path) as temporary:
        WRITERS[writer](temporary)
    assert re.fullmatch(
        rf"{re.escape(str(path))}: cannot be written \(File too large\); the limit is 10000 bytes: raise it "
        r"\(ulimit -f\), or choose a folder on another disk",
        str(caught.value),
    )
    assert caught.value.errno == errno.EFBIG  # for those who go on without the file
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert path.read_text() == "old"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("words", ["PytorchStreamWriter failed writing file", "I/O error: os error 28", "-2"])
def test_the_system_is_asked_what_a_native_error_does_not_say(words: str) -> None:
    full = r"/dev/full: cannot be written \(No space left on device\) \(\d+\.\d MB are free\)"
    with pytest.raises(WriteError, match=full), writing(Path("/dev/full")):
        raise RuntimeError(words)


def fail(path: Path, error: Exception) -> None:
    with replacing(path) as temporary:
        temporary.write_text("half")
        raise error


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("of another kind"),
        DataError("trial 3"),
        FileNotFoundError(errno.ENOENT, "gone", "other"),
        PermissionError(errno.EACCES, "Permission denied", "/recordings/3.npy"),
        OSError(errno.EIO, "Input/output error"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_other_errors_pass(error: Exception, tmp_path: Path) -> None:
    with pytest.raises(type(error)) as caught:
        fail(tmp_path / "a", error)
    assert caught.value is error


def test_a_conversion_s_error_names_the_file_it_is_for(tmp_path: Path) -> None:
    path = tmp_path / "F.onnx"

    def convert() -> None:
        with replacing(path) as temporary:
            fail(temporary, OSError(errno.ENOSPC, "No space left on device"))

    with pytest.raises(WriteError, match=rf"^{re.escape(str(path))}: cannot"):
        convert()


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, r" \(\d+\.\d MB are free\); make room on its disk, or choose a folder on another"),
        (errno.EDQUOT, "; your quota of its disk is used up: delete files of yours there, or .*"),
        (errno.EROFS, "; choose a folder that you may write to"),
        (errno.EIO, ""),
    ],
)
def test_each_reason_has_its_advice(number: int, words: str, tmp_path: Path) -> None:
    assert re.fullmatch(words, advice(OSError(number, os.strerror(number)), tmp_path / "missing" / "file"))


@pytest.mark.parametrize("order", ["C", "F"])
def test_the_last_bytes_of_an_array_are_looked_after(order: str, tmp_path: Path) -> None:
    """NumPy's own writer leaves half a file and says nothing where the array is small."""
    path, array = tmp_path / "a.npy", np.asarray(np.arange(60.0).reshape(6, 10), order=order)  # type: ignore[call-overload]

    def write() -> None:
        with replacing(path) as temporary, open(temporary, "wb") as file:
            save_npy(file, array)

    with largest_file(200), pytest.raises(WriteError, match="File too large"):
        write()
    assert not path.exists()
    write()
    plain = tmp_path / "plain.npy"
    np.save(plain, array)
    assert path.read_bytes() == plain.read_bytes()


def test_folders_that_cannot_be_made_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(WriteError, match=r"file/x: cannot be written \(Not a directory\)"):
        write_text(tmp_path / "file" / "x" / "y", "")


@pytest.mark.parametrize("native", [True, False])
def test_space_is_taken_for_good(native: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not native:
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
    with open(tmp_path / "a", "wb+") as file:
        allocate(file.fileno(), 3_000_001)
        status = os.fstat(file.fileno())
        assert status.st_size == 3_000_001 <= status.st_blocks * 512
        allocate(file.fileno(), 0)
    with largest_file(4096), open(tmp_path / "b", "wb+") as file, pytest.raises(OSError, match="File too large"):
        allocate(file.fileno(), 8192)


# -- what goes on without ---------------------------------------------------------------------------------------------


def test_a_log_ends_with_one_line_and_the_run_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "output.log"
    with largest_file(40), RunLog(1) as log:
        log.open(path)
        for word in WORDS:
            logging.getLogger("viv1t.train").info("the %s of three lines", word)
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if "of three lines" in line] == [f"the {n} of three lines" for n in WORDS]
    (warning,) = (line for line in lines if "of three lines" not in line)
    assert warning.startswith(f"warning: {path}: cannot be written, the rest of the log is not in it (File too large; ")
    assert path.stat().st_size <= 40


def test_tensorboard_ends_with_one_line_and_the_run_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("tensorboard")
    hook = threading.excepthook
    board = TensorBoard(RunFolder(tmp_path), 0)
    with largest_file(0):
        for epoch in range(1, 4):
            board.log({"epoch": epoch, "loss": 1.0, "correlation": 0.5})
        board.close()
    assert [r.message for r in caplog.records if "tensorboard" in r.message] == [
        f"{tmp_path / 'tensorboard'}: cannot be written, and ends here; metrics.csv has every epoch (File too large; "
        "the limit is 0 bytes: raise it (ulimit -f), or choose a folder on another disk)"
    ]
    assert "Traceback" not in capsys.readouterr().err
    assert threading.excepthook is hook
