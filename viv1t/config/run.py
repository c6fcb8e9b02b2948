"""What a run is made of: one frozen dataclass per component, checked where it is made.

Each field carries the published option's name, and where the published option is an integer code, the names those
codes stand for inside. `RunConfig.from_options` takes the flat mapping of published names (a command line, a YAML
file, a published `args.yaml`), `RunConfig.to_options` gives it back.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from viv1t.config.option_set import OptionSet, owners_of
from viv1t.errors import ConfigError
from viv1t.types import MAX_FRAMES

Options = dict[str, Any]
MOST = 1_000_000  # of anything that is counted, where an option says nothing else


def option(
    flag: str,
    default: Any = dataclasses.MISSING,
    *,
    help: str,
    codes: Mapping[int, str] | None = None,
    choices: tuple[Any, ...] | None = None,
    low: float = -math.inf,
    high: float = math.inf,
) -> Any:
    """A dataclass field set by the published option `flag`; `low` and `high` are inclusive bounds of a number."""
    metadata = {"flag": flag, "help": help, "codes": codes, "choices": choices, "low": low, "high": high}
    return field(default=default, metadata=metadata)


def with_default(config: type, name: str, default: Any, **changes: Any) -> Any:
    """The field `name` of a component with another default, and what else of `option` is another."""
    known = next(f for f in dataclasses.fields(config) if f.name == name)
    return field(default=default, metadata={**known.metadata, **changes})


def flag_of(part: Any, name: str) -> str:
    """The option that sets the field `name` of a component."""
    return str(next(f.metadata["flag"] for f in dataclasses.fields(part) if f.name == name))


def _plain_type(annotation: Any) -> tuple[type, bool]:
    """The type of one value and whether None is allowed."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        inner = [a for a in typing.get_args(annotation) if a is not type(None)]
        return inner[0], True
    return annotation, False


class _Checked:
    """Checks every field against its declared type, choices and bounds."""

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for f in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, f.name)
            kind, optional = _plain_type(hints[f.name])
            flag = f.metadata["flag"]
            if value is None:
                if not optional:
                    raise ConfigError(f"--{flag} needs a value")
                continue
            if kind is float and isinstance(value, int) and not isinstance(value, bool):
                object.__setattr__(self, f.name, value := float(value))
            codes, choices = f.metadata["codes"], f.metadata["choices"]
            allowed = tuple(codes.values()) if codes else choices
            if allowed is not None and value not in allowed:
                words = ", ".join(f"{k} ({v})" for k, v in codes.items()) if codes else ", ".join(map(str, allowed))
                raise ConfigError(f"--{flag} must be one of {words}, not {_shown(value)}")
            if typing.get_origin(kind) is tuple:
                if not isinstance(value, tuple) or not all(isinstance(v, str) for v in value):
                    raise ConfigError(f"--{flag} takes a list of words, not {_shown(value)}")
            elif not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
                raise ConfigError(f"--{flag} takes {_KIND_WORDS[kind]}, not {_shown(value)}")
            if kind in (int, float):
                low, high = f.metadata["low"], f.metadata["high"]
                # Written so that NaN fails as well.
                if not low <= value <= high or value == math.inf:
                    bounds = f"at least {low}" if high == math.inf else f"from {low} to {high}"
                    raise ConfigError(f"--{flag} must be {bounds}, not {_shown(value)}")
                if kind is int and high == math.inf and value > MOST:
                    raise ConfigError(f"--{flag} must be at most {MOST}, not {_shown(value)}")
        self.validate()

    def validate(self) -> None:
        """Checks that involve several fields."""


def _shown(value: Any) -> str:
    """A value as errors show it."""
    try:
        text = repr(value)
    except ValueError:  # a whole number of more digits than Python writes
        return "a number of thousands of digits"
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text)} characters)"


_KIND_WORDS = {int: "a whole number", float: "a number", str: "a word", bool: "true or false"}


