"""`viv1t-evaluate`: runs of ours and published ones, tiers, ensembles, and what is refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny_runs
import torch
import yaml
from plain_scores import correlation_to_average, single_trial_correlation
from tiny_runs import script_validation, train

import viv1t
from viv1t.cli.evaluate import main
from viv1t.data.mice import open_recording
from viv1t.data.recordings import Recordings
from viv1t.prediction import evaluate as evaluate_module
from viv1t.prediction.evaluate import AS_TRAINED, evaluate
from viv1t.runs.folder import RunFolder, save_published
from viv1t.runs.score_file import merged
from viv1t.types import SENSORIUM_SESSIONS

SKIP = 50


def ran(argv: list[Any], capsys: pytest.CaptureFixture[str], status: int = 0) -> str:
    return tiny_runs.ran(main, argv, capsys, status)


def predicted(run: Path, mice: Path, mouse: str, tier: str) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Predictions and responses of a tier's trials, their last T - 50 frames, the plain way."""
    model = viv1t.load_model(run)
    config = RunFolder(run).config()
    recordings = Recordings.open(config.data, 1)
    predictions, responses = [], []
    with torch.no_grad():
        for batch in recordings.trials(mouse, tier):
            frames = batch.video.shape[2] - SKIP
            response = model(batch.video, mouse, batch.behavior, batch.pupil_center)
            predictions.append(response[0, :, -frames:])
            responses.append(batch.response[0, :, -frames:].clone())
    recordings.close()
    return predictions, responses


def test_scores_are_those_of_the_metrics(
    runs: Path, mice: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "scores.yaml"
    out = ran([runs / "one", "--output", output], capsys)
    scores = yaml.safe_load(output.read_text())
    assert list(scores) == ["validation", "correlation_to_average"]
    assert list(scores["validation"]) == ["F", "G", "average"]
    for mouse in ("F", "G"):
        predictions, responses = predicted(runs / "one", mice, mouse, "validation")
        single = single_trial_correlation(predictions, responses)
        assert scores["validation"][mouse] == pytest.approx(single, abs=1e-6)
        # Both trials of this tier show one movie.
        average = float(correlation_to_average(predictions, responses, [0, 0]).mean())
        assert scores["correlation_to_average"]["validation"][mouse] == pytest.approx(average, abs=1e-6)
    mean = (scores["validation"]["F"] + scores["validation"]["G"]) / 2
    assert scores["validation"]["average"] == pytest.approx(mean)
    assert f"{mean:.4f}" in out
    assert str(output) in out


def test_movies_shown_more_often_weigh_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    trials = [(i, *torch.rand(2, 3, 20, generator=generator)) for i in range(6)]
    monkeypatch.setattr(evaluate_module, "scored_trials", lambda *_: iter(trials))
    recordings: Any = SimpleNamespace(repeats=lambda *_: [[0, 1], [2, 3, 4], [5]], frames=lambda *_: 70)
    scores = evaluate_module._score_mouse([], recordings, "F", "validation", [AS_TRAINED])[AS_TRAINED]
    single, average = scores.single_trial, scores.to_average
    repeated = trials[:5]  # a movie shown once has no average
    expected = correlation_to_average([p for _, p, _ in repeated], [r for _, _, r in repeated], [0, 0, 1, 1, 1])
    assert average == pytest.approx(expected)
    assert single.mean() == pytest.approx(single_trial_correlation(*zip(*((p, r) for _, p, r in trials), strict=True)))


def all_metrics(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, Any], str]:
    out = ran([run, "--all-metrics", "--tier", "validation", "train", "--output", tmp_path / "all.yaml"], capsys)
    return yaml.safe_load((tmp_path / "all.yaml").read_text())["all_metrics"], out


