"""Is a store still what was packed? Every byte is read again, one trial at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from viv1t.data.inspect.finding import Finding
from viv1t.data.session import VARIABLES
from viv1t.data.store.packed import META_FILE, StoreDocument, checksum, video_file
from viv1t.data.store.stack import FILES, Layout
from viv1t.data.survey import LETTERS, STORE_FILE, session_name
from viv1t.errors import DataError, missing_folder
from viv1t.system.files import open_file
from viv1t.system.progress import Progress

_AGAIN = "remove the folder and pack the recording again"


def verify(folder: Path, *, show_progress: bool = False) -> Iterator[Finding]:
    """Findings about every store of a folder, mouse by mouse.

    Args:
        folder: of stores, or one store.
        show_progress: print how far it is.

    Raises:
        DataError: the folder holds no store.
    """
    if not folder.is_dir():
        raise missing_folder(folder, "give the folder that `viv1t-data pack` has written")
    paths = [folder] if (folder / STORE_FILE).is_file() else sorted(folder.iterdir())
    stores = [path for path in paths if (path / STORE_FILE).is_file()]
    unfinished = [path for path in paths if path.name.startswith(".") and path.suffix == ".part"]
    if not stores and not unfinished:
        raise DataError(f"{folder}: holds no packed session; `viv1t-data pack` makes them")
    for path in unfinished:
        name = path.name.removeprefix(".").removesuffix(".part")
        what = "packing was interrupted"
        yield Finding("warning", LETTERS.get(name, name), (), what, "run `viv1t-data pack` again: it continues")
    for path in stores:
        name = session_name(path)
        yield from verify_store(LETTERS.get(name, name), path, show_progress=show_progress)


def verify_store(mouse_id: str, path: Path, *, show_progress: bool = False) -> Iterator[Finding]:
    """Findings about one store: checksums, shapes, lengths and durations; arguments as for `verify`."""

    def error(what: str, *trials: int) -> Finding:
        return Finding("error", mouse_id, trials, what, _AGAIN)

    try:
        document, written = StoreDocument.read(path)
    except DataError as failure:
        yield error(str(failure).rpartition("; ")[0])
        return
    if written != document.own_checksum:
        yield error(f"{STORE_FILE} was changed after packing")
    meta = path / META_FILE
    if not meta.is_file():
        yield error(f"{META_FILE} is missing")
    elif checksum(meta.read_bytes()) != document.meta:
        yield error(f"{META_FILE} is not what was packed: its checksum differs")
    layout = document.layout()
    progress = Progress(f"mouse {mouse_id}", len(VARIABLES) * layout.trials, "reads", show=show_progress)
    for variable in VARIABLES:
        if variable == "video" and document.has_videos:
            for what, trials in _video_problems(path, document, progress):
                yield error(what, *trials)
            continue
        problem = _header_problem(path / FILES[variable], layout, variable)
        if problem:
            yield error(problem)
            progress.step(count=layout.trials)
            continue
        changed, shifted = _changed_trials(path, document, layout, variable, progress)
        if changed:
            yield error(f"{FILES[variable]} is not what was packed: checksums differ", *changed)
        if shifted:
            yield error(f"{FILES[variable]} ends at another frame than {STORE_FILE} says", *shifted)
    progress.close()


def _video_problems(path: Path, document: StoreDocument, progress: Progress) -> Iterator[tuple[str, list[int]]]:
    """What is wrong with movies that are packed as video, and of which trials."""
    missing, changed = [], []
    sums = document.arrays[FILES["video"]]["files"]
    for trial, expected in zip(document.trials, sums, strict=True):
        try:
            with open_file(video_file(path, trial)) as file:
                if checksum(file.read()) != expected:
                    changed.append(trial)
        except (OSError, DataError):
            missing.append(trial)
        progress.step()
    if missing:
        yield "videos are missing or cannot be read", missing
    if changed:
        yield "videos are not what was packed: checksums differ", changed


def _header_problem(path: Path, layout: Layout, variable: str) -> str | None:
    """What is wrong with a file as a whole."""
    header = layout.header(variable)
    try:
        with open_file(path) as file:
            found = file.read(len(header))
        size = path.stat().st_size
    except FileNotFoundError:
        return f"{path.name} is missing"
    except (OSError, DataError) as error:
        return f"{path.name} cannot be read: {error}"
    if found != header:
        return f"{path.name} is no array of shape {layout.shape(variable)} and type {layout.dtypes[variable]}"
    if size != layout.file_bytes(variable):
        return f"{path.name} has {size} bytes instead of {layout.file_bytes(variable)}"
    return None


def _changed_trials(
    path: Path, document: StoreDocument, layout: Layout, variable: str, progress: Progress
) -> tuple[list[int], list[int]]:
    """Trials whose bytes are not those that were packed, and trials whose padding starts at another frame."""
    changed, shifted = [], []
    dtype, size = layout.dtypes[variable], layout.trial_bytes(variable)
    sums = document.arrays[FILES[variable]]["checksums"]
    with open(path / FILES[variable], "rb") as file:
        file.seek(len(layout.header(variable)))
        for trial, duration, expected in zip(document.trials, document.durations, sums, strict=True):
            data = file.read(size)
            if checksum(data) != expected:
                changed.append(trial)
            elif dtype.kind == "f":  # zeros after the end of a movie in uint8 may be its own
                known = np.isfinite(np.frombuffer(data, dtype).reshape(layout.frames, -1)).all(axis=1)
                if not known[:duration].all() or known[duration:].any():
                    shifted.append(trial)
            progress.step()
    return changed, shifted
