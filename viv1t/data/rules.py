"""How recordings become trials, where they leave a choice."""

from __future__ import annotations

from dataclasses import dataclass, fields

from viv1t.config.data import ReadingConfig
from viv1t.errors import ConfigError
from viv1t.types import TIERS

FRAME_SIZE = (36, 64)  # (H, W) pixels of the movies that models of this family are trained on
_CHOICES = {
    "missing": ("fill", "refuse"), "long": ("split", "cut"), "images": ("join", "leave_out"),
    "leaks": ("refuse", "hold_out"),
}  # fmt: skip
_FLAGS = {
    "long": "long_trials", "images": "image_trials", "channels": "eye_channels", "shortest": "shortest_trial",
    "responses": "response_interpolation", "max_filled": "max_blinks", "tiers": "tier_names",
    "held_out_from": "held_out_repeats",
}  # fmt: skip


@dataclass(frozen=True)
class Rules:
    """How recordings become trials; all but the first are of experanto folders.

    Attributes:
        missing: what is done where the animal's state was not recorded: `fill` it, and say so, or `refuse`.
        frame_size: (H, W) that all movies are brought to; None brings those of one size to 36 x 64.
        long: what is done with training trials over 300 frames: `split` at multiples of 300, or `cut`; others are cut.
        shortest: frames below which what is left by splitting, and a segment of images, is no trial.
        images: whether runs of image trials are joined to trials: `join`, or `leave_out`.
        responses: `hold` or `linear`; None holds responses stored at 30 Hz and interpolates others.
        channels: which of the eye tracker's signals are x, y, dilation and the derivative of dilation; the last two may
            be left out.
        max_filled: share of a trial's samples of the eye or treadmill that may be filled where they are NaN.
        leaks: what is done where a stimulus is in training and held out: `refuse`, or `hold_out`, which takes its
            presentations out of training.
        tiers: recorded names of tiers and what they are here, beside those that are known.
        held_out_from: presentations from which on a stimulus is held out where a recording gives no tiers.
    """

    missing: str = "fill"
    frame_size: tuple[int, int] | None = None
    long: str = "split"
    shortest: int = 60
    images: str = "join"
    responses: str | None = None
    channels: tuple[int, ...] = (0, 1, 2, 3)
    max_filled: float = 0.25
    leaks: str = "refuse"
    tiers: tuple[tuple[str, str], ...] = ()
    held_out_from: int = 8

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ConfigError(f"--{_FLAGS.get(name, name)} must be {' or '.join(allowed)}, not "
                                  f"{getattr(self, name)!r}")  # fmt: skip
        if self.responses not in (None, "hold", "linear"):
            raise ConfigError(f"--response_interpolation must be hold or linear, not {self.responses!r}")
        if not 2 <= len(self.channels) <= 4 or len(set(self.channels)) < len(self.channels) or min(self.channels) < 0:
            raise ConfigError(
                f"--eye_channels takes 2 to 4 different numbers from 0, of x, y, dilation and its derivative, not "
                f"{' '.join(map(str, self.channels))}"
            )
        for name, tier in self.tiers:
            if tier not in (*TIERS, "oracle", "none") or not name:
                raise ConfigError(
                    f"--tier_names: {name}={tier}: give a recorded name and one of train, oracle, "
                    f"{', '.join(TIERS[2:])} and none"
                )

    @classmethod
    def of(cls, config: ReadingConfig) -> Rules:
        """The rules of a run's or a command's options.

        Raises:
            ConfigError: one of them cannot be used.
        """
        names = [(*pair.partition("="),) for pair in config.tier_names or ()]
        return cls(
            missing=config.missing,
            frame_size=None if config.frame_size is None else _size(config.frame_size),
            long=config.long_trials,
            shortest=config.shortest_trial,
            images=config.image_trials,
            responses=config.response_interpolation,
            channels=tuple(_channel(word) for word in config.eye_channels),
            max_filled=config.max_blinks,
            leaks=config.leaks,
            tiers=tuple((name, tier) for name, _, tier in names),
            held_out_from=config.held_out_repeats,
        )

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the movies."""
        return self.frame_size or FRAME_SIZE

    @property
    def text(self) -> str:
        """The rules as one line, which tells them from others."""
        return ", ".join(f"{f.name} {getattr(self, f.name)}" for f in fields(self))


def _size(text: str) -> tuple[int, int]:
    rows, _, columns = text.partition("x")
    if not (rows.isdecimal() and columns.isdecimal() and 0 < int(rows) < 10_000 and 0 < int(columns) < 10_000):
        raise ConfigError(f"--frame_size takes rows x columns, as 36x64, not {text!r}")
    return int(rows), int(columns)


def _channel(word: str) -> int:
    if not word.isdecimal() or len(word) > 4:
        raise ConfigError(f"--eye_channels takes numbers of channels, from 0, not {word!r}")
    return int(word)
