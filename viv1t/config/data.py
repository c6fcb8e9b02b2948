"""Which recordings a run reads, and how they become trials."""

from __future__ import annotations

from dataclasses import dataclass

from viv1t.config.fields import Checked, option
from viv1t.errors import ConfigError
from viv1t.types import MAX_FRAMES


@dataclass(frozen=True, kw_only=True)
class ReadingConfig(Checked):
    """How recordings become trials; all but the first are of experanto folders."""

    missing: str = option(
        "missing",
        "fill",
        help="what is done where the animal's state was not recorded (no eye tracker, no treadmill, blinks, a constant "
        "signal): fill it, and say so, or refuse the recording",
        choices=("fill", "refuse"),
    )
    frame_size: str | None = option(
        "frame_size",
        None,
        help="experanto folders: rows x columns that movies are averaged to, as 36x64; by default 36x64, and frames of "
        "several sizes are refused",
    )
    long_trials: str = option(
        "long_trials",
        "split",
        help="experanto folders: training trials over 300 frames are split, or cut after 300; others are cut",
        choices=("split", "cut"),
    )
    shortest_trial: int = option(
        "shortest_trial",
        60,
        help="experanto folders: frames below which what splitting leaves, and a run of images, is no trial",
        low=1,
        high=MAX_FRAMES,
    )
    image_trials: str = option(
        "image_trials",
        "join",
        help="experanto folders: runs of images of one tier are joined to trials, with the grey between them, or left "
        "out",
        choices=("join", "leave_out"),
    )
    response_interpolation: str | None = option(
        "response_interpolation",
        None,
        help="experanto folders: responses between samples, hold or linear; by default those stored at 30 Hz are held",
        choices=("hold", "linear"),
    )
    eye_channels: tuple[str, ...] = option(
        "eye_channels",
        ("0", "1", "2", "3"),
        help="experanto folders: the eye tracker's channels of x, y, dilation and its derivative; the last two may be "
        "left out",
    )
    max_blinks: float = option(
        "max_blinks",
        0.25,
        help="experanto folders: share of a trial's samples of eye or treadmill that may be filled where they are NaN; "
        "trials with more are not used",
        low=0,
        high=1,
    )
    leaks: str = option(
        "leaks",
        "refuse",
        help="experanto folders: where a stimulus is in training and held out, refuse the recording, or hold_out: take "
        "it out of training",
        choices=("refuse", "hold_out"),
    )
    tier_names: tuple[str, ...] | None = option(
        "tier_names", None, help="experanto folders: what recorded tiers are here, as validation=train"
    )
    held_out_repeats: int = option(
        "held_out_repeats",
        8,
        help="experanto folders without tiers: stimuli shown as often are held out, every other one as oracle and as "
        "final_test_main",
        low=2,
    )


@dataclass(frozen=True, kw_only=True)
class AnyDataConfig(ReadingConfig):
    """Which recordings are used, in every family of models; each has its own ways to transform them."""

    path: str = option("data", "data/sensorium", help="folder of recording sessions")
    mouse_ids: tuple[str, ...] | None = option("mouse_ids", None, help="use these mice only")
    center_crop: float = option(
        "center_crop", 1.0, help="share of the frame kept around its centre, in (0, 1]", low=0, high=1
    )
    limit_data: int | None = option("limit_data", None, help="number of training trials drawn per mouse", low=1)
    crop_frame: int = option("crop_frame", 150, help="frames of a training sample; -1 takes whole trials", low=-1)
    batch_size: int = option("batch_size", 8, help="trials per mouse in an optimizer step", low=1)
    num_workers: int = option("num_workers", 2, help="reader threads", low=0, high=1024)

    def validate(self) -> None:
        if not self.center_crop > 0:
            raise ConfigError(f"--center_crop must be above 0, not {self.center_crop}")
        if self.crop_frame == 0:
            raise ConfigError("--crop_frame must be -1 or at least 1, not 0")
        if self.mouse_ids is not None and not self.mouse_ids:
            raise ConfigError("--mouse_ids needs at least one mouse")


@dataclass(frozen=True, kw_only=True)
class DataConfig(AnyDataConfig):
    """Which recordings are used and how they are transformed, as readers of recordings take it."""

    mice: str = option(
        "ds_mode",
        help="which mice: 0 the old five, 1 the new five, 2 all found in the folder, 3 all, with the old mice's test "
        "tiers added to training",
        codes={0: "old", 1: "new", 2: "all", 3: "all_with_test"},
    )
    statistics: str = option(
        "stat_mode", "computed", help="statistics: 0 stored with the recording, 1 computed from the training tier",
        codes={0: "provided", 1: "computed"},
    )  # fmt: skip
    transform: str = option(
        "transform_mode",
        help="0 nothing, 1 standardise per frame, 2 as published checkpoints were trained (min-max, video by mean and "
        "std), 3 standardise, 4 min-max, 5 standardise the video and min-max the rest",
        codes={0: "none", 1: "standardize_per_frame", 2: "published", 3: "standardize", 4: "min_max", 5: "balanced"},
    )
    response_scale: str = option(
        "response_scale",
        "frame",
        help="responses are divided by their standard deviation over training trials: of each frame, as published, or "
        "of each neuron, which few trials estimate better",
        choices=("frame", "neuron"),
    )
    cache_data: str | None = option(
        "cache_data",
        None,
        help="hold the training trials in memory: cpu (also without a word), or gpu, with responses in bf16",
        choices=("cpu", "gpu"),
    )
    transfer: str = option(
        "transfer",
        "float32",
        help="how training batches reach the device: float32, or compact: responses as bf16, which rounds them to 8 "
        "bits, and movies as uint8 where they are whole grey levels, which changes nothing",
        choices=("float32", "compact"),
    )

    def __post_init__(self) -> None:
        if isinstance(self.cache_data, bool):  # the published switch
            object.__setattr__(self, "cache_data", "cpu" if self.cache_data else None)
        super().__post_init__()

    def validate(self) -> None:
        super().validate()
        if self.statistics == "provided" and self.transform in ("standardize", "min_max", "balanced"):
            raise ConfigError("--transform_mode 3, 4 and 5 need computed statistics: use --stat_mode 1")
        if self.statistics == "provided" and self.response_scale == "neuron":
            raise ConfigError("--response_scale neuron needs computed statistics: use --stat_mode 1")
        if self.transfer == "compact" and self.num_workers == 0:
            raise ConfigError("--transfer compact is done by reader threads: set --num_workers to at least 1")
