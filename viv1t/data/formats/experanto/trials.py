"""From an experiment's time line to trials on a 30 Hz grid: what is a trial, of which tier, and its arrays."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from viv1t.data.formats.experanto.folder import EYE, TREADMILL, Experiment
from viv1t.data.formats.experanto.sequence import Sequence as Signal
from viv1t.data.rules import Rules
from viv1t.errors import DataError
from viv1t.types import FRAME_RATE, MAX_FRAMES
from viv1t.types import TIERS as KNOWN

# What tiers are called in recordings, and here, where the tier `oracle` is on disk what is `validation` in memory.
TIERS = {
    **{tier: tier for tier in KNOWN}, "validation": "oracle", "oracle": "oracle", "test": "final_test_main",
    "final_test": "final_test_main",
}  # fmt: skip
BONUS = "final_test_bonus"  # of final_test_1, final_test_2, ...
STATE = (EYE, TREADMILL)
_SIGNALS = {EYE: "eye", TREADMILL: "speed"}
_BEYOND = "beyond what every device recorded"


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


def clips(experiment: Experiment, rules: Rules | None = None) -> tuple[list[Clip], list[str]]:
    """The trials of an experiment, in order, and what a user should know of them.

    Raises:
        DataError: a stimulus is in training and held out, or the animal's state is missing, and the rules refuse it.
    """
    notices: list[str] = []
    rules = rules or Rules()
    check_state(experiment, rules, notices)
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
    if rules.images == "join":
        runs = segments(experiment, tiers)
        found += [run for run in runs if run.frames >= rules.shortest]
        if short := sum(run.frames < rules.shortest and run.tier != "none" for run in runs):
            notices.append(
                f"{experiment.path}: {short} of {len(runs)} runs of images are shorter than {rules.shortest} frames "
                "and not used (--shortest_trial)"
            )
    elif any(trial.modality == "image" for trial in experiment.screen.trials):
        notices.append(f"{experiment.path}: image trials are left out (--image_trials)")
    found.sort(key=lambda clip: clip.onset)
    found = _readable(found, experiment, rules, notices)
    return _of_one_length(found, experiment, notices), notices


def check_state(experiment: Experiment, rules: Rules, notices: list[str]) -> None:
    """Says what of the animal's state was not recorded; raises a DataError where the rules refuse that."""
    eye, lacking = experiment.devices.get(EYE), []
    if eye is not None and eye.signals < 2:
        lacking.append(f"{EYE} has one channel, where x and y were expected: gaze is given as 0")
    if eye is not None and channel(eye, rules, 2) is None:
        lacking.append(f"{EYE} has no channel of the dilation, which is given as 0")
    notices += [f"{experiment.path}: {text}" for text in lacking]  # devices that are missing have been named
    lacking += [f"no {name}" for name in STATE if name not in experiment.devices]
    if lacking and rules.missing == "refuse":
        raise DataError(f"{experiment.path}: {'; '.join(lacking)}; --missing fill takes the recording nevertheless")


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


def _tier_of(name: str | None, rules: Rules) -> str:
    if name is None:
        return "none"
    word = name.strip().lower()
    if (given := dict(rules.tiers).get(name)) is not None:
        return "oracle" if given == "validation" else given
    return TIERS.get(word) or (BONUS if word.startswith("final_test_") else "none")


def _tiers(experiment: Experiment, rules: Rules, notices: list[str]) -> list[str]:
    """Every screen trial's tier here, by number."""
    trials = experiment.screen.trials
    if not any(_tier_of(t.tier, rules) != "none" for t in trials if t.modality in ("image", "video")):
        return _drawn_tiers(experiment, rules, notices)
    tiers = ["none" if t.modality == "invalid" or not t.valid else _tier_of(t.tier, rules) for t in trials]
    others = Counter(
        f"tier {trial.tier or 'missing'}" if trial.valid else "those that are marked as not valid"
        for trial, tier in zip(trials, tiers, strict=True)
        if tier == "none" and trial.modality in ("image", "video")
    )
    for name, count in sorted(others.items()):
        notices.append(f"{experiment.path}: {count} trials of {name} are not used")
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