def test_all_metrics_on_both_windows_and_scales(
    runs: Path, mice: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores, out = all_metrics(runs / "one", tmp_path, capsys)
    views = ["last_249_scaled_by_frame", "last_250_scaled_by_frame", "last_249_scaled_by_neuron",
             "last_250_scaled_by_neuron"]  # fmt: skip
    assert list(scores["validation"]) == list(scores["train"]) == views
    session = open_recording(mice / SENSORIUM_SESSIONS["F"])
    predictions, scaled = predicted(runs / "one", mice, "F", "validation")
    recordings = Recordings.open(RunFolder(runs / "one").config().data, 1)
    unscaled: dict[str, list[np.ndarray]] = {"p": [], "r": []}
    for trial, prediction in zip(session.trials("validation"), predictions, strict=True):
        stop = session.duration(trial)
        precision = recordings.response_precision("F", stop)[:, -prediction.shape[1] :]
        unscaled["p"].append(prediction.numpy().astype(np.float64) / precision)
        unscaled["r"].append(session.read("response", trial)[:, SKIP:stop].astype(np.float64))
    recordings.close()
    for view, (p, r) in {"frame": (predictions, scaled), "neuron": (unscaled["p"], unscaled["r"])}.items():
        for frames in (249, 250):
            late = 250 - frames
            pairs = [(np.asarray(a)[:, late:], np.asarray(b)[:, late:]) for a, b in zip(p, r, strict=True)]
            found = scores["validation"][f"last_{frames}_scaled_by_{view}"]
            a, b = (np.concatenate(x, axis=1) for x in zip(*pairs, strict=True))
            single = np.mean([np.corrcoef(x, y)[0, 1] for x, y in zip(a, b, strict=True)])
            assert found["single_trial"]["F"] == pytest.approx(single, abs=1e-5)
            a, b = (np.mean(x, axis=0) for x in zip(*pairs, strict=True))
            average = np.mean([np.corrcoef(x, y)[0, 1] for x, y in zip(a, b, strict=True)])
            assert found["to_average"]["F"] == pytest.approx(average, abs=1e-5)
    values = {view: scores["validation"][view]["single_trial"]["F"] for view in views}
    assert len({round(value, 7) for value in values.values()}) == 4
    assert "validation: without the first 51 frames of a trial, responses scaled by neuron" in out
    # Movies of the training tier are shown once.
    assert set(scores["train"][views[0]]) == {"single_trial", "per_trial"}
    assert "CCnorm leaves out" in out


def test_a_model_of_another_scale_is_scored_on_both(
    mice: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    script_validation(monkeypatch, [0.5], mice=("F",))
    train(mice, tmp_path / "neuron", epochs=1, response_scale="neuron", mouse_ids=["F"])
    train(mice, tmp_path / "none", epochs=1, transform_mode=0, mouse_ids=["F"])
    scores, _ = all_metrics(tmp_path / "neuron", tmp_path, capsys)
    views = scores["validation"]
    evaluation = yaml.safe_load((tmp_path / "all.yaml").read_text())
    alike = views["last_250_scaled_by_neuron"]["single_trial"]["F"]
    assert alike == pytest.approx(evaluation["validation"]["F"], abs=1e-6)
    assert views["last_250_scaled_by_frame"]["single_trial"]["F"] != pytest.approx(alike, abs=1e-6)
    # Without statistics there is nothing to scale frames by.
    scores, _ = all_metrics(tmp_path / "none", tmp_path, capsys)
    assert list(scores["validation"]) == ["last_249_scaled_by_neuron", "last_250_scaled_by_neuron"]


def test_the_end_of_training_and_an_evaluation_agree(mice: Path, tmp_path: Path) -> None:
    trainer, final = train(mice, tmp_path / "run", epochs=1)
    written = yaml.safe_load((tmp_path / "run" / "evaluation.yaml").read_text())
    assert trainer.run.best.exists()
    assert main([str(tmp_path / "run")]) == 0
    again = yaml.safe_load((tmp_path / "run" / "evaluation.yaml").read_text())
    assert again["validation"] == pytest.approx(written["validation"], abs=1e-9)
    assert written["validation"]["average"] == final.mean


def test_hidden_and_empty_tiers_are_named_and_left_out(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ran([runs / "one", "--tier", "all", "--output", tmp_path / "a.yaml"], capsys)
    assert "live_test_main: the responses of mouse F, G are withheld; left out" in out
    assert "live_test_bonus: no trials; left out" in out
    assert list(yaml.safe_load((tmp_path / "a.yaml").read_text())) == ["train", "validation", "correlation_to_average"]
    line = ran(
        [runs / "one", "--tier", "live_test_main", "final_test_bonus", "--output", tmp_path / "b.yaml"], capsys, 1
    )
    assert "nothing to score: no responses in live_test_main, final_test_bonus" in line
    assert not (tmp_path / "b.yaml").exists()


def test_tiers_that_were_trained_on_are_named(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ran([runs / "old", "--tier", "live_test_main", "validation", "--output", tmp_path / "a.yaml"], capsys)
    assert "live_test_main: with --ds_mode 3, mouse A was trained on these very trials" in out
    assert "\nvalidation: with" not in out


def test_an_ensemble_is_the_mean_of_predictions(
    runs: Path, mice: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    out = ran([runs / "one", runs / "two"], capsys)
    assert "written to evaluation.yaml" in out
    scores = yaml.safe_load((tmp_path / "evaluation.yaml").read_text())
    for mouse in ("F", "G"):
        (a, responses), (b, _) = (predicted(runs / run, mice, mouse, "validation") for run in ("one", "two"))
        together = single_trial_correlation([(x + y) / 2 for x, y in zip(a, b, strict=True)], responses)
        assert scores["validation"][mouse] == pytest.approx(together, abs=1e-6)
        alone = single_trial_correlation(a, responses)
        assert abs(scores["validation"][mouse] - alone) > 1e-5


def test_a_mouse_of_several(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ran([runs / "one", "--output", tmp_path / "both.yaml"], capsys)
    out = ran([runs / "one", "--mouse_ids", "G", "--output", tmp_path / "g.yaml"], capsys)
    both, alone = (yaml.safe_load((tmp_path / f).read_text())["validation"] for f in ("both.yaml", "g.yaml"))
    assert alone == {"G": both["G"], "average": both["G"]}
    assert "\nF " not in out


def test_later_evaluations_of_a_run_add_to_its_file(
    mice: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    script_validation(monkeypatch, [0.5])
    train(mice, tmp_path / "run", epochs=1)
    ran([tmp_path / "run", "--tier", "train"], capsys)
    ran([tmp_path / "run", "--mouse_ids", "G"], capsys)
    scores = yaml.safe_load((tmp_path / "run" / "evaluation.yaml").read_text())
    assert set(scores["train"]) == {"F", "G", "average"}
    assert scores["validation"]["F"] == 0.5
    assert scores["validation"]["G"] != 0.5
    assert scores["validation"]["average"] == pytest.approx((0.5 + scores["validation"]["G"]) / 2)
    (tmp_path / "run" / "evaluation.yaml").write_text("- [")
    assert "evaluation.yaml: not readable as YAML" in ran([tmp_path / "run"], capsys, 1)


def test_merged_keeps_what_was_not_scored_now() -> None:
    before = {"validation": {"A": 1.0, "B": 3.0, "average": 2.0}, "notes": "mine"}
    assert merged(before, {"validation": {"B": 2.0, "average": 2.0}, "train": {"B": 1.0, "average": 1.0}}) == {
        "validation": {"A": 1.0, "B": 2.0, "average": 1.5}, "notes": "mine", "train": {"B": 1.0, "average": 1.0},
    }  # fmt: skip


# -- published runs ----------------------------------------------------------------------------------------------------


def test_a_run_in_the_published_layout_scores_alike(
    runs: Path, mice: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = save_published(RunFolder(runs / "one"), tmp_path / "published")
    args = yaml.safe_load((out / "args.yaml").read_text())
    (out / "args.yaml").write_text(yaml.safe_dump(args | {"data": "data/sensorium"}))
    ran([runs / "one", "--output", tmp_path / "ours.yaml"], capsys)
    assert "--data data/sensorium: no such folder" in ran([out], capsys, 1)
    ran([out, "--data", mice], capsys)
    assert (out / "evaluation.yaml").read_text() == (tmp_path / "ours.yaml").read_text()


def make_recording(folder: Path, mouse: str, neurons: int, size: tuple[int, int]) -> None:
    """Two training and two validation trials of 64 frames, of noise."""
    rng = np.random.default_rng(neurons)
    session = folder / SENSORIUM_SESSIONS[mouse]
    shapes = {"videos": size, "responses": (neurons,), "behavior": (2,), "pupil_center": (2,)}
    for kind, shape in shapes.items():
        (session / "data" / kind).mkdir(parents=True)
        for trial in range(4):
            np.save(session / "data" / kind / f"{trial}.npy", rng.uniform(1, 200, (*shape, 64)).astype(np.float32))
    (session / "meta" / "neurons").mkdir(parents=True)
    (session / "meta" / "trials").mkdir()
    np.save(session / "meta" / "neurons" / "cell_motor_coordinates.npy", rng.integers(0, 99, (neurons, 3)))
    np.save(session / "meta" / "neurons" / "unit_ids.npy", np.arange(neurons))
    np.save(session / "meta" / "trials" / "tiers.npy", np.array(["train", "oracle", "oracle", "train"]))


def test_golden_runs_score_on_recordings_that_fit(
    golden: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for mouse, neurons in (("F", 34), ("G", 51)):
        make_recording(tmp_path / "data", mouse, neurons, (14, 24))
    data = ["--data", tmp_path / "data", "--output", tmp_path / "scores.yaml"]
    runs = [
        golden / "model" / name
        for name in ("02_parallel", "06_parallel_behavior4_sinusoid_mod1", "10_sequential_noflash")
    ]
    for chosen in (runs[:1], runs):
        ran([*chosen, *data], capsys)
        scores = yaml.safe_load((tmp_path / "scores.yaml").read_text())["validation"]
        assert list(scores) == ["F", "G", "average"]
        assert all(np.isfinite(r) for r in scores.values())


def test_golden_runs_on_recordings_that_do_not_fit(
    golden: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_recording(tmp_path / "data", "F", 34, (10, 24))
    run, output = golden / "model" / "02_parallel", tmp_path / "scores.yaml"
    data = golden / "data" / "sensorium"
    words = [run, "--mouse_ids", "F", "--output", output]
    assert "mouse F has 12 neurons, but 34 in the model" in ran([*words, "--data", data], capsys, 1)
    assert "10 x 24 pixels, but the model was trained on 14 x 24" in ran(
        [*words, "--data", tmp_path / "data"], capsys, 1
    )
    stride = golden / "model" / "09_conv_sequential_stride2_mod4"
    make_recording(tmp_path / "stride", "F", 34, (16, 20))
    assert not output.exists()
    words = [stride, "--mouse_ids", "F", "--output", output, "--data", tmp_path / "stride"]
    assert "--core_temporal_patch_stride above 1" in ran(words, capsys, 2)


# -- refusals ----------------------------------------------------------------------------------------------------------


def test_runs_that_are_none(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "is not a run folder" in ran([tmp_path / "nowhere"], capsys, 1)
    assert "is not a run folder" in ran([runs / "one", tmp_path], capsys, 1)
    (tmp_path / "ckpt").mkdir()
    (tmp_path / "args.yaml").write_bytes((runs / "one" / "args.yaml").read_bytes())
    assert "has no checkpoint" in ran([tmp_path], capsys, 1)
    best = (runs / "one" / "ckpt" / "best.safetensors").read_bytes()
    (tmp_path / "ckpt" / "best.safetensors").write_bytes(best[:-7])
    assert "best.safetensors: damaged" in ran([tmp_path], capsys, 1)


def test_mice_that_are_not_in_every_run(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ran([runs / "one", "--mouse_ids", "Z"], capsys, 2)
    assert line == "viv1t-evaluate: error: --mouse_ids Z: not in every run; they have F, G\n"
    assert "--mouse_ids F G: not in every run; they have none" in ran([runs / "one", runs / "old"], capsys, 2)


def test_an_ensemble_of_differently_transformed_data(
    runs: Path, mice: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    script_validation(monkeypatch, [0.5])
    train(mice, tmp_path / "other", epochs=1, transform_mode=1)
    line = ran([runs / "one", tmp_path / "other"], capsys, 2)
    assert "cannot form an ensemble: they differ in transform (published and standardize_per_frame)" in line


def test_output_that_cannot_be_written(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main([str(runs / "one"), "--output", str(tmp_path / "file" / "a.yaml")]) == 1
    _, err = capsys.readouterr()
    assert err.count("\n") == 1
    assert str(tmp_path / "file") in err


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        ([], "the following arguments are required: RUN"),
        (["run", "--teir", "all"], "unknown option --teir; did you mean --tier?"),
        (["run", "--tier", "tset"], "argument --tier: invalid choice: 'tset'"),
        (["run", "--device", "tpu"], "argument --device: invalid choice: 'tpu'"),
    ],
)
def test_mistakes_in_the_command(argv: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        main(argv)
    assert exit.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith(f"viv1t-evaluate: error: {line}")
    assert err.count("\n") == 1


def test_neurons_are_scored_one_by_one(runs: Path, mice: Path) -> None:
    config = RunFolder(runs / "one").config()
    recordings = Recordings.open(config.data, 1)
    scores = evaluate([viv1t.load_model(runs / "one")], recordings, ["validation"])["validation"]
    recordings.close()
    by_neuron = scores.by_view[AS_TRAINED]["F"].single_trial
    assert by_neuron.shape == (open_recording(mice / SENSORIUM_SESSIONS["F"]).mouse.neurons,)
    assert scores.single_trial["F"] == pytest.approx(float(by_neuron.mean()))


# -- what is there stays -----------------------------------------------------------------------------------------------


def scores_in(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())


def test_the_same_command_on_a_finished_run_keeps_other_scores(
    mice: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run" / "evaluation.yaml"
    train(mice, tmp_path / "run", epochs=1)
    ran([tmp_path / "run", "--tier", "train", "validation", "--all_metrics"], capsys)
    before = scores_in(file)
    assert set(before) == {"train", "validation", "all_metrics"} | {"correlation_to_average"} & set(before)
    train(mice, tmp_path / "run", epochs=1)  # a job that was queued again
    after = scores_in(file)
    assert after.keys() == before.keys()
    assert after["train"] == before["train"]
    assert after["all_metrics"] == before["all_metrics"]
    # Of a file that older releases wrote, too.
    file.write_text(yaml.safe_dump(before))
    train(mice, tmp_path / "run", epochs=1)
    assert scores_in(file)["train"] == before["train"]


def test_scores_of_weights_that_a_run_no_longer_has_are_dropped_with_a_word(
    mice: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    script_validation(monkeypatch, [0.2])
    train(mice, tmp_path / "run", epochs=1)
    ran([tmp_path / "run", "--tier", "train"], capsys)
    script_validation(monkeypatch, [0.4])
    train(mice, tmp_path / "run", epochs=2)
    assert set(scores_in(tmp_path / "run" / "evaluation.yaml")) == {"validation"}
    log = (tmp_path / "run" / "output.log").read_text()
    assert "held scores (validation, train) of other weights; they are replaced" in log


def test_scores_of_an_ensemble_are_added_to_its_own_alone(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ran([runs / "one", runs / "two"], capsys)
    validation = scores_in(tmp_path / "evaluation.yaml")["validation"]
    ran([runs / "two", runs / "one", "--tier", "train"], capsys)
    both = scores_in(tmp_path / "evaluation.yaml")
    assert {"validation", "train"} <= set(both)
    assert both["validation"] == validation
    # The same the other way round, with a file that was named.
    words = ["--output", tmp_path / "named.yaml"]
    ran([runs / "one", runs / "two", "--tier", "train", *words], capsys)
    ran([runs / "one", runs / "two", *words], capsys)
    assert scores_in(tmp_path / "named.yaml")["train"] == both["train"]
    # Another ensemble's scores are not mixed with them, nor lost.
    before = (tmp_path / "evaluation.yaml").read_bytes()
    assert "evaluation.yaml: holds scores of other weights" in ran([runs / "two", runs / "two"], capsys, 1)
    assert (tmp_path / "evaluation.yaml").read_bytes() == before
    ran([runs / "two", *words], capsys)
    assert "train" not in scores_in(tmp_path / "named.yaml")
