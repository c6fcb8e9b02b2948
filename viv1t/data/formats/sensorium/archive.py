"""Recordings that lie in the data folder as `<session>.zip`: unpacked once, safely, whole or not at all."""

from __future__ import annotations

import glob
import os
import secrets
import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from viv1t.errors import DataError
from viv1t.system.files import sync_folder
from viv1t.system.locks import Lock, NoLocksError

TIERS_FILE = "meta/trials/tiers.npy"  # what makes a folder a session
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".7z", ".rar")  # what may hold a recording
MAX_BYTES = 128 << 30  # unpacked: a published mouse has about 9 GiB
MAX_FILES = 100_000
MAX_RATIO = 200  # unpacked to packed; withheld responses are all zero and alone reach 1000
RATIO_FREE = 256 << 20  # unpacked bytes below which the ratio does not matter
_CHUNK = 1 << 20


def extract_session(zip_path: Path) -> Path:
    """Unpacks a session's archive beside itself.

    The archive holds the session's folder at its top, or the folder's contents directly. Processes that do this at the
    same time wait for the first; without locks on their disk the first to finish wins. An existing folder is left as it
    is.

    Args:
        zip_path: `<folder>/<session>.zip`.

    Returns:
        `<folder>/<session>`, complete.

    Raises:
        DataError: the archive is damaged, is not a session, would write outside its folder, holds links, or
            would unpack to implausibly much.
    """
    target = zip_path.with_suffix("")
    with _locked(zip_path) as alone:
        if target.is_dir():
            return target
        prefix = f".{target.name}."
        if alone:  # what an interrupted process left
            for left in target.parent.glob(f"{glob.escape(prefix)}*.part"):
                shutil.rmtree(left, ignore_errors=True)
        part = target.parent / f"{prefix}{secrets.token_hex(8)}.part"
        try:
            part.mkdir()
            with zipfile.ZipFile(zip_path) as archive:
                for info, name in _entries(archive, zip_path):
                    _extract(archive, info, part / name)
            for folder, _, _ in os.walk(part):
                sync_folder(Path(folder))
            os.rename(part, target)
            sync_folder(target.parent)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, struct.error) as error:
            raise DataError(f"{zip_path}: damaged or unsupported archive ({error}); download it again") from error
        except OSError as error:
            if not target.is_dir():  # else another process, without the lock, was first
                raise DataError(f"{zip_path}: cannot be unpacked to {target}: {error}") from error
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return target


Problem = tuple[str, str, str]  # severity, what was found, what to do: as of a `Finding`


def archive_problem(path: Path) -> Problem | None:
    """Why a file cannot be unpacked as `<session>.zip`; None where it can be tried."""
    if not stat.S_ISREG(path.stat().st_mode):
        return "error", "is no regular file", "remove it, or put the archive there"
    if path.suffix != ".zip":
        fix = f"rename it to {path.stem}.zip" if path.suffix.lower() == ".zip" else "unpack it here"
        return "error", "archives of this name are not read, those of the ending .zip are", fix
    try:
        with zipfile.ZipFile(path) as archive:
            return _no_session(archive.namelist())
    except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError, RuntimeError, struct.error) as error:
        return "error", f"is damaged, cut short or no zip archive ({error})", "download it again, or make it anew"


def _no_session(names: list[str]) -> Problem | None:
    """Why an archive with these entries holds no session that can be unpacked."""
    if _prefix(names) is not None:
        return None
    found = _prefixes([name.replace("\\", "/") for name in names])
    if not found:
        inside = [name for name in names if name.lower().endswith(ARCHIVES)]
        if inside:
            return "error", f"holds no session, but the archive {inside[0]}", "unpack it, and put what it holds here"
        what = f"holds no session ({TIERS_FILE}, at the top or in a folder)"
        return "warning", what, "move it elsewhere, or give what is missing"
    if any("\\" in name for name in names):
        fix = "make the archive anew with another program, or put the folder here"
        return "error", "separates folders by backslashes", fix
    if len(found) > 1:
        words = ", ".join(prefix.rstrip("/") or "the top" for prefix in found[:3])
        return "error", f"holds {len(found)} sessions ({words})", "unpack it, or make an archive of each"
    what = f"holds its session in {found[0].rstrip('/')}, too deep"
    return "error", what, "unpack it, and put the session's own folder here"


def _prefixes(names: list[str]) -> list[str]:
    """The folders in an archive that hold sessions, "" for the top."""
    return [name[: -len(TIERS_FILE)] for name in names if name == TIERS_FILE or name.endswith("/" + TIERS_FILE)]


def _prefix(names: list[str]) -> str | None:
    """The folder inside the archive that holds its one session; None where there is none, or more."""
    prefixes = [prefix for prefix in _prefixes(names) if prefix.count("/") <= 1]
    return prefixes[0] if len(prefixes) == 1 else None


def _entries(archive: zipfile.ZipFile, zip_path: Path) -> list[tuple[zipfile.ZipInfo, PurePosixPath]]:
    """The archive's checked files with their paths below the session's folder."""
    infos = archive.infolist()
    for info in infos:
        path = PurePosixPath(info.filename.replace("\\", "/"))
        kind = stat.S_IFMT(info.external_attr >> 16)
        if path.is_absolute() or ".." in path.parts:
            raise DataError(f"{zip_path}: the entry {info.filename!r} points outside its folder; do not trust it")
        if "\\" in info.filename:
            raise DataError(
                f"{zip_path}: the entry {info.filename!r} separates folders by backslashes; make the archive anew with "
                "another program, or put the unpacked folder beside it"
            )
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise DataError(f"{zip_path}: the entry {info.filename!r} is a link or a device; do not trust it")
    total = sum(info.file_size for info in infos)
    packed = max(1, zip_path.stat().st_size)
    if len(infos) > MAX_FILES or total > MAX_BYTES or (total > RATIO_FREE and total > MAX_RATIO * packed):
        raise DataError(
            f"{zip_path}: {packed} bytes would unpack to {total} bytes in {len(infos)} files, more than a recording "
            f"can have (at most {MAX_BYTES} bytes, {MAX_FILES} files, {MAX_RATIO} times the archive); unpack it by "
            "hand if you trust it"
        )
    free = shutil.disk_usage(zip_path.parent).free
    if total > free:
        raise DataError(f"{zip_path}: needs {total} bytes unpacked, but {zip_path.parent} has {free} bytes free")
    prefix = _prefix(archive.namelist())
    if prefix is None:
        _, what, fix = _no_session(archive.namelist()) or ("", "", "")
        raise DataError(f"{zip_path}: expected one session ({TIERS_FILE}), at the top or in a folder: {what}; {fix}")
    files = [i for i in infos if not i.is_dir() and i.filename.startswith(prefix)]
    named = [(info, PurePosixPath(info.filename[len(prefix) :])) for info in files]
    if len({name for _, name in named}) < len(named):
        raise DataError(f"{zip_path}: holds the same file twice; make the archive anew")
    return [(info, name) for info, name in named if not name.name.startswith("._")]


def _extract(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> None:
    """One file; the reader stops at the size the directory of the archive declares, and checks the sum."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(info) as source, open(path, "xb") as sink:
        shutil.copyfileobj(source, sink, _CHUNK)
        if sink.tell() != info.file_size:
            raise zipfile.BadZipFile(f"{info.filename} ends after {sink.tell()} of {info.file_size} bytes")
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
