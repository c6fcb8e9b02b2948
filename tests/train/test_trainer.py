"""Runs: what they leave behind, that they go on where they stopped, and what the loop does with the scores."""

from __future__ import annotations

import itertools
import logging
import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny_runs import metrics, options, same_weights, script_validation, train, weights

import viv1t
from viv1t.data.store.pack import pack
from viv1t.errors import ConfigError, DataError, TrainingError
from viv1t.families.sensorium2023.run import RunConfig
from viv1t.runs.checkpoint import read_checkpoint
from viv1t.training import micro_batch
from viv1t.training import trainer as trainer_module
from viv1t.training.objective import Objective
from viv1t.training.records import Records
from viv1t.training.step import Step
from viv1t.training.trainer import Trainer
from viv1t.training.validate import Validation


def interrupt_after(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, calls: int) -> None:
    """Ctrl-C before call number `calls` + 1 of a method."""
    counter = itertools.count()
    method = getattr(owner, name)

    def counted(*args: Any, **kwargs: Any) -> Any:
        if next(counter) == calls:
            raise KeyboardInterrupt
        return method(*args, **kwargs)

    monkeypatch.setattr(owner, name, counted)


def files(folder: Path) -> list[str]:
    """Everything but the event files, whose names hold the time."""
    found = (p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    return sorted(str(p) for p in found if p.parts[0] != "tensorboard")


def same_run(a: Path, b: Path) -> bool:
    """Whether two runs have the same weights, optimizer state, metrics and scores, to the last bit."""
    same = [(a / f).read_bytes() == (b / f).read_bytes() for f in ("ckpt/last.safetensors", "evaluation.yaml")]
    best = "ckpt/best.safetensors"
    same.append((a / best).is_file() == (b / best).is_file())
    if (a / best).is_file():
        same.append((a / best).read_bytes() == (b / best).read_bytes())
    return all(same) and metrics(a) == metrics(b)


# -- what a run leaves ---------------------------------------------------------------------------------------------


def test_run_folder_after_two_epochs(mice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script_validation(monkeypatch, [0.1, 0.2])
    run = tmp_path / "deep" / "run"
    train(mice, run, seed=7)
    assert files(run) == [
        "args.yaml", "ckpt/best.safetensors", "ckpt/last.safetensors", "ckpt/previous.safetensors", "evaluation.yaml",
        "metrics.csv", "model.txt", "output.log", "recordings.safetensors",
    ]  # fmt: skip
    args = yaml.safe_load((run / "args.yaml").read_text())
    assert args["input_shapes"] == {"video": [1, 40, 36, 64], "behavior": [2, 40], "pupil_center": [2, 40]}
    assert args["output_shapes"] == {"F": [6, 40], "G": [6, 40]}
    given = options(mice, run, seed=7)
    assert {k: args[k] for k in given} == given
    assert RunConfig.from_options(args) == RunConfig.from_options(given)
    assert [row["epoch"] for row in metrics(run)] == ["1", "2"]
    assert list(metrics(run)[0]) == [
        "epoch", "train_loss", "validation_loss", "correlation", "learning_rate", "correlation/F", "correlation/G",
    ]  # fmt: skip
    assert yaml.safe_load((run / "evaluation.yaml").read_text()) == {"validation": {"F": 0.2, "G": 0.2, "average": 0.2}}
    model = viv1t.load_model(run)
    total = sum(p.numel() for p in model.parameters())
    assert f"{total:,}" in (run / "model.txt").read_text().splitlines()[-1]
    assert "epoch 2/2" in (run / "output.log").read_text()


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("precision", ["32", "tf32"])
def test_tensor_cores_take_float32_where_they_are_asked_to(
    mice: Path, tmp_path: Path, device: str, precision: str
) -> None:
    before = torch.get_float32_matmul_precision()
    try:
        train(mice, tmp_path / "run", epochs=0, precision=precision, device=device)
        asked = device == "cuda" and precision == "tf32"
        assert torch.get_float32_matmul_precision() == ("high" if asked else "highest")
    finally:
        torch.set_float32_matmul_precision(before)


def test_scores_are_of_whole_trials_with_the_best_weights(mice: Path, tmp_path: Path) -> None:
    trainer, final = train(mice, tmp_path / "run", epochs=3)
    rows = metrics(tmp_path / "run")
    best = max(float(row["correlation"]) for row in rows)
    assert best > 0, "this seed finds something; choose another if that changes"
    assert final.mean == best
    assert set(final.correlation) == {"F", "G"}
    saved = {f"model/{k}": v for k, v in trainer.model.state_dict().items()}
    entries, facts = read_checkpoint(tmp_path / "run" / "ckpt" / "best.safetensors")
    assert same_weights(saved, entries)
    assert facts["value"] == best


def test_metrics_are_written_after_every_epoch_and_plots_on_demand(
    mice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script_validation(monkeypatch, [0.1])
    train(mice, tmp_path / "run", save_plots=True, format="png", dpi=30)
    assert (tmp_path / "run" / "plots" / "learning_curves.png").stat().st_size > 1000


def test_log_goes_to_the_file_and_warnings_before_it_too(
    mice: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(mice, tmp_path / "run", limit_data=99, epochs=1, verbose=1)
    log = (tmp_path / "run" / "output.log").read_text()
    assert "warning: mouse F: all 4 trials are used: --limit_data 99" in log
    assert "epoch 1/1" in log
    assert "warning: mouse F: all 4 trials are used" in capsys.readouterr().err
    logger = logging.getLogger("viv1t")
    assert logger.propagate
    assert not logger.handlers


# -- interrupted and continued -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("owner", "method", "calls", "threads"),
    [(Step, "update", 3, 1), (Step, "update", 3, 2), (Records, "add", 1, 1), (Trainer, "_save_last", 2, 1),
     (Step, "accumulate", 1, 1)],
    ids=["in an epoch", "two threads", "before metrics", "after metrics", "in the first epoch"],
)  # fmt: skip
def test_continued_run_is_the_uninterrupted_one(
    mice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: type, method: str, calls: int, threads: int
) -> None:
    torch.set_num_threads(threads)
    changes: dict[str, Any] = {"epochs": 3, "deterministic": True, "num_workers": threads, "core_p_dropout": 0.3}
    train(mice, tmp_path / "whole", **changes)
    with monkeypatch.context() as patch:
        interrupt_after(patch, owner, method, calls)
        with pytest.raises(KeyboardInterrupt):
            train(mice, tmp_path / "cut", **changes)
    assert not (tmp_path / "cut" / ".lock").exists()
    assert "interrupted" in (tmp_path / "cut" / "output.log").read_text()
    train(mice, tmp_path / "cut", **changes)
    assert same_run(tmp_path / "whole", tmp_path / "cut")
    assert [row["epoch"] for row in metrics(tmp_path / "cut")] == ["1", "2", "3"]


def test_continued_run_keeps_the_schedule(mice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script_validation(monkeypatch, [0.3] + [0.1] * 20)
    train(mice, tmp_path / "whole", epochs=9)
    script_validation(monkeypatch, [0.3] + [0.1] * 20)
    train(mice, tmp_path / "cut", epochs=5)
    script_validation(monkeypatch, [0.1])
    trainer, _ = train(mice, tmp_path / "cut", epochs=9)
    assert trainer.schedule.reductions == 1
    assert same_run(tmp_path / "whole", tmp_path / "cut")


def test_batch_norm_and_other_cores_continue_too(mice: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"core": "factorized_baseline", "core_dropout": 0.2, "modulator_mode": 2}
    train(mice, tmp_path / "whole", epochs=2, **changes)
    train(mice, tmp_path / "cut", epochs=1, **changes)
    train(mice, tmp_path / "cut", epochs=2, **changes)
    assert same_run(tmp_path / "whole", tmp_path / "cut")


def test_interrupt_leaves_no_thread_reading(mice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = set(threading.enumerate())
    interrupt_after(monkeypatch, Step, "accumulate", 1)
    # A center crop is read by Python's threads.
    with pytest.raises(KeyboardInterrupt) as interruption:
        train(mice, tmp_path / "run", num_workers=3, center_crop=0.8)
    assert set(threading.enumerate()) == before
    assert interruption.tb is not None


def test_finished_run_is_only_evaluated_again(mice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    _, first = train(mice, run)
    (run / "evaluation.yaml").unlink()
    before = {f: (run / f).read_bytes() for f in files(run) if f != "output.log"}
    monkeypatch.setattr(Trainer, "_train_epoch", None)
    _, again = train(mice, run)
    assert again == first
    assert {f: (run / f).read_bytes() for f in before} == before
    assert yaml.safe_load((run / "evaluation.yaml").read_text())["validation"]["average"] == first.mean


@pytest.mark.parametrize(
    ("change", "named"),
    [({"batch_size": 3}, "--batch_size 2 (now 3)"), ({"lr": 0.5}, "--lr 0.0036 (now 0.5)"),
     ({"mouse_ids": ["F"]}, "--mouse_ids ['F', 'G'] (now ['F'])")],
)  # fmt: skip
def test_another_option_is_refused_by_name(mice: Path, tmp_path: Path, change: dict[str, Any], named: str) -> None:
    train(mice, tmp_path / "run", epochs=1)
    before = {f: (tmp_path / "run" / f).read_bytes() for f in files(tmp_path / "run")}
    with pytest.raises(ConfigError) as refusal:
        train(mice, tmp_path / "run", **change)
    assert named in str(refusal.value)
    assert {f: (tmp_path / "run" / f).read_bytes() for f in files(tmp_path / "run")} == before


def test_epochs_may_change_unless_rates_depend_on_them(mice: Path, tmp_path: Path) -> None:
    train(mice, tmp_path / "plateau", epochs=1)
    train(mice, tmp_path / "plateau", epochs=2, num_workers=0)
    assert len(metrics(tmp_path / "plateau")) == 2
    train(mice, tmp_path / "cosine", epochs=1, lr_schedule="cosine")
    with pytest.raises(ConfigError, match=r"--epochs 1 \(now 2\)"):
        train(mice, tmp_path / "cosine", epochs=2, lr_schedule="cosine")


def test_clear_output_dir_starts_anew(mice: Path, tmp_path: Path) -> None:
    train(mice, tmp_path / "run", epochs=1)
    (tmp_path / "run" / "notes").mkdir()
    train(mice, tmp_path / "run", epochs=1, batch_size=3, clear_output_dir=True)
    assert (tmp_path / "run" / "notes").exists()  # no run's
    assert len(metrics(tmp_path / "run")) == 1


# -- seeds -----------------------------------------------------------------------------------------------------------


def test_seed_decides_everything(mice: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        torch.rand(3)  # whatever was drawn before
        train(mice, tmp_path / name, seed=seed, epochs=1)
    assert same_run(tmp_path / "a", tmp_path / "b")
    assert not same_run(tmp_path / "a", tmp_path / "c")


def test_packed_recordings_train_the_same_model(mice: Path, tmp_path: Path) -> None:
    list(pack(mice, tmp_path / "packed"))
    (a, scores), (b, others) = (train(mice, tmp_path / "a"), train(tmp_path / "packed", tmp_path / "b"))
    assert same_weights(weights(a.model), weights(b.model))
    assert scores == others


def test_deterministic_asks_pytorch_for_it(
    mice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    validate = Trainer._validate

    def seen(trainer: Trainer) -> Validation:
        asked.append(torch.are_deterministic_algorithms_enabled())
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
        return validate(trainer)

    monkeypatch.setattr(Trainer, "_validate", seen)
    train(mice, tmp_path / "run", epochs=0)
    train(mice, tmp_path / "deterministic", epochs=0, deterministic=True)
    assert asked == [False, True]


# -- the schedule in the loop ----------------------------------------------------------------------------------------


def watch_epochs(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, torch.Tensor]]:
    """The weights that validation sees after each epoch."""
    seen: list[dict[str, torch.Tensor]] = []
    inner: Callable[..., Validation] = trainer_module.validate

    def watching(model: torch.nn.Module, *rest: Any) -> Validation:
        seen.append(weights(model))
        return inner(model, *rest)

    monkeypatch.setattr(trainer_module, "validate", watching)
    return seen


def test_plateau_reduces_restores_and_stops(mice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script_validation(monkeypatch, [0.3] + [0.1] * 30)
    seen = watch_epochs(monkeypatch)
    restored: list[int] = []
    load_best = Trainer._load_best
    monkeypatch.setattr(Trainer, "_load_best", lambda self: (restored.append(self.epoch), load_best(self)))
    trainer, _ = train(mice, tmp_path / "run", epochs=40)
    assert trainer.epoch == 16
    assert trainer.schedule.terminated
    assert restored == [6, 11, 16]  # twice with a reduction, then for the final scores
    rates = [float(row["learning_rate"]) for row in metrics(tmp_path / "run")]
    assert rates == pytest.approx([0.0048] * 5 + [0.0048 * 0.3] * 5 + [0.0048 * 0.09] * 6)
    assert [g["lr"] for g in trainer.optimizer.param_groups] == pytest.approx([0.0048 * 0.09, 0.0036 * 0.09])
    assert same_weights(seen[-1], seen[0])
    assert same_weights(weights(trainer.model), seen[0])
    script_validation(monkeypatch, [0.9])
    train(mice, tmp_path / "run", epochs=40)
    assert len(metrics(tmp_path / "run")) == 16  # stopped stays stopped


def test_collapse_goes_back_without_reducing(mice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script_validation(monkeypatch, [0.2, 0.001, 0.15])
    seen = watch_epochs(monkeypatch)
    monkeypatch.setattr(Trainer, "_train_epoch", train_epoch_that_adds_one)
    trainer, _ = train(mice, tmp_path / "run", epochs=3)
    name = next(iter(seen[0]))
    assert torch.equal(seen[1][name], seen[0][name] + 1)
    assert torch.equal(seen[2][name], seen[0][name] + 1)  # the third epoch started from the best weights
    assert trainer.optimizer.param_groups[0]["lr"] == 0.0048


def train_epoch_that_adds_one(self: Trainer) -> None:
    self.losses.append(0.0)
    with torch.no_grad():
        for parameter in self.model.parameters():
            parameter += 1


def test_best_and_last_are_kept_apart(mice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script_validation(monkeypatch, [0.2, 0.3, 0.1])
    seen = watch_epochs(monkeypatch)
    train(mice, tmp_path / "run", epochs=3)
    best, facts = read_checkpoint(tmp_path / "run" / "ckpt" / "best.safetensors")
    last, state = read_checkpoint(tmp_path / "run" / "ckpt" / "last.safetensors")
    assert facts == {"epoch": 2, "value": 0.3}
    assert (state["cursor"]["epoch"], state["cursor"]["batch"]) == (4, 0)
    assert same_weights({k.removeprefix("model/"): v for k, v in best.items()}, seen[1])
    model = {k.removeprefix("model/"): v for k, v in last.items() if k.startswith("model/")}
    assert same_weights(model, seen[2])
    assert any(k.startswith("optimizer/") for k in last)
    assert same_weights(weights(viv1t.load_model(tmp_path / "run")), seen[1])


def test_no_best_weights_before_a_positive_score(mice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script_validation(monkeypatch, [-0.1, math.nan])
    seen = watch_epochs(monkeypatch)
    trainer, _ = train(mice, tmp_path / "run")
    assert not trainer.run.best.exists()
    assert same_weights(weights(trainer.model), seen[1])
    assert same_weights(weights(viv1t.load_model(tmp_path / "run")), seen[1])


def test_cosine_rates(mice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script_validation(monkeypatch, [0.3, 0.1])
    train(mice, tmp_path / "run", epochs=9, lr_schedule="cosine")
    rates = [float(row["learning_rate"]) / 0.0048 for row in metrics(tmp_path / "run")]
    expected = [0.02 + 0.98 * (1 + math.cos(math.pi * i / 8)) / 2 for i in range(9)]
    assert rates == pytest.approx(expected)  # eight epochs without an improvement change nothing


# -- what goes wrong -----------------------------------------------------------------------------------------------


def test_nan_loss_names_mouse_and_trials(mice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(mice, tmp_path / "run", epochs=1)
    last = (tmp_path / "run" / "ckpt" / "last.safetensors").read_bytes()
    before: list[dict[str, torch.Tensor]] = []
    steps: list[Objective] = []
    losses = Objective.losses

    def broken(self: Objective, batch: Any, size: int) -> Any:
        if batch.mouse_id == "G" and not before:
            before.append(weights(self.model))
            steps.append(self)
            loss, critic_loss = losses(self, batch, size)
            return loss * math.nan, critic_loss
        return losses(self, batch, size)

    monkeypatch.setattr(Objective, "losses", broken)
    with pytest.raises(TrainingError, match=r"mouse G, trials \d+, \d+, is nan: the weights were not updated"):
        train(mice, tmp_path / "run", epochs=2)
    assert same_weights(weights(steps[0].model), before[0])
    assert (tmp_path / "run" / "ckpt" / "last.safetensors").read_bytes() == last
    assert "error: the loss of mouse G" in (tmp_path / "run" / "output.log").read_text()


def test_mouse_without_validation_trials_is_refused_before_anything_is_written(
    tmp_path: Path, mice: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from viv1t.data.session import Session

    trials = Session.trials
    monkeypatch.setattr(Session, "trials", lambda self, tier: [] if tier == "validation" else trials(self, tier))
    with pytest.raises(DataError, match=r"mouse F: no trial of the tier oracle"):
        train(mice, tmp_path / "new" / "run")
    assert not (tmp_path / "new").exists()


def test_temporal_stride_is_refused(mice: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="core_temporal_patch_stride"):
        train(mice, tmp_path / "run", core_temporal_patch_stride=2)
    assert not (tmp_path / "run").exists()


def test_a_critic_that_cannot_work_is_refused(mice: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="36 x 3 x 5"):
        train(mice, tmp_path / "run", critic_mode=1)
    assert not (tmp_path / "run").exists()


def test_a_batch_that_memory_does_not_hold_is_taken_in_parts(
    mice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script_validation(monkeypatch, [0.1])
    train(mice, tmp_path / "parts", epochs=1, micro_batch_size=1, core_p_dropout=0.2)
    train(mice, tmp_path / "whole", epochs=1, core_p_dropout=0.2)
    monkeypatch.setattr(micro_batch, "available_bytes", lambda: 0)
    train(mice, tmp_path / "little", epochs=1, core_p_dropout=0.2)
    logs = {name: (tmp_path / name / "output.log").read_text() for name in ("whole", "little")}
    assert "batches of 2 are taken 1 trials at a time, to fit in memory" in logs["little"]
    assert "to fit in memory" not in logs["whole"]
    losses = [metrics(tmp_path / name)[0]["train_loss"] for name in ("parts", "whole", "little")]
    assert losses[2] == losses[0] != losses[1]
