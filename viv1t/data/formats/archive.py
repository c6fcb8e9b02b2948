"""Recordings that lie in the data folder as `<session>.zip` or `<session>.tar`: unpacked once, safely, whole or not."""

from __future__ import annotations

import glob
import json
import os
import secrets
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, Protocol

from viv1t.data.formats.experanto.folder import key_of
from viv1t.errors import DataError
from viv1t.system.files import sync_folder
from viv1t.system.locks import Lock, NoLocksError

TIERS_FILE = "meta/trials/tiers.npy"  # what makes a folder a session
SCREEN_FILE = "screen/meta.yml"  # what makes one an experiment
READ = (".zip", ".tar")  # archives that are unpacked
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".7z", ".rar")  # what may hold a recording
MAX_BYTES = 128 << 30  # unpacked: a published mouse has about 9 GiB
MAX_FILES = 100_000
MAX_RATIO = 200  # unpacked to packed; withheld responses are all zero and alone reach 1000
RATIO_FREE = 256 << 20  # unpacked bytes below which the ratio does not matter
_MAX_JSON = 1 << 20  # bytes of a recording's meta.json
_CHUNK = 1 << 20
_BLOCK = 512  # bytes, of a tar file
# What damaged archives raise.
_DAMAGE = (
    zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, NotImplementedError, RuntimeError, struct.error,
    ValueError, OverflowError,
)  # fmt: skip


@dataclass(frozen=True)
class _Entry:
    """One entry of an archive.

    Attributes:
        name: as it is written there.
        size: bytes of its content.
        folder: whether it is a folder.
        plain: whether it is a folder or a file, and not a link, a device or a file with holes.
        member: what the archive's reader calls it.
    """

    name: str
    size: int
    folder: bool
    plain: bool
    member: Any

    @property
    def path(self) -> str:
        """Its name without `./` and the like."""
        return str(PurePosixPath(self.name))


class _Archive(Protocol):
    entries: list[_Entry]

    def open(self, entry: _Entry) -> IO[bytes]: ...
    def close(self) -> None: ...


class _Zip:
    """A zip file, whose directory says what it holds, with checksums."""

    def __init__(self, path: Path) -> None:
        self._file = zipfile.ZipFile(path)
        self.entries = [
            _Entry(
                info.filename, info.file_size, info.is_dir(),
                stat.S_IFMT(info.external_attr >> 16) in (0, stat.S_IFREG, stat.S_IFDIR), info,
            )
            for info in self._file.infolist()
        ]  # fmt: skip

    def open(self, entry: _Entry) -> IO[bytes]:
        return self._file.open(entry.member)

    def close(self) -> None:
        self._file.close()


class _Tar:
    """A tar file, uncompressed. Its headers are read one after the other, to the mark of its end."""

    def __init__(self, path: Path) -> None:
        self._file = tarfile.open(path, "r:")  # noqa: SIM115
        try:
            self.entries = self._entries()
            with open(path, "rb") as file:
                file.seek(self._file.offset)  # where the reader takes damage, too, for the end
                if len(self.entries) <= MAX_FILES and file.read(_BLOCK) != bytes(_BLOCK):
                    raise tarfile.ReadError("its end is missing")
        except BaseException:
            self._file.close()
            raise

    def _entries(self) -> list[_Entry]:
        entries: list[_Entry] = []
        for info in self._file:
            if info.size < 0:
                raise tarfile.ReadError(f"an entry of {info.size} bytes")
            plain = info.isdir() or (info.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and info.sparse is None)
            entries.append(_Entry(info.name, info.size, info.isdir(), plain, info))
            if len(entries) > MAX_FILES:
                break  # more than is taken
        return entries

    def open(self, entry: _Entry) -> IO[bytes]:
        file = self._file.extractfile(entry.member)
        assert file is not None  # of a regular file
        return file

    def close(self) -> None:
        self._file.close()


@contextmanager
def _opened(path: Path) -> Iterator[_Archive]:
    archive = _Tar(path) if path.suffix == ".tar" else _Zip(path)
    try:
        yield archive
    finally:
        archive.close()


def archive_of(path: Path) -> Path | None:
    """The archive that a session's folder is unpacked from, or that a path is; None where there is none."""
    if path.suffix in READ and path.is_file():
        return path
    return next((file for ending in READ if (file := path.with_name(path.name + ending)).is_file()), None)


