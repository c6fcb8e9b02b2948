"""The true neurons of a synthetic mouse, to be examined as a trained model is."""

from __future__ import annotations

from typing import Any

import numpy as np

from viv1t.data.synthetic.neurons import Population, draw_population
from viv1t.lab.observers import TrueNeurons
from viv1t.types import Mouse


def draw(neurons: int, seed: int) -> tuple[TrueNeurons, Population]:
    cells = draw_population(np.random.default_rng(seed), neurons)
    mouse = Mouse("F", "synthetic-f", cells.coordinates.astype(np.float32), np.arange(101, 101 + neurons))
    return TrueNeurons(mouse, cells), cells


def correlation(a: Any, b: Any) -> float:
    return float(np.corrcoef(a, b)[0, 1])


def ranks(a: Any, b: Any) -> float:
    """Spearman's correlation of values without ties."""
    return correlation(np.argsort(np.argsort(a)), np.argsort(np.argsort(b)))
