"""The options of 2025, by their published names and codes: one frozen dataclass per component.

As in `viv1t.config.fields`, a field carries its published flag, and integer codes become names at once.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from viv1t.config.data import AnyDataConfig
from viv1t.config.fields import Checked, Options, option, with_default
from viv1t.config.option_set import OptionSet, owners_of
from viv1t.config.parts import AnyCnnConfig, NoCriticConfig, NoModulatorConfig, ShifterConfig
from viv1t.config.run import AnyRunConfig, components_from, options_from
from viv1t.config.training import AnyOptimizerConfig, AnyTrainConfig
from viv1t.errors import ConfigError
from viv1t.model.layers.patches import Padding
from viv1t.types import MAX_FRAMES, SENSORIUM_SESSIONS, UNSCORED_FRAMES

# The authors' own recordings, beside the ten of the Sensorium challenge; the first six are published as mice K to P.
ROCHEFORT_SESSIONS: Mapping[str, str] = {
    "K": "VIPcre232_FOV1_day1", "L": "VIPcre232_FOV2_day1", "M": "VIPcre233_FOV1_day1", "N": "VIPcre233_FOV2_day1",
    "O": "VT288_FOV1_day1", "P": "VT289_FOV1_day1",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ClosedLoopDataConfig(AnyDataConfig):
    """Which recordings are used and how they are transformed."""

    # What the readers of recordings ask of every family, and this one leaves no choice of.
    mice: ClassVar[str] = "all"
    statistics: ClassVar[str] = "computed"
    transform: ClassVar[str] = "standardize"
    response_scale: ClassVar[str] = "neuron"
    cache_data: ClassVar[str | None] = None
    transfer: ClassVar[str] = "float32"

    path: str = with_default(
        AnyDataConfig,
        "path",
        "data",
        flag="data_dir",
        help="folder of recordings, by laboratory: sensorium/<session>, ...",
    )
    mouse_ids: tuple[str, ...] | None = with_default(
        AnyDataConfig, "mouse_ids", tuple(SENSORIUM_SESSIONS), help="these mice; default A to J"
    )
    inputs: str = option(
        "transform_input",
        "standardize",
        help="movie and state: 0 as they are, 1 standardised, 2 between their extremes; statistics are one number per "
        "variable, over pixels too",
        codes={0: "none", 1: "standardize", 2: "min_max"},
    )
    outputs: str = option(
        "transform_output",
        "deviation",
        help="responses: 0 as they are, 1 divided by each neuron's standard deviation, 2 between its extremes",
        codes={0: "none", 1: "deviation", 2: "min_max"},
    )
    limit_neurons: int | None = option("limit_neurons", None, help="number of neurons drawn per mouse", low=1)
    crop_frame: int = with_default(AnyDataConfig, "crop_frame", MAX_FRAMES, high=MAX_FRAMES)
    batch_size: int = with_default(AnyDataConfig, "batch_size", 1)


_BEHAVIOR = {0: "none", 1: "behavior_channels", 2: "state_channels"}
_BEHAVIOR_HELP = "0 video only; 1 behavior, 2 behavior and pupil_center as input channels"
ACTIVATIONS = ("none", "tanh", "elu", "relu", "gelu", "silu")


@dataclass(frozen=True, kw_only=True)
class ClosedLoopVivitConfig(Checked):
    """The core `vivit` of 2025."""

    name: ClassVar[str] = "vivit"

    behavior: str = option("core_behavior_mode", "state_channels", help=_BEHAVIOR_HELP, codes=_BEHAVIOR)
    patch: str = option(
        "core_patch_mode", "normalized", help="0 and 1: patches normalised, then projected; 2: convolution",
        codes={0: "normalized", 1: "normalized_alias", 2: "convolution"},
    )  # fmt: skip
    padded: bool = option("core_pad_frame", True, help="1 pads movies in space and in front, 0 does not", integer=True)
    pos_encoding: str = option(
        "core_pos_encoding",
        "rotary",
        help="0 none, 1 learned jointly, 2 learned, 3 learned in space and sinusoidal in time, 4 sinusoidal, 5 rotary, "
        "6 learned in space and rotary in time, 7 sine and cosine of row and column, and rotary in time",
        codes={0: "none", 1: "learned_joint", 2: "learned", 3: "learned_sinusoidal", 4: "sinusoidal", 5: "rotary",
               6: "learned_rotary", 7: "planar_rotary"},
    )  # fmt: skip
    registers: int = option("core_reg_tokens", 24, help="register tokens beside patches, and beside frames", low=0)
    spatial_patch_size: int = option("core_spatial_patch_size", 7, help="patch height and width in pixels", low=1)
    spatial_patch_stride: int = option("core_spatial_patch_stride", 2, help="pixels between patches", low=1)
    spatial_depth: int = option("core_spatial_depth", 14, help="spatial Transformer blocks", low=0, high=1000)
    temporal_patch_size: int = option("core_temporal_patch_size", 13, help="patch length in frames", low=1)
    temporal_patch_stride: int = option("core_temporal_patch_stride", 1, help="frames between patches", low=1)
    temporal_depth: int = option("core_temporal_depth", 14, help="temporal Transformer blocks", low=0, high=1000)
    num_heads: int = option("core_num_heads", 2, help="attention heads", low=1)
    emb_dim: int = option("core_emb_dim", 112, help="embedding size D", low=1)
    head_dim: int = option("core_head_dim", 80, help="size of a head", low=1)
    ff_dim: int = option("core_ff_dim", 224, help="hidden units of the feed-forward path", low=1)
    ff_activation: str = option(
        "core_ff_activation", "relu", help="of the feed-forward path", choices=(*ACTIVATIONS, "swiglu")
    )
    causal: bool = option("core_use_causal_attention", False, help="a frame depends on itself and earlier ones alone")
    parallel_attention: bool = option("core_parallel_attention", True, help="accepted; blocks are always parallel")
    flash_attention: bool = option(
        "core_flash_attention", True, help="accepted; changes rounding alone as published", integer=True
    )
    norm: str = option("core_norm", "layernorm", help="normalisation", choices=("layernorm", "rmsnorm", "dyt"))
    norm_qk: bool = option("core_norm_qk", False, help="normalise queries and keys")
    activation: str = option("core_activation", "none", help="of the core's output", choices=ACTIVATIONS)
    p_dropout: float = option("core_p_dropout", 0.17, help="dropout of whole patches", low=0, high=1)
    mha_dropout: float = option("core_mha_dropout", 0.04, help="dropout of the attention's output", low=0, high=1)
    ff_dropout: float = option("core_ff_dropout", 0.21, help="dropout of the feed-forward path", low=0, high=1)
    drop_path: float = option("core_drop_path", 0.43, help="stochastic depth's rate", low=0, high=1)

    freeze: ClassVar[bool] = False

    def validate(self) -> None:
        rotary = self.pos_encoding in ("rotary", "learned_rotary", "planar_rotary")
        if rotary and self.head_dim % 2:
            raise ConfigError(
                f"--core_pos_encoding 5, 6 and 7 need an even --core_head_dim (pairs of channels), not {self.head_dim}"
            )
        if self.pos_encoding in ("learned_sinusoidal", "sinusoidal") and self.emb_dim % 2:
            raise ConfigError(
                f"--core_pos_encoding 3 and 4 need an even --core_emb_dim (sine and cosine pairs), not {self.emb_dim}"
            )
        if self.pos_encoding == "planar_rotary" and self.emb_dim % 4:
            raise ConfigError(
                f"--core_pos_encoding 7 needs a --core_emb_dim that 4 divides (two axes), not {self.emb_dim}"
            )

    @property
    def _front(self) -> int:
        if not self.padded:
            return 0
        size, stride = (self.temporal_patch_size, 1, 1), (self.temporal_patch_stride, 1, 1)
        return Padding.covering(MAX_FRAMES, (1, 1), size, stride).front

    def output_frames(self, frames: int) -> int:
        """Frames predicted from `frames` input frames."""
        return (frames + self._front - self.temporal_patch_size) // self.temporal_patch_stride + 1


@dataclass(frozen=True, kw_only=True)
class FcnnConfig(AnyCnnConfig):
    """The core `fcnn`: a factorised 3-D convolutional network, linear if asked."""

    name: ClassVar[str] = "fcnn"

    behavior: str = option("core_behavior_mode", "state_channels", help=_BEHAVIOR_HELP, codes=_BEHAVIOR)
    linear: bool = option("core_linear", False, help="without normalisation and activation")
    freeze: ClassVar[bool] = False


@dataclass(frozen=True, kw_only=True)
class GaussianConfig(Checked):
    """The readout `gaussian`: each neuron samples the core's output at a learned position."""

    name: ClassVar[str] = "gaussian"

    grid: str = option(
        "readout_grid_mode", "xy", help="positions: 0 free, 1 from cortical x, y, 2 from cortical x, y, z",
        codes={0: "free", 1: "xy", 2: "xyz"},
    )  # fmt: skip
    bias: str = option(
        "readout_bias_mode", "mean_response", help="bias: 0 none, 1 zero, 2 the mean response",
        codes={0: "none", 1: "zero", 2: "mean_response"},
    )  # fmt: skip

    mean_of: ClassVar[int | None] = 16  # trials that the mean response is taken over, as published

    @property
    def starts_at_mean(self) -> bool:
        """Whether the bias of a new model is the mean response."""
        return self.bias == "mean_response"


