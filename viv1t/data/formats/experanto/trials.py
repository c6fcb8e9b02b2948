"""From an experiment's time line to trials on a 30 Hz grid: what is a trial, of which tier, and its arrays."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from viv1t.data.formats.experanto.folder import EYE, TREADMILL, Experiment
from viv1t.data.formats.experanto.sequence import Sequence as Signal
from viv1t.errors import ConfigError, DataError
from viv1t.types import FRAME_RATE, MAX_FRAMES

TIERS = {
    "train": "train", "validation": "oracle", "oracle": "oracle", "test": "final_test_main",
    "final_test": "final_test_main",
}  # fmt: skip
BONUS = "final_test_bonus"  # of final_test_1, final_test_2, ...
REPEATS = 8  # presentations from which on a stimulus is held out where no tier is given


@dataclass(frozen=True)
class Rules:
    """How an experiment becomes trials.

    Attributes:
        frame_size: (H, W) of the movies.
        long: what is done with training trials over 300 frames: `split` at multiples of 300, or `cut`; others are cut.
        shortest: frames below which what is left by splitting, and a segment of images, is no trial.
        responses: `hold` or `linear`; None holds responses stored at 30 Hz and interpolates others.
        channels: which of the eye tracker's signals are x, y, dilation and the derivative of dilation.
        max_filled: share of a trial's eye samples that may be filled over blinks.
        leaks: what is done where a stimulus is in training and held out: `refuse`, or `hold_out`, which takes its
            presentations out of training.
    """

    frame_size: tuple[int, int] = (36, 64)
    long: str = "split"
    shortest: int = 60
    responses: str | None = None
    channels: tuple[int, int, int, int] = (0, 1, 2, 3)
    max_filled: float = 0.25
    leaks: str = "refuse"

    def __post_init__(self) -> None:
        for name, allowed in (("long", ("split", "cut")), ("leaks", ("refuse", "hold_out"))):
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name} must be {' or '.join(allowed)}, not {getattr(self, name)!r}")
        if self.responses not in (None, "hold", "linear"):
            raise ConfigError(f"responses must be hold or linear, not {self.responses!r}")


@dataclass(frozen=True)
class Clip:
    """What becomes a trial.

    Attributes:
        onset: seconds of its first frame.
        frames: on the 30 Hz grid.
        tier: train, oracle, final_test_main, final_test_bonus, or none.
        keys: the screen's trials that it shows.
        condition: the same for the same stimulus; None for segments of images.
        reason: why its tier is none; empty else.
    """

    onset: float
    frames: int
    tier: str
    keys: tuple[str, ...]
    condition: str | None
    reason: str = ""

    @property
    def times(self) -> np.ndarray:
        """(frames,) float64 seconds."""
        return self.onset + np.arange(self.frames) / FRAME_RATE


def clips(experiment: Experiment, rules: Rules = Rules()) -> tuple[list[Clip], list[str]]:
    """The trials of an experiment, in order, and what a user should know of them.

    Raises:
        DataError: a stimulus is in training and held out, and the rules do not say what to do.
    """
    notices: list[str] = []
    tiers = _tiers(experiment, rules, notices)
    found: list[Clip] = []
    for number, trial in enumerate(experiment.screen.trials):
        if trial.modality != "video":
            continue
        start, end = experiment.screen.span(number)
        frames, tier = _frames(start, end), tiers[number]
        if frames < 1:
            continue
        reason = "" if tier != "none" else _why_none(experiment, number)
        whole = Clip(start, frames, tier, (trial.key,), trial.condition, reason)
        found += _pieces(whole, rules)
    found += [c for c in segments(experiment, tiers) if c.frames >= rules.shortest]
    found.sort(key=lambda clip: clip.onset)
    return [_readable(clip, experiment, rules) for clip in found], notices


def _frames(start: float, end: float) -> int:
    return round(FRAME_RATE * (end - start))


def _pieces(clip: Clip, rules: Rules) -> Iterable[Clip]:
    """A clip of at most 300 frames, or its pieces, or its beginning."""
    if clip.frames <= MAX_FRAMES:
        return [clip]
    if rules.long == "cut" or clip.tier != "train":
        return [replace(clip, frames=MAX_FRAMES)]
    starts = range(0, clip.frames, MAX_FRAMES)
    pieces = [
        replace(clip, onset=clip.onset + first / FRAME_RATE, frames=min(MAX_FRAMES, clip.frames - first))
        for first in starts
    ]
    return [piece for piece in pieces if piece.frames >= rules.shortest]


def _why_none(experiment: Experiment, number: int) -> str:
    trial = experiment.screen.trials[number]
    return "marked as not valid" if not trial.valid else f"tier {trial.tier or 'missing'}"


def _tier_of(name: str | None) -> str:
    if name is None:
        return "none"
    word = name.strip().lower()
    return TIERS.get(word) or (BONUS if word.startswith("final_test_") else "none")


def _tiers(experiment: Experiment, rules: Rules, notices: list[str]) -> list[str]:
    """Every screen trial's tier here, by number."""
    trials = experiment.screen.trials
    if not any(_tier_of(t.tier) != "none" for t in trials if t.modality in ("image", "video")):
        return _drawn_tiers(experiment, notices)
    tiers = ["none" if t.modality == "invalid" or not t.valid else _tier_of(t.tier) for t in trials]
    others = Counter(
        t.tier or "missing" for t, tier in zip(trials, tiers, strict=True)
        if tier == "none" and t.modality in ("image", "video")
    )  # fmt: skip
    for name, count in sorted(others.items()):
        notices.append(f"{experiment.path}: {count} trials of tier {name} are not used")
    used: dict[str, set[str]] = defaultdict(set)
    for trial, tier in zip(trials, tiers, strict=True):
        if trial.condition is not None and tier != "none":
            used[trial.condition].add("train" if tier == "train" else "held out")
    leaked = {condition for condition, where in used.items() if len(where) > 1}
    if not leaked:
        return tiers
    shown = [t.key for t in trials if t.condition in leaked]
    if rules.leaks == "refuse":
        raise DataError(
            f"{experiment.path}: {len(leaked)} stimuli are in the tier train and held out (trials "
            f"{', '.join(shown[:12])}{', ...' if len(shown) > 12 else ''}); held-out scores would not be fair: take "
            "their training trials out with --leaks hold_out"
        )
    notices.append(f"{experiment.path}: {len(leaked)} stimuli that are also held out were taken out of training")
    return [
        "none" if t.condition in leaked and tier == "train" else tier for t, tier in zip(trials, tiers, strict=True)
    ]


