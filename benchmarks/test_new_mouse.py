"""An epoch of fitting a new mouse on a frozen core, and an epoch of training everything.

The published default model and one mouse of 8,000 neurons: training trials in crops of 140 frames, and validation on a
whole trial of 300, as the trainer does both. The core's maps are computed before the measured epochs; how long that
takes is measured too. Fewer trials than a mouse has make both shorter alike.
"""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from benchmarks.harness import Report, torch_threads
from viv1t.data.recordings import Recordings
from viv1t.data.synthetic.mice import Size, synthesize
from viv1t.families.family import shapes_of
from viv1t.families.sensorium2023.run import RunConfig
from viv1t.model.twin import ViV1T
from viv1t.runs.checkpoint import module_entries, write_checkpoint
from viv1t.runs.folder import RunFolder
from viv1t.system.memory import available_bytes
from viv1t.training.new_model import new_model
from viv1t.training.trainer import Trainer

THREADS = 2
NEURONS, TRIALS = 8000, 2
CASE = f"float32-{TRIALS}-trials-{NEURONS}-neurons"
# The published command, with blocks recomputed in the backward, which fits in memory.
OPTIONS: dict[str, Any] = {
    "transform_mode": 2, "crop_frame": 140, "ds_mode": 2, "core": "vivit", "core_parallel_attention": True,
    "grad_checkpointing": 1, "output_mode": 1, "readout": "gaussian2d", "batch_size": 1, "verbose": 0, "device": "cpu",
}  # fmt: skip


def save_start(config: RunConfig, recordings: Recordings) -> None:
    """A run folder with a freshly initialised model: speed does not depend on what a core has learned."""
    folder = RunFolder(config.train.output_dir)
    model: ViV1T = new_model(config, recordings)
    folder.write_args(config, shapes_of(model, config.data.crop_frame))
    write_checkpoint(folder.best, module_entries({"model": model}), {"epoch": 0, "value": 0.0})


def test_epoch_seconds(report: Report, tmp_path: Path) -> None:
    if available_bytes() < 6e9:
        pytest.skip("needs 6 GB of memory")
    size = Size(neurons=NEURONS, frames=300, trials=TRIALS, evaluation=((1, 1), (0, 1), (0, 1), (0, 1), (0, 1)))
    synthesize(tmp_path / "mice", mice=["F"], size=size)
    options = OPTIONS | {"data": str(tmp_path / "mice"), "response_scale": "neuron"}
    start = RunConfig.from_options(options | {"output_dir": str(tmp_path / "start")})
    frozen = {"pretrain_core": str(tmp_path / "start"), "freeze_core": True}
    # Everything's epoch takes so long that warming up would change nothing; the first frozen one is left out.
    variants = {"everything": {"epochs": 1}, "frozen": frozen | {"epochs": 6}}
    epochs: dict[str, list[float]] = {}
    with torch_threads(THREADS), closing(Recordings.open(start.data, 1)) as recordings:
        save_start(start, recordings)
        for name, changes in variants.items():
            config = RunConfig.from_options(options | changes | {"output_dir": str(tmp_path / name)})
            trainer = Trainer(config, recordings, RunFolder(config.train.output_dir))
            trainer.begin()
            began, ended = time.perf_counter(), []
            trainer.fit(lambda row, ended=ended: ended.append(time.perf_counter()))  # type: ignore[misc]
            epochs[name] = [float(row["seconds"]) for row in trainer.records.rows]
            if name == "frozen":
                maps = ended[0] - began - epochs[name][0]
    epochs["frozen"] = epochs["frozen"][1:]
    report.add("new_mouse", CASE, "epoch_seconds", "s", epochs)
    report.add("new_mouse", CASE, "core_outputs_seconds", "s", {"frozen": [maps]})
