"""What checks of recordings report, and training says or refuses.

What both speak of is a `Rule` here: its severity, words and remedy are defined once, so that a check finds no error in
what training takes, and the other way round.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from viv1t.errors import DataError
from viv1t.inputs import OVERSHOOT
from viv1t.system.files import shown
from viv1t.types import MAX_FRAMES, UNSCORED_FRAMES


@dataclass(frozen=True)
class Finding:
    """Something about a recording that a user should know.

    Attributes:
        severity: `error` where training or scores would fail or be wrong, `warning` where they may.
        mouse_id: whose recording.
        trials: trial numbers that it is about; empty for the recording as a whole.
        what: what was found, and what was expected.
        fix: what to do.
    """

    severity: str
    mouse_id: str
    trials: tuple[int, ...]
    what: str
    fix: str

    @property
    def error(self) -> DataError:
        """For who cannot go on."""
        return DataError(f"{self._where}: {self.what}; {self.fix}")

    @property
    def line(self) -> str:
        """For a log, whose lines have a severity of their own."""
        return str(self).partition(": ")[2]

    def __str__(self) -> str:
        return shown(f"{self.severity}: {self._where}: {self.what} -> {self.fix}")

    @property
    def _where(self) -> str:
        where = f"mouse {self.mouse_id}"
        if len(self.trials) == 1:
            where += f" trial {self.trials[0]}"
        elif self.trials:
            more = f" and {len(self.trials) - 5} more" if len(self.trials) > 5 else ""
            where += f" trials {', '.join(map(str, self.trials[:5]))}{more}"
        return where


@dataclass(frozen=True)
class Rule:
    """A kind of finding; `what` and `fix` have fields in braces."""

    severity: str
    what: str
    fix: str

    def found(self, mouse_id: str, *trials: int, **facts: object) -> Finding:
        """The finding that it is in a recording."""
        return Finding(self.severity, mouse_id, trials, self.what.format(**facts), self.fix.format(**facts))


CORE_REACH = 25  # frames of a patch, where no option of training says otherwise
# What the rows of the animal's state are.
STATE_ROWS = {"behavior": ("pupil dilation", "running speed"), "pupil_center": ("horizontal gaze", "vertical gaze")}
NO_TRIAL = Rule(
    "error", "no trial of the tier {tier}{others}",
    "{name}, or leave the mouse out with --mouse_ids",
)  # fmt: skip
ONE_TRIAL = Rule(
    "error", "one trial of the tier train: responses are divided by their deviation over trials, which needs two",
    "name more trials in meta/trials/tiers.npy, or leave the mouse out with --mouse_ids",
)  # fmt: skip
WITHHELD = Rule("error", "all responses of the tier {tier} are {how}", "give the recorded responses")
SILENT = Rule(
    "warning", "data/responses: all zero, unlike other trials of the tier {tier}",
    "give the recorded responses, or set the trial's tier to 'none'",
)  # fmt: skip
NEGATIVE = Rule(
    "warning", "responses: {count} negative values, which become 0", "give deconvolved activity, which is at least 0"
)
SAME = Rule(
    "error", "data/{variable}: the same in every trial of the tier train", "give what was recorded in each trial"
)
CONSTANT = Rule(
    "warning", "data/{variable}: {which} is the same in every frame of the tier train",
    "record it: the model is given 0 in its place",
)  # fmt: skip
CONSTANT_ALL = Rule(
    "error", "data/{variable}: {which} are the same in every frame of the tier train",
    "record them, or train with --transform_mode 0, which divides by nothing",
)  # fmt: skip
FILLED = Rule(
    "warning", "data/{variable}: NaN in {frames} frames, as in blinks: filled from the frames beside them",
    "nothing, if that is so; --missing refuse takes no such recording",
)  # fmt: skip
NOTICE = Rule("warning", "{notice}", "nothing, if that is so; --missing refuse takes no such recording")
CONSTANT_BOTH = replace(CONSTANT_ALL, severity="warning", fix=CONSTANT.fix)  # where that is filled
SHORT = Rule(
    "error", f"{{frames}} frames: scores leave out the first {UNSCORED_FRAMES}", "set the trial's tier to 'none'"
)
BRIEF = Rule(
    "error", "{frames} frames, fewer than the core's temporal extent of {least} (--core_temporal_patch_size)",
    "set the trial's tier to 'none', or train with a smaller one",
)  # fmt: skip
LONG = Rule(
    "warning", f"up to {{frames}} frames: training and scores use the first {MAX_FRAMES} of a trial",
    "cut the trials into shorter ones to use all; `viv1t-predict` predicts every frame, in windows",
)  # fmt: skip
UNKNOWN_TIERS = Rule(
    "warning", "unknown tiers in meta/trials/tiers.npy, whose trials are not used: {tiers}",
    "rename them to a known tier, or to 'none'",
)  # fmt: skip
TWICE = Rule("warning", "meta/neurons/unit_ids.npy names {count} neurons twice", "number the neurons")
GREY_UNIT = Rule(
    "warning", "data/videos: grey levels from {low:.3g} to {high:.3g}: expected 0 to 255",
    "multiply the movies by 255; left so, models are given films in this range, too",
)  # fmt: skip
GREY_OUTSIDE = Rule(
    "warning", "data/videos: grey levels outside 0 to 255",
    "give the movies as shown, not standardised: that is done on loading",
)  # fmt: skip


def grey_levels(mouse_id: str, low: float, high: float) -> Finding | None:
    """What there is to say of movies whose grey levels go from `low` to `high`, over all trials."""
    if low < 0 or high > 255:
        return GREY_OUTSIDE.found(mouse_id)
    return GREY_UNIT.found(mouse_id, low=low, high=high) if low < high <= 1 + OVERSHOOT else None
