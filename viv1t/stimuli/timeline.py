"""When the frames of a video are shown, from the time stamps in its file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from viv1t.stimuli.container import Edit

_FINE = 1 / 500  # seconds of an AVI file's tick, below which it is one of a clock and not of a camera


@dataclass(frozen=True)
class Timeline:
    """When frames are shown.

    Attributes:
        start: time stamp of the first frame in seconds; None where the n-th frame shown is at the n-th of `times`.
        times: (frames,) float64, seconds after the film's beginning at which each is shown, ascending.
        end: seconds at which the last one ends.
        repeats: (frames,) for how many frames of a constant rate each stands; 1 but where a camera dropped some.
        cuts: of a film with an edit list, for each of its parts in order: seconds by the time stamps of its frames, in
            units of the track. Frames that no part names are not shown.
    """

    start: float | None
    times: np.ndarray
    end: float
    repeats: np.ndarray
    cuts: tuple[dict[int, float], ...] = field(default=())


def by_stamps(stamps: Sequence[int | None], durations: Sequence[int], time_base: float, rate: float) -> Timeline:
    """Of a file whose packets say when their frames are shown, or say nothing.

    Args:
        stamps: of presentation, of each packet, in units of `time_base`.
        durations: likewise; 0 for unknown.
        time_base: seconds.
        rate: Hz, of frames, where stamps are missing.
    """
    count = len(stamps)
    once = np.ones(count, int)
    known = [s for s in stamps if s is not None]
    if len(known) < count:  # some containers do not say: a constant rate, then
        return Timeline(None, np.arange(count) / rate, count / rate, once)
    order = np.argsort(known, kind="stable")
    times = np.array(known, np.float64)[order] * time_base
    last = durations[order[-1]] * time_base
    if last <= 0:
        last = float(np.median(np.diff(times))) if count > 1 else 1 / rate
    return Timeline(float(times[0]), times - times[0], float(times[-1] - times[0] + last), once)


def by_ticks(ticks: Sequence[int], length: int, time_base: float) -> Timeline:
    """Of an AVI file, which numbers frames in the order they are decoded, and holds one where a number is left out.

    The n-th frame shown takes the n-th number: how B-frames are reordered is not written.

    Args:
        ticks: of each packet.
        length: of the film in ticks, as its header has it; 0 for unknown.
        time_base: seconds of a tick.
    """
    at = np.sort(np.array(ticks, np.int64))
    usual = max(1, round(float(np.median(np.diff(at))))) if len(at) > 1 and time_base < _FINE else 1
    at[0] = 0  # what comes before the first frame is shown as it is
    edges = np.append(at, max(length, at[-1] + usual))
    repeats = np.maximum(1, np.rint(np.diff(edges) / usual)).astype(int)
    return Timeline(None, at * time_base, float(edges[-1] * time_base), repeats)


def with_edits(timeline: Timeline, stamps: Sequence[int | None], edits: Sequence[Edit], time_base: float) -> Timeline:
    """The same as an edit list shows it: some frames not at all, others later, longer, or again.

    Args:
        timeline: without it, of the same stamps.
        stamps: as for `by_stamps`.
        edits: in order.
        time_base: seconds.
    """
    if timeline.start is None or not any(edit.start is not None for edit in edits):
        return timeline
    units = np.sort(np.array(stamps, np.int64))
    starts = units * time_base
    ends = np.append(starts[1:], timeline.start + timeline.end)
    cuts: list[dict[int, float]] = []
    shown: list[np.ndarray] = []
    at = 0.0
    for edit in edits:
        if edit.start is None:
            at += edit.length
            continue
        length = edit.length
        if edit.rate:  # 0 is the rest, and there is no more than that
            rest = max(0.0, (float(ends[-1]) - edit.start) / edit.rate)
            length = min(length or rest, rest)
        stop = edit.start + length * edit.rate
        # A length is rounded to the film's scale: what it adds by that alone is not shown.
        slack = np.minimum(edit.rounding * edit.rate, (ends - starts) / 2)
        seen = np.minimum(ends, stop) - np.maximum(starts, edit.start) > slack
        if not seen.any():  # a still, or less than a frame
            seen = (starts <= edit.start) & (ends > edit.start)
        times = at + np.maximum(starts[seen] - edit.start, 0) / (edit.rate or 1)
        if seen.any():
            cuts.append(dict(zip(units[seen].tolist(), times.tolist(), strict=True)))
            shown.append(times)
        at += length
    if not shown:
        return Timeline(timeline.start, np.zeros(0), 0.0, np.zeros(0, int))
    first = float(shown[0][0])  # it starts the film, whatever lies before
    times = np.concatenate(shown) - first
    end = max(at - first, float(times[-1]))
    same = len(times) == len(units) and np.abs(times - timeline.times).max() < 1e-6
    if same and abs(end - timeline.end) <= 2 * max(edit.rounding for edit in edits):
        return timeline
    cuts = [{unit: time - first for unit, time in cut.items()} for cut in cuts]
    return Timeline(timeline.start, times, end, np.ones(len(times), int), tuple(cuts))