@dataclass(frozen=True, kw_only=True)
class ReadingConfig(_Checked):
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
class DataConfig(ReadingConfig):
    """Which recordings are used and how they are transformed."""

    path: str = option("data", "data/sensorium", help="folder of recording sessions")
    mice: str = option(
        "ds_mode",
        help="which mice: 0 the old five, 1 the new five, 2 all found in the folder, 3 all, with the old mice's test "
        "tiers added to training",
        codes={0: "old", 1: "new", 2: "all", 3: "all_with_test"},
    )
    mouse_ids: tuple[str, ...] | None = option("mouse_ids", None, help="use these mice only")
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
    center_crop: float = option(
        "center_crop", 1.0, help="share of the frame kept around its centre, in (0, 1]", low=0, high=1
    )
    limit_data: int | None = option("limit_data", None, help="number of training trials drawn per mouse", low=1)
    crop_frame: int = option("crop_frame", 150, help="frames of a training sample; -1 takes whole trials", low=-1)
    batch_size: int = option("batch_size", 8, help="trials per mouse in an optimizer step", low=1)
    cache_data: str | None = option(
        "cache_data",
        None,
        help="hold the training trials in memory: cpu (also without a word), or gpu, with responses in bf16",
        choices=("cpu", "gpu"),
    )
    num_workers: int = option("num_workers", 2, help="reader threads", low=0, high=1024)
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
        if not self.center_crop > 0:
            raise ConfigError(f"--center_crop must be above 0, not {self.center_crop}")
        if self.crop_frame == 0:
            raise ConfigError("--crop_frame must be -1 or at least 1, not 0")
        if self.statistics == "provided" and self.transform in ("standardize", "min_max", "balanced"):
            raise ConfigError("--transform_mode 3, 4 and 5 need computed statistics: use --stat_mode 1")
        if self.statistics == "provided" and self.response_scale == "neuron":
            raise ConfigError("--response_scale neuron needs computed statistics: use --stat_mode 1")
        if self.transfer == "compact" and self.num_workers == 0:
            raise ConfigError("--transfer compact is done by reader threads: set --num_workers to at least 1")
        if self.mouse_ids is not None and not self.mouse_ids:
            raise ConfigError("--mouse_ids needs at least one mouse")


@dataclass(frozen=True, kw_only=True)
class VivitConfig(_Checked):
    """The core `vivit`: a factorised spatiotemporal vision Transformer."""

    name: ClassVar[str] = "vivit"

    behavior: str = option(
        "core_behavior_mode",
        "state_channels",
        help="0 video only; 1 behavior, 2 behavior and pupil_center as input channels; 3 behavior, 4 behavior and "
        "pupil_center added in every block; 5 like 4 with an encoder per mouse",
        codes={0: "none", 1: "behavior_channels", 2: "state_channels", 3: "behavior_encoding", 4: "state_encoding",
               5: "state_encoding_per_mouse"},
    )  # fmt: skip
    patch: str = option(
        "core_patch_mode", "normalized", help="0 and 1: patches normalised, then projected; 2: convolution",
        codes={0: "normalized", 1: "normalized_alias", 2: "convolution"},
    )  # fmt: skip
    pos_encoding: str = option(
        "core_pos_encoding",
        "learned",
        help="0 none, 1 learned jointly, 2 generated by convolution, 3 learned, 4 learned in space and sinusoidal in "
        "time, 5 sinusoidal",
        codes={0: "none", 1: "learned_joint", 2: "generated", 3: "learned", 4: "learned_sinusoidal", 5: "sinusoidal"},
    )
    spatial_patch_size: int = option("core_spatial_patch_size", 7, help="patch height and width in pixels", low=1)
    spatial_patch_stride: int = option("core_spatial_patch_stride", 2, help="pixels between patches", low=1)
    spatial_depth: int = option("core_spatial_depth", 3, help="spatial Transformer blocks", low=0, high=1000)
    temporal_patch_size: int = option("core_temporal_patch_size", 25, help="patch length in frames", low=1)
    grid: str | None = option(
        "core_grid",
        None,
        help="rows and columns of the core's maps, where the published code does not have the patches' own: true takes "
        "the patches' own, published the most square ones, which tears neighbours apart; new runs have to say which",
        choices=("true", "published"),
    )
    temporal_patch_stride: int = option(
        "core_temporal_patch_stride",
        1,
        help="frames between patches; above 1, models are not trained, and published ones read out their n-th map with "
        "the behaviour of another frame, as in the published code: its last t frames for t maps",
        low=1,
    )
    temporal_depth: int = option("core_temporal_depth", 5, help="temporal Transformer blocks", low=0, high=1000)
    num_heads: int = option("core_num_heads", 11, help="attention heads", low=1)
    emb_dim: int = option("core_emb_dim", 112, help="embedding size D", low=1)
    head_dim: int = option("core_head_dim", 48, help="size of a head", low=1)
    mlp_dim: int = option("core_mlp_dim", 136, help="hidden units of the feed-forward path", low=1)
    ff_activation: str = option("core_ff_activation", "gelu", help="gelu or swiglu", choices=("gelu", "swiglu"))
    p_dropout: float = option("core_p_dropout", 0.1338, help="dropout of patches", low=0, high=1)
    mha_dropout: float = option("core_mha_dropout", 0.3580, help="dropout of the attention's output", low=0, high=1)
    ff_dropout: float = option("core_ff_dropout", 0.0592, help="dropout of the feed-forward path", low=0, high=1)
    drop_path: float = option("core_drop_path", 0.0505, help="stochastic depth's rate", low=0, high=1)
    parallel_attention: bool = option("core_parallel_attention", False, help="attention and feed-forward side by side")
    flash_attention: bool = option("core_flash_attention", True, help="0 keeps the scale D**-0.5 of sequential blocks")
    norm_qk: bool = option("core_norm_qk", False, help="LayerNorm on queries and keys")
    pretrain: str | None = option("pretrain_core", None, help="run folder whose core to start from")
    freeze: bool = option(
        "freeze_core", False, help="leave the core of --pretrain_core as it is: trains readouts and shifters only"
    )

    def validate(self) -> None:
        check_frozen(self)
        if self.drop_path == 1:
            raise ConfigError("--core_drop_path must be below 1: 1 would drop every path")
        if self.emb_dim % 2 and self.pos_encoding in ("learned_sinusoidal", "sinusoidal"):
            raise ConfigError(
                f"--core_pos_encoding 4 and 5 need an even --core_emb_dim (sine and cosine pairs), not {self.emb_dim}"
            )

    def output_frames(self, frames: int) -> int:
        """Frames predicted from `frames` input frames."""
        return (frames - self.temporal_patch_size) // self.temporal_patch_stride + 1