def _drawn_tiers(experiment: Experiment, notices: list[str]) -> list[str]:
    """Where no tier is given: stimuli shown often are held out, every other one, in order of their hashes."""
    trials = experiment.screen.trials
    shown = Counter(t.condition for t in trials if t.condition is not None and t.valid and t.modality == "video")
    often = sorted(condition for condition, count in shown.items() if count >= REPEATS)
    held = {condition: ("oracle", "final_test_main")[i % 2] for i, condition in enumerate(often)}
    notices.append(
        f"{experiment.path}: no tiers: of the stimuli shown {REPEATS} times or more, {(len(often) + 1) // 2} are the "
        f"tier oracle and {len(often) // 2} final_test_main; everything else is train"
    )
    return [
        held.get(t.condition or "", "train") if t.valid and t.modality in ("image", "video") else "none"
        for t in trials
    ]  # fmt: skip


def segments(experiment: Experiment, tiers: Sequence[str]) -> list[Clip]:
    """Runs of images of one tier and the blanks between and after them, of at most 300 frames.

    A run starts at an image's onset and ends before a video, an invalid trial, an image of another tier, or where it
    would exceed 300 frames.

    Args:
        experiment: whose screen it is.
        tiers: of every screen trial, by number.
    """
    screen = experiment.screen
    runs: list[Clip] = []
    current: list[int] = []

    def end_run() -> None:
        if current:
            start, end = screen.span(current[0])[0], screen.span(current[-1])[1]
            frames, tier = _frames(start, end), tiers[current[0]]
            if frames:
                reason = "" if tier != "none" else _why_none(experiment, current[0])
                keys = tuple(screen.trials[i].key for i in current)
                runs.append(Clip(start, frames, tier, keys, None, reason))
        current.clear()

    for number, trial in enumerate(screen.trials):
        if trial.modality in ("video", "invalid"):
            end_run()
            continue
        if current:
            too_long = _frames(screen.span(current[0])[0], screen.span(number)[1]) > MAX_FRAMES
            other = trial.modality == "image" and tiers[number] != tiers[current[0]]
            if too_long or other:
                end_run()
        if current or trial.modality == "image":
            current.append(number)
    end_run()
    return runs


def _readable(clip: Clip, experiment: Experiment, rules: Rules) -> Clip:
    """The clip, of tier none where its grid lies outside of what can be read, or blinks take too much of it."""
    if clip.tier == "none":
        return clip
    first, last = experiment.interval
    linear = holds(experiment, rules) is False
    start, end = experiment.responses.interval(linear=linear)
    times = clip.times
    if times[0] < max(first, start) or times[-1] > min(last, end):
        return replace(clip, tier="none", reason="beyond what every device recorded")
    if EYE in experiment.devices:
        missing = filled_share(experiment.devices[EYE], times, rules.channels[:3])
        if missing > rules.max_filled:
            return replace(clip, tier="none", reason=f"no eye in {missing:.0%} of its samples")
    return clip


def holds(experiment: Experiment, rules: Rules) -> bool:
    """Whether responses are held rather than interpolated."""
    if rules.responses is None:
        return experiment.responses.rate == FRAME_RATE
    return rules.responses == "hold"


