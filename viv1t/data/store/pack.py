"""Packing: a recorded session becomes a packed one, trial by trial, resumable, whole or not at all."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import monotonic

import numpy as np
import safetensors.numpy

from viv1t.data.formats.sensorium.trial_video import write_trial
from viv1t.data.inspect.info import sessions_in
from viv1t.data.mice import open_recording
from viv1t.data.rules import Rules
from viv1t.data.session import COORDINATES_FILE, UNIT_IDS_FILE, VARIABLES, Session
from viv1t.data.statistics import computed_statistics, provided_statistics, statistics_tensors
from viv1t.data.store.packed import META_FILE, VERSION, StoreDocument, checksum, video_file
from viv1t.data.store.stack import FILES, Layout, NotWholeError, StackWriter, holds_whole_numbers, stacked
from viv1t.data.survey import LETTERS, STORE_FILE
from viv1t.errors import ConfigError, DataError
from viv1t.system.files import replacing, sync_folder, write_text
from viv1t.system.locks import Lock, LockedError, NoLocksError
from viv1t.system.progress import Progress
from viv1t.types import TEST_TIERS, TIERS

logger = logging.getLogger("viv1t")

SAVE_SECONDS = 5.0  # between notes of how far it is: what an interruption costs at most


@dataclass(frozen=True)
class Packed:
    """What became of one mouse.

    Attributes:
        mouse_id: whose recording.
        path: the store's folder.
        document: what `store.json` says.
        size: bytes of its files.
        fresh: whether it was packed just now, and not before.
    """

    mouse_id: str
    path: Path
    document: StoreDocument
    size: int
    fresh: bool


def pack(
    source: Path,
    out: Path,
    mouse_ids: Sequence[str] | None = None,
    responses: str = "float32",
    *,
    video: bool = False,
    rules: Rules | None = None,
    show_progress: bool = False,
) -> Iterator[Packed]:
    """Packs the sessions of a folder, mouse by mouse; what is packed already is left as it is.

    Args:
        source: folder of recorded sessions, or one session.
        out: folder of the stores.
        mouse_ids: letters or session names; default all.
        responses: float32, or float16 for half the size.
        video: movies as lossless video, a file for each trial.
        rules: how recordings become trials, where they leave a choice.
        show_progress: print how far it is.

    Raises:
        ConfigError: `mouse_ids` names a mouse that is not there, or `responses` another type.
        DataError: a recording is damaged, the space is short, a folder of that name holds something else, or `video` is
            asked for and grey levels are not whole numbers from 0 to 255.
    """
    if responses not in ("float32", "float16"):
        raise ConfigError(f"--responses must be float32 or float16, not {responses}")
    found = sessions_in(source)
    chosen = list(found)
    if mouse_ids is not None:
        chosen = [LETTERS.get(name, name) for name in mouse_ids]
        if unknown := [mouse for mouse in chosen if mouse not in found]:
            raise ConfigError(f"--mouse_ids {', '.join(unknown)}: {source} holds {', '.join(found)}")
    for mouse in chosen:
        yield _Packing(open_recording(found[mouse], mouse, rules), out, responses, show_progress, video).run()


@dataclass
class _State:
    """How far a packing is; kept beside the unfinished store."""

    fingerprint: str
    video: str
    done: int = 0
    checksums: dict[str, list[str]] = field(default_factory=lambda: {variable: [] for variable in VARIABLES})
    silent: list[bool] = field(default_factory=list)
    files: list[str] = field(default_factory=list)  # checksums of the videos
    largest_error: float = 0.0
    error_sum: float = 0.0
    error_count: int = 0


class _Packing:
    """One mouse being packed."""

    def __init__(
        self, session: Session, out: Path, responses: str, show_progress: bool, video: bool = False
    ) -> None:
        self.session, self.responses, self.video, self.show_progress = session, responses, video, show_progress
        self.stacked = [v for v in VARIABLES if not (video and v == "video")]
        name = session.mouse.session
        self.target, self.part = out / name, out / f".{name}.part"
        self.notes = out / f".{name}.progress"
        self.trials = [trial for trial, tier in session.tiers.items() if tier in TIERS]
        if not self.trials:
            raise DataError(f"mouse {session.mouse.id}: {session.path}: no trial of a tier that is used")

    def run(self) -> Packed:
        fingerprint = self._fingerprint()
        if self.target.exists():
            return self._already(fingerprint)
        with self._alone():
            state = self._load(fingerprint)
            while True:
                try:
                    self._write_trials(state)
                    break
                except NotWholeError as error:  # grey levels beyond uint8 turned up: from the start again
                    if self.video:
                        raise self._not_whole() from error
                    state = _State(fingerprint, video="float32")
            document = self._finish(state)
        return Packed(self.session.mouse.id, self.target, document, _size(self.target), fresh=True)

    def _already(self, fingerprint: str) -> Packed:
        mouse = self.session.mouse.id
        if not (self.target / STORE_FILE).is_file():
            raise DataError(f"mouse {mouse}: {self.target} exists and is no packed session; give another folder")
        document, _ = StoreDocument.read(self.target)
        if document.source.get("fingerprint") != fingerprint:
            raise DataError(
                f"mouse {mouse}: {self.target} was packed from other files or with other options; give another folder, "
                "or remove it"
            )
        return Packed(mouse, self.target, document, _size(self.target), fresh=False)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        self.part.mkdir(parents=True, exist_ok=True)
        try:
            lock = Lock(self.part.with_suffix(".lock"))
        except LockedError as error:
            holder = f" ({error.holder})" if error.holder else ""
            raise DataError(f"{self.part}: another process is packing this mouse{holder}; wait for it") from error
        except NoLocksError as error:
            raise DataError(
                f"{self.part}: its disk has no file locks ({error.strerror}), so nothing would keep a second process "
                "out; pack to a folder on another disk"
            ) from error
        try:
            for left in self.part.rglob(".*"):  # half-written, by a process that was killed
                left.unlink()
            yield
        finally:
            lock.release()

    def _fingerprint(self) -> str:
        """A digest of everything the store depends on."""
        files = self.session.files(self.trials)
        files += [self.session.path / name for name in (COORDINATES_FILE, UNIT_IDS_FILE)]
        known = []
        for file in files:
            try:
                status = file.stat()
                known.append((status.st_size, status.st_mtime_ns))
            except OSError:
                known.append((-1, -1))  # reading it will say what is wrong
        name, tiers = self.session.mouse.session, list(self.session.tiers.values())
        text = json.dumps([VERSION, self.responses, name, tiers, known, *(["video"] if self.video else []),
                           *filter(None, [self.session.reading])])  # fmt: skip
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    # -- the trials ----------------------------------------------------------------------------------------------------

    def _layout(self, video: str) -> Layout:
        frames = max(self.session.duration(trial) for trial in self.trials)
        return Layout.of(self.session, len(self.trials), frames, video, self.responses)

    def _load(self, fingerprint: str) -> _State:
        """How far an interrupted packing of the same files came."""
        try:
            state = _State(**json.loads(self.notes.read_text(encoding="utf-8")))
            layout = self._layout(state.video)
            sizes = {v: (self.part / FILES[v]).stat().st_size for v in self.stacked}
            if state.fingerprint == fingerprint and sizes == {v: layout.file_bytes(v) for v in self.stacked}:
                return state
        except (OSError, ValueError, TypeError):
            pass
        whole = holds_whole_numbers(self.session, self.trials[0])
        if self.video and not whole:
            raise self._not_whole()
        return _State(fingerprint, "uint8" if whole else "float32")

    def _not_whole(self) -> DataError:
        return DataError(
            f"mouse {self.session.mouse.id}: {self.session.path}: grey levels are not all whole numbers from 0 to 255, "
            "and video holds no others; pack without --video"
        )

    def _write_trials(self, state: _State) -> None:
        layout = self._layout(state.video)
        if not state.done:
            self._clear()
        files = {v: os.open(self.part / FILES[v], os.O_RDWR | os.O_CREAT, 0o666) for v in self.stacked}
        writer = StackWriter(layout, files)
        first = state.done
        label, left = f"mouse {self.session.mouse.id}", len(self.trials) - first
        progress = Progress(label, left, "trials", show=self.show_progress)
        start, save_at = monotonic(), monotonic() + SAVE_SECONDS
        trial_bytes = sum(layout.trial_bytes(v) for v in VARIABLES)
        try:
            if not state.done:
                writer.create()
            for index, trial in enumerate(self.trials[first:], first):
                self._write_trial(state, writer, index, trial)
                if monotonic() > save_at:
                    self._save(state, files)
                    save_at = monotonic() + SAVE_SECONDS
                rate = (state.done - first) * trial_bytes / max(monotonic() - start, 1e-9)
                progress.step(f"{rate / 1e6:.0f} MB/s")
        finally:
            progress.close()
            if state.done > first:
                self._save(state, files)
            for file in files.values():
                os.close(file)

    def _clear(self) -> None:
        """Removes what a packing with other options may have left."""
        for left in self.part.iterdir():
            if left.is_dir():
                shutil.rmtree(left)
            else:
                left.unlink()

    def _write_trial(self, state: _State, writer: StackWriter, index: int, trial: int) -> None:
        sums = {}
        files = []
        for variable in VARIABLES:
            array = self._read(variable, trial)
            block = stacked(writer.layout, self.session, variable, trial, array)
            if variable in self.stacked:
                writer.write(variable, index, block)
            else:
                files.append(self._write_video(trial, block[: self.session.duration(trial)]))
            sums[variable] = checksum(block.data.cast("B"))
            if variable == "response":
                recorded = array[:, : self.session.duration(trial)]
                silent = not recorded.any()
                if self.responses == "float16":
                    self._add_error(state, recorded, block[: recorded.shape[1]].T)
        for variable, value in sums.items():
            state.checksums[variable].append(value)
        state.files += files
        state.silent.append(silent)
        state.done = index + 1

    def _read(self, variable: str, trial: int) -> np.ndarray:
        """As recorded; responses that are withheld by leaving them out are written as zero, which says the same."""
        session = self.session
        if variable == "response" and session.tiers[trial] in TEST_TIERS and session.lacks_response(trial):
            return np.zeros((session.mouse.neurons, session.duration(trial)), np.float32)
        return session.read(variable, trial)

    def _write_video(self, trial: int, movie: np.ndarray) -> str:
        path = video_file(self.part, trial)
        with replacing(path) as temporary:
            try:
                write_trial(temporary, movie)
            except DataError as error:
                raise DataError(f"mouse {self.session.mouse.id}, trial {trial}: {error}") from error
        return checksum(path.read_bytes())

    def _add_error(self, state: _State, exact: np.ndarray, stored: np.ndarray) -> None:
        known = exact != 0
        truth = exact[known].astype(np.float64)
        relative = np.abs(stored[known] - truth) / np.abs(truth)
        if relative.size:
            state.largest_error = max(state.largest_error, float(relative.max()))
            state.error_sum += float(relative.sum())
            state.error_count += relative.size

    def _save(self, state: _State, files: dict[str, int]) -> None:
        for file in files.values():
            os.fsync(file)
        write_text(self.notes, json.dumps(asdict(state)))

    # -- what describes them -------------------------------------------------------------------------------------------

    def _finish(self, state: _State) -> StoreDocument:
        session, layout = self.session, self._layout(state.video)
        with replacing(self.part / META_FILE) as file:
            safetensors.numpy.save_file(self._meta(), file)
        document = StoreDocument(
            session=session.mouse.session,
            source={"folder": str(session.path.resolve()), "fingerprint": state.fingerprint},
            neurons=session.mouse.neurons,
            unit_ids=session.mouse.unit_ids.tolist(),
            tiers=list(session.tiers.values()),
            trials=self.trials,
            durations=[session.duration(trial) for trial in self.trials],
            arrays={
                FILES[v]: {
                    "shape": list(layout.shape(v)), "dtype": layout.dtypes[v].name, "checksums": state.checksums[v],
                    **({} if v in self.stacked else {"files": state.files}),
                }
                for v in VARIABLES
            },
            meta=checksum((self.part / META_FILE).read_bytes()),
            hidden=self._hidden(state),
            repeats=self._repeats(state),
            response_error={
                "largest": state.largest_error, "mean": state.error_sum / max(1, state.error_count),
            } if self.responses == "float16" else None,
        )  # fmt: skip
        write_text(self.part / STORE_FILE, document.to_text())
        os.rename(self.part, self.target)
        sync_folder(self.target.parent)
        self.notes.unlink(missing_ok=True)
        return document

    def _meta(self) -> dict[str, np.ndarray]:
        session = self.session
        tensors = {"coordinates": session.mouse.coordinates, "unit_ids": session.mouse.unit_ids}
        sources = {}
        if session.trials("train"):
            sources["computed"] = computed_statistics(session)
        try:
            sources["provided"] = provided_statistics(session)
        except DataError as error:
            if (session.path / "meta" / "statistics").is_dir():
                logger.warning("the provided statistics are left out: %s", error)
        for source, statistics in sources.items():
            tensors |= {f"{source}/{name}": array for name, array in statistics_tensors(statistics).items()}
        return tensors

    def _by_tier(self) -> dict[str, list[int]]:
        """Positions in the arrays of the trials of each tier."""
        tiers: dict[str, list[int]] = {}
        for index, trial in enumerate(self.trials):
            tiers.setdefault(self.session.tiers[trial], []).append(index)
        return tiers

    def _hidden(self, state: _State) -> dict[str, bool]:
        return {tier: all(state.silent[i] for i in indices) for tier, indices in self._by_tier().items()}

    def _repeats(self, state: _State) -> dict[str, list[list[int]]]:
        found = {}
        for tier, indices in self._by_tier().items():
            groups: dict[tuple[str, int], list[int]] = {}
            for i in indices:
                movie = state.checksums["video"][i], self.session.duration(self.trials[i])
                groups.setdefault(movie, []).append(self.trials[i])
            found[tier] = list(groups.values())
        return found


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