@dataclass(frozen=True, kw_only=True)
class FactorizedBaselineConfig(_Checked):
    """The core `factorized_baseline`: a factorised 3-D convolutional network."""

    name: ClassVar[str] = "factorized_baseline"

    behavior: str = option(
        "core_behavior_mode",
        "behavior_channels",
        help="0 video only; 1 behavior, 2 behavior and pupil_center as channels; 6 also their differences; 7 also "
        "pixel positions; 8 the state through a GRU; 9 both",
        codes={0: "none", 1: "behavior_channels", 2: "state_channels", 6: "state_differences", 7: "state_position",
               8: "state_gru", 9: "state_gru_position"},
    )  # fmt: skip
    spatial_input_kernel: int = option("core_spatial_input_kernel", 11, help="first spatial kernel, pixels", low=1)
    temporal_input_kernel: int = option("core_temporal_input_kernel", 11, help="first temporal kernel, frames", low=1)
    spatial_hidden_kernel: int = option("core_spatial_hidden_kernel", 5, help="further spatial kernels", low=1)
    temporal_hidden_kernel: int = option("core_temporal_hidden_kernel", 5, help="further temporal kernels", low=1)
    num_layers: int = option("core_num_layers", 4, help="layers", low=1, high=40)
    hidden_dim: int = option("core_hidden_dim", 16, help="channels of the first layer, doubled at each", low=1)
    dropout: float = option("core_dropout", 0.0, help="dropout of whole channels", low=0, high=1)
    reg_spatial: float = option(
        "core_reg_spatial", 0.0, help="weight, in each step's loss, of the first spatial kernels' roughness", low=0
    )
    reg_temporal: float = option(
        "core_reg_temporal", 0.0, help="weight, in each step's loss, of the first temporal kernels' roughness", low=0
    )
    pretrain: str | None = option("pretrain_core", None, help="run folder whose core to start from")
    freeze: bool = option(
        "freeze_core", False, help="leave the core of --pretrain_core as it is: trains readouts and shifters only"
    )

    def validate(self) -> None:
        check_frozen(self)
        for flag, kernel in (("input", self.spatial_input_kernel), ("hidden", self.spatial_hidden_kernel)):
            if kernel % 2 == 0:
                raise ConfigError(f"--core_spatial_{flag}_kernel must be odd (same padding), not {kernel}")
        for flag, weight, kernel in (
            ("spatial", self.reg_spatial, self.spatial_input_kernel),
            ("temporal", self.reg_temporal, self.temporal_input_kernel),
        ):
            if weight and kernel < 3:
                raise ConfigError(f"--core_reg_{flag} needs a --core_{flag}_input_kernel of at least 3, not {kernel}")

    def output_frames(self, frames: int) -> int:
        """Frames predicted from `frames` input frames."""
        return frames - (self.temporal_input_kernel - 1) - (self.num_layers - 1) * (self.temporal_hidden_kernel - 1)


# What a core computes in evaluation does not depend on these.
_OF_TRAINING = (
    "p_dropout", "mha_dropout", "ff_dropout", "drop_path", "dropout", "reg_spatial", "reg_temporal", "pretrain",
    "freeze",
)  # fmt: skip