def archived_key(archive: Path) -> str | None:
    """What the mouse of an archived experanto folder is called; None where it holds another recording, or is damaged.

    Raises:
        DataError: its meta.json is damaged.
    """
    try:
        with _opened(archive) as file:
            prefix = _prefix([entry.path for entry in file.entries], (SCREEN_FILE,))
            if prefix is None:
                return None
            meta, inside = None, archive / f"{prefix}meta.json"
            for entry in file.entries:
                if entry.path == f"{prefix}meta.json" and entry.plain and not entry.folder:
                    with file.open(entry) as source:
                        meta = json.loads(source.read(_MAX_JSON))
    except (*_DAMAGE, OSError) as error:
        if isinstance(error, json.JSONDecodeError | UnicodeDecodeError):
            raise DataError(f"{inside}: not readable as JSON: {str(error)[:200]}; download it again") from error
        return None
    return key_of(meta, archive.stem, inside)


def extract_session(archive_path: Path) -> Path:
    """Unpacks a session's archive beside itself.

    The archive holds the session's folder at its top, or the folder's contents directly. Processes that do this at the
    same time wait for the first; without locks on their disk the first to finish wins. An existing folder is left as it
    is.

    Args:
        archive_path: `<folder>/<session>.zip` or `.tar`.

    Returns:
        `<folder>/<session>`, complete.

    Raises:
        DataError: the archive is damaged, is not a session, would write outside its folder, holds links, or
            would unpack to implausibly much.
    """
    target = archive_path.with_suffix("")
    with _locked(archive_path) as alone:
        if target.is_dir():
            return target
        prefix = f".{target.name}."
        if alone:  # what an interrupted process left
            for left in target.parent.glob(f"{glob.escape(prefix)}*.part"):
                shutil.rmtree(left, ignore_errors=True)
        part = target.parent / f"{prefix}{secrets.token_hex(8)}.part"
        try:
            part.mkdir()
            with _opened(archive_path) as archive:
                for entry, name in _wanted(archive.entries, archive_path):
                    _extract(archive, entry, part / name)
            for folder, _, _ in os.walk(part):
                sync_folder(Path(folder))
            os.rename(part, target)
            sync_folder(target.parent)
        except DataError:
            raise
        except _DAMAGE as error:
            raise DataError(f"{archive_path}: damaged or unsupported archive ({error}); download it again") from error
        except OSError as error:
            if not target.is_dir():  # else another process, without the lock, was first
                raise DataError(f"{archive_path}: cannot be unpacked to {target}: {error}") from error
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return target


Problem = tuple[str, str, str]  # severity, what was found, what to do: as of a `Finding`


def archive_problem(path: Path) -> Problem | None:
    """Why a file cannot be unpacked as `<session>.zip` or `.tar`; None where it can be tried."""
    if not stat.S_ISREG(path.stat().st_mode):
        return "error", "is no regular file", "remove it, or put the archive there"
    if path.suffix not in READ:
        plain = path.suffix.lower()
        fix = f"rename it to {path.stem}{plain}" if plain in READ else "unpack it here"
        return "error", "archives of this name are not read, those of the endings .zip and .tar are", fix
    try:
        with _opened(path) as archive:
            return _no_session([entry.path for entry in archive.entries])
    except _DAMAGE as error:
        what = f"is damaged, cut short or no {path.suffix[1:]} archive ({error})"
        return "error", what, "download it again, or make it anew"


def _no_session(names: Sequence[str]) -> Problem | None:
    """Why an archive with these entries holds no session that can be unpacked."""
    if _prefix(names) is not None:
        return None
    found = _prefixes([name.replace("\\", "/") for name in names])
    if not found:
        inside = [name for name in names if name.lower().endswith(ARCHIVES)]
        if inside:
            return "error", f"holds no session, but the archive {inside[0]}", "unpack it, and put what it holds here"
        what = f"holds no session ({TIERS_FILE} or {SCREEN_FILE}, at the top or in a folder)"
        return "warning", what, "move it elsewhere, or give what is missing"
    if any("\\" in name for name in names):
        fix = "make the archive anew with another program, or put the folder here"
        return "error", "separates folders by backslashes", fix
    if len(found) > 1:
        words = ", ".join(prefix.rstrip("/") or "the top" for prefix in found[:3])
        return "error", f"holds {len(found)} sessions ({words})", "unpack it, or make an archive of each"
    what = f"holds its session in {found[0].rstrip('/')}, too deep"
    return "error", what, "unpack it, and put the session's own folder here"


