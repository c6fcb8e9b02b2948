"""Validates a folder of recordings before a day is spent on it.

Every array of every trial that is used is read once, one at a time, so that memory stays that of one array. Damage is
reported, never raised.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from viv1t.data.formats.archive import TIERS_FILE
from viv1t.data.formats.experanto.folder import is_experiment
from viv1t.data.formats.sensorium.session import LOST, RawSession
from viv1t.data.formats.sensorium.trial_video import TRIAL_SUFFIXES, array_header, read_array
from viv1t.data.inspect.experiment import check_experiment
from viv1t.data.inspect.finding import (
    BRIEF,
    CONSTANT,
    CONSTANT_ALL,
    CONSTANT_BOTH,
    CORE_REACH,
    FILLED,
    GREY_OUTSIDE,
    LONG,
    NOTICE,
    ONE_TRIAL,
    SAME,
    SHORT,
    SILENT,
    STATE_ROWS,
    TWICE,
    UNKNOWN_TIERS,
    WITHHELD,
    Finding,
    Rule,
    grey_levels,
)
from viv1t.data.mice import open_recording
from viv1t.data.npy import NpyHeader
from viv1t.data.rules import Rules
from viv1t.data.session import (
    FOLDERS,
    VARIABLES,
    Session,
    missing_tier,
    unknown_tiers,
)
from viv1t.data.statistics import provided_statistics
from viv1t.data.store.verify import verify_store
from viv1t.data.survey import STORE_FILE, recordings_in
from viv1t.data.values import first_fault, recorded_end, turned
from viv1t.errors import DataError
from viv1t.system.progress import Progress
from viv1t.types import MAX_FRAMES, TEST_TIERS, TIERS, UNSCORED_FRAMES, used_frames

_FILE = "restore the file, or set the trial's tier to 'none'"
_TURN = "move time to the last axis"


def check_folder(
    folder: Path,
    rules: Rules | None = None,
    tell: Callable[[str], None] = lambda line: None,
    *,
    show_progress: bool = False,
) -> Iterator[Finding]:
    """Findings about every session of a data folder, mouse by mouse.

    Args:
        folder: of sessions, or one session; archives are unpacked first, as for training.
        rules: how recordings become trials, where they leave a choice.
        tell: is given what there is to see of recordings that leave a choice, line by line.
        show_progress: print how far it is.

    Raises:
        DataError: the folder holds no session.
    """
    sizes: dict[str, tuple[int, int]] = {}
    surveyed = recordings_in(folder)
    yield from surveyed.left_out
    for mouse_id, path in surveyed.sessions.items():
        if (path / STORE_FILE).is_file():  # its trials were checked when they were packed
            yield from verify_store(mouse_id, path, show_progress=show_progress)
            continue
        if not (path / TIERS_FILE).is_file() and is_experiment(path):
            rules = rules or Rules()
            yield from check_experiment(mouse_id, path, rules, tell, show_progress)
            sizes[mouse_id] = rules.size
            continue
        check = SessionCheck(mouse_id, path, show_progress, rules)
        yield from check.run()
        if check.frame_size is not None:
            sizes[mouse_id] = check.frame_size
    common = Counter(sizes.values()).most_common(1)
    for mouse_id, size in sizes.items():
        if size != common[0][0]:
            what = f"movies of {size[0]} x {size[1]} pixels, but other mice's are {common[0][0][0]} x {common[0][0][1]}"
            yield Finding("error", mouse_id, (), what, "leave the mouse out with --mouse_ids, or resize its movies")


class SessionCheck:
    """Checks one session.

    Args:
        mouse_id: name of the mouse.
        path: the session's folder, or where its archive would unpack to.
        show_progress: print how far it is.
        rules: how it becomes trials, where it leaves a choice.

    Attributes:
        frame_size: (H, W) of most movies, after `run`; None where no movie can be read.
    """

    def __init__(self, mouse_id: str, path: Path, show_progress: bool = False, rules: Rules | None = None) -> None:
        self.rules = rules or Rules()
        self._filled: dict[str, dict[int, int]] = {v: {} for v in STATE_ROWS}  # frames of trials
        self.mouse_id, self.path, self.show_progress = mouse_id, path, show_progress
        self.frame_size: tuple[int, int] | None = None
        self._found: dict[tuple[str, str, str], list[int]] = {}
        self._durations: dict[int, int] = {}
        self._movies: dict[bytes, list[int]] = {}
        self._silent: set[int] = set()
        self._lacking: set[int] = set()  # trials without a response
        self._digests: dict[str, set[bytes]] = {v: set() for v in VARIABLES}  # of the tier train
        self._levels: list[tuple[float, float]] = []  # darkest and brightest pixel of each movie
        self._negative: dict[int, tuple[int, float]] = {}  # neurons below zero, lowest response
        self._range: dict[str, tuple[np.ndarray, np.ndarray]] = {}  # per row, over the tier train

    def run(self) -> list[Finding]:
        """All findings, errors first, one for each kind of fault."""
        try:
            session = open_recording(self.path, self.mouse_id, self.rules)
        except DataError as error:
            self._add("error", *self._what_and_fix(error))
        else:
            self._check_meta(session)
            headers = self._check_headers(session)
            progress = Progress(f"mouse {self.mouse_id}", len(headers), "trials", show=self.show_progress)
            for trial, of_trial in headers.items():
                self._check_trial(session, trial, of_trial)
                progress.step()
            progress.close()
            self._check_responses(session)
            self._check_training(session)
            self._check_durations(session)
            self._check_movies(session)
            self._check_statistics(session)
            for variable, filled in self._filled.items():
                if filled:
                    self._find(FILLED, *filled, variable=FOLDERS[variable], frames=sum(filled.values()))
        findings = [Finding(s, self.mouse_id, tuple(t), what, fix) for (s, what, fix), t in self._found.items()]
        return sorted(findings, key=lambda f: f.severity != "error")

    def _add(self, severity: str, what: str, fix: str, trial: int | None = None) -> None:
        trials = self._found.setdefault((severity, what, fix), [])
        if trial is not None:
            trials.append(trial)

    def _take(self, finding: Finding) -> None:
        for trial in finding.trials or (None,):
            self._add(finding.severity, finding.what, finding.fix, trial)

    def _find(self, rule: Rule, *trials: int, **facts: object) -> None:
        self._take(rule.found(self.mouse_id, *trials, **facts))

    def _what_and_fix(self, error: DataError) -> tuple[str, str]:
        text = str(error).removeprefix(f"mouse {self.mouse_id}: ")
        what, _, fix = text.rpartition("; ")
        return (what, fix) if what else (text, "restore it from the original recording")

    def _check_meta(self, session: Session) -> None:
        for notice in session.notices:
            self._find(NOTICE, notice=notice)
        for tier in ("train", "validation"):
            if not session.trials(tier):
                self._take(missing_tier(session, tier))
        if len(session.trials("train")) == 1:
            self._find(ONE_TRIAL)
        if unknown := unknown_tiers(session.tiers):
            self._find(UNKNOWN_TIERS, tiers=", ".join(unknown))
        ids = session.mouse.unit_ids
        if len(np.unique(ids)) < len(ids):
            self._find(TWICE, count=len(ids) - len(np.unique(ids)))
        for variable, folder in FOLDERS.items():
            known = {session.file(variable, trial).name for trial in session.tiers}
            kinds = (".npy", *TRIAL_SUFFIXES) if variable == "video" else (".npy",)
            files = (session.path / "data" / folder).glob("*.*")
            extra = sorted(p.name for p in files if p.suffix.lower() in kinds and p.name not in known)
            if extra:
                more = f" and {len(extra) - 3} more" if len(extra) > 3 else ""
                what = f"data/{folder} holds files of no trial: {', '.join(extra[:3])}{more}"
                self._add("warning", what, "remove them, or name their trials in meta/trials/tiers.npy")

    def _check_headers(self, session: Session) -> dict[int, dict[str, NpyHeader]]:
        """Per trial that is used, the headers of the files whose arrays can be read and are of the right shape."""
        headers: dict[int, dict[str, NpyHeader]] = {}
        lacking, one_row = (session.lacking, session.one_row) if isinstance(session, RawSession) else ((), None)
        for trial, tier in session.tiers.items():
            if tier in TIERS:
                headers[trial] = {}
                for variable in (v for v in VARIABLES if v not in lacking):
                    header = self._header(session, variable, trial)
                    if header is not None:
                        headers[trial][variable] = header
        movies = [h["video"].shape[:2] for h in headers.values() if "video" in h and len(h["video"].shape) == 3]
        if movies:
            height, width = Counter(movies).most_common(1)[0][0]
            self.frame_size = height, width
        rows = {"video": self.frame_size, "response": (session.mouse.neurons,), "behavior": (2,), "pupil_center": (2,)}
        for trial, of_trial in headers.items():
            for variable, header in list(of_trial.items()):
                expected: tuple[int, ...] | None = rows[variable]
                if variable == "behavior" and one_row is not None:
                    expected = header.shape[:-1] if header.shape[:-1] in ((), (1,)) else (1,)
                if expected is None or header.shape[:-1] != expected or not header.shape[-1]:
                    words = ", ".join(map(str, expected)) if expected else "H, W"
                    what = f"data/{FOLDERS[variable]}: expected ({words}, T), found {header.shape}"
                    if variable == "response":
                        what += f"; meta/neurons names {session.mouse.neurons} neurons"
                    axes = expected is not None and header.shape[1:] == expected
                    self._add("error", what, _TURN if axes else _FILE, trial)
                    del of_trial[variable]
            lengths = {FOLDERS[v]: h.shape[-1] for v, h in of_trial.items()}
            others = {length for name, length in lengths.items() if name != "videos"}
            if "video" in of_trial and len(others) == 1 and turned(shape := of_trial["video"].shape, *others):
                self._add("error", f"data/videos: expected (H, W, T), found (T, H, W): {shape}", _TURN, trial)
                del of_trial["video"]
            elif len(set(lengths.values())) > 1:
                words = ", ".join(f"{name} {length}" for name, length in lengths.items())
                self._add("error", f"arrays differ in their frames: {words}", "pad them alike with NaN", trial)
        return headers

    def _header(self, session: Session, variable: str, trial: int) -> NpyHeader | None:
        name = FOLDERS[variable]
        try:
            header = array_header(session.file(variable, trial))
        except FileNotFoundError:
            if variable == "response" and session.tiers[trial] in TEST_TIERS:
                self._lacking.add(trial)
            else:
                self._add("error", f"data/{name}: the file is missing", _FILE, trial)
        except (OSError, ValueError) as error:
            self._add("error", f"data/{name}: not a readable array: {error}", _FILE, trial)
        else:
            if header.dtype.kind in "fiub":
                return header
            self._add("error", f"data/{name}: expected numbers, found {header.dtype}", _FILE, trial)
        return None

    def _check_trial(self, session: Session, trial: int, headers: dict[str, NpyHeader]) -> None:
        duration = None  # unknown without a movie, of which all has been said
        if "video" in headers:
            with suppress(DataError):
                duration = self._durations[trial] = session.duration(trial)
        ends: dict[str, int] = {}
        for variable in headers:
            try:
                array = read_array(session.file(variable, trial))
                array = np.atleast_2d(array) if variable in STATE_ROWS else array
            except (OSError, ValueError) as error:
                self._add("error", f"data/{FOLDERS[variable]}: not a readable array: {error}", _FILE, trial)
                continue
            end = self._check_values(session, variable, trial, array, duration)
            if end is None:
                continue
            if array.dtype.kind == "f":
                ends[variable] = end
            if trial in self._filled.get(variable, ()):
                try:
                    array = session.read(variable, trial)
                except DataError as error:
                    self._add("error", *self._what_and_fix(error))
                    continue
            end = end if duration is None else min(end, duration)
            if session.tiers[trial] == "train" and variable != "video":
                values = np.ascontiguousarray(array[..., :end], np.float32)
                self._digests[variable].add(hashlib.blake2b(values.data, digest_size=16).digest())
            if variable == "video":
                self._check_video(trial, array[..., :end])
            else:
                self._check_rows(session, variable, trial, array[:, :end])
        if duration is None:
            return
        if trial in self._silent and session.tiers[trial] in TEST_TIERS:
            ends.pop("response", None)  # withheld responses are zero to the end of the array
        # Integer arrays cannot be padded: they end with the others.
        movie = ends.get("video", max(ends.values(), default=duration))
        than = "the movie" if "video" in ends else "others"
        for variable, end in ends.items():
            if end != movie:
                what = f"data/{FOLDERS[variable]} ends at frame {end}, {than} at frame {movie}"
                fix = f"cut all four arrays at the same frame; what lies after frame {duration} is not used"
                self._add("warning", what, fix, trial)

    def _check_values(
        self, session: Session, variable: str, trial: int, array: np.ndarray, duration: int | None
    ) -> int | None:
        """Recorded frames of one array; None where its values cannot be judged."""
        frames = int(array.shape[-1])
        if array.dtype.kind != "f":
            return frames
        end = recorded_end(array, frames)
        name = f"data/{FOLDERS[variable]}"
        fills = variable in STATE_ROWS and self.rules.missing == "fill"
        if fills and duration is not None and (np.isnan(array).all() or end < LOST * duration):
            self._filled[variable][trial] = int(np.isnan(array[:, :duration]).any(0).sum())
            return None if np.isnan(array).all() else duration
        if np.isnan(array).all():
            if variable == "response" and session.tiers[trial] in TEST_TIERS:
                self._lacking.add(trial)
            else:
                self._add("error", f"{name}: no frame holds a number", _FILE, trial)
            return None
        if np.isinf(array).any():
            fix = "replace them; NaN belongs after the trial's end only"
            self._add("error", f"{name}: infinite values", fix, trial)
            return None
        fault = first_fault(array, until := end if duration is None else min(end, duration))
        if fault is not None and np.isfinite(fault[2]):
            what = f"{name}: {fault[2]:.3g} at frame {fault[1]}, beyond the range of float32"
            self._add("error", what, "give values in their usual units", trial)
            return None
        if fault is not None and fills:
            self._filled[variable][trial] = int(np.isnan(array[:, :until]).any(0).sum())
            return end
        if fault is not None:
            _, frame, _ = fault
            fix = "interpolate, or end all four arrays of the trial there"
            where = ""
            if variable == "response":
                unknown = np.isnan(array[:, :until])
                odd, throughout = np.flatnonzero(unknown.any(1)), np.flatnonzero(unknown.all(1))
                where = f", in neuron{'s' if len(odd) > 1 else ''} {', '.join(map(str, odd[:3]))}"
                where += f" and {len(odd) - 3} more" if len(odd) > 3 else ""
                if len(odd) == len(throughout):
                    where += " throughout"
                    fix = "remove these neurons from the responses of all trials and from meta/neurons"
            what = f"{name}: NaN at frame {frame}{where}, before the trial's end at frame {until}"
            self._add("error", what, fix, trial)
        return end

    def _check_video(self, trial: int, video: np.ndarray) -> None:
        low, high = float(video.min()), float(video.max())
        self._levels.append((low, high))
        if low < 0 or high > 255:
            self._find(GREY_OUTSIDE, trial)
        if low == high:
            self._add(
                "warning", "data/videos: every pixel of every frame is the same", "check how the movie was saved", trial
            )
        digest = hashlib.blake2b(str(video.shape).encode(), digest_size=16)
        digest.update(np.ascontiguousarray(video, np.float32).data)
        self._movies.setdefault(digest.digest(), []).append(trial)

    def _check_rows(self, session: Session, variable: str, trial: int, array: np.ndarray) -> None:
        """Keeps what is asked of responses, behavior and gaze over many trials."""
        low, high = (bound.astype(np.float64) for bound in (array.min(axis=1), array.max(axis=1)))
        if variable == "response":
            if not array.any():
                self._silent.add(trial)
            if (low < 0).any():
                self._negative[trial] = int((low < 0).sum()), float(low.min())
        if session.tiers[trial] == "train":
            before = self._range.get(variable, (low, high))
            self._range[variable] = np.fmin(before[0], low), np.fmax(before[1], high)

    def _check_responses(self, session: Session) -> None:
        for tier in TIERS:
            trials = session.trials(tier)
            silent = [t for t in trials if t in self._silent]
            lacking = [t for t in trials if t in self._lacking]
            if len(silent) + len(lacking) == len(trials):
                if silent and tier not in TEST_TIERS:
                    self._find(WITHHELD, tier=tier, how="zero")
                continue
            for trial in lacking:
                what = f"data/responses: absent or NaN, unlike other trials of the tier {tier}"
                self._add("error", what, "give the recorded responses, or set the trial's tier to 'none'", trial)
            if silent:
                self._find(SILENT, *silent, tier=tier)
        if self._negative:
            lowest = min(low for _, low in self._negative.values())
            most = max(count for count, _ in self._negative.values())
            what = f"data/responses: negative values, in up to {most} neurons, lowest {lowest:.3g}"
            for trial in self._negative:
                self._add("warning", what, "give deconvolved activity, which is at least 0", trial)
        ranges = {v: high - low < np.finfo(np.float32).tiny for v, (low, high) in self._range.items()}
        if "response" in ranges and ranges["response"].any():
            constant = np.flatnonzero(ranges["response"])
            examples = ", ".join(map(str, constant[:3])) + (", …" if len(constant) > 3 else "")
            what = f"{len(constant)} of {session.mouse.neurons} neurons never vary in the tier train: {examples}"
            self._add("warning", what, "remove these neurons: they score 0 whatever the model")
        for variable, names in STATE_ROWS.items():
            which = [name for name, flat in zip(names, ranges.get(variable, ()), strict=False) if flat]
            if which:
                both = CONSTANT_BOTH if self.rules.missing == "fill" else CONSTANT_ALL
                rule = CONSTANT if len(which) == 1 else both
                self._find(rule, variable=variable, which=" and ".join(which))

    def _check_training(self, session: Session) -> None:
        """What training divides by, and what it shows."""
        for variable, (low, high) in self._range.items():
            alike = len(session.trials("train")) > 1 and len(self._digests[variable]) == 1
            least = 100 * np.finfo(np.float32).tiny  # below, there is nothing to divide by
            if (low < high).any() and (alike or (variable == "response" and (high - low).max() < least)):
                same = SAME.found(self.mouse_id, variable=FOLDERS[variable])
                if variable in STATE_ROWS and self.rules.missing == "fill":
                    fix = "record it: transforms whose statistics are of each frame give the model 0 in its place"
                    same = replace(same, severity="warning", fix=fix)
                self._take(same)
        if self._levels:
            darkest, brightest = min(low for low, _ in self._levels), max(high for _, high in self._levels)
            finding = grey_levels(self.mouse_id, darkest, brightest)
            if finding is not None and finding.what != GREY_OUTSIDE.what:  # which is said trial by trial
                self._take(finding)

    def _check_durations(self, session: Session) -> None:
        used = {trial: used_frames(frames) for trial, frames in self._durations.items()}
        longest = max((used[t] for t in session.trials("train") if t in used), default=None)
        most = max(self._durations.values(), default=0)
        if long := [trial for trial, frames in self._durations.items() if frames > MAX_FRAMES]:
            self._find(LONG, *long, frames=most)
        for trial, frames in used.items():
            if session.tiers[trial] == "train":
                if frames < CORE_REACH:
                    self._find(BRIEF, trial, frames=frames, least=CORE_REACH)
                continue
            if frames <= UNSCORED_FRAMES:
                self._find(SHORT, trial, frames=frames)
            if longest is not None and frames > longest:
                what = f"{frames} frames, but no training trial has more than {longest}"
                self._add(
                    "warning", what, "use --transform_mode 3 or 4, whose statistics are the same at all frames", trial
                )

    def _check_movies(self, session: Session) -> None:
        for trials in self._movies.values():
            tiers = sorted({session.tiers[t] for t in trials}, key=TIERS.index)
            if len(tiers) < 2:
                continue
            groups = {tier: [str(t) for t in trials if session.tiers[t] == tier] for tier in tiers}
            words = ", ".join(f"{tier} ({', '.join(g[:3])}{', …' if len(g) > 3 else ''})" for tier, g in groups.items())
            if tiers[0] == "train":
                what = f"the same movie for training and evaluation: {words}"
                fix = "set one side's tier to 'none': a score on a training movie says nothing"
                self._add("error", what, fix)
            else:
                self._add(
                    "warning",
                    f"the same movie in several tiers: {words}",
                    "keep it in one tier, or expect equal scores",
                )

    def _check_statistics(self, session: Session) -> None:
        if not (session.path / "meta" / "statistics").is_dir():
            self._add("warning", "no meta/statistics", "use --stat_mode 1 (the default), which computes them")
            return
        try:
            moments = provided_statistics(session).trial
        except DataError as error:
            what, fix = self._what_and_fix(error)
            self._add("warning", f"meta/statistics: {what}", fix)
            return
        training = [self._durations[t] for t in session.trials("train") if t in self._durations]
        longest = used_frames(max(training, default=0))
        for variable, m in moments.items():
            name = f"meta/statistics/{FOLDERS[variable]}"
            arrays = {"min": m.min, "max": m.max, "mean": m.mean, "std": m.std}
            if len({a.shape for a in arrays.values()}) > 1:
                words = ", ".join(f"{n} {a.shape}" for n, a in arrays.items())
                self._add("warning", f"{name}: shapes differ: {words}", "use --stat_mode 1, which computes them")
                continue
            if m.std.ndim > 1 and m.std.shape[-1] < longest:
                what = f"{name}: {m.std.shape[-1]} frames, fewer than the longest training trial's {longest}"
                self._add("warning", what, "use --stat_mode 1, which computes them")
            known = np.isfinite(m.std)
            within = known if m.std.ndim == 1 else known[..., :longest]
            slack = 1e-3 * (np.abs(m.max) + np.abs(m.min)) + 1e-6
            ordered = (m.std >= 0) & (m.min <= m.mean + slack) & (m.mean <= m.max + slack)
            if not within.all() or not ordered[known].all():
                what = f"{name}: not finite within a trial, or not min <= mean <= max and std >= 0"
                self._add("warning", what, "use --stat_mode 1, which computes them")