def check_frozen(core: VivitConfig | FactorizedBaselineConfig) -> None:
    """Raises a ConfigError where a core is to be left as it is that was never trained."""
    if core.freeze and core.pretrain is None:
        raise ConfigError("--freeze_core needs --pretrain_core, the run whose core is left as it is")


def check_same_core(
    core: Any, other: Any, folder: str, option: str = "--pretrain_core", ignored: Collection[str] = _OF_TRAINING
) -> None:
    """Raises a ConfigError where the core of the run `other`, in `folder`, would compute something else as `core`.

    Args:
        core, other: the options of both cores.
        folder: of the other run, as `option` named it.
        option: named in errors.
        ignored: fields that may differ.
    """
    if core.name != other.name:
        raise ConfigError(f"{option} {folder} has the core {other.name}: give --core {other.name}")
    if type(core) is not type(other):
        raise ConfigError(f"{option} {folder} has a core {other.name} of another family of models")
    wanted = []
    core, other = (replace(c, grid=c.grid or "published") if isinstance(c, VivitConfig) else c for c in (core, other))
    for f in dataclasses.fields(core):
        if f.name not in ignored and getattr(core, f.name) != getattr(other, f.name):
            wanted.append(f"--{f.metadata['flag']} {_encode(f, getattr(other, f.name))}")
    if wanted:
        raise ConfigError(f"{option} {folder} has a core of other options: give {', '.join(wanted)}")


@dataclass(frozen=True, kw_only=True)
class Gaussian2dConfig(_Checked):
    """The readout `gaussian2d`: each neuron samples the core's output at a learned position."""

    name: ClassVar[str] = "gaussian2d"

    grid: str = option(
        "readout_grid_mode", "xy", help="positions: 0 free, 1 from cortical x, y, 2 from cortical x, y, z",
        codes={0: "free", 1: "xy", 2: "xyz"},
    )  # fmt: skip
    bias: str = option(
        "readout_bias_mode", "mean_response", help="bias: 0 none, 1 zero, 2 the mean response",
        codes={0: "none", 1: "zero", 2: "mean_response"},
    )  # fmt: skip
    dropout: float = option("readout_dropout", 0.0, help="dropout of the readout", low=0, high=1)

    @property
    def starts_at_mean(self) -> bool:
        """Whether the bias of a new model is the mean response."""
        return self.bias == "mean_response"


@dataclass(frozen=True, kw_only=True)
class FactorizedReadoutConfig(_Checked):
    """The readout `factorized`: a spatial mask times features. Its published form never has a bias."""

    name: ClassVar[str] = "factorized"

    bias: str = option(
        "readout_bias_mode", "mean_response", help="kept for published runs; this readout has no bias",
        codes={0: "none", 1: "zero", 2: "mean_response"},
    )  # fmt: skip
    dropout: float = option("readout_dropout", 0.0, help="dropout of the readout", low=0, high=1)


@dataclass(frozen=True, kw_only=True)
class RandomReadoutConfig(_Checked):
    """The readout `random`: uniform noise, the chance baseline."""

    name: ClassVar[str] = "random"


@dataclass(frozen=True, kw_only=True)
class ShifterConfig(_Checked):
    """How gaze moves the readout positions."""

    mode: str = option(
        "shifter_mode", "pupil_center", help="0 none, 1 from pupil_center, 2 from behavior and pupil_center",
        codes={0: "none", 1: "pupil_center", 2: "state"},
    )  # fmt: skip
    layers: int = option("shifter_layers", 3, help="linear layers", low=1, high=1000)
    size: int = option("shifter_size", 5, help="hidden units", low=1)


@dataclass(frozen=True, kw_only=True)
class NoModulatorConfig(_Checked):
    """No modulator."""

    name: ClassVar[str] = "none"


@dataclass(frozen=True, kw_only=True)
class MlpModulatorConfig(_Checked):
    """Modulator 1: gain from the response's own history, offset from the animal's state."""

    name: ClassVar[str] = "mlp"

    include_history: bool = option("modulator_include_history", True, help="use the history factor")
    history_size: int = option("modulator_history_size", 5, help="frames of history", low=1)
    history_dropout: float = option("modulator_history_dropout", 0.0, help="its dropout", low=0, high=1)
    behaviors: str = option(
        "modulator_include_behaviors", "state", help="0 none, 1 behavior, 2 behavior and pupil_center",
        codes={0: "none", 1: "behavior", 2: "state"},
    )  # fmt: skip
    behaviors_dropout: float = option("modulator_behaviors_dropout", 0.0, help="its dropout", low=0, high=1)


