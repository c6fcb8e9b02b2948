"""What a run keeps of its recordings: whose responses it predicts, and what transforms other movies."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from commands import viv1t_evaluate, viv1t_export, viv1t_predict
from tiny_runs import options, same_weights, script_validation, train, weights

import viv1t
from viv1t.data.formats.sensorium.recorded import Recorded, other_neurons, write_recorded
from viv1t.data.recordings import Recordings
from viv1t.errors import CheckpointError, ConfigError, DataError, Viv1tError
from viv1t.families.sensorium2023.run import RunConfig
from viv1t.runs.checkpoint import read_checkpoint
from viv1t.runs.ensemble import load_models
from viv1t.runs.folder import RunFolder
from viv1t.types import SENSORIUM_SESSIONS

Commands = {"evaluate": viv1t_evaluate, "predict": viv1t_predict, "export": viv1t_export}


def with_ids(mice: Path, folder: Path, change: Callable[[np.ndarray], np.ndarray]) -> Path:
    """The mice F and G, of which F's neurons have other numbers."""
    for mouse in ("F", "G"):
        session = SENSORIUM_SESSIONS[mouse]
        shutil.copytree(mice / session, folder / session, copy_function=os.link)
    path = folder / SENSORIUM_SESSIONS["F"] / "meta" / "neurons" / "unit_ids.npy"
    ids = change(np.load(path))
    path.unlink()
    np.save(path, ids)
    return folder


@pytest.fixture
def others(mice: Path, tmp_path: Path) -> Path:
    return with_ids(mice, tmp_path / "others", lambda ids: ids + 100)


@pytest.mark.parametrize("mode", [0, 2, 4])
def test_a_run_keeps_what_its_transform_and_movies_need(mice: Path, tmp_path: Path, mode: int) -> None:
    config = RunConfig.from_options(options(mice, tmp_path / "run", transform_mode=mode, epochs=1)).data
    recordings = Recordings.open(config, 1)
    path = tmp_path / "recordings.safetensors"
    write_recorded(path, {m: recordings.recorded(m) for m in recordings.mice}, recordings.frame_size, config)
    recorded = Recorded(path)
    assert list(recorded.mice) == list(recordings.mice)
    assert (recorded.frame_size, recorded.frame_rate) == (recordings.frame_size, 30.0)
    assert recorded.transform_facts == {
        "mode": config.transform, "statistics": "computed", "center_crop": 1.0, "response_scale": "frame",
    }  # fmt: skip
    for mouse, known in recordings.mice.items():
        assert np.array_equal(recorded.mice[mouse].unit_ids, known.unit_ids)
        assert np.array_equal(recorded.mice[mouse].coordinates, known.coordinates)
        expected, found = recordings.transform(mouse), recorded.transform(mouse, config)
        assert found.affine.keys() == expected.affine.keys()
        assert bool(expected.affine) == (mode != 0)
        for variable, affine in expected.affine.items():
            assert np.array_equal(found.affine[variable].offset, affine.offset)
            assert np.array_equal(found.affine[variable].scale, affine.scale)
        for variable in ("behavior", "pupil_center"):
            assert np.array_equal(recorded.median(mouse, variable), recordings.state_median(mouse, variable))
        assert not recorded.changed(recordings.recorded(mouse), config.transform)
    statistics = recorded.statistics("F")
    if mode:
        assert statistics is not None
        assert statistics.time is not None
        assert np.isnan(statistics.trial["response"].mean).all()
        assert np.isnan(statistics.trial["video"].mean).all() == (mode == 4)
    else:
        assert statistics is None
    recordings.close()


def read_everything(path: Path) -> None:
    recorded = Recorded(path)
    for mouse in recorded.mice:
        recorded.statistics(mouse)
        recorded.median(mouse, "behavior")
        recorded.median(mouse, "pupil_center")


