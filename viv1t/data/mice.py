"""The mice of a run: their recordings found in a data folder and opened, in whatever form they lie there."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from viv1t.config.data import DataConfig
from viv1t.data.formats.archive import archive_of, extract_session
from viv1t.data.formats.experanto.folder import is_experiment
from viv1t.data.formats.experanto.session import ExperantoSession
from viv1t.data.formats.sensorium.session import RawSession
from viv1t.data.rules import Rules
from viv1t.data.session import Session
from viv1t.data.store.packed import PackedSession
from viv1t.data.survey import LETTERS, STORE_FILE, Survey, identity, no_session, survey
from viv1t.errors import ConfigError, DataError, missing_folder
from viv1t.types import NEW_MICE, OLD_MICE, SENSORIUM_SESSIONS

logger = logging.getLogger("viv1t")


def open_recording(path: Path, mouse_id: str | None = None, rules: Rules | None = None) -> Session:
    """Opens a session's folder, as recorded or packed; where there is only `<path>.zip` or `.tar`, unpacks it first.

    Args:
        path: folder, or its archive.
        mouse_id: name of the mouse; default the letter of a published session, else the folder's name, or that of the
            recording in an experanto folder.
        rules: how it becomes trials, where it leaves a choice; a packed one does not.

    Raises:
        DataError: what describes the session is missing, damaged or inconsistent.
    """
    path = Path(path)
    if not path.is_dir() and (archive := archive_of(path)) is not None:
        mouse_id = mouse_id or identity(archive.with_suffix(""))[0]
        path = extract_session(archive)
    if not path.is_dir():
        raise DataError(f"{path}: no such recording: expected this folder, or {path.name}.zip or .tar beside it")
    known, session = identity(path)
    mouse, rules = mouse_id or known, rules or Rules()
    if (path / STORE_FILE).is_file():
        return PackedSession.open_folder(path, mouse)
    if is_experiment(path):
        return ExperantoSession.open_folder(path, mouse, session, rules)
    return RawSession.open_folder(path, mouse, rules.missing)


def find_sessions(config: DataConfig) -> dict[str, Session]:
    """The mice of a run: published ones in the order of their letters, then others by name.

    Raises:
        ConfigError: `--mouse_ids` names a mouse that is not there or not in `--ds_mode`.
        DataError: the folder or a session that is needed is missing or damaged.
    """
    return choose_sessions(
        Path(config.path), config.mouse_ids, config.mice, Rules.of(config), data="--data ", ids="--mouse_ids"
    )


def choose_sessions(
    folder: Path,
    mouse_ids: Sequence[str] | None = None,
    mice: str = "all",
    rules: Rules | None = None,
    *,
    data: str = "",
    ids: str = "mouse_ids",
) -> dict[str, Session]:
    """Opens the mice of a data folder, in the order of a run, and names what is left out.

    Args:
        folder: of recordings.
        mouse_ids: these mice only, by letter or by the name of their session; default all.
        mice: `all`, `all_with_test`, or the five `old` or five `new` ones of the challenge.
        rules: how recordings become trials, where they leave a choice.
        data, ids: what errors call the folder and the choice.

    Raises:
        ConfigError: a mouse is chosen that is not there, or not one of `mice`.
        DataError: the folder or a session that is needed is missing or damaged.
    """
    if not folder.is_dir():
        raise missing_folder(folder, "give the folder that holds the recording sessions", option=data)
    surveyed = survey(folder)
    found = surveyed.sessions
    five: tuple[str, ...] | None = {"old": OLD_MICE, "new": NEW_MICE}.get(mice)
    chosen = allowed = tuple(found) if five is None else five
    if mouse_ids is not None:
        wanted = {LETTERS.get(name, name) for name in mouse_ids}
        if unknown := sorted(wanted - set(allowed)):
            for finding in surveyed.left_out:
                if finding.mouse_id.partition(".")[0] in unknown or finding.mouse_id in unknown:
                    raise DataError(f"{ids} {finding.mouse_id}: {finding.what}; {finding.fix}")
            where = f"in {folder}, which holds" if five is None else "among the mice of this --ds_mode, which are"
            raise ConfigError(f"{ids} {', '.join(unknown)}: not {where} {', '.join(allowed) or 'none'}")
        chosen = tuple(mouse for mouse in allowed if mouse in wanted)
    if missing := [mouse for mouse in chosen if mouse not in found]:
        names = ", ".join(f"{mouse} ({SENSORIUM_SESSIONS[mouse]})" for mouse in missing)
        there = [mouse for mouse in chosen if mouse in found]
        advice = f"{ids} {' '.join(there)}" if there else "--ds_mode 2"
        raise DataError(f"{data}{folder}: missing mice {names}; {advice} uses what is there")
    if not chosen:
        raise no_session(folder, surveyed.left_out, option=data)
    if mouse_ids is None:
        _name_left_out(surveyed)
    absent = [mouse for mouse in SENSORIUM_SESSIONS if mouse not in found]
    if five is None and mouse_ids is None and 0 < len(absent) < len(SENSORIUM_SESSIONS):
        logger.warning("%s%s: of the ten published mice, %s are not there", data, folder, ", ".join(absent))
    return {mouse: open_recording(found[mouse], mouse, rules) for mouse in chosen}


def discover(folder: Path) -> dict[str, Path]:
    """Every session in the folder, as a folder or as an archive, in the order of a run; names what is left out.

    Raises:
        DataError: two entries are the same mouse.
    """
    found = survey(folder)
    _name_left_out(found)
    return found.sessions


def _name_left_out(found: Survey) -> None:
    for finding in found.left_out:
        logger.warning("%s", finding.line)