def _window(signal: Signal, times: np.ndarray) -> tuple[int, int]:
    """First sample, and one after the last, that the values at `times` depend on."""
    low = int(np.floor((times[0] - signal.start) * signal.rate)) - 1
    high = int(np.ceil((times[-1] - signal.start) * signal.rate)) + 2
    return max(low, 0), min(high, len(signal.data))


def filled_share(signal: Signal, times: np.ndarray, channels: Sequence[int]) -> float:
    """Share of the samples under `times` where any of the channels is NaN; 1 where there is none."""
    low, high = _window(signal, times)
    block = np.asarray(signal.data[low:high])[:, [c for c in channels if c < signal.signals]]
    return float(np.isnan(block.astype(np.float64)).any(1).mean()) if len(block) else 1.0


def filled(signal: Signal, times: np.ndarray) -> np.ndarray:
    """Values at `times` (T,), interpolated over gaps of NaN in the samples, edges held: (signals, T) float64.

    Channels without any finite sample near are 0.
    """
    low, high = _window(signal, times)
    reach = int(10 * signal.rate)  # far enough to find the other side of a long blink
    low, high = max(low - reach, 0), min(high + reach, len(signal.data))
    block = np.asarray(signal.data[low:high], np.float64)
    moments = signal.start + np.arange(low, high) / signal.rate
    out = np.zeros((signal.signals, len(times)))
    for channel, values in enumerate(block.T):
        good = np.isfinite(values)
        if good.any():
            out[channel] = np.interp(times, moments[good], values[good])
    return out


def video(experiment: Experiment, clip: Clip, rules: Rules) -> np.ndarray:
    """What was shown, (H, W, T) uint8 where it is stored so at this size, else float32."""
    numbers = experiment.screen.frame_at(clip.times)
    kept, where = np.unique(numbers, return_inverse=True)
    frames = experiment.screen.frames(kept, rules.frame_size)
    return np.moveaxis(frames[where], 0, -1)


def responses(experiment: Experiment, clip: Clip, rules: Rules) -> tuple[np.ndarray, int]:
    """Responses (N, T) float32, and how many negative values became 0.

    Raises:
        DataError: a response is not finite.
    """
    values, valid = experiment.responses.at(clip.times, linear=not holds(experiment, rules))
    if len(valid) != clip.frames:
        raise DataError(f"{experiment.path}: responses do not last through trial {clip.keys[0]}")
    out = np.ascontiguousarray(values.T, np.float32)
    if not np.isfinite(out).all():
        neurons = np.flatnonzero(~np.isfinite(out).all(1))
        raise DataError(
            f"{experiment.path}: responses of {len(neurons)} neurons (first: {neurons[0]}) are not finite in trial "
            f"{clip.keys[0]}"
        )
    negative = int((out < 0).sum())
    return np.maximum(out, 0), negative


def behavior(experiment: Experiment, clip: Clip, rules: Rules) -> np.ndarray:
    """Dilation and speed, (2, T) float32; what was not recorded is 0."""
    out = np.zeros((2, clip.frames), np.float32)
    eye, treadmill = (experiment.devices.get(name) for name in (EYE, TREADMILL))
    if eye is not None and eye.signals > rules.channels[2]:
        out[0] = filled(eye, clip.times)[rules.channels[2]]
    if treadmill is not None:
        out[1] = filled(treadmill, clip.times)[0]
    return out


def pupil_center(experiment: Experiment, clip: Clip, rules: Rules) -> np.ndarray:
    """Gaze x and y, (2, T) float32; 0 where there is no eye tracker."""
    eye = experiment.devices.get(EYE)
    if eye is None or eye.signals < 2:
        return np.zeros((2, clip.frames), np.float32)
    return filled(eye, clip.times)[list(rules.channels[:2])].astype(np.float32)


def check_channels(experiment: Experiment, rules: Rules) -> None:
    """Raises a DataError unless the eye tracker's fourth channel is the derivative of its third."""
    eye = experiment.devices.get(EYE)
    if eye is None or eye.signals < 4:
        return
    data = np.asarray(eye.data[:200_000], np.float64)
    dilation, change = data[:, rules.channels[2]], data[:, rules.channels[3]]
    slope = np.gradient(dilation)
    good = np.isfinite(slope) & np.isfinite(change)
    if good.sum() < 100 or slope[good].std() == 0 or change[good].std() == 0:
        return
    similar = float(np.corrcoef(slope[good], change[good])[0, 1])
    if similar < 0.9:
        raise DataError(
            f"{experiment.path}: channel {rules.channels[3]} of the eye tracker is not the derivative of channel "
            f"{rules.channels[2]} (correlation {similar:.2f}): say with --eye_channels which are x, y, dilation and "
            "its derivative"
        )
