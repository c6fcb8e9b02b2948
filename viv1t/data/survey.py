"""What lies in a data folder: recordings by mouse, and what looks like one and cannot be used, with the reason."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from viv1t.data.formats.archive import ARCHIVES, READ, TIERS_FILE, Problem, archive_of, archive_problem, archived_key
from viv1t.data.formats.experanto.folder import experiment_key, is_experiment, numbers_of
from viv1t.data.inspect.finding import Finding
from viv1t.errors import DataError, missing_folder
from viv1t.system.files import shown
from viv1t.types import SENSORIUM_SESSIONS

STORE_FILE = "store.json"  # what makes a folder a packed session
LETTERS = {session: letter for letter, session in SENSORIUM_SESSIONS.items()}
_NUMBERS = {numbers_of(session): letter for session, letter in LETTERS.items()}  # the same mice in experanto folders


@dataclass(frozen=True)
class Survey:
    """The entries of a data folder.

    Attributes:
        sessions: the folder of each mouse's session, in the order of a run; of an archive, where it would unpack to.
        left_out: entries that no run uses though they look like recordings, and what else should not be passed over in
            silence; one finding each, with the entry's name in place of a mouse's.
    """

    sessions: dict[str, Path] = field(default_factory=dict)
    left_out: tuple[Finding, ...] = ()


def session_name(path: Path) -> str:
    """The name of a session: that of its folder where it lies, whatever a link points to."""
    return path.name if path.name not in ("", "..") else path.resolve().name


def identity(path: Path) -> tuple[str, str]:
    """Name of the mouse, and of the recording, that a folder holds, or the archive that it would be unpacked from.

    An experanto folder is known by its animal, session and scan: by the letter where it is a published mouse's, whose
    Sensorium folder is another form of the same recording.

    Raises:
        DataError: its meta.json is damaged.
    """
    name, key = session_name(path), None
    if name not in LETTERS and not path.is_dir() and (archive := archive_of(path)) is not None:
        key = archived_key(archive)
    elif name not in LETTERS and not (path / STORE_FILE).is_file() and is_experiment(path):
        key = experiment_key(path)
    if key is not None:
        letter = _NUMBERS.get(numbers_of(key))
        return (key, key) if letter is None else (letter, SENSORIUM_SESSIONS[letter])
    return LETTERS.get(name, name), name


def survey(folder: Path) -> Survey:
    """The recordings in a data folder, as folders or archives: published ones by their letters, then others by name.

    Raises:
        DataError: two entries are the same mouse.
    """
    paths: dict[str, Path] = {}
    entries: dict[str, str] = {}
    left_out = []
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            continue
        path, problem = _judged(entry)
        if path is not None:
            try:
                mouse = identity(path)[0]
            except DataError as error:
                what, _, fix = str(error).rpartition("; ")
                problem = Finding("error", shown(entry.name), (), f"not used: {what or error}", fix or "restore it")
            else:
                if mouse in paths:
                    raise DataError(
                        f"{folder}: {entries[mouse]} and {entry.name} are both mouse {mouse}; rename one of them, or "
                        "move it elsewhere"
                    )
                paths[mouse], entries[mouse] = path, entry.name
        if problem is not None:
            left_out.append(problem)
    _check_forms(folder, paths)
    ordered = sorted(paths, key=lambda mouse: (mouse not in SENSORIUM_SESSIONS, mouse))
    return Survey({mouse: paths[mouse] for mouse in ordered}, tuple(left_out))


def _check_forms(folder: Path, paths: dict[str, Path]) -> None:
    """Raises a DataError where a mouse's experanto folder lies beside another form of the same recording."""
    known: dict[str, str] = {}
    for mouse in sorted(paths, key=lambda mouse: numbers_of(mouse) != mouse):
        numbers = numbers_of(mouse)
        if numbers != mouse and numbers in known:
            raise DataError(
                f"{folder}: {paths[numbers].name} and {paths[mouse].name} are the same recording (mouse {numbers}); "
                "move one of them elsewhere"
            )
        known[numbers] = mouse


def recordings_in(folder: Path) -> Survey:
    """The same for whoever looks at recordings: one session or archive as well, and folders that lack their tiers.

    Raises:
        DataError: there is none.
    """
    if folder.suffix in READ and folder.is_file():
        return Survey({identity(folder.with_suffix(""))[0]: folder.with_suffix("")})
    if not folder.is_dir():
        raise missing_folder(folder, "give the folder that holds the recording sessions")
    if _is_session(folder) or _is_like_a_session(folder):
        return Survey({identity(folder)[0]: folder})
    found = survey(folder)
    # Training passes over folders without tiers; whoever looks at the data wants to know all about them.
    others = {f.mouse_id: folder / f.mouse_id for f in found.left_out if _is_like_a_session(folder / f.mouse_id)}
    sessions = found.sessions | {LETTERS.get(name, name): path for name, path in others.items()}
    left_out = tuple(f for f in found.left_out if f.mouse_id not in others)
    if not sessions:
        raise no_session(folder, left_out)
    return Survey({mouse: sessions[mouse] for mouse in sorted(sessions)}, left_out)


def no_session(folder: Path, left_out: Iterable[Finding], option: str = "") -> DataError:
    """What is wrong with a folder that holds nothing to use."""
    reasons = [f"{f.mouse_id}: {f.what} -> {f.fix}" for f in left_out]
    more = f"; {'; '.join(reasons[:3])}{'; ...' if len(reasons) > 3 else ''}" if reasons else ""
    found = f"holds no recording session (a folder, .zip or .tar with {TIERS_FILE}, an experanto folder, or packed)"
    return DataError(f"{option}{folder}: {found}{more}")


def _judged(entry: Path) -> tuple[Path | None, Finding | None]:
    """A session's folder, or why the entry is none though it looks like one; neither for what is something else."""
    try:
        found = _session(entry)
    except OSError as error:
        found = "error", f"cannot be read: {error.strerror or error}", "see to it that it can be read"
    if isinstance(found, Path) and shown(found.name) != found.name:
        found = "error", "its name is not UTF-8, or holds control characters", "rename it"
    if found is None or isinstance(found, Path):
        return found, None
    severity, what, fix = found
    return None, Finding(severity, shown(entry.name), (), f"not used: {what}", fix)


def _session(entry: Path) -> Path | Problem | None:
    """The session's folder that an entry is or holds, or why it is none though it looks like one."""
    if entry.is_symlink() and not os.path.exists(entry):
        what = f"a link to {shown(os.readlink(entry))}, which is not there"
        return "error", what, "fetch the recording, or remove the link"
    if entry.is_dir():
        os.scandir(entry).close()  # raises where it cannot be read
        if entry.name in LETTERS or _is_session(entry):
            return entry
        if _is_like_a_session(entry):
            return "error", f"has data/videos, but no {TIERS_FILE}", "give the tier of every trial there"
        return None
    if not entry.name.lower().endswith(ARCHIVES):
        return None
    path = entry.with_suffix("")
    if entry.suffix in READ and path.is_dir():
        return None  # unpacked before
    if entry.suffix in READ and path.name in LETTERS and entry.is_file():
        return path
    return archive_problem(entry) or path


def _is_session(folder: Path) -> bool:
    return any((folder / file).is_file() for file in (TIERS_FILE, STORE_FILE)) or is_experiment(folder)


def _is_like_a_session(folder: Path) -> bool:
    try:
        return not _is_session(folder) and (folder / "data" / "videos").is_dir()
    except OSError:
        return False
