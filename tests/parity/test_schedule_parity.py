"""The schedule takes the published decisions, to the last bit of the learning rates."""

import json
from pathlib import Path

from viv1t.optim.schedule import PlateauSchedule

NAMES = {"lr_patience": "patience"}  # the published arguments that are called otherwise here


def test_schedule_follows_the_published_traces(golden: Path) -> None:
    traces = json.loads((golden / "scheduler" / "traces.json").read_text())
    assert traces
    for trace in traces:
        schedule = PlateauSchedule(**{NAMES.get(k, k): v for k, v in trace["args"].items()})
        rates = {"core": 0.0048, "readouts": 0.0036, "default": 0.0036}
        for row in trace["rows"]:
            decision = schedule.step(row["value"], row["epoch"])
            if decision.reduce_lr:
                rates = {k: schedule.reduced(v) for k, v in rates.items()}
            found = {
                "lr": {k: rates[k] for k in row["lr"]},
                "default_lr": rates["default"],
                "num_reduce": schedule.reductions,
                "lr_wait": schedule.wait,
                "best_value": schedule.best_value,
                "best_epoch": schedule.best_epoch,
                "terminate": decision.terminate,
                "saved": decision.save,
                "model_of_epoch": schedule.best_epoch if decision.restore else row["epoch"],
            }
            assert found == {k: row[k] for k in found}, (trace["sequence"], trace["args"], row["epoch"])
            assert schedule.terminated == row["terminate"]
