"""A new mouse on a frozen core: only its readout and shifter learn, from maps that are computed once."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import viv1t_evaluate as evaluate
from full_disks import largest_file
from tiny_runs import metrics, options, same_weights, script_validation, train, training_step, weights

from viv1t.data.recordings import Recordings
from viv1t.errors import ConfigError, TrainingError
from viv1t.families.sensorium2023.run import RunConfig
from viv1t.model.twin import ViV1T
from viv1t.runs.folder import RunFolder
from viv1t.system.files import allocate
from viv1t.training import frozen
from viv1t.training.frozen import CoreOutputs
from viv1t.training.ranks import Ranks
from viv1t.training.trainer import Trainer

NEW: dict[str, Any] = {"ds_mode": 2, "mouse_ids": ["A"]}
DROPOUT = {"core_p_dropout": 0.3, "core_mha_dropout": 0.3, "core_ff_dropout": 0.3, "core_drop_path": 0.2}


def fit(mice: Path, start: Path, out: Path, **changes: Any) -> Trainer:
    """Mouse A on the frozen core of `start`, with dropouts that a core in training would use."""
    trainer, _ = train(mice, out, pretrain_core=str(start), freeze_core=True, **(NEW | DROPOUT | changes))
    return trainer


def parts(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {k: v for k, v in state.items() if k.startswith(prefix)}


def test_only_readout_and_shifter_learn(
    mice: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script_validation(monkeypatch, [0.1, 0.2], mice=("A",))
    trainer = fit(mice, run, tmp_path / "none", epochs=0)
    before = weights(trainer.model)
    trainer = fit(mice, run, tmp_path / "run", epochs=2)
    after = weights(trainer.model)
    core = parts(RunFolder(run).load_model().state_dict(), "core.")
    assert same_weights(parts(after, "core."), core)
    changed = {k for k in after if not torch.equal(after[k], before[k])}
    assert {k.split(".")[0] for k in changed} == {"readouts", "shifters"}
    assert [group["name"] for group in trainer.optimizer.param_groups] == ["readouts"]
    assert "trainable parameters" in (tmp_path / "run" / "model.txt").read_text()
    best = RunFolder(tmp_path / "run").load_model().state_dict()
    assert same_weights(parts(dict(best), "core."), core)


def test_maps_are_those_of_whole_trials(
    mice: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script_validation(monkeypatch, [0.1], mice=("A",))
    seen: list[tuple[Any, torch.Tensor]] = []
    maps = CoreOutputs.maps

    def spy(self: CoreOutputs, batch: Any) -> torch.Tensor:
        found = maps(self, batch)
        seen.append((batch, found))
        return found

    monkeypatch.setattr(CoreOutputs, "maps", spy)
    # Crops of 67 frames: trials of 63 to 70 frames are cut, or shorter than it.
    trainer = fit(mice, run, tmp_path / "run", epochs=1, crop_frame=67)
    model, recordings = trainer.model.eval(), trainer.recordings
    assert any(first > 0 for batch, _ in seen for first in batch.first_frames)
    for batch, found in seen:
        for trial, first, map_ in zip(batch.trial_ids, batch.first_frames, found, strict=True):
            (whole,) = recordings.trials("A", "train", [trial])
            with torch.no_grad():
                expected = model.core_output(whole.video, "A", whole.behavior, whole.pupil_center)[0]
            frames = batch.video.shape[2] - 4  # the reach of 5 frames
            assert torch.equal(map_, expected[:, first : first + frames])


def test_the_loss_is_that_of_the_readout_on_these_maps(
    mice: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script_validation(monkeypatch, [0.1], mice=("A",))
    trainer = fit(mice, run, tmp_path / "run", epochs=1, readout_bias_mode=1)
    model = trainer.model
    assert trainer.outputs is not None
    batch = next(iter(trainer.recordings.train_batches(1)))
    step = training_step(model, trainer.config, trainer.recordings.train_sizes)
    model.train()
    assert not model.core.training
    assert model.readouts.training
    loss = {}
    for name, provider in (("known", trainer.outputs.maps), ("crop", None)):
        step.objective.maps = provider
        torch.manual_seed(0)
        loss[name] = float(step.accumulate(batch))
    # The same frames, but seen among others: close, and not the same.
    assert loss["known"] == pytest.approx(loss["crop"], rel=0.05)
    assert all(p.grad is None for p in model.core.parameters())
    assert any(p.grad is not None and p.grad.any() for p in model.readouts.parameters())


@pytest.mark.parametrize("core", ["vivit", "factorized_baseline"])
def test_the_core_runs_once_per_trial_however_many_epochs(
    mice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, core: str
) -> None:
    # After one epoch, batch norm's averages are far from the data: exp would overflow.
    dropout = {} if core == "vivit" else dict.fromkeys(DROPOUT) | {"output_mode": 0}
    with monkeypatch.context() as patch:
        script_validation(patch, [0.25])
        train(mice, tmp_path / "start", epochs=1, core=core)
    calls = []
    run = ViV1T.core_output
    monkeypatch.setattr(ViV1T, "core_output", lambda self, *args: calls.append(1) or run(self, *args))
    trainer = fit(mice, tmp_path / "start", tmp_path / "run", epochs=3, core=core, **dropout)
    trials = {t for tier in ("train", "validation") for t in trainer.recordings.trial_ids("A", tier)}
    assert len(calls) == len(trials)
    assert [row["epoch"] for row in metrics(tmp_path / "run")] == ["1", "2", "3"]


def test_maps_in_a_file_are_the_same_and_leave_nothing(
    mice: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = fit(mice, run, tmp_path / "memory")
    monkeypatch.setattr(frozen, "available_bytes", lambda: 0)
    other = fit(mice, run, tmp_path / "file")
    assert same_weights(weights(one.model), weights(other.model))
    assert metrics(tmp_path / "memory") == metrics(tmp_path / "file")
    assert not list((tmp_path / "file").glob(".*"))


def test_the_file_s_space_is_taken_before_it_is_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory mapped on a file with holes kills the process where the disk is full."""
    monkeypatch.setattr(frozen, "available_bytes", lambda: 0)
    sizes = []
    monkeypatch.setattr(frozen, "allocate", lambda file, size: sizes.append((size, allocate(file, size))))
    frozen._allocate(5000, torch.bfloat16, tmp_path).fill_(1)
    assert sizes == [(10_000, None)]
    with largest_file(4096), pytest.raises(TrainingError, match=r"maps take .* there \(File too large\); the"):
        frozen._allocate(5000, torch.bfloat16, tmp_path)
    assert not list(tmp_path.iterdir())


