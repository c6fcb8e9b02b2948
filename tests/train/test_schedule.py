"""The plateau schedule: waiting, reductions, collapse, NaN, and its state."""

import json
import math

import pytest

from viv1t.optim.schedule import Decision, PlateauSchedule


def _decisions(values: list[float], **options: float) -> tuple[PlateauSchedule, list[Decision]]:
    schedule = PlateauSchedule(**options)  # type: ignore[arg-type]
    return schedule, [schedule.step(value, epoch) for epoch, value in enumerate(values, start=1)]


def test_reduces_twice_then_stops() -> None:
    schedule, decisions = _decisions([0.2] + [0.1] * 15)
    nothing, reduce = [Decision()] * 4, Decision(restore=True, reduce_lr=True)
    assert decisions == [Decision(save=True), *nothing, reduce, *nothing, reduce, *nothing, Decision(terminate=True)]
    assert schedule.terminated
    assert (schedule.wait, schedule.reductions) == (4, 2)


def test_equal_score_is_no_improvement_and_improvement_resets() -> None:
    schedule, decisions = _decisions([0.2, 0.2, 0.1, 0.1, 0.1, 0.1, 0.1, 0.3])
    assert [d.save for d in decisions] == [True] + [False] * 6 + [True]
    assert (schedule.wait, schedule.reductions, schedule.best_epoch) == (0, 0, 8)


@pytest.mark.parametrize(("best", "value", "collapsed"), [
    (0.05, 0.0049, True), (0.05, -0.3, True), (0.049, 0.0, False), (0.2, 0.0051, False), (0.2, math.nan, False),
])  # fmt: skip
def test_collapse_restores_and_is_not_waited_for(best: float, value: float, collapsed: bool) -> None:
    schedule, decisions = _decisions([best, value])
    assert decisions[1] == Decision(restore=collapsed)
    assert schedule.wait == int(not collapsed)


def test_nothing_is_restored_before_something_was_saved() -> None:
    schedule, decisions = _decisions([0.0, -0.1, math.nan, 0.0, 0.0])
    assert decisions[-1] == Decision(reduce_lr=True)
    assert schedule.best_epoch is None


def test_reduced_stops_at_the_smallest_rate() -> None:
    schedule = PlateauSchedule(min_lr=0.001)
    assert schedule.reduced(0.01) == 0.003
    assert schedule.reduced(0.003) == 0.001


def test_state_goes_through_json_and_continues_alike() -> None:
    values = [0.1, 0.3, 0.2, math.nan, 0.2, 0.2, 0.2, 0.2, 0.35, 0.001, 0.2]
    whole, decisions = _decisions(values)
    for cut in range(len(values)):
        first, _ = _decisions(values[:cut])
        second = PlateauSchedule()
        second.load_state_dict(json.loads(json.dumps(first.state_dict(), allow_nan=False)))
        assert [second.step(v, e) for e, v in enumerate(values[cut:], start=cut + 1)] == decisions[cut:]
        assert second.state_dict() == whole.state_dict()
