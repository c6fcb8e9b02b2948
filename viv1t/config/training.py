"""How runs of every family are trained: what each has of its own is added to these."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from viv1t.config.fields import Checked, option
from viv1t.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class KeepingConfig(Checked):
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
        "grad_checkpointing", None, help="recompute blocks in the backward; default on for CUDA", integer=True
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
class AnyOptimizerConfig(Checked):
    """AdamW's numbers and the scale of the loss, in every family of models."""

    lr: float = option("lr", 0.0036, help="learning rate of readouts, shifters and modulators", low=0)
    core_lr: float | None = option("core_lr", 0.0048, help="learning rate of the core; none: as --lr", low=0)
    weight_decay: float = option("weight_decay", 0.3939, help="weight decay of readouts and shifters", low=0)
    beta1: float = option("adam_beta1", 0.9, help="AdamW's beta 1", low=0, high=1)
    beta2: float = option("adam_beta2", 0.999, help="AdamW's beta 2", low=0, high=1)
    eps: float = option("adam_eps", 1e-8, help="AdamW's epsilon", low=0)
    ds_scale: bool = option("ds_scale", True, help="scale the loss by sqrt(training trials / batch size)", integer=True)

    def validate(self) -> None:
        if self.beta1 == 1 or self.beta2 == 1:
            raise ConfigError("--adam_beta1 and --adam_beta2 must be below 1")
