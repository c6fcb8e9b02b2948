from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from viv1t.data.order import crop_start, training_order

TRIALS = {"A": list(range(10)), "B": list(range(100, 104)), "mouse-1": [7]}


def test_every_round_has_one_batch_of_each_mouse() -> None:
    order = training_order(1, 0, TRIALS, 3)
    assert [mouse for mouse, _ in order] == ["A", "B", "mouse-1"] * 4
    assert sorted(trial for mouse, batch in order if mouse == "A" for trial in batch) == TRIALS["A"]
    assert [len(batch) for mouse, batch in order if mouse == "A"] == [3, 3, 3, 1]  # the last one is kept
    b = [batch for mouse, batch in order if mouse == "B"]
    assert [len(batch) for batch in b] == [3, 1, 3, 1]
    assert sorted(b[0] + b[1]) == sorted(b[2] + b[3]) == TRIALS["B"]


def test_order_depends_on_seed_epoch_and_visit_alone() -> None:
    order = training_order(1, 5, TRIALS, 2)
    assert order == training_order(1, 5, {m: list(reversed(t)) for m, t in TRIALS.items()}, 2)
    assert order == training_order(np.int64(1), 5, {m: np.array(t) for m, t in TRIALS.items()}, 2)  # type: ignore
    assert order != training_order(2, 5, TRIALS, 2)
    assert order != training_order(1, 6, TRIALS, 2)
    visits = [[batch for m, batch in training_order(1, e, TRIALS, 4) if m == "B"] for e in range(8)]
    assert any(first != second for first, second, _ in visits)  # reshuffled when started over


def test_order_never_changes() -> None:
    """A resumed run of another release sees the same trials."""
    assert training_order(1234, 0, {"A": range(8)}, 4) == [("A", (2, 6, 0, 3)), ("A", (7, 5, 4, 1))]
    assert [crop_start(1234, epoch, "A", 3, 161) for epoch in range(4)] == [42, 132, 60, 33]


def test_shuffling_is_uniform() -> None:
    first = Counter(training_order(0, epoch, {"A": range(4)}, 4)[0][1] for epoch in range(2400))
    assert len(first) == 24
    assert max(abs(count - 100) for count in first.values()) < 50  # 5 standard deviations


@pytest.mark.parametrize("valid", [1, 2, 7, 161])
def test_crops_are_uniform_over_every_start(valid: int) -> None:
    draws = 400 * valid
    starts = Counter(crop_start(0, epoch, "A", 0, valid) for epoch in range(draws))
    assert set(starts) == set(range(valid))
    chi2 = sum((count - 400) ** 2 / 400 for count in starts.values())
    assert chi2 < valid - 1 + 5 * np.sqrt(2 * valid)


def test_crops_differ_between_everything_that_names_them() -> None:
    base = [crop_start(1, e, "A", 3, 10**6) for e in range(3)]
    assert len({*base, crop_start(2, 0, "A", 3, 10**6), crop_start(1, 0, "B", 3, 10**6)}) == 5
    assert crop_start(1, 0, "A", 4, 10**6) != base[0] != crop_start(1, 0, "A", 3, 10**6, visit=1)
    assert crop_start(1, 0, "A", np.int64(3), 10**6) == base[0]  # type: ignore[arg-type]
