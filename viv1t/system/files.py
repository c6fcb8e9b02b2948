"""Writing files so that a reader never sees half of one."""

from __future__ import annotations

import errno
import os
import re
import resource
import shutil
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO
from unicodedata import category

import numpy as np

from viv1t.errors import DataError, Viv1tError, WriteError

_PART = ".part"  # in the names of what is being written
_PROBE = 1 << 20  # bytes: more than what writers hold back

# What the system says of writing, and never of reading.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS)


@contextmanager
def writing(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """Whatever keeps the file from being written inside becomes one line with its name, the reason and what to do.

    Writers in native code have errors of their own, for a full disk too: what the system says is in their words, or is
    asked of it again. Other errors pass.

    Args:
        path: the file.
        temporary: where it is written until it is whole.

    Raises:
        WriteError: it cannot be written.
    """
    try:
        yield
    except Exception as error:
        place = temporary or path
        reason = _reason(error, place)
        if reason is None:
            raise
        name = _named(reason)
        about = path if name in (None, place) else name  # something else may have been written meanwhile
        raise WriteError(about, reason, advice(reason, about)) from error


def _named(error: OSError) -> Path | None:
    return None if error.filename is None else Path(os.fsdecode(error.filename))


def _reason(error: Exception, place: Path) -> OSError | None:
    """What the system has against writing `place`; None for an error about something else."""
    if isinstance(error, OSError) and error.errno is not None:
        about_it = error.errno != errno.ENOENT and _named(error) in (place, *place.parents)
        return error if error.errno in FULL or about_it else None
    if isinstance(error, Viv1tError):
        return None
    said = re.search(r"(?:os error|errno|code:) (\d+)", str(error))
    if said is not None and int(said[1]) in (*FULL, *_CLOSED):
        return OSError(int(said[1]), os.strerror(int(said[1])))
    try:
        with open(place, "rb+", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            try:
                for _ in range(2):  # the first may be taken in part
                    file.write(bytes(_PROBE))
                os.fsync(file.fileno())
            finally:
                with suppress(OSError):
                    file.truncate(size)
    except OSError as full:
        return full if full.errno in FULL else None
    return None


def advice(reason: OSError, path: Path) -> str:
    """What to do about an error of writing `path`, after its reason in a line; nothing where nothing is known."""
    folder = next(p for p in (path.parent, *path.absolute().parents) if p.is_dir())
    if reason.errno == errno.ENOSPC:
        free = shutil.disk_usage(folder).free
        return f" ({free / 1e6:.1f} MB are free); make room on its disk, or choose a folder on another"
    if reason.errno == errno.EDQUOT:
        return "; your quota of its disk is used up: delete files of yours there, or choose a folder on another"
    if reason.errno == errno.EFBIG:
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
        what = "its disk takes no file as large" if limit == resource.RLIM_INFINITY else f"the limit is {limit} bytes"
        return f"; {what}: raise it (ulimit -f), or choose a folder on another disk"
    if reason.errno in _CLOSED:
        return "; choose a folder that you may write to"
    return ""


def allocate(file: int, size: int) -> None:
    """Takes `size` bytes of the disk for an open file: memory mapped on a file with holes dies where the disk is full.

    Raises:
        OSError: there is not as much.
    """
    if size and hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file, 0, size)
            return
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # of a disk that has no such thing
                raise
    for start in range(0, size, _PROBE):
        write_all(file, bytes(min(_PROBE, size - start)), start)


def write_all(file: int, data: bytes | memoryview, place: int) -> None:
    """Writes `data` at `place` of an open file, however little the system takes at a time."""
    view = memoryview(data)
    while view:
        written = os.pwrite(file, view, place)
        view, place = view[written:], place + written


def sync_folder(folder: Path) -> None:
    """Makes renames in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def shown(name: str) -> str:
    """A name of the file system as one line of UTF-8: what is neither is shown as an escape."""
    return "".join(c.encode("unicode_escape").decode() if category(c) in ("Cc", "Cs") else c for c in name)


def open_file(path: Path) -> BinaryIO:
    """Opens a file for reading, and nothing else: a pipe or a device could keep whoever reads it for ever.

    Raises:
        DataError: it is no regular file.
        OSError: it is missing, or cannot be read.
    """
    check_kind(path)
    return open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")  # waits for no pipe of this moment


def check_kind(path: Path) -> None:
    """Raises a DataError where a path is no regular file, and an OSError where it is nothing."""
    kind = stat.S_IFMT(os.stat(path).st_mode)
    if kind != stat.S_IFREG:
        raise DataError(f"{path}: is {_KINDS.get(kind, 'something else')}, not a file; put the file there")


_KINDS = {
    stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket", stat.S_IFDIR: "a directory", stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}  # fmt: skip


@contextmanager
def replacing(path: Path, previous: Path | None = None) -> Iterator[Path]:
    """A temporary path beside `path`; what was written there replaces `path` at the end, or vanishes on an error.

    What `path` was is kept as `previous`, if given: at every moment one of the two is whole.

    Raises:
        WriteError: the file cannot be written, by whatever writer.
    """
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:8]}{_PART}{path.suffix}")
    try:
        with writing(path, temporary):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            with open(temporary, "rb+") as file:
                os.fchmod(file.fileno(), 0o666 & ~_umask())  # some writers make private files; results are for sharing
                os.fsync(file.fileno())
            if previous is not None and path.exists():
                os.replace(path, previous)
            os.replace(temporary, path)
            sync_folder(path.parent)
    finally:
        with suppress(OSError):  # where its folder is none
            temporary.unlink(missing_ok=True)


def save_npy(file: BinaryIO, array: np.ndarray) -> None:
    """Writes an array as `.npy`. NumPy's own writer does not look whether a full disk has taken the end of a file."""
    header = np.lib.format.header_data_from_array_1_0(array)
    np.lib.format.write_array_header_1_0(file, header)
    file.write(array.tobytes("F" if header["fortran_order"] else "C"))
    file.flush()


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def remove_leftovers(folder: Path) -> None:
    """Deletes what writers left in `folder` that were killed; nobody else may be writing there."""
    for path in folder.glob(f".*{_PART}*"):
        if is_leftover(path):
            path.unlink(missing_ok=True)


def is_leftover(path: Path) -> bool:
    """Whether a file has a name that `replacing` gives to what is being written."""
    return re.fullmatch(rf"\..+\.[0-9a-f]{{8}}{re.escape(_PART)}(\.\w+)?", path.name) is not None
