"""Writing files so that a reader never sees half of one."""

from __future__ import annotations

import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO
from unicodedata import category

from viv1t.errors import DataError

_PART = ".part"  # in the names of what is being written


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
    kind = stat.S_IFMT(os.stat(path).st_mode)
    if kind != stat.S_IFREG:
        raise DataError(f"{path}: is {_KINDS.get(kind, 'something else')}, not a file; put the file there")
    return open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")  # waits for no pipe of this moment


_KINDS = {
    stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket", stat.S_IFDIR: "a directory", stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}  # fmt: skip


@contextmanager
def replacing(path: Path, previous: Path | None = None) -> Iterator[Path]:
    """A temporary path beside `path`; what was written there replaces `path` at the end, or vanishes on an error.

    What `path` was is kept as `previous`, if given: at every moment one of the two is whole.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:8]}{_PART}{path.suffix}")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fchmod(file.fileno(), 0o666 & ~_umask())  # some writers make private files; results are for sharing
            os.fsync(file.fileno())
        if previous is not None and path.exists():
            os.replace(path, previous)
        os.replace(temporary, path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def remove_leftovers(folder: Path) -> None:
    """Deletes what writers left in `folder` that were killed; nobody else may be writing there."""
    for path in folder.glob(f".*{_PART}*"):
        path.unlink(missing_ok=True)