def _prefixes(names: Sequence[str], marks: Sequence[str] = (TIERS_FILE, SCREEN_FILE)) -> list[str]:
    """The folders in an archive that hold sessions, "" for the top."""
    found: list[str] = []
    for mark in marks:
        of_mark = [name[: -len(mark)] for name in names if name == mark or name.endswith("/" + mark)]
        found += [prefix for prefix in of_mark if prefix not in found] if found else of_mark
    return found


def _prefix(names: Sequence[str], marks: Sequence[str] = (TIERS_FILE, SCREEN_FILE)) -> str | None:
    """The folder inside the archive that holds its one session; None where there is none, or more."""
    prefixes = [prefix for prefix in _prefixes(names, marks) if prefix.count("/") <= 1]
    return prefixes[0] if len(prefixes) == 1 else None


def _wanted(entries: Sequence[_Entry], path: Path) -> list[tuple[_Entry, PurePosixPath]]:
    """The archive's checked files with their paths below the session's folder."""
    for entry in entries:
        place = PurePosixPath(entry.name.replace("\\", "/"))
        if place.is_absolute() or ".." in place.parts:
            raise DataError(f"{path}: the entry {entry.name!r} points outside its folder; do not trust it")
        if "\\" in entry.name:
            raise DataError(
                f"{path}: the entry {entry.name!r} separates folders by backslashes; make the archive anew with "
                "another program, or put the unpacked folder beside it"
            )
        if not entry.plain:
            raise DataError(f"{path}: the entry {entry.name!r} is a link or a device; do not trust it")
    total = sum(entry.size for entry in entries)
    packed = max(1, path.stat().st_size)
    if len(entries) > MAX_FILES or total > MAX_BYTES or (total > RATIO_FREE and total > MAX_RATIO * packed):
        raise DataError(
            f"{path}: {packed} bytes would unpack to {total} bytes in {len(entries)} files, more than a recording "
            f"can have (at most {MAX_BYTES} bytes, {MAX_FILES} files, {MAX_RATIO} times the archive); unpack it by "
            "hand if you trust it"
        )
    free = shutil.disk_usage(path.parent).free
    if total > free:
        raise DataError(f"{path}: needs {total} bytes unpacked, but {path.parent} has {free} bytes free")
    names = [entry.path for entry in entries]
    prefix = _prefix(names)
    if prefix is None:
        _, what, fix = _no_session(names) or ("", "", "")
        raise DataError(
            f"{path}: expected one session ({TIERS_FILE} or {SCREEN_FILE}), at the top or in a folder: {what}; {fix}"
        )
    files = [entry for entry in entries if not entry.folder and entry.path.startswith(prefix)]
    named = [(entry, PurePosixPath(entry.path[len(prefix) :])) for entry in files]
    if len({name for _, name in named}) < len(named):
        raise DataError(f"{path}: holds the same file twice; make the archive anew")
    return [(entry, name) for entry, name in named if not name.name.startswith("._")]


def _extract(archive: _Archive, entry: _Entry, path: Path) -> None:
    """One file; it must have the size that the archive says, and a zip file's checksum."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(entry) as source, open(path, "xb") as sink:
        shutil.copyfileobj(source, sink, _CHUNK)
        if sink.tell() != entry.size:
            raise EOFError(f"{entry.name} ends after {sink.tell()} of {entry.size} bytes")
        sink.flush()
        os.fsync(sink.fileno())


@contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Holds the only lock for unpacking a file; False where the file system has no locks."""
    lock = None
    try:
        with open(path, "rb"):  # before a lock is made for what cannot be read
            pass
        lock = Lock(path.with_name(f".{path.name}.lock"), wait=True)
    except NoLocksError:
        pass
    except OSError as error:
        what = "cannot be unpacked here" if os.access(path, os.R_OK) else "cannot be read"
        raise DataError(f"{path}: {what}: {error.strerror or error}") from error
    try:
        yield lock is not None
    finally:
        if lock is not None:
            lock.release()