@dataclass(frozen=True, kw_only=True)
class ClosedLoopOptimizerConfig(AnyOptimizerConfig):
    """The optimizer's numbers and the loss."""

    lr: float = with_default(
        AnyOptimizerConfig, "lr", 0.0073, help="learning rate of readouts, shifters and activations"
    )
    core_lr: float | None = with_default(AnyOptimizerConfig, "core_lr", 0.0126)
    weight_decay: float = with_default(AnyOptimizerConfig, "weight_decay", 0.6893)
    core_weight_decay: float | None = option(
        "core_weight_decay", 0.0783, help="weight decay of the core; none: as --weight_decay", low=0
    )
    schedule_free: bool = option("schedule_free", False, help="schedule-free AdamW instead of AdamW and its schedule")
    warmup_steps: int = option("adam_warmup_steps", 400, help="steps of schedule-free AdamW's warm-up", low=0)
    r: float = option("adam_r", 0.0, help="power of the step in the weight of schedule-free AdamW's average", low=0)
    weight_lr_power: float = option(
        "adam_weight_lr_power", 2.0, help="power of the learning rate in the weight of that average", low=0
    )
    criterion: str = option(
        "criterion",
        "poisson",
        help="loss",
        choices=("poisson", "correlation", "poisson_correlation", "mse", "logMSE", "gamma"),
    )
    ds_scale: bool = with_default(
        AnyOptimizerConfig, "ds_scale", True, help="scale the loss by a mouse's share of the data"
    )
    clip_grad: float = option(
        "clip_grad", -1.0, help="clip the gradient's norm: to this, 0 not, -1 to the 10th percentile of those before",
        low=-1,
    )  # fmt: skip

    def validate(self) -> None:
        super().validate()
        if self.schedule_free and self.beta1 == 0:
            raise ConfigError("--schedule_free needs an --adam_beta1 above 0: its average is taken with it")
        if -1 < self.clip_grad < 0:
            raise ConfigError(f"--clip_grad must be -1, 0 or above 0, not {self.clip_grad}")


