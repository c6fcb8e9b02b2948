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
        trained_here: whether `viv1t-train` trains it.
        remarks: what is worth saying about a configuration when it is loaded.
        training: how a model is trained, from its configuration and the training trials of each mouse; it may freeze
            the core, and draws from PyTorch's generator only for the critic's weights.
        check_start: raises a ConfigError for what can only be judged with the recordings: from the configuration of a
            run that starts, the frame size, and the configuration whose weights it starts from, or None.
        same_core: raises a ConfigError unless two cores, the run's and that of the run in a folder, compute the same.
        core_data: attributes of the data's configuration that change what a core sees.
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
    scorer: Callable[[], Scorer] | None = None
    from_statistics: bool = True
    trained_here: bool = True
    remarks: Callable[[Any], list[str]] = lambda config: []
    check_start: Callable[[Any, tuple[int, int], Any], None] = _nothing
    same_core: Callable[[Any, Any, str], None] = _nothing
    core_data: tuple[str, ...] = ()
