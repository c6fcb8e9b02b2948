"""What a folder of recordings holds, read from headers and the movies' first pixels."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from viv1t.data.formats.archive import archive_of
from viv1t.data.inspect.finding import LONG
from viv1t.data.mice import open_recording
from viv1t.data.rules import Rules
from viv1t.data.session import Session
from viv1t.data.survey import recordings_in
from viv1t.errors import DataError
from viv1t.stimuli.decode import is_video
from viv1t.types import MAX_FRAMES, TIERS

logger = logging.getLogger("viv1t")


@dataclass(frozen=True)
class SessionInfo:
    """Summary of one mouse on disk.

    Attributes:
        mouse_id: its name.
        path: the session's folder, or its archive while it is packed.
        size: bytes on disk.
        neurons: N; 0 where unknown.
        frame_size: (H, W) of the movies in pixels; (0, 0) where unknown.
        trials: number of trials of each tier that occurs, `none` included.
        durations: recorded frames of every readable trial of a tier that is used.
        hidden: tiers whose first response is zero throughout: withheld, as far as one trial can tell.
        note: what else is to be known, or in the way of knowing more; "" for nothing.
    """

    mouse_id: str
    path: Path
    size: int
    neurons: int = 0
    frame_size: tuple[int, int] = (0, 0)
    trials: Counter[str] = field(default_factory=Counter)
    durations: tuple[int, ...] = ()
    hidden: frozenset[str] = frozenset()
    note: str = ""


def sessions_in(folder: Path) -> dict[str, Path]:
    """The sessions of a data folder by mouse, or the one that the folder or archive itself is; names what is left out.

    Raises:
        DataError: there is none.
    """
    found = recordings_in(folder)
    for finding in found.left_out:
        logger.warning("%s", finding.line)
    return found.sessions


def session_info(mouse_id: str, path: Path, rules: Rules | None = None) -> SessionInfo:
    """Summary of one session; damage shortens it instead of raising, and an archive stays packed."""
    if not path.is_dir() and (archive := archive_of(path)) is not None:
        return SessionInfo(mouse_id, archive, archive.stat().st_size, note="packed")
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    try:
        session = open_recording(path, mouse_id, rules)
    except DataError as error:
        return SessionInfo(mouse_id, path, size, note=str(error))
    durations: list[int] = []
    unreadable = 0
    videos = 0
    for trial, tier in session.tiers.items():
        if tier in TIERS:
            videos += is_video(session.file("video", trial))
            try:
                durations.append(session.duration(trial))
            except DataError:
                unreadable += 1
    notes = [f"the movies of {videos} trials are video files"] if videos else []
    if durations and max(durations) > MAX_FRAMES:
        notes.append(LONG.what.format(frames=max(durations)))
    if unreadable:
        notes.append(f"{unreadable} trials cannot be read: `viv1t-data check` names them")
    try:
        frame_size = session.frame_size
    except DataError:
        frame_size = (0, 0)
    return SessionInfo(
        mouse_id,
        path,
        size,
        neurons=session.mouse.neurons,
        frame_size=frame_size,
        trials=Counter(session.tiers.values()),
        durations=tuple(durations),
        hidden=frozenset(tier for tier in TIERS if _first_response_is_zero(session, tier)),
        note="; ".join(notes),
    )


def _first_response_is_zero(session: Session, tier: str) -> bool:
    trials = session.trials(tier)
    if not trials:
        return False
    try:
        if session.computed:
            return session.lacks_response(trials[0]) or not session.read("response", trials[0]).any()
        return not session.place("response", trials[0]).map()[:, : session.duration(trials[0])].any()
    except (DataError, OSError, ValueError, IndexError):
        return False


def format_table(sessions: Sequence[SessionInfo]) -> str:
    """Summaries as a table, a line per mouse, and a line of sums where there are several."""
    known = (*TIERS, "none")
    others = sorted({tier for s in sessions for tier in s.trials} - set(known))
    tiers = [tier for tier in (*known, *others) if any(s.trials[tier] for s in sessions)]
    head = ["mouse", "neurons", "frame", *(t.replace("_test", "") for t in tiers), "frames", "on disk", "session"]
    rows = [head]
    for s in sessions:
        counts = [f"{s.trials[t]}{'*' if t in s.hidden else ''}" if s.trials[t] else "-" for t in tiers]
        frames = f"{min(s.durations)}-{median(s.durations):.0f}-{max(s.durations)}" if s.durations else "-"
        size = f"{s.frame_size[0]} x {s.frame_size[1]}" if all(s.frame_size) else "-"
        rows.append(
            [s.mouse_id, f"{s.neurons:,}" if s.neurons else "-", size, *counts, frames, _bytes(s.size), s.path.name]
        )
    if len(sessions) > 1:
        sums = [str(sum(s.trials[t] for s in sessions)) for t in tiers]
        neurons = f"{sum(s.neurons for s in sessions):,}"
        rows.append(["all", neurons, "", *sums, "", _bytes(sum(s.size for s in sessions)), ""])
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    left = {0, len(head) - 1}
    lines = [
        "  ".join(
            cell.ljust(w) if i in left else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    lines = [line.rstrip() for line in lines]
    lines.append("frames: least-median-most recorded frames of a trial")
    if any(s.hidden for s in sessions):
        lines.append("*: responses are withheld (zero)")
    lines += [f"mouse {s.mouse_id}: {s.note}" for s in sessions if s.note]
    return "\n".join(lines)


def _bytes(count: int) -> str:
    size = float(count)
    for unit in ("B", "KiB", "MiB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
