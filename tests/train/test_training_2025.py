"""Training models of 2025: from the published command to scores, from published weights on, and what is refused."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo
import yaml
from commands import viv1t_convert as convert
from commands import viv1t_evaluate as evaluate
from commands import viv1t_train as main
from golden_files import golden_folder
from tiny_runs import (
    CAUSAL,
    as_arguments,
    metrics,
    options,
    options_2025,
    same_weights,
    script_validation,
    train,
    train_2025,
    weights,
)

import viv1t
from viv1t.errors import CheckpointError, ConfigError, TrainingError, Viv1tError
from viv1t.families.closed_loop.data import limited_neurons
from viv1t.prediction.trials import predict
from viv1t.runs.checkpoint import read_checkpoint, write_checkpoint
from viv1t.runs.ensemble import open_ensemble
from viv1t.runs.folder import RunFolder
from viv1t.training.step import Step
from viv1t.training.trainer import Trainer
from viv1t.types import SENSORIUM_SESSIONS

PUBLISHED_COMMAND = (
    "--data_dir=data/ --output_dir=runs/001_viv1t --core=vivit --core_behavior_mode=2 --core_use_causal_attention "
    "--core_parallel_attention --readout=gaussian --output_mode=1 --schedule_free --compile --batch_size=1 "
    "--wandb=vivit --clear_output_dir"
)
# What makes its model small, and its mice those that are there.
SMALLER = as_arguments({k: v for k, v in CAUSAL.items() if k not in ("core", "core_use_causal_attention")})
SMALLER += ["--mouse_ids", "F", "G", "--epochs=1", "--device=cpu", "--num_workers=1"]


@pytest.fixture(scope="module")
def trained(mice: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; not to be changed."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as patch:
        script_validation(patch, [0.2, 0.1])
        train_2025(mice, folder)
    return folder


@pytest.fixture
def published() -> Path:
    folder = golden_folder().parent / "golden_closed_loop" / "run"
    if not folder.is_dir():
        pytest.skip(f"golden numbers not found at {folder}")
    return folder


# -- the command -----------------------------------------------------------------------------------------------------


def test_the_published_command_trains(
    mice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wandb = pytest.importorskip("wandb")
    logged: list[int] = []
    run = SimpleNamespace(id="x", log=lambda row, step: logged.append(step), finish=lambda: None)
    monkeypatch.setattr(wandb, "init", lambda **given: run)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    monkeypatch.chdir(tmp_path)
    torch._dynamo.reset()
    for session in mice.iterdir():
        shutil.copytree(session, tmp_path / "data" / "sensorium" / session.name)
    assert main([*PUBLISHED_COMMAND.split(), *SMALLER]) == 0, capsys.readouterr().err
    torch._dynamo.reset()
    out, err = capsys.readouterr()
    assert "run folder: runs/001_viv1t" in out
    assert "epoch 1/1" in err
    folder = RunFolder("runs/001_viv1t")
    assert logged == [1]
    assert folder.family().name == "2025"
    args = folder.read_args()
    assert (args["core_use_causal_attention"], args["schedule_free"], args["compile"]) == (True, True, True)
    assert (args["train_sizes"], args["max_frame"]) == ({"F": 4, "G": 4}, 300)
    scores = yaml.safe_load(folder.evaluation.read_text())
    names = {"correlation", "single_trial_correlation", "normalized_correlation"}
    assert scores["validation"].keys() == names
    assert all(values.keys() == {"F", "G", "average"} for values in scores["validation"].values())
    # What the command says of it later is the same.
    assert evaluate(["runs/001_viv1t", "--device=cpu", "--output=again.yaml"]) == 0
    again = yaml.safe_load(Path("again.yaml").read_text())
    for name in names:
        assert again["validation"][name] == pytest.approx(scores["validation"][name], abs=1e-6)


def test_from_python(mice: Path, tmp_path: Path) -> None:
    given = options_2025(mice, tmp_path / "run", core="fcnn", schedule_free=None, adam_warmup_steps=None)
    assert viv1t.train(given, epochs=1) == tmp_path / "run"
    model = viv1t.load_model(tmp_path / "run")
    assert (model.config.core.name, model.config.optimizer.schedule_free) == ("fcnn", False)


def test_plain_adamw_goes_back_and_slows_down(mice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script_validation(monkeypatch, [0.3, 0.2])
    trainer, _ = train_2025(mice, tmp_path / "run", schedule_free=None, adam_warmup_steps=None, epochs=6, verbose=1)
    assert [g["lr"] for g in trainer.optimization.groups] == pytest.approx([0.0126 * 0.3, 0.0073 * 0.3, 0.0073 * 0.3])
    assert "epoch 6: back to the weights of epoch 1" in (tmp_path / "run" / "output.log").read_text()


def test_schedule_free_training_stops_ten_epochs_after_the_best(
    mice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script_validation(monkeypatch, [0.1, 0.3, 0.2])
    monkeypatch.setattr(Trainer, "_train_step", lambda self, epoch, batches: (self.losses.append(1.0), next(batches)))
    trainer, _ = train_2025(mice, tmp_path / "run", epochs=50)
    assert (trainer.epoch, trainer.schedule.best_epoch, trainer.schedule.terminated) == (12, 2, True)


# -- which weights ---------------------------------------------------------------------------------------------------


def test_the_average_is_scored_and_kept(trained: Path) -> None:
    best, facts = read_checkpoint(trained / "ckpt" / "best.safetensors")
    assert facts["epoch"] == 1
    groups = facts["optimization"]["groups"]
    assert [(g["k"], g["train_mode"]) for g in groups] == [(4, False)] * len(groups)
    model = viv1t.load_model(trained)
    for name, value in model.state_dict().items():
        assert torch.equal(value, best[f"model/{name}"])
    # Of z, whose average it is, it differs.
    assert any(not torch.equal(best[f"model/{n}"], best[f"optimizer/model/{n}/z"]) for n, _ in model.named_parameters())


def test_a_step_that_is_not_finite_leaves_everything_as_it_was(
    mice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states: list[tuple[dict[str, torch.Tensor], dict[str, Any]]] = []
    update, count = Step.update, [0]

    def spoiled(self: Step) -> Any:
        count[0] += 1
        if count[0] == 3:
            optimization = self.optimization
            states.append((optimization.entries({"model": self.model}) | weights(self.model), optimization.facts()))
            self.optimization.parameters[0].grad.fill_(torch.nan)  # type: ignore[union-attr]
            try:
                return update(self)
            finally:
                states.append((optimization.entries({"model": self.model}) | weights(self.model), optimization.facts()))
        return update(self)

    monkeypatch.setattr(Step, "update", spoiled)
    with pytest.raises(TrainingError, match=r"lower --lr and --core_lr, or set --clip_grad"):
        train_2025(mice, tmp_path / "run")
    (before, facts), (after, told) = states
    assert same_weights(before, after)
    assert facts == told
    assert before["clipping/history"].tolist() == after["clipping/history"].tolist() != []


# -- a few neurons and trials ----------------------------------------------------------------------------------------


def test_a_run_on_a_few_neurons_and_trials_is_used_on_them(
    mice: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    trainer, _ = train_2025(mice, run, limit_neurons=3, limit_data=2, epochs=1, seed=7)
    kept = limited_neurons(6, 3, 7)
    assert trainer.recordings.train_sizes == {"F": 2, "G": 2}
    args = RunFolder(run).read_args()
    assert args["neuron_idx"] == {"F": kept.tolist(), "G": kept.tolist()}
    models, recordings = open_ensemble([run], torch.device("cpu"))
    assert recordings.mice["G"].neurons == 3
    response = next(predict(models, recordings, "G", "validation", "scaled"))
    assert response.response.shape[0] == 3
    assert np.array_equal(response.mouse.unit_ids, recordings.session("G").whole.mouse.unit_ids[kept])
    assert evaluate([str(run), "--device=cpu"]) == 0
    train_2025(mice, run, limit_neurons=3, limit_data=2, epochs=2, seed=7)
    with pytest.raises(ConfigError, match=r"--limit_neurons 3 \(now 4\)"):
        train_2025(mice, run, limit_neurons=4, limit_data=2, epochs=2, seed=7)
    assert convert([str(run), str(tmp_path / "out")]) == 0
    assert yaml.safe_load((tmp_path / "out" / "args.yaml").read_text())["neuron_idx"] == args["neuron_idx"]


# -- from and to published folders -----------------------------------------------------------------------------------


def test_a_run_is_written_as_published_and_gone_on_from(
    trained: Path, mice: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert convert([str(trained), str(out)]) == 0
    best, _ = read_checkpoint(trained / "ckpt" / "best.safetensors")
    content = torch.load(out / "ckpt" / "optimizer.pt", weights_only=True)
    assert [g["name"] for g in content["param_groups"]] == ["core", "shifters", "readouts"]
    assert [(g["k"], g["train_mode"]) for g in content["param_groups"]] == [(4, False)] * 3
    assert {frozenset(state) for state in content["state"].values()} == {frozenset({"z", "exp_avg_sq"})}
    args = yaml.safe_load((out / "args.yaml").read_text())
    assert not {"save_every", "reader_timeout", "save_plots"} & args.keys()
    assert args["neuron_idx"] == {"F": [*range(6)], "G": [*range(6)]}
    assert yaml.safe_load((out / "ckpt" / "info.yaml").read_text()) == {"best_corr": 0.2, "epoch": 1}
    assert same_weights(weights(viv1t.load_model(out)), weights(viv1t.load_model(trained)))
    # A run that starts from it goes on with its optimizer.
    trainer, _ = train_2025(mice, tmp_path / "next", restore=str(out), epochs=0)
    state = trainer.optimization.entries(trainer.modules)
    assert [g["k"] for g in trainer.optimization.groups] == [4, 4, 4]
    assert all(torch.equal(value, best[name]) for name, value in state.items() if name != "clipping/history")
    assert len(state) > 20


def test_a_published_run_is_gone_on_from(published: Path, tmp_path: Path) -> None:
    folder, data = published / "run", tmp_path / "data"
    shutil.copytree(published / "data", data)
    given = RunFolder(folder).read_args() | {
        "data_dir": str(data), "output_dir": str(tmp_path / "run"), "restore": str(folder), "epochs": 1, "verbose": 0,
    }  # fmt: skip
    before = torch.load(folder / "ckpt" / "optimizer.pt", weights_only=True)
    seen: list[Any] = []
    update = Step.update

    def first(self: Step) -> Any:
        seen.append([(g["k"], g["train_mode"]) for g in self.optimization.groups])
        return update(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Step, "update", first)
        viv1t.train(given)
    assert seen[0] == [(group["k"], True) for group in before["param_groups"]]
    assert seen[1][0][0] == seen[0][0][0] + 1


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("cut", "not readable as a checkpoint of tensors"),
        ("empty", "not the state of an optimizer"),
        ("adamw", r"entry 0 is not that of this optimizer \(z, exp_avg_sq\)"),
        ("counters", "a group lacks its counters"),
        ("groups", "belongs to a model of other parts"),
        ("shape", "entry 3 is not that of this optimizer"),
        ("number", "entry 2 is not that of this optimizer"),
    ],
)
def test_a_damaged_optimizer_is_one_clear_error(
    trained: Path, mice: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str, words: str
) -> None:
    out = tmp_path / "out"
    assert convert([str(trained), str(out)]) == 0
    path = out / "ckpt" / "optimizer.pt"
    content = torch.load(path, weights_only=True)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-40])
    else:
        if damage == "empty":
            content = {"state": {}}
        elif damage == "adamw":
            content["state"][0] = {"step": torch.ones(()), **{k: torch.ones(2) for k in ("exp_avg", "exp_avg_sq")}}
        elif damage == "counters":
            del content["param_groups"][1]["weight_sum"]
        elif damage == "groups":
            content["param_groups"][2]["name"] = "modulators"
        elif damage == "shape":
            content["state"][3]["z"] = torch.ones(3)
        elif damage == "number":
            content["state"][2]["z"] = 3
        torch.save(content, path)
    with pytest.raises(CheckpointError, match=words) as error:
        train_2025(mice, tmp_path / "next", restore=str(out))
    assert str(path) in str(error.value)
    assert not (tmp_path / "next").exists()
    path.unlink()  # as the error says: the weights alone
    trainer, _ = train_2025(mice, tmp_path / "next", restore=str(out), epochs=0)
    assert [g["k"] for g in trainer.optimization.groups] == [0, 0, 0]


def test_a_core_is_started_from_whole_or_not_at_all(trained: Path, mice: Path, tmp_path: Path) -> None:
    trainer, _ = train_2025(mice, tmp_path / "run", pretrained_core=str(trained), epochs=0, mouse_ids=["A"], seed=3)
    ours, theirs = weights(trainer.model.core), weights(viv1t.load_model(trained).core)
    assert same_weights(ours, theirs)
    with pytest.raises(ConfigError, match=r"--pretrained_core .* of other options: give --core_norm layernorm"):
        train_2025(mice, tmp_path / "other", pretrained_core=str(trained), core_norm="rmsnorm")


# -- refused ---------------------------------------------------------------------------------------------------------


def test_folders_of_the_other_family_are_refused(
    trained: Path, run: Path, mice: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder, start, other in ((run, train_2025, "2023"), (trained, train, "2025")):
        before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        with pytest.raises(ConfigError, match=f"holds a run of the family of {other}, and these options are of that"):
            start(mice, folder)
        with pytest.raises(CheckpointError, match=f"a run of the family of {other}, but this one is of that of"):
            start(mice, tmp_path / "new", restore=str(folder))
        assert not (tmp_path / "new").exists()
        assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before
    with pytest.raises(ConfigError, match="has a core vivit of another family of models"):
        train_2025(mice, tmp_path / "new", pretrained_core=str(run))


def test_a_save_that_lacks_its_optimizer_is_refused(trained: Path, mice: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(trained, tmp_path / "run"))
    (folder / "ckpt" / "previous.safetensors").unlink()
    path = folder / "ckpt" / "last.safetensors"
    tensors, facts = read_checkpoint(path)
    name = next(n for n in tensors if n.endswith("/z"))
    for changed, known in (
        ({k: v for k, v in tensors.items() if k != name}, facts),
        (tensors | {name: torch.ones(2)}, facts),
        (tensors, {k: v for k, v in facts.items() if k != "groups"}),
        (tensors, facts | {"groups": facts["groups"][:1]}),
        (tensors, facts | {"groups": [{**g, "k": "many"} for g in facts["groups"]]}),
    ):
        write_checkpoint(path, changed, known)
        with pytest.raises(CheckpointError):
            train_2025(mice, folder, epochs=3)
    write_checkpoint(path, tensors, facts)
    train_2025(mice, folder, epochs=3)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data_dir": "nowhere"}, "--data_dir nowhere: no such folder"),
        ({"mouse_ids": ["F", "K"]}, "missing mice K; there are A, F, G: choose with --mouse_ids"),
        ({"core_temporal_patch_stride": 2}, "--core_temporal_patch_stride above 1"),
        ({"wandb_id": "x"}, "--wandb_id resumes a run"),
        ({"crop_frame": 50}, "--crop_frame must be -1 or above 50"),
        ({"core": "v1t"}, "--core v1t of the published code is not built here"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_written(
    mice: Path, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(Viv1tError, match=words):
        train_2025(mice, tmp_path / "run", **changes)
    assert list(tmp_path.iterdir()) == []


def test_options_without_effect_are_said(mice: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = options_2025(mice, tmp_path / "run", schedule_free=None, adam_r=1.0, epochs=0, verbose=1, core="fcnn")
    assert main(as_arguments(given)) == 0
    said = capsys.readouterr().err
    assert "--adam_warmup_steps has no effect: AdamW without --schedule_free" in said
    assert "--adam_r has no effect" in said


def test_a_run_folder_is_cleared_and_other_files_stay(trained: Path, mice: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(trained, tmp_path / "run"))
    (folder / "notes.txt").write_text("mine")
    train_2025(mice, folder, clear_output_dir=True, epochs=1, seed=2)
    assert (folder / "notes.txt").read_text() == "mine"
    assert [row["epoch"] for row in metrics(folder)] == ["1"]
    given = options(mice, folder, clear_output_dir=True, epochs=1)
    assert main(as_arguments(given)) == 0  # of whatever family
    assert RunFolder(folder).family().name == "2023"


def test_other_recordings_are_refused(trained: Path, mice: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(trained, tmp_path / "run"))
    copies = tmp_path / "mice"
    for mouse in ("F", "G"):
        shutil.copytree(mice / SENSORIUM_SESSIONS[mouse], copies / SENSORIUM_SESSIONS[mouse])
    ids = copies / SENSORIUM_SESSIONS["F"] / "meta" / "neurons" / "unit_ids.npy"
    known = np.load(ids)
    np.save(ids, known + 100)
    with pytest.raises(Viv1tError, match="not the neurons that the model was trained on"):
        train_2025(copies, folder, epochs=3)
    np.save(ids, known)
    train_2025(copies, folder, epochs=3)
    assert RunFolder(folder).read_args()["data_dir"] == str(copies)
