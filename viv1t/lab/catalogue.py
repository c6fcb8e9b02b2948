"""Which experiments there are, as the command and `Lab` know them. Imports nothing that computes."""

from __future__ import annotations

from dataclasses import dataclass

GRID = ("directions", "frequencies", "hertz", "phases")
AT_FIELDS = ("centre_grid", "own")
MEI = (
    "mask", "surround", "centre", "outer", "inhibit", "population", "weights", "against", "over", "method", "still",
    "start", "constraint", "contrast", "precondition", "blur", "jitter", "tv", "smooth_time", "dropout", "starts",
    "steps", "lr", "windows", "library", "judge", "films",
)  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """An experiment.

    Attributes:
        words: what it is, for a command's help.
        options: of its own, by name.
        at_fields: patterns lie at each neuron's field: a pass of the core serves the neurons of one place alone.
        of_all: `all` does it.
    """

    words: str
    options: tuple[str, ...] = ()
    at_fields: bool = False
    of_all: bool = False


# Those that `all` does come in the order of what they say a minute.
EXPERIMENTS: dict[str, Kind] = {
    "rf": Kind("receptive fields: maps from dots, and the Gaussians that fit them", ("step",), of_all=True),
    "direction": Kind("direction and orientation tuning at each neuron's best frequencies", GRID, of_all=True),
    "frequency": Kind("spatial and temporal frequency, and F1/F0", GRID, of_all=True),
    "contrast": Kind("responses over contrast at a grating that drives the neuron nearly best", GRID, of_all=True),
    "size": Kind(
        "size tuning, of circles and holes at each neuron's field", (*AT_FIELDS, "published"), at_fields=True,
        of_all=True,
    ),
    "context": Kind(
        "gratings at each neuron's field, and what surrounds them", AT_FIELDS, at_fields=True, of_all=True
    ),
    "onset": Kind("how long after a pattern responses start; causal cores", AT_FIELDS, at_fields=True),
    "mei": Kind("films that neurons answer most, or least, found by gradient", (*GRID, *MEI)),
    "search": Kind(
        "the clips of natural movies that neurons answer most when each is shown alone",
        ("library", "mask", "listed", "still", "recall", "windows", "films"),
    ),
    "reliability": Kind("how well recorded repeats agree and are predicted: neurons worth optimising", ("fields",)),
}  # fmt: skip