def test_going_on_equals_going_through(mice: Path, run: Path, tmp_path: Path) -> None:
    through = fit(mice, run, tmp_path / "through", epochs=3)
    for epochs in (1, 3):
        parted = fit(mice, run, tmp_path / "parted", epochs=epochs)
    assert same_weights(weights(through.model), weights(parted.model))
    assert metrics(tmp_path / "through") == metrics(tmp_path / "parted")


def test_bf16_holds_half(mice: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script_validation(monkeypatch, [0.1], mice=("A",))
    trainer = fit(mice, run, tmp_path / "run", epochs=1, precision="bf16")
    assert trainer.outputs is not None
    assert {held.dtype for held in trainer.outputs._place.values()} == {torch.bfloat16}
    assert all(torch.isfinite(w).all() for w in weights(trainer.model).values())


def test_the_fitted_mouse_is_a_run_like_any_other(
    mice: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        script_validation(patch, [0.1], mice=("A",))
        fit(mice, run, tmp_path / "run", epochs=1)
    assert evaluate([str(tmp_path / "run")]) == 0
    assert "\nA " in capsys.readouterr().out


def test_what_is_refused(mice: Path, run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--freeze_core needs --pretrain_core"):
        train(mice, tmp_path / "run", freeze_core=True, **NEW)
    with pytest.raises(ConfigError, match="has a core of other options: give --core_num_heads 2, --core_head_dim 4"):
        fit(mice, run, tmp_path / "run", core_num_heads=1, core_head_dim=8)
    with pytest.raises(ConfigError, match="has the core vivit: give --core vivit"):
        fit(mice, run, tmp_path / "run", core="factorized_baseline", **dict.fromkeys(DROPOUT))
    assert not (tmp_path / "run").exists()


def test_several_processes_are_refused(mice: Path, run: Path, tmp_path: Path) -> None:
    given = options(mice, tmp_path / "run", pretrain_core=str(run), freeze_core=True, **(NEW | DROPOUT))
    config = RunConfig.from_options(given)
    with closing(Recordings.open(config.data, 1)) as recordings, pytest.raises(ConfigError, match="without torchrun"):
        Trainer(config, recordings, RunFolder(tmp_path / "run"), ranks=Ranks(0, 2))