@dataclass(frozen=True, kw_only=True)
class GruModulatorConfig(_Checked):
    """Modulator 2: a recurrent unit over frames."""

    name: ClassVar[str] = "gru"

    hidden_dim: int = option("modulator_hidden_dim", 16, help="hidden units", low=1)
    dropout: float = option("modulator_dropout", 0.0, help="dropout of the state's encoding", low=0, high=1)


@dataclass(frozen=True, kw_only=True)
class MlpV2ModulatorConfig(_Checked):
    """Modulator 3: an offset from the history of the response and of the state."""

    name: ClassVar[str] = "mlp_v2"

    history_size: int = option("modulator_history_size", 5, help="frames of history", low=1)
    history_dropout: float = option("modulator_history_dropout", 0.0, help="its dropout", low=0, high=1)


@dataclass(frozen=True, kw_only=True)
class MlpV3ModulatorConfig(_Checked):
    """Modulator 4: an offset from the state of the same frame."""

    name: ClassVar[str] = "mlp_v3"

    activation: str = option(
        "modulator_activation", "tanh", help="identity, sigmoid or tanh", choices=("identity", "sigmoid", "tanh")
    )
    dropout: float = option("modulator_dropout", 0.0, help="dropout of the offset", low=0, high=1)


@dataclass(frozen=True, kw_only=True)
class NoCriticConfig(_Checked):
    """No critic."""

    name: ClassVar[str] = "none"


@dataclass(frozen=True, kw_only=True)
class CriticConfig(_Checked):
    """A classifier that tells which mouse a core output belongs to."""

    name: ClassVar[str] = "critic"

    hidden_dim: int = option("critic_hidden_dim", 64, help="channels", low=1, high=4096)
    dropout: float = option("critic_dropout", 0.2, help="dropout", low=0, high=1)
    weight_decay: float = option("critic_weight_decay", 0.01, help="weight decay", low=0)


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(_Checked):
    """AdamW's numbers and the loss."""

    lr: float = option("lr", 0.0036, help="learning rate of readouts, shifters and modulators", low=0)
    core_lr: float | None = option("core_lr", 0.0048, help="learning rate of the core; none: as --lr", low=0)
    weight_decay: float = option("weight_decay", 0.3939, help="weight decay of readouts and shifters", low=0)
    core_weight_decay: float = option("core_weight_decay", 0.1789, help="weight decay of the core", low=0)
    modulator_weight_decay: float = option("modulator_weight_decay", 0.0, help="weight decay of the modulators", low=0)
    beta1: float = option("adam_beta1", 0.9, help="AdamW's beta 1", low=0, high=1)
    beta2: float = option("adam_beta2", 0.999, help="AdamW's beta 2", low=0, high=1)
    eps: float = option("adam_eps", 1e-8, help="AdamW's epsilon", low=0)
    criterion: str = option(
        "criterion",
        "poisson_correlation",
        help="loss",
        choices=("poisson", "correlation", "poisson_correlation", "mean_poisson", "mse", "logMSE"),
    )
    ds_scale: bool = option("ds_scale", True, help="scale the loss by sqrt(training trials / batch size)")
    schedule: str = option(
        "lr_schedule",
        "plateau",
        help="plateau: reduce the learning rates when validation stops improving, as published; cosine: lower them "
        "over the given number of epochs, for short runs",
        choices=("plateau", "cosine"),
    )
    grad_norm: float | None = option("grad_norm", None, help="clip the gradient's norm to this", low=0)

    def validate(self) -> None:
        if self.beta1 == 1 or self.beta2 == 1:
            raise ConfigError("--adam_beta1 and --adam_beta2 must be below 1")


# The defaults of the optimizer depend on the core, as in the published code.
OPTIMIZER_DEFAULTS: dict[str, Options] = {
    "vivit": {},
    "factorized_baseline": {"lr": 0.005, "core_lr": None, "weight_decay": 0.0, "core_weight_decay": 0.0},
}


