"""What a family of models is: a value that says how its runs are read, built and written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from viv1t.config.option_set import OptionSet
from viv1t.data.recordings import Recordings
from viv1t.model.critic import Critic
from viv1t.model.twin import Neurons, ViV1T
from viv1t.optim.optimization import Optimization
from viv1t.scoring.criterion import TrainingLoss
from viv1t.types import sample_frames


class Scorer(Protocol):
    """Scores of one mouse's trials, which arrive video by video."""

    def add(self, predictions: Sequence[Tensor], responses: Sequence[Tensor]) -> None:
        """Takes all trials (N, t) of one video."""

    def result(self) -> dict[str, float]:
        """Published name -> the score, mean over neurons."""


class Training(NamedTuple):
    """How a model is trained: all that a family brings to the loop, which is the same for all of them.

    Attributes:
        loss: what an optimizer step differentiates, for every mouse, and what validation writes down.
        optimization: what is done with the gradients; over the parameters of the model and of the critic.
        critic: trained beside the model, which it leaves alone; on the model's device.
    """

    loss: TrainingLoss
    optimization: Optimization
    critic: Critic | None = None


def _nothing(*_: Any) -> None:
    pass


def shapes_of(model: ViV1T, crop_frame: int) -> dict[str, Any]:
    """The `input_shapes` and `output_shapes` of `args.yaml`."""
    height, width = model.frame_size
    frames = sample_frames(crop_frame)
    return {
        "input_shapes": {
            "video": [1, frames, height, width], "behavior": [2, frames], "pupil_center": [2, frames],
        },
        "output_shapes": {mouse: [count, frames] for mouse, count in model.neurons.items()},
    }  # fmt: skip


@dataclass(frozen=True)
class Family:
    """One published family of models.

    What `viv1t-train` needs of a family is `training`, with `check_start`, `same_core` and `core_data`, and of its
    configuration `data`, `core`, `train` (with `compiles`, `save_interval`, ...), `pretrained_core` and `frozen_core`.

    Attributes:
        name: the year in which it was published, as `--family` takes it.
        options: what it has of them.
        weights: the published checkpoint's place in a run folder.
        wrapped: whether that file holds the model's state under `model`, beside numbers; else it is the state itself.
        kind: the class of its configurations.
        from_options: the configuration that options by published names describe, as of a command line.
        config: the same of a published `args.yaml`, which may predate some options.
        same_data: attributes of the data's configuration that runs of an ensemble share.
        reading: the data's configuration of a run for reading recordings: from a path if given, of these mice.
        open_recordings: the recordings of a data configuration, of the run's seed.
        scorer: makes what takes a mouse's predictions and responses, and gives the family's own scores, which its run
            folders hold; None where those of every family are all it has.
        from_statistics: whether films are predicted from statistics alone, without the recordings.
        remarks: what is worth saying about a configuration when it is loaded.
        training: how a model is trained, from its configuration and the training trials of each mouse; it may freeze
            the core, and draws from PyTorch's generator only for the critic's weights.
        check_start: raises a ConfigError for what can only be judged with the recordings: from the configuration of a
            run that starts, the frame size, and the configuration whose weights it starts from, or None.
        same_core: raises a ConfigError unless two cores, the run's and that of the run in a folder, compute the same.
        core_data: attributes of the data's configuration that change what a core sees.
        without_effect: a line for every option that differs from its default and changes nothing.
        facts: what a new run's `args.yaml` holds beside options.
        take_optimizer: goes on from what `torch.load` read of an `optimizer.pt` of the family, named in errors; raises
            a CheckpointError. None where the family has no such file.
        to_optimizer: the content of an `optimizer.pt`, from a model, a checkpoint's entries, and the facts of its
            optimization.
        build_model: a model from a configuration, its mice and the frame size.
        from_published: our state from a published one and the name of its file; raises a CheckpointError.
        to_published: the published state of a model.
        to_args: what a published `args.yaml` holds, from a model and the run's own mapping.
    """

    name: str
    options: OptionSet
    weights: str
    wrapped: bool
    from_options: Callable[[Mapping[str, Any]], Any]
    config: Callable[[Mapping[str, Any]], Any]
    build_model: Callable[[Any, Mapping[str, Neurons], tuple[int, int]], ViV1T]
    from_published: Callable[[ViV1T, Mapping[str, Tensor], str], dict[str, Tensor]]
    to_published: Callable[[ViV1T], dict[str, Tensor]]
    to_args: Callable[[ViV1T, Mapping[str, Any]], dict[str, Any]]
    same_data: tuple[str, ...]
    reading: Callable[[Any, str | None, Sequence[str]], Any]
    open_recordings: Callable[..., Recordings]
    kind: type
    training: Callable[[ViV1T, Any, Mapping[str, int]], Training]
    facts: Callable[[ViV1T, Recordings], dict[str, Any]]
    scorer: Callable[[], Scorer] | None = None
    from_statistics: bool = True
    remarks: Callable[[Any], list[str]] = lambda config: []
    check_start: Callable[[Any, tuple[int, int], Any], None] = _nothing
    same_core: Callable[[Any, Any, str], None] = _nothing
    core_data: tuple[str, ...] = ()
    without_effect: Callable[[Any], list[str]] = lambda config: []
    take_optimizer: Callable[[ViV1T, Optimization, Any, str], None] | None = None
    to_optimizer: Callable[[ViV1T, Mapping[str, Tensor], Mapping[str, Any]], dict[str, Any]] | None = None