@dataclass(frozen=True, kw_only=True)
class ClosedLoopTrainConfig(AnyTrainConfig):
    """How long and how a run trains, and what it writes."""

    autocast: str = option(
        "autocast",
        "auto",
        help="the core in bf16: auto, on GPUs that multiply it in hardware; disable; enable",
        choices=("auto", "disable", "enable"),
    )
    grad_checkpointing: bool | None = with_default(AnyTrainConfig, "grad_checkpointing", False)
    compile: bool = option("compile", False, help="compile the model with torch.compile")
    restore: str | None = with_default(
        AnyTrainConfig,
        "restore",
        None,
        help="run folder whose weights to start from, and, of a published one, optimizer.pt",
    )
    pretrained_core: str | None = option("pretrained_core", None, help="run folder whose core to start from")
    verbose: int = with_default(AnyTrainConfig, "verbose", 1)

    def compiles(self, device: str) -> bool:
        return self.compile

    @property
    def tf32(self) -> bool:
        return self.device is None  # as published


CORES: dict[str, type[ClosedLoopVivitConfig] | type[FcnnConfig]] = {
    "vivit": ClosedLoopVivitConfig, "fcnn": FcnnConfig,
}  # fmt: skip
READOUTS = {"gaussian": GaussianConfig}
OUTPUTS = {0: "identity", 1: "elu", 2: "exp", 3: "learnable_softplus", 4: "sigmoid"}
# Cores and readouts that the published code names, and that are refused with their names.
ELSEWHERE = {
    "core": ("linear", "v1t", "gru_baseline", "random", "large_random", "bvivit"),
    "readout": ("factorized", "conv", "linear", "depth-gaussian", "attention", "random"),
}
SELECTORS: dict[str, Mapping[Any, Any]] = {"core": CORES, "readout": READOUTS, "output_mode": OUTPUTS}
# What published `args.yaml` files hold besides options: derived facts.
DERIVED = (
    "input_shapes", "output_shapes", "max_frame", "neuron_idx", "train_sizes", "trainable_params", "git_hash",
    "hostname",
)  # fmt: skip
# The defaults of the optimizer depend on the core, as in the published code.
OPTIMIZER_DEFAULTS: dict[str, Options] = {
    "vivit": {},
    "fcnn": {"lr": 0.005, "core_lr": None, "weight_decay": 0.0, "core_weight_decay": 0.0},
}
# What an older `args.yaml` lacks, and had.
_BEFORE: Options = {
    "core_reg_tokens": 0, "core_use_causal_attention": False, "core_norm_qk": False, "center_crop": 1.0,
    "clip_grad": 0, "limit_neurons": None, "core_norm": "layernorm", "core_pad_frame": 1, "core_activation": "none",
}  # fmt: skip