@dataclass(frozen=True, kw_only=True)
class KeepingConfig(_Checked):
    """What is kept and drawn of a run, in every family of models: options of this program alone."""

    save_every: str = option("save_every", "10m", help="optimizer steps, or minutes (10m), between saves in an epoch")
    reader_timeout: int = option(
        "reader_timeout", 600, help="seconds without a batch after which a stuck reader ends the run; 0: never", low=0
    )
    save_plots: bool = option("save_plots", False, help="draw figures during training")
    dpi: int = option("dpi", 120, help="resolution of figures", low=1, high=2400)
    format: str = option("format", "svg", help="format of figures", choices=("pdf", "svg", "png"))

    def validate(self) -> None:
        if not re.fullmatch(r"0*[1-9][0-9]{0,8}m?", self.save_every):
            raise ConfigError(
                f"--save_every takes a number of optimizer steps (200) or minutes (10m), not {self.save_every!r}"
            )

    @property
    def save_interval(self) -> tuple[float, float]:
        """Optimizer steps and seconds between saves; infinity for the one that does not count."""
        if self.save_every.endswith("m"):
            return math.inf, 60.0 * int(self.save_every[:-1])
        return int(self.save_every), math.inf


@dataclass(frozen=True, kw_only=True)
class AnyTrainConfig(KeepingConfig):
    """How long and how a run trains, and what it writes: what runs of every family have."""

    output_dir: str = option("output_dir", help="run folder")
    epochs: int = option("epochs", 400, help="epochs at most", low=0)
    micro_batch_size: int = option(
        "micro_batch_size", 0, help="trials per forward and backward; 0: as many of the batch as fit in memory", low=0
    )
    device: str | None = option(
        "device", None, help="cpu, cuda or mps; default the best there is", choices=("cpu", "cuda", "mps")
    )
    seed: int = option("seed", 1234, help="seed of weights, order and noise", low=0, high=2**63 - 1)
    deterministic: bool = option("deterministic", False, help="the same result on every run of the same machine")
    grad_checkpointing: bool | None = option(
        "grad_checkpointing", None, help="recompute blocks in the backward; default on for CUDA"
    )
    restore: str | None = option("restore", None, help="run folder whose weights to start from")
    wandb: str | None = option("wandb", None, help="Weights & Biases group to log to")
    wandb_id: str | None = option("wandb_id", None, help="Weights & Biases run to resume")
    clear_output_dir: bool = option("clear_output_dir", False, help="delete an existing run folder first")
    verbose: int = option("verbose", 2, help="0 silent to 3 everything", low=0, high=3)

    def compiles(self, device: str) -> bool:
        """Whether training is compiled on a kind of device."""
        raise NotImplementedError

    @property
    def tf32(self) -> bool:
        """Whether float32 is multiplied on tensor cores, rounded, where there are some."""
        return False


@dataclass(frozen=True, kw_only=True)
class TrainConfig(AnyTrainConfig):
    """How long and how a run trains, and what it writes."""

    precision: str = option(
        "precision",
        "32",
        help="bf16: of the core, where the processor multiplies it; tf32: of products, on CUDA; or 32",
        choices=("32", "tf32", "bf16"),
    )
    compile: bool = option(
        "core_compile", False, help="compile core, readouts and criterion with torch.compile; done anyway on CUDA"
    )
    no_compile: bool = option("no_compile", False, help="compile nothing, not on CUDA either")

    def validate(self) -> None:
        super().validate()
        if self.compile and self.no_compile:
            raise ConfigError("--core_compile and --no_compile contradict each other: give one of them")

    def compiles(self, device: str) -> bool:
        return self.compile or (device == "cuda" and not self.no_compile)

    @property
    def tf32(self) -> bool:
        return self.precision == "tf32"


CoreConfig = VivitConfig | FactorizedBaselineConfig
ReadoutConfig = Gaussian2dConfig | FactorizedReadoutConfig | RandomReadoutConfig
ModulatorConfig = (
    NoModulatorConfig | MlpModulatorConfig | GruModulatorConfig | MlpV2ModulatorConfig | MlpV3ModulatorConfig
)

CORES = {c.name: c for c in (VivitConfig, FactorizedBaselineConfig)}
READOUTS = {c.name: c for c in (Gaussian2dConfig, FactorizedReadoutConfig, RandomReadoutConfig)}
MODULATORS = dict(
    enumerate((NoModulatorConfig, MlpModulatorConfig, GruModulatorConfig, MlpV2ModulatorConfig, MlpV3ModulatorConfig))
)
CRITICS = dict(enumerate((NoCriticConfig, CriticConfig)))
OUTPUTS = {0: "elu", 1: "exp", 2: "softplus"}

# The options that pick a component, and what they pick.
SELECTORS: dict[str, Mapping[Any, Any]] = {
    "core": CORES, "readout": READOUTS, "modulator_mode": MODULATORS, "critic_mode": CRITICS,
}  # fmt: skip
SELECTOR_DEFAULTS: Options = {"modulator_mode": 0, "critic_mode": 0, "output_mode": 0}
# What published `args.yaml` files hold besides options: derived facts, not read back.
DERIVED = ("input_shapes", "output_shapes", "max_frame", "trainable_params", "ds_sizes", "git_hash", "hostname")


