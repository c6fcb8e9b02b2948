"""What a family of models is: a value that says how its runs are read, built and written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from viv1t.config.option_set import OptionSet
from viv1t.data.recordings import Recordings
from viv1t.model.twin import Neurons, ViV1T


class Scorer(Protocol):
    """Scores of one mouse's trials, which arrive video by video."""

    def add(self, predictions: Sequence[Tensor], responses: Sequence[Tensor]) -> None:
        """Takes all trials (N, t) of one video."""

    def result(self) -> dict[str, float]:
        """Published name -> the score, mean over neurons."""


@dataclass(frozen=True)
class Family:
    """One published family of models.

    Attributes:
        name: the year in which it was published, as `--family` takes it.
        options: what it has of them.
        weights: the published checkpoint's place in a run folder.
        wrapped: whether that file holds the model's state under `model`, beside numbers; else it is the state itself.
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
    scorer: Callable[[], Scorer] | None = None
    from_statistics: bool = True
    trained_here: bool = True
    remarks: Callable[[Any], list[str]] = lambda config: []
