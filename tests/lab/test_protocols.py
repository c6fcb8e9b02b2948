"""Protocols: the published orders and trials, and where responses are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from viv1t.errors import ConfigError
from viv1t.lab import protocols
from viv1t.lab.protocols import BLOCKS, DOTS, ONSET, SHORT, SINGLE
from viv1t.stimuli.parametric import CONTEXTS


@pytest.fixture(scope="module")
def published(golden_in_silico: Path) -> tuple[dict[str, Any], Any]:
    return json.loads((golden_in_silico / "protocol.json").read_text()), np.load(golden_in_silico / "protocol.npz")


def close(ours: np.ndarray, theirs: np.ndarray) -> None:
    difference = np.abs(ours.astype(int) - theirs.astype(int))
    assert difference.max() <= 1
    assert (difference > 0).mean() <= 1e-3


def test_the_published_order_of_sizes_and_its_trial(published: tuple[dict[str, Any], Any]) -> None:
    facts, arrays = published
    parameters, phases = protocols.published_size_order(facts["seed"])
    assert np.array_equal(parameters, arrays["size_parameters"])
    number = facts["size_trial"]
    patterns = [
        protocols.size_pattern(size, direction, bool(inverse), phase, center=tuple(facts["center"]))
        for (size, direction, inverse), phase in zip(parameters[number], phases[number], strict=True)
    ]
    close(BLOCKS.film(patterns), arrays["size_trial"])


def test_the_published_order_of_contexts_and_its_trial(published: tuple[dict[str, Any], Any]) -> None:
    facts, arrays = published
    parameters, phases, surrounds = protocols.published_context_order(facts["seed"])
    np.testing.assert_allclose(parameters, arrays["context_parameters"], rtol=1e-6)
    number = facts["context_trial"]
    patterns = [
        protocols.context_pattern(
            contrast, size, direction, CONTEXTS[int(kind)], phase, tuple(around), center=tuple(facts["center"])
        )
        for (contrast, size, direction, kind), phase, around in zip(
            parameters[number], phases[number], surrounds[number], strict=True
        )
    ]
    close(BLOCKS.film(patterns), arrays["context_trial"])


@pytest.mark.parametrize(("layout", "frames"), [(BLOCKS, 300), (ONSET, 300), (SINGLE, 300), (DOTS, 300), (SHORT, 95)])
def test_layouts_have_their_lengths(layout: protocols.Layout, frames: int) -> None:
    assert layout.frames == frames


@pytest.mark.parametrize("predicted", [300, 276, 250])
def test_responses_are_read_where_patterns_are_shown(predicted: int) -> None:
    patterns = [np.full((30, 2, 3), 10 * (i + 1), np.uint8) for i in range(4)]
    film = BLOCKS.film(patterns)
    response = film[:, 0, 0][None, 300 - predicted :].astype(float)  # a neuron that says what it sees
    read = BLOCKS.responses(response)
    assert read.shape == (1, 4, 30)
    assert (read == np.array([10, 20, 30, 40])[None, :, None]).all()


def test_a_trial_that_is_not_full_ends_in_grey() -> None:
    film = BLOCKS.film([np.zeros((30, 2, 3), np.uint8)])
    assert film.shape == (300, 2, 3)
    assert (film[120:] == 127).all()


def test_what_does_not_fit_a_layout_is_refused() -> None:
    with pytest.raises(ConfigError, match="1 to 4 patterns of 30 frames, not 5"):
        BLOCKS.film([np.zeros((30, 2, 3), np.uint8)] * 5)
    with pytest.raises(ConfigError, match=r"not 1 of \[29\]"):
        BLOCKS.film([np.zeros((29, 2, 3), np.uint8)])
    with pytest.raises(ConfigError, match="first starts at frame 75"):
        BLOCKS.responses(np.zeros((1, 200)))


@pytest.mark.parametrize(
    ("frames", "lead", "count"), [(299, 60, 19), (80, 60, 1), (71, 59, 1), (40, 28, 1), (12, 0, 1)]
)
def test_shorter_windows_hold_fewer_patterns_or_one_with_less_grey(frames: int, lead: int, count: int) -> None:
    shorter = DOTS.within(frames)
    assert (shorter.lead, shorter.count) == (lead, count)
    assert shorter.frames <= frames


def test_windows_that_hold_no_pattern_are_refused() -> None:
    with pytest.raises(ConfigError, match="knows windows of 11 frames: train with a larger --crop_frame"):
        DOTS.within(11)