def component_classes(options: Mapping[str, Any]) -> list[type[_Checked]]:
    """The component classes that a flat mapping selects, in the order of `RunConfig`'s fields."""
    picked = []
    for selector, table in SELECTORS.items():
        value = options.get(selector, SELECTOR_DEFAULTS.get(selector))
        if value is None:
            raise ConfigError(f"--{selector} is required: one of {', '.join(map(str, table))}")
        value = _number(value) if 0 in table else value
        if value not in list(table) or isinstance(value, bool):  # a list compares also what cannot be hashed
            raise ConfigError(f"--{selector} must be one of {', '.join(map(str, table))}, not {_shown(value)}")
        picked.append(table[value])
    core, readout, modulator, critic = picked
    return [DataConfig, core, readout, ShifterConfig, modulator, critic, OptimizerConfig, TrainConfig]


@dataclass(frozen=True)
class RunConfig:
    """Everything that defines a run."""

    data: DataConfig
    core: CoreConfig
    readout: ReadoutConfig
    shifter: ShifterConfig
    modulator: ModulatorConfig
    critic: NoCriticConfig | CriticConfig
    optimizer: OptimizerConfig
    train: TrainConfig
    output: str = "elu"

    def __post_init__(self) -> None:
        if self.output not in OUTPUTS.values():
            words = ", ".join(f"{k} ({v})" for k, v in OUTPUTS.items())
            raise ConfigError(f"--output_mode must be one of {words}, not {_shown(self.output)}")
        crop = self.data.crop_frame
        for what, frames in (("a 300-frame trial", MAX_FRAMES), (f"--crop_frame {crop}", crop)):
            if frames > 0 and self.core.output_frames(frames) < 1:
                raise ConfigError(f"the core's temporal extent is longer than {what}: no frame would be predicted")

    @property
    def pretrained_core(self) -> str | None:
        """The run folder whose core it starts from."""
        return self.core.pretrain

    @property
    def frozen_core(self) -> bool:
        """Whether the core is left as it is."""
        return self.core.freeze

    @property
    def core_lr(self) -> float:
        return self.optimizer.lr if self.optimizer.core_lr is None else self.optimizer.core_lr

    @classmethod
    def from_options(cls, options: Mapping[str, Any], *, strict: bool = True) -> RunConfig:
        """Builds a configuration from published option names.

        Args:
            options: flat mapping, of a file's values or a command line's words: numbers, switches and codes may be
                text, codes also their names, and `none` is no value where an option may have none.
            strict: refuse options that are unknown or belong to a component that was not chosen; otherwise ignore them.

        Raises:
            ConfigError: names the option, what is allowed and what was given.
        """
        classes = component_classes(options)
        left = set(map(str, options)) - set(SELECTORS) - {"output_mode"} - set(DERIVED)
        defaults = OPTIMIZER_DEFAULTS[options["core"]]
        parts = []
        for component in classes:
            values = {}
            for f in dataclasses.fields(component):  # type: ignore[arg-type]
                flag = f.metadata["flag"]
                left.discard(flag)
                if flag in options:
                    values[f.name] = decode(f, options[flag])
                elif flag in defaults:
                    values[f.name] = defaults[flag]
                elif f.default is dataclasses.MISSING:
                    raise ConfigError(f"--{flag} is required: {f.metadata['help']}")
            parts.append(component(**values))
        if strict and left:
            raise ConfigError(_surplus(min(left), options))
        output = _number(options.get("output_mode", SELECTOR_DEFAULTS["output_mode"]))
        if isinstance(output, int) and not isinstance(output, bool):
            output = OUTPUTS.get(output, output)
        return cls(*parts, output=output)  # type: ignore[arg-type, misc]

    @classmethod
    def from_published(cls, options: Mapping[str, Any]) -> RunConfig:
        """A configuration from the `args.yaml` of a published run, which may predate some options.

        Raises:
            ConfigError: as `from_options`; an option that is not known is never left out in silence.
        """
        options = dict(options)
        known = {*all_components(), *SELECTORS, "output_mode", *DERIVED}
        if unknown := sorted(str(flag) for flag in options if flag not in known):
            raise ConfigError(_surplus(unknown[0], options))
        if options.get("core") == "vivit":
            options.setdefault("core_parallel_attention", False)
            options.setdefault("core_norm_qk", False)
            options.setdefault("core_ff_activation", "gelu")
            options.setdefault("core_ff_dropout", options.get("core_mha_dropout", VivitConfig.mha_dropout))
        return cls.from_options(options, strict=False)

    def to_options(self) -> Options:
        """The flat mapping of published option names and integer codes."""
        modulator = next(k for k, v in MODULATORS.items() if isinstance(self.modulator, v))
        output = next(k for k, v in OUTPUTS.items() if v == self.output)
        options: Options = {
            "core": self.core.name, "readout": self.readout.name, "modulator_mode": modulator,
            "critic_mode": int(isinstance(self.critic, CriticConfig)), "output_mode": output,
        }  # fmt: skip
        parts: tuple[Any, ...] = (
            self.data, self.core, self.readout, self.shifter, self.modulator, self.critic, self.optimizer, self.train,
        )  # fmt: skip
        for part in parts:
            for f in dataclasses.fields(part):
                options[f.metadata["flag"]] = _encode(f, getattr(part, f.name))
        return options