def _drawn_tiers(experiment: Experiment, rules: Rules, notices: list[str]) -> list[str]:
    """Where no tier is given: stimuli shown often are held out, every other one, in order of their hashes."""
    trials = experiment.screen.trials
    shown = Counter(t.condition for t in trials if t.condition is not None and t.valid and t.modality == "video")
    often = sorted(condition for condition, count in shown.items() if count >= rules.held_out_from)
    held = {condition: ("oracle", "final_test_main")[i % 2] for i, condition in enumerate(often)}
    notices.append(
        f"{experiment.path}: no tiers: of the stimuli shown {rules.held_out_from} times or more, "
        f"{(len(often) + 1) // 2} are the tier oracle and {len(often) // 2} final_test_main; everything else is train"
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


def _readable(found: Sequence[Clip], experiment: Experiment, rules: Rules, notices: list[str]) -> list[Clip]:
    """The clips, of tier none where a grid lies outside of what can be read, or too much of the state is NaN.

    Raises:
        DataError: there is NaN in the animal's state, and the rules refuse to fill it.
    """
    first, last = experiment.interval
    start, end = experiment.responses.interval(linear=not holds(experiment, rules))
    first, last = max(first, start), min(last, end)
    state = {name: experiment.devices[name] for name in STATE if name in experiment.devices}
    lost, samples, beyond = Counter[str](), Counter[str](), 0
    clips: list[Clip] = []
    for clip in found:
        times = clip.times
        if clip.tier == "none":
            pass
        elif times[0] < first or times[-1] > last:
            beyond += 1
            clip = replace(clip, tier="none", reason=_BEYOND)
        else:
            for name, signal in state.items():
                missing, count = _missing(signal, times, rules.channels[:3] if name == EYE else (0,))
                samples[name] += count
                lost[name] += missing
                if missing > rules.max_filled * count:
                    share = missing / count if count else 1
                    reason = f"no {_SIGNALS[name]} in {share:.0%} of its samples"
                    clip = replace(clip, tier="none", reason=reason)
                    break
        clips.append(clip)
    if beyond:
        notices.append(f"{experiment.path}: {beyond} trials lie {_BEYOND} and are not used")
    for name in (name for name in STATE if lost[name]):
        share = lost[name] / samples[name]
        if rules.missing == "refuse":
            raise DataError(
                f"{experiment.path}: {lost[name]} samples of {name} ({share:.1%}) are NaN, as in blinks; --missing "
                "fill interpolates them"
            )
        unused = sum(clip.reason.startswith(f"no {_SIGNALS[name]} ") for clip in clips)
        notices.append(
            f"{experiment.path}: {lost[name]} samples of {name} ({share:.1%}) are NaN, as in blinks, and filled from "
            "their neighbours"
            + (f"; {unused} trials have more than {rules.max_filled:.0%} of them and are not used" if unused else "")
        )
    return clips


def _of_one_length(found: Sequence[Clip], experiment: Experiment, notices: list[str]) -> list[Clip]:
    """The clips, those held out that show one stimulus cut to the shortest of them."""
    shortest: dict[tuple[str, str], int] = {}
    longest: dict[tuple[str, str], int] = {}
    for clip in found:
        if clip.condition is not None and clip.tier not in ("none", "train"):
            shown = clip.tier, clip.condition
            shortest[shown] = min(clip.frames, shortest.get(shown, clip.frames))
            longest[shown] = max(clip.frames, longest.get(shown, 0))
    # A frame more or less is of the grid.
    cut = {shown: frames for shown, frames in shortest.items() if longest[shown] > frames + 1}
    if cut:
        least, most = min(cut.values()), max(longest[shown] for shown in cut)
        notices.append(
            f"{experiment.path}: presentations of {len(cut)} held-out stimuli differ in length and are cut to their "
            f"shortest ({least} to {most} frames)"
        )
    return [
        replace(c, frames=min(c.frames, shortest.get((c.tier, c.condition or ""), c.frames))) for c in found
    ]  # fmt: skip


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


def channel(signal: Signal, rules: Rules, which: int) -> int | None:
    """The eye tracker's channel of x, y, dilation or its derivative (0 to 3); None where there is none."""
    found = rules.channels[which] if which < len(rules.channels) else signal.signals
    return found if found < signal.signals else None


def _missing(signal: Signal, times: np.ndarray, channels: Sequence[int]) -> tuple[int, int]:
    """How many samples under `times` have a NaN in any of the channels, and how many there are."""
    low, high = _window(signal, times)
    block = signal.data[low:high][:, [c for c in channels if c < signal.signals]]
    return int(np.isnan(block.astype(np.float64)).any(1).sum()), len(block)


def filled(signal: Signal, times: np.ndarray) -> np.ndarray:
    """Values at `times` (T,), interpolated over gaps of NaN in the samples, edges held: (signals, T) float64.

    Channels without any finite sample near are 0.
    """
    low, high = _window(signal, times)
    reach = int(10 * signal.rate)  # far enough to find the other side of a long blink
    low, high = max(low - reach, 0), min(high + reach, len(signal.data))
    block = signal.data[low:high].astype(np.float64)
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
    frames = experiment.screen.frames(kept, rules.size)
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
    if np.isnan(out).all():  # withheld
        return out, 0
    if not np.isfinite(out).all():
        neurons = np.flatnonzero(~np.isfinite(out).all(1))
        raise DataError(
            f"{experiment.path}: responses of {len(neurons)} neurons (first: {neurons[0]}) are not finite in trial "
            f"{clip.keys[0]}"
        )
    negative = int((out < 0).sum())
    return np.maximum(out, 0), negative


def behavior(experiment: Experiment, clip: Clip, rules: Rules) -> np.ndarray:
    """Dilation and speed, (2, T) float64; what was not recorded is 0."""
    out = np.zeros((2, clip.frames))
    eye, treadmill = (experiment.devices.get(name) for name in STATE)
    if eye is not None and (dilation := channel(eye, rules, 2)) is not None:
        out[0] = filled(eye, clip.times)[dilation]
    if treadmill is not None:
        out[1] = filled(treadmill, clip.times)[0]
    return out


def pupil_center(experiment: Experiment, clip: Clip, rules: Rules) -> np.ndarray:
    """Gaze x and y, (2, T) float64; 0 where there is no eye tracker."""
    eye = experiment.devices.get(EYE)
    if eye is None or channel(eye, rules, 0) is None or channel(eye, rules, 1) is None:
        return np.zeros((2, clip.frames))
    return filled(eye, clip.times)[list(rules.channels[:2])]


def check_channels(experiment: Experiment, rules: Rules) -> None:
    """Raises a DataError unless the eye tracker's fourth channel is the derivative of its third."""
    eye = experiment.devices.get(EYE)
    if eye is None or (of := channel(eye, rules, 2)) is None or (derivative := channel(eye, rules, 3)) is None:
        return
    data = eye.data[:20_000].astype(np.float64)
    dilation, change = data[:, of], data[:, derivative]
    slope = np.gradient(dilation)
    good = np.isfinite(slope) & np.isfinite(change)
    if good.sum() < 100 or slope[good].std() == 0 or change[good].std() == 0:
        return
    similar = float(np.corrcoef(slope[good], change[good])[0, 1])
    if similar < 0.9:
        raise DataError(
            f"{experiment.path}: channel {derivative} of the eye tracker is not the derivative of channel "
            f"{of} (correlation {similar:.2f}): say with --eye_channels which are x, y, dilation and "
            "its derivative"
        )


def check_sizes(experiment: Experiment, rules: Rules) -> None:
    """Raises a DataError where frames that are shown differ in size, or would have to be enlarged."""
    sizes: dict[tuple[int, int], str] = {}
    for trial in experiment.screen.trials:
        if trial.modality in ("image", "video") and trial.size is not None:
            sizes.setdefault(trial.size, trial.key)
    words = ", ".join(f"{h} x {w} (trial {key})" for (h, w), key in list(sizes.items())[:4])
    if len(sizes) > 1 and rules.frame_size is None:
        raise DataError(
            f"{experiment.screen.folder}: frames of different sizes: {words}; --frame_size {rules.size[0]}x"
            f"{rules.size[1]} brings all to one"
        )
    height, width = rules.size
    if small := [size for size in sizes if size[0] < height or size[1] < width]:
        raise DataError(
            f"{experiment.screen.folder}: frames of {words} would have to be enlarged to {height} x {width}; give "
            f"--frame_size {small[0][0]}x{small[0][1]}, or leave the mouse out with --mouse_ids"
        )
