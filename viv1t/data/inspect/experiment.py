"""What an experanto folder looks like, as a table, and what would spoil a run on it.

The table answers what only a first real folder can: types, rates and units of its devices, how its responses were
brought to their rate, what its screen showed, which tiers it names, and what of all that becomes trials.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from viv1t.data.formats.experanto.folder import EYE, RESPONSES, TREADMILL, Experiment, read_experiment
from viv1t.data.formats.experanto.screen import Screen
from viv1t.data.formats.experanto.sequence import Sequence as Signal
from viv1t.data.formats.experanto.session import ExperantoSession
from viv1t.data.formats.experanto.trials import responses
from viv1t.data.inspect.finding import (
    BRIEF,
    CONSTANT,
    CONSTANT_ALL,
    CONSTANT_BOTH,
    CORE_REACH,
    NEGATIVE,
    ONE_TRIAL,
    SHORT,
    SILENT,
    STATE_ROWS,
    TWICE,
    WITHHELD,
    Finding,
    grey_levels,
)
from viv1t.data.mice import open_recording
from viv1t.data.rules import Rules
from viv1t.data.session import missing_tier
from viv1t.errors import DataError
from viv1t.system.progress import Progress
from viv1t.types import TEST_TIERS, TIERS, UNSCORED_FRAMES

_CHUNK = 32 << 20  # bytes of samples that are looked at together
_LOOKED_AT = 6000  # samples that tell how responses were brought to their rate
_HELD = 0.25  # share of samples that repeat the one before, above which they are held


def check_experiment(
    mouse_id: str, path: Path, rules: Rules, tell: Callable[[str], None], show_progress: bool = False
) -> Iterator[Finding]:
    """Findings about an experanto folder, every used trial of which is read once; errors first.

    Args:
        mouse_id: name of the mouse.
        path: the folder.
        rules: how it becomes trials.
        tell: is given the table, line by line.
        show_progress: print how far it is.
    """
    try:
        experiment = read_experiment(path)
    except DataError as error:
        yield _of_error(mouse_id, path, error)
        return
    for line in described(experiment):
        tell(line)
    try:
        session = open_recording(path, mouse_id, rules)
        assert isinstance(session, ExperantoSession)
    except DataError as error:
        yield _of_error(mouse_id, path, error)
        return
    for line in trials_described(session):
        tell(line)
    found = _Trials(session, rules)
    progress = Progress(f"mouse {mouse_id}", len(session.tiers), "trials", show=show_progress)
    for trial in session.tiers:
        found.add(trial)
        progress.step()
    progress.close()
    yield from sorted([*found.findings(), *_of_notices(session)], key=lambda finding: finding.severity != "error")


def _of_error(mouse_id: str, path: Path, error: DataError) -> Finding:
    what, _, fix = str(error).removeprefix(f"mouse {mouse_id}: ").rpartition("; ")
    return Finding("error", mouse_id, (), what or str(error), fix if what else "restore it from the original recording")


def _of_notices(session: ExperantoSession) -> Iterator[Finding]:
    for notice in session.notices:
        yield Finding("warning", session.mouse.id, (), notice, "nothing, if that is so: it is trained on as it says")


class _Trials:
    """What trials hold, gathered one by one."""

    def __init__(self, session: ExperantoSession, rules: Rules) -> None:
        self.session, self.rules = session, rules
        self.damaged: dict[str, list[int]] = defaultdict(list)
        self.silent: set[int] = set()
        self.negative: dict[int, int] = {}
        self.levels: list[tuple[float, float]] = []
        self.range: dict[str, tuple[np.ndarray, np.ndarray]] = {}  # per row, over the tier train

    def add(self, trial: int) -> None:
        """Reads one trial."""
        session = self.session
        if session.tiers[trial] == "none":
            return
        try:
            video = session.read("video", trial)
            self.levels.append((float(video.min()), float(video.max())))
            if session.lacks_response(trial):
                self.silent.add(trial)
                return
            response, negative = responses(session.experiment, session.clips[trial], self.rules)
            if negative:
                self.negative[trial] = negative
            if not response.any():
                self.silent.add(trial)
            arrays = {"response": response} | {name: session.read(name, trial) for name in STATE_ROWS}
        except DataError as error:
            self.damaged[str(error).partition(f"trial {trial}: ")[2] or str(error)].append(trial)
            return
        if session.tiers[trial] == "train":
            for variable, array in arrays.items():
                low, high = array.min(axis=1), array.max(axis=1)
                before = self.range.get(variable, (low, high))
                self.range[variable] = np.fmin(before[0], low), np.fmax(before[1], high)

    def findings(self) -> Iterator[Finding]:
        """Everything there is to say of them."""
        session, mouse = self.session, self.session.mouse
        for tier in ("train", "validation"):
            if not session.trials(tier):
                yield missing_tier(session, tier)
        if len(session.trials("train")) == 1:
            yield replace(ONE_TRIAL.found(mouse.id), fix=missing_tier(session, "train").fix)
        if twice := len(mouse.unit_ids) - len(np.unique(mouse.unit_ids)):
            yield TWICE.found(mouse.id, count=twice)
        for what, trials in self.damaged.items():
            yield Finding("error", mouse.id, tuple(trials), what, session.ADVICE)
        for tier in TIERS:
            trials, silent = session.trials(tier), [t for t in session.trials(tier) if t in self.silent]
            if silent and len(silent) == len(trials) and tier not in TEST_TIERS:
                yield WITHHELD.found(mouse.id, tier=tier, how="zero or NaN")
            elif silent and len(silent) < len(trials):
                yield SILENT.found(mouse.id, *silent, tier=tier)
        if self.negative:
            yield NEGATIVE.found(mouse.id, *self.negative, count=sum(self.negative.values()))
        for trial in (t for t, tier in session.tiers.items() if tier != "none"):
            frames, train = session.duration(trial), session.tiers[trial] == "train"
            if train and frames < CORE_REACH:
                yield BRIEF.found(mouse.id, trial, frames=frames, least=CORE_REACH)
            elif not train and frames <= UNSCORED_FRAMES:
                yield SHORT.found(mouse.id, trial, frames=frames)
        flat = {v: high - low < np.finfo(np.float32).tiny for v, (low, high) in self.range.items()}
        if "response" in flat and flat["response"].any():
            neurons = np.flatnonzero(flat["response"])
            what = f"{len(neurons)} of {mouse.neurons} neurons never vary in the tier train, the first is {neurons[0]}"
            yield Finding("warning", mouse.id, (), what, "leave them out of the recording: they score 0")
        for variable, names in STATE_ROWS.items():
            if which := [name for name, same in zip(names, flat.get(variable, ()), strict=False) if same]:
                both = CONSTANT_BOTH if self.rules.missing == "fill" else CONSTANT_ALL
                rule = CONSTANT if len(which) == 1 else both
                yield rule.found(mouse.id, variable=variable, which=" and ".join(which))
        if self.levels:
            low, high = min(low for low, _ in self.levels), max(high for _, high in self.levels)
            if (finding := grey_levels(mouse.id, low, high)) is not None:
                yield finding


# -- the table ---------------------------------------------------------------------------------------------------------


def described(experiment: Experiment) -> Iterator[str]:
    """An experiment as lines: its devices, then its screen."""
    yield f"{experiment.path.name}: experanto folder of mouse {experiment.key}"
    start = experiment.screen.start
    yield from _table(
        ["device", "signals", "samples", "Hz", "from s", "to s", "type", "NaN", "least", "most", "remarks"],
        [[name, *_of_signal(name, signal, start)] for name, signal in experiment.devices.items()],
    )
    yield "  seconds are counted from the first frame of the screen"
    yield from _of_screen(experiment.screen)


def _of_signal(name: str, signal: Signal, origin: float) -> list[str]:
    first, last = signal.interval(linear=True)
    rows = max(1, _CHUNK // (signal.signals * signal.data.dtype.itemsize))
    missing, low, high = np.zeros(signal.signals), np.inf, -np.inf
    for block in (np.asarray(signal.data[i : i + rows], np.float64) for i in range(0, len(signal.data), rows)):
        missing += np.isnan(block).sum(0)
        if np.isfinite(block).any():
            low, high = min(low, float(np.nanmin(block))), max(high, float(np.nanmax(block)))
    remarks = []
    if name == RESPONSES:
        remarks.append(_brought_to_its_rate(signal))
    if signal.shifts.any():
        remarks.append(f"phase shifts {signal.shifts.min():.3f} to {signal.shifts.max():.3f} s")
    if name == EYE:
        remarks += [f"channel {i}: {_span(signal.data[:_LOOKED_AT][:, i])}" for i in range(signal.signals)]
    if name == TREADMILL and low < 0:
        remarks.append("negative speeds: signed, where Sensorium's are not")
    if signal.end is not None and signal.end < last:
        remarks.append(f"ends {last - signal.end:.2f} s before its last sample")
    return [
        str(signal.signals), f"{len(signal.data):,}", f"{signal.rate:.4g}", f"{first - origin:.2f}",
        f"{last - origin:.2f}", str(signal.data.dtype), f"{missing.max() / len(signal.data):.1%}", f"{low:.4g}",
        f"{high:.4g}", "; ".join(remarks),
    ]  # fmt: skip


def _span(values: np.ndarray) -> str:
    known = values[np.isfinite(values)]
    return f"{known.min():.4g} to {known.max():.4g}" if known.size else "NaN"


def _brought_to_its_rate(signal: Signal) -> str:
    """How responses came to their rate, as far as a few thousand samples tell."""
    data = np.asarray(signal.data[:_LOOKED_AT], np.float64)[:, :200]
    known = np.abs(data) > 0
    moving = known[1:-1] & known[2:] & known[:-2]
    if moving.sum() < 100:
        return "mostly zero"
    same = float((data[1:-1] == data[:-2])[moving].mean())
    bent = np.abs(data[2:] - 2 * data[1:-1] + data[:-2]) > 1e-5 * (np.abs(data[1:-1]) + np.abs(data[2:]))
    straight = 1 - float(bent[moving].mean())
    if same > _HELD:
        return f"held: they change {signal.rate * (1 - same):.1f} times a second"
    if straight > _HELD:
        return f"interpolated: their slopes change {signal.rate * (1 - straight):.1f} times a second"
    return "each sample its own"


def _of_screen(screen: Screen) -> Iterator[str]:
    rows = []
    for modality in ("video", "image", "blank", "invalid"):
        numbers = [i for i, trial in enumerate(screen.trials) if trial.modality == modality]
        if not numbers:
            continue
        lengths = np.array([end - start for start, end in map(screen.span, numbers)])
        trials = [screen.trials[i] for i in numbers]
        conditions = Counter(t.condition for t in trials if t.condition is not None)
        tiers = Counter(t.tier or "(no tier)" for t in trials)
        sizes = Counter(f"{t.size[0]} x {t.size[1]}" for t in trials if t.size is not None)
        rows.append([
            modality, f"{len(trials):,}", f"{lengths.sum():.0f}", f"{lengths.min():.2f}-{lengths.max():.2f}",
            str(sum(not t.valid for t in trials)), _words(sizes), f"{len(conditions)}",
            str(max(conditions.values(), default=0)), _words(tiers),
        ])  # fmt: skip
    yield from _table(
        ["screen", "trials", "seconds", "each", "not valid", "frames", "stimuli", "most shown", "tiers"], rows
    )
    steps = [np.diff(screen.times[t.first : t.first + t.frames]) for t in screen.trials if t.frames > 1]
    if steps:
        step = np.concatenate(steps)
        middle = float(np.median(step))
        late = int((step > 1.5 * middle).sum())
        yield (
            f"  frames of videos follow each other after {1000 * middle:.2f} ms ({1 / max(middle, 1e-9):.2f} Hz); "
            f"{late} gaps are more than half again as long, the longest {1000 * step.max():.0f} ms"
        )
    shown = next((t for t in screen.trials if t.modality in ("video", "image")), None)
    if shown is not None:
        yield f"  frames lie in {screen.file(shown.key).name} ({screen.stored_type(shown)}) and so on"


def trials_described(session: ExperantoSession) -> Iterator[str]:
    """What becomes trials, as lines."""
    rows = []
    for tier in (*TIERS, "none"):
        numbers = session.trials(tier)
        if not numbers:
            continue
        frames = [session.duration(trial) for trial in numbers]
        groups = Counter(len(group) for group in session.repeats(tier)) if tier not in ("train", "none") else {}
        repeats = ", ".join(f"{count} x {size}" for size, count in sorted(groups.items()))
        reasons = Counter(session.clips[trial].reason for trial in numbers if session.clips[trial].reason)
        rows.append([
            tier, str(len(numbers)), f"{min(frames)}-{max(frames)}", f"{sum(frames) / 30:.0f}", repeats,
            _words(reasons),
        ])  # fmt: skip
    yield from _table(["trials", "count", "frames", "seconds", "stimuli x shown", "why"], rows)


def _words(counted: Counter[str]) -> str:
    most = counted.most_common(5)
    more = f" and {len(counted) - 5} others" if len(counted) > 5 else ""
    return ", ".join(name if len(counted) == 1 else f"{name} ({count})" for name, count in most) + more


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Lines of a table, its first and last column to the left."""
    lines = [list(head), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    for line in lines:
        cells = [
            c.ljust(w) if i in (0, len(head) - 1) else c.rjust(w)
            for i, (c, w) in enumerate(zip(line, widths, strict=True))
        ]
        yield "  " + "  ".join(cells).rstrip()