@dataclass(frozen=True)
class ClosedLoopConfig(AnyRunConfig):
    """Everything that defines a run of the family of 2025."""

    OUTPUTS: ClassVar[Mapping[int, str]] = OUTPUTS

    data: ClosedLoopDataConfig
    core: ClosedLoopVivitConfig | FcnnConfig
    readout: GaussianConfig
    shifter: ShifterConfig
    optimizer: ClosedLoopOptimizerConfig
    train: ClosedLoopTrainConfig
    output: str = "elu"
    modulator: NoModulatorConfig = dataclasses.field(default_factory=NoModulatorConfig)
    critic: NoCriticConfig = dataclasses.field(default_factory=NoCriticConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data.outputs == "min_max" and self.output not in ("identity", "sigmoid"):
            object.__setattr__(self, "output", "sigmoid")  # as published

    @property
    def pretrained_core(self) -> str | None:
        """The run folder whose core it starts from."""
        return self.train.pretrained_core

    @property
    def frozen_core(self) -> bool:
        """Whether the core's maps are computed once, of whole trials; `core_lr` 0 alone computes them in every step."""
        return False

    @property
    def core_weight_decay(self) -> float:
        """Of the core's parameters."""
        options = self.optimizer
        return options.weight_decay if options.core_weight_decay is None else options.core_weight_decay

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> ClosedLoopConfig:
        """Builds a configuration from published option names; codes and their names are both accepted.

        Raises:
            ConfigError: names the option, what is allowed and what was given; an option that is not known is one too.
        """
        config = cls._built(options)
        if 0 < config.data.crop_frame <= UNSCORED_FRAMES:
            raise ConfigError(f"--crop_frame must be -1 or above {UNSCORED_FRAMES}, not {config.data.crop_frame}")
        return config

    @classmethod
    def _built(cls, options: Mapping[str, Any]) -> ClosedLoopConfig:
        core, readout = (_select(selector, options) for selector in ("core", "readout"))
        classes = (ClosedLoopDataConfig, core, readout, ShifterConfig, ClosedLoopOptimizerConfig, ClosedLoopTrainConfig)
        parts, left = components_from(classes, options, OPTIMIZER_DEFAULTS[core.name])
        if left := left - {*SELECTORS, *DERIVED}:
            raise ConfigError(surplus(min(left), options))
        return cls(*parts, output=cls.output_of(options, 1))  # type: ignore[misc]

    @classmethod
    def from_published(cls, options: Mapping[str, Any]) -> ClosedLoopConfig:
        """A configuration from the `args.yaml` of a published run, which may predate some options."""
        known = _flags(_select("core", options), _select("readout", options))
        before = {flag: value for flag, value in _BEFORE.items() if flag in known}
        return cls._built(before | dict(options))

    def to_options(self) -> Options:
        """The flat mapping of published option names and integer codes."""
        chosen: Options = {"core": self.core.name, "readout": self.readout.name, "output_mode": self.output_code}
        parts = (self.data, self.core, self.readout, self.shifter, self.optimizer, self.train)
        options = chosen | options_from(parts)
        if (limit := self.optimizer.clip_grad).is_integer():  # as published code writes -1, 0 and 1
            options["clip_grad"] = int(limit)
        return options


def _select(selector: str, options: Mapping[str, Any]) -> Any:
    table, value = SELECTORS[selector], options.get(selector)
    if value is None:
        raise ConfigError(f"--{selector} is required: one of {', '.join(map(str, table))}")
    if value in ELSEWHERE[selector]:
        raise ConfigError(f"--{selector} {value} of the published code is not built here; there are {', '.join(table)}")
    if not isinstance(value, str) or value not in table:
        raise ConfigError(f"--{selector} must be one of {', '.join(map(str, table))}, not {value!r}")
    return table[value]


def option_set() -> OptionSet:
    """The options of the family."""
    return OptionSet(
        selectors=SELECTORS,
        selector_defaults={"output_mode": 1},
        owners=owners_of([
            ClosedLoopDataConfig, *CORES.values(), *READOUTS.values(), ShifterConfig, ClosedLoopOptimizerConfig,
            ClosedLoopTrainConfig,
        ]),
        by_core=OPTIMIZER_DEFAULTS,
        explained={"output_mode": "activation: 0 none, 1 elu+1, 2 exp, 3 softplus with a learned slope, 4 sigmoid"},
    )  # fmt: skip


def _flags(*parts: type[Checked]) -> set[str]:
    always = (ClosedLoopDataConfig, ShifterConfig, ClosedLoopOptimizerConfig, ClosedLoopTrainConfig)
    return set(owners_of((*always, *parts)))


def surplus(flag: str, options: Mapping[str, Any]) -> str:
    """What is wrong with an option that no chosen component has."""
    for name, component in CORES.items():
        if flag in owners_of([component]):
            return f"--{flag} belongs to --core {name}, but --core is {options.get('core')}"
    known = option_set()
    close = difflib.get_close_matches(flag, sorted({*known.owners, *known.selectors}), n=1)
    return f"unknown option --{flag} (family of 2025)" + (f"; did you mean --{close[0]}?" if close else "")