# Published flags that take 0 or 1 instead of being switches.
INTEGER_SWITCHES = ("ds_scale", "grad_checkpointing", "core_flash_attention", "modulator_include_history")


_WHOLE = re.compile(r"[-+]?[0-9]+")
_REAL = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[-+]?[0-9]+)?|[-+]?\.?inf|\.?nan", re.IGNORECASE)
_SWITCH = {"true": True, "1": True, "false": False, "0": False}


def _number(value: Any) -> Any:
    """A whole number where text is one; anything else as it is."""
    if isinstance(value, str) and _WHOLE.fullmatch(value) and len(value) < 1000:
        return int(value)
    return value


def decode(f: dataclasses.Field[Any], value: Any) -> Any:
    """A field's value from a file's value or a command line's word, both judged alike."""
    codes, flag, kind = f.metadata["codes"], f.metadata["flag"], str(f.type)
    word = value[0] if isinstance(value, list) and len(value) == 1 else value
    if isinstance(word, str) and word.lower() in ("none", "null") and kind.endswith("| None"):
        return None
    if codes is not None:
        code = _number(value)
        return codes.get(code, code) if isinstance(code, int) and not isinstance(code, bool) else value
    if kind.startswith("bool") or flag == "cache_data":
        if isinstance(value, str):
            return _SWITCH.get(value.lower(), value)
        return bool(value) if flag != "cache_data" and isinstance(value, int) and value in (0, 1) else value
    if kind.startswith("int"):
        return _number(value)
    if kind.startswith("float") and isinstance(value, str) and _REAL.fullmatch(value):
        return float(value.lower().replace(".inf", "inf").replace(".nan", "nan"))
    if kind.startswith("tuple") and isinstance(value, str):
        return (value,)
    if flag in ("precision", "save_every") and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return tuple(value) if isinstance(value, list) else value


def _encode(f: dataclasses.Field[Any], value: Any) -> Any:
    codes = f.metadata["codes"]
    if codes is not None:
        return next(k for k, v in codes.items() if v == value)
    if f.metadata["flag"] == "cache_data":
        return {None: False, "cpu": True}.get(value, value)
    if f.metadata["flag"] in INTEGER_SWITCHES and value is not None:
        return int(value)
    return list(value) if isinstance(value, tuple) else value


def all_components() -> dict[str, list[type[_Checked]]]:
    """Every option's flag with the component classes that take it."""
    optional = [c for table in SELECTORS.values() for c in table.values()]
    return owners_of([DataConfig, *optional, ShifterConfig, OptimizerConfig, TrainConfig])


def option_set() -> OptionSet:
    """The options of the family of 2023."""
    return OptionSet(
        selectors={**SELECTORS, "output_mode": OUTPUTS},
        selector_defaults=SELECTOR_DEFAULTS,
        owners=all_components(),
        by_core=OPTIMIZER_DEFAULTS,
        switches=INTEGER_SWITCHES,
        explained={"output_mode": "activation: 0 elu+1, 1 exp, 2 softplus"},
    )


def _surplus(flag: str, options: Mapping[str, Any]) -> str:
    owners = all_components().get(flag)
    if owners is None:
        close = difflib.get_close_matches(flag, [*all_components(), *SELECTORS, "output_mode"], n=1)
        return f"unknown option --{flag}" + (f"; did you mean --{close[0]}?" if close else "")
    for selector, table in SELECTORS.items():
        keys = [k for k, v in table.items() if v in owners]
        if keys:
            chosen = options.get(selector, SELECTOR_DEFAULTS.get(selector))
            return f"--{flag} belongs to --{selector} {' or '.join(map(str, keys))}, but --{selector} is {chosen}"
    return f"--{flag} does not apply here"