def test_a_damaged_file_is_refused_and_nothing_else_is_read(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "recordings.safetensors"
    content = bytearray((run / "recordings.safetensors").read_bytes())
    content[-5] ^= 1  # of the last array
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        read_everything(path)
    path.write_bytes(bytes(content[:1000]))
    with pytest.raises(CheckpointError, match="damaged"):
        Recorded(path)


def test_models_know_their_neurons(run: Path, mice: Path) -> None:
    ids = np.load(mice / SENSORIUM_SESSIONS["F"] / "meta" / "neurons" / "unit_ids.npy")
    assert np.array_equal(viv1t.load_model(run).unit_ids["F"], ids)


@pytest.mark.parametrize("command", Commands)
def test_other_neurons_are_refused(
    command: str, run: Path, others: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = {"evaluate": ["--output", tmp_path / "e.yaml"]}.get(command, ["--output_dir", tmp_path / "out"])
    argv = [str(word) for word in (run, "--data", others, *out)]
    assert Commands[command](argv) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "mouse F" in error
    assert str(others / SENSORIUM_SESSIONS["F"] / "meta" / "neurons" / "unit_ids.npy") in error
    assert "6 of 6 neurons are others" in error
    assert not (tmp_path / "e.yaml").exists()
    assert not list((tmp_path / "out").glob("*"))


def test_the_same_neurons_in_another_order_are_refused(mice: Path, run: Path, tmp_path: Path) -> None:
    turned = with_ids(mice, tmp_path / "turned", lambda ids: ids[::-1].copy())
    given = options(turned, tmp_path / "new", restore=str(run), epochs=1)
    with pytest.raises(DataError, match=r"unit_ids\.npy.*--restore.*the same neurons in another order: number 0 is"):
        train(turned, tmp_path / "new", **{k: given[k] for k in ("restore", "epochs")})
    assert not (tmp_path / "new").exists()


def test_a_core_belongs_to_no_neurons(run: Path, others: Path, tmp_path: Path) -> None:
    train(others, tmp_path / "new", pretrain_core=str(run), freeze_core=True, epochs=1)
    ids = np.load(others / SENSORIUM_SESSIONS["F"] / "meta" / "neurons" / "unit_ids.npy")
    assert np.array_equal(Recorded(tmp_path / "new" / "recordings.safetensors").mice["F"].unit_ids, ids)


def test_runs_on_different_neurons_form_no_ensemble(
    run: Path, others: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script_validation(monkeypatch, [0.25])
    train(others, tmp_path / "new", epochs=1)
    folders = [RunFolder(run), RunFolder(tmp_path / "new")]
    with pytest.raises(ConfigError, match="different neurons of mouse F"):
        load_models(folders, "cpu")
    assert load_models(folders, "cpu", ["G"])[1] == ["G"]


def test_a_run_without_the_file_works_and_says_so(
    run: Path, others: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = tmp_path / "old"
    shutil.copytree(run, old)
    (old / "recordings.safetensors").unlink()
    assert viv1t_evaluate([str(old), "--data", str(others), "--output", str(tmp_path / "e.yaml")]) == 0
    assert viv1t.load_model(old).unit_ids["F"] is None


def test_a_file_of_another_run_is_refused(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "copy")
    args = yaml.safe_load((run / "args.yaml").read_text())
    args["output_shapes"]["F"][0] = 7
    (tmp_path / "copy" / "args.yaml").write_text(yaml.safe_dump(args))
    with pytest.raises(CheckpointError, match="belongs to another run"):
        viv1t.load_model(tmp_path / "copy")


# -- going on ----------------------------------------------------------------------------------------------------------


def test_a_run_goes_on_where_its_recordings_are_now(mice: Path, tmp_path: Path) -> None:
    straight, _ = train(mice, tmp_path / "straight")
    train(mice, tmp_path / "run", epochs=1)
    moved = with_ids(mice, tmp_path / "moved", lambda ids: ids)
    going, _ = train(moved, tmp_path / "run", mouse_ids=["G", "F"])
    assert list(going.recordings.mice) == ["F", "G"]
    states = [read_checkpoint(tmp_path / name / "ckpt" / "last.safetensors")[0] for name in ("straight", "run")]
    assert same_weights(*states)
    assert same_weights(weights(straight.model), weights(going.model))
    assert RunFolder(tmp_path / "run").config().data.path == str(moved)  # where other commands find them


def test_a_run_does_not_go_on_with_other_recordings(mice: Path, others: Path, tmp_path: Path) -> None:
    train(mice, tmp_path / "run", epochs=1)
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file() and p.suffix != ".log"}

    def refused(error: type[Viv1tError], words: str, data: Path, **changes: object) -> None:
        with pytest.raises(error, match=words):
            train(data, tmp_path / "run", **changes)
        assert all(p.read_bytes() == content for p, content in before.items())

    refused(DataError, "6 of 6 neurons are others", others)
    refused(ConfigError, r"--mouse_ids \['F', 'G'\] \(now \['G'\]\)", mice, mouse_ids=["G"])
    # The same numbers, but not the same neurons: their responses tell.
    session = others / SENSORIUM_SESSIONS["F"]
    (session / "meta" / "viv1t_statistics.safetensors").unlink(missing_ok=True)
    shutil.copyfile(mice / session.name / "meta/neurons/unit_ids.npy", session / "meta/neurons/unit_ids.npy")
    for file in (session / "data" / "responses").glob("*.npy"):
        responses = np.load(file)[::-1]
        file.unlink()
        np.save(file, responses)
    refused(DataError, "not the recording that", others)


def test_differences_are_told_apart() -> None:
    ids = np.array([3, 1, 2], np.int64)
    assert other_neurons(ids, ids.copy()) == ""
    assert other_neurons(ids, ids[:2]) == "2 neurons in place of 3"
    assert other_neurons(ids, ids[::-1]).startswith("the same neurons in another order")
    assert other_neurons(ids, np.array([3, 1, 5])) == "1 of 3 neurons are others"


def test_neuron_numbers_are_kept_in_64_bits(mice: Path, tmp_path: Path) -> None:
    config = RunConfig.from_options(options(mice, tmp_path)).data
    recordings = Recordings.open(config, 1)
    known = recordings.recorded("F")
    large = replace(known.mouse, unit_ids=known.mouse.unit_ids + (1 << 60))
    write_recorded(tmp_path / "r", {"F": replace(known, mouse=large)}, recordings.frame_size, None)
    assert np.array_equal(Recorded(tmp_path / "r").mice["F"].unit_ids, large.unit_ids)
    recordings.close()
