"""Experanto folders as mice: the same trials as in another form, for every command."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import viv1t_data as main
from commands import viv1t_evaluate as evaluate
from tiny_runs import SIZE, metrics, ran, same_weights, train, weights

from viv1t.data.formats.experanto.session import ExperantoSession
from viv1t.data.mice import choose_sessions, open_recording
from viv1t.data.rules import Rules
from viv1t.data.session import VARIABLES
from viv1t.data.synthetic.experanto import write_experiment
from viv1t.data.synthetic.mice import load_population, synthesize
from viv1t.errors import ConfigError, DataError
from viv1t.types import SENSORIUM_SESSIONS

RELEASED = "dynamic29515-10-12-Video-021a75e56847d574b9acbcc06c675055_30hz"  # mouse F's name in the other format


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders with mice F and G in each format; not to be changed."""
    folder = tmp_path_factory.mktemp("forms")
    synthesize(folder / "sensorium", mice=["F", "G"], size=SIZE, seed=3, workers=1)
    for mouse, session in choose_sessions(folder / "sensorium").items():
        name = RELEASED if mouse == "F" else session.mouse.session
        write_experiment(folder / "experanto" / name, session, name)
    return {form: folder / form for form in ("sensorium", "experanto")}


def files(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*")}


def test_every_trial_is_the_same_in_both_forms(forms: dict[str, Path]) -> None:
    before = files(forms["experanto"])
    recorded, other = (choose_sessions(forms[form]) for form in ("sensorium", "experanto"))
    assert list(recorded) == list(other) == ["F", "G"]
    for mouse, session in recorded.items():
        assert isinstance(other[mouse], ExperantoSession)
        assert other[mouse].tiers == session.tiers
        assert other[mouse].mouse.session == session.mouse.session
        assert np.array_equal(other[mouse].mouse.coordinates, session.mouse.coordinates)
        for tier in ("train", "validation", "final_test_main"):
            assert other[mouse].repeats(tier) == session.repeats(tier)
            assert other[mouse].hidden(tier) == session.hidden(tier)
        for trial in session.tiers:
            duration = session.duration(trial)
            assert other[mouse].duration(trial) == duration
            for variable in VARIABLES:
                ours, theirs = other[mouse].read(variable, trial), session.read(variable, trial)
                assert np.array_equal(ours, theirs[..., :duration]), (mouse, trial, variable)
    assert files(forms["experanto"]) == before


def test_both_forms_and_stores_of_both_train_to_the_same_bits(
    forms: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(forms["experanto"])
    packed = tmp_path / "packed"
    ran(main, ["pack", forms["experanto"], packed, "--quiet"], capsys)
    assert sorted(p.name for p in packed.iterdir()) == sorted(SENSORIUM_SESSIONS[m] for m in "FG")
    assert "0 errors, 0 warnings" in ran(main, ["verify", packed, "--quiet"], capsys)
    trained = {}
    for form, folder in (*forms.items(), ("packed", packed)):
        trainer, validation = train(folder, tmp_path / f"run-{form}", epochs=1)
        trained[form] = weights(trainer.model), metrics(tmp_path / f"run-{form}"), validation
    for form in ("experanto", "packed"):
        assert same_weights(trained[form][0], trained["sensorium"][0])
        assert trained[form][1:] == trained["sensorium"][1:]
    for form, other in (("sensorium", "experanto"), ("experanto", "sensorium")):  # scored on the other form
        ran(evaluate, [tmp_path / f"run-{form}", f"--data={forms[other]}", "--device=cpu"], capsys)
    scores = [(tmp_path / f"run-{form}" / "evaluation.yaml").read_text() for form in forms]
    assert scores[0] == scores[1]
    assert files(forms["experanto"]) == before


def test_one_recording_in_two_forms_is_not_two_mice(forms: dict[str, Path], tmp_path: Path) -> None:
    for form in forms:
        for session in forms[form].iterdir():
            if "29515" in session.name:
                (tmp_path / session.name).symlink_to(session)
    with pytest.raises(DataError, match=r"are both mouse F; rename one of them, or move it elsewhere"):
        choose_sessions(tmp_path)


def test_an_own_recording_in_two_forms_is_not_two_mice(forms: dict[str, Path], tmp_path: Path) -> None:
    name = "dynamic777-1-2-Video-abc"
    (tmp_path / name).symlink_to(forms["sensorium"] / SENSORIUM_SESSIONS["F"])
    shutil.copytree(forms["experanto"] / RELEASED, tmp_path / f"{name}_30hz", copy_function=os.link)
    (tmp_path / f"{name}_30hz" / "meta.json").unlink()
    with pytest.raises(DataError, match=r"are the same recording \(mouse 777-1-2\); move one"):
        choose_sessions(tmp_path)
    (tmp_path / name).unlink()
    assert list(choose_sessions(tmp_path)) == ["777-1-2"]


def test_a_name_that_leads_elsewhere_is_refused(forms: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(forms["experanto"] / RELEASED, tmp_path / "mine", copy_function=os.link)
    (tmp_path / "mine" / "meta.json").unlink()
    (tmp_path / "mine" / "meta.json").write_text('{"data_key": "../../elsewhere"}')
    with pytest.raises(DataError, match=r"meta.json: the recording's name must be letters"):
        choose_sessions(tmp_path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--frame_size", "36"], "--frame_size takes rows x columns, as 36x64, not '36'"),
        (["--frame_size", "72x128"], "would have to be enlarged to 72 x 128; give --frame_size 36x64"),
        (["--eye_channels", "0"], "--eye_channels takes 2 to 4 different numbers"),
        (["--eye_channels", "0", "1", "x"], "--eye_channels takes numbers of channels, from 0, not 'x'"),
        (["--eye_channels", "0", "1", "3", "2"], "say with --eye_channels which are x, y, dilation"),
        (["--tier_names", "train=best"], "--tier_names: train=best: give a recorded name and one of train"),
        (["--leaks", "ignore"], "--leaks must be one of refuse, hold_out"),
        (["--max_blinks", "2"], "--max_blinks must be from 0 to 1, not 2.0"),
    ],
)  # fmt: skip
def test_options_that_cannot_be_used(
    forms: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    error = ran(
        main, ["pack", forms["experanto"], tmp_path, "--quiet", *words], capsys, status=2 if message[:2] == "--" else 1
    )
    assert message in error


def test_rules_decide_and_are_kept_with_the_run(forms: dict[str, Path], tmp_path: Path) -> None:
    options = {
        "frame_size": "18x32",
        "tier_names": ["live_test_main=train"],
        "core_spatial_patch_size": 6,
        "core_spatial_patch_stride": 6,
    }
    trainer, _ = train(forms["experanto"], tmp_path / "run", epochs=1, **options)
    assert trainer.recordings.frame_size == (18, 32)
    plain = choose_sessions(forms["experanto"])["G"]
    more = len(plain.trials("train")) + len(plain.trials("live_test_main"))
    assert trainer.recordings.train_sizes["G"] == more > len(plain.trials("train"))
    assert evaluate([str(tmp_path / "run"), "--device=cpu"]) == 0
    other = choose_sessions(forms["experanto"], rules=Rules(frame_size=(18, 32)))["F"]
    assert other.read("video", 0).shape[:2] == (18, 32)


def test_stores_of_other_rules_are_not_taken_for_these(
    forms: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["pack", forms["experanto"], tmp_path / "packed", "--mouse_ids", "F", "--quiet"]
    ran(main, words, capsys)
    assert "packed before" in ran(main, words, capsys)
    assert "with other options" in ran(main, [*words, "--frame_size", "18x32"], capsys, status=1)


def test_a_released_recording_is_known_by_its_numbers(golden_experanto: Path) -> None:
    names = {
        "dynamic90001-3-7-Video-021a75e56847d574b9acbcc06c675055_30hz": "90001-3-7",
        "dynamic90011-2-9-Video-512cdd91f251cf74fff81375926f4002_full": "90011-2-9",
        "dynamic90021-1-1-encoded": "90021-1-1",
        "small_session1": "small_session1",
    }
    rules = {"small_session1": Rules(frame_size=(18, 32), leaks="hold_out")}
    for name, mouse in names.items():
        rule = rules.get(name, Rules(leaks="hold_out"))
        session = open_recording(golden_experanto / "recordings" / name, rules=rule)
        assert (session.mouse.id, session.mouse.session) == (mouse, mouse)
        used = [trial for trial, tier in session.tiers.items() if tier != "none"]
        for trial in used[:2]:
            frames = session.duration(trial)
            for variable in VARIABLES:
                assert session.read(variable, trial).shape == (*session.rows(variable), frames)
    with pytest.raises(DataError, match=r"frames of 18 x 32 .* enlarged .*--frame_size 18x32"):
        open_recording(golden_experanto / "recordings" / "small_session1", rules=Rules(leaks="hold_out"))


def test_a_recording_that_gives_little_is_trained_on(
    forms: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "data" / "mine"
    shutil.copytree(forms["experanto"] / RELEASED, folder)
    for lacking in ("eye_tracker", "treadmill", "responses/meta"):
        shutil.rmtree(folder / lacking)
    (folder / "meta.json").unlink()
    options = {"mouse_ids": None, "ds_mode": 2, "epochs": 1}
    with pytest.raises(ConfigError, match=r"the recordings of mouse mine give no coordinates .* use 0"):
        train(folder.parent, tmp_path / "no", **options)
    trainer, _ = train(folder.parent, tmp_path / "run", readout_grid_mode=0, **options)
    assert trainer.recordings.mice["mine"].unit_ids.tolist() == list(range(SIZE.neurons))
    with caplog.at_level(logging.WARNING, "viv1t"):
        choose_sessions(folder.parent)
    assert "no eye_tracker: dilation and gaze are given as 0; no treadmill: speed is given as 0" in caplog.text
    assert evaluate([str(tmp_path / "run"), "--device=cpu"]) == 0
    with pytest.raises(DataError, match=r"no eye_tracker; no treadmill; --missing fill"):
        train(folder.parent, tmp_path / "refused", readout_grid_mode=0, missing="refuse", **options)


def test_synthetic_mice_are_written_in_the_format(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--mice=1", "--neurons=3", "--trials=2", "--frames=60", "--movies=1", "--repeats=2", "--test_movies=0"]
    ran(main, ["synth", tmp_path, *words, "--format=experanto", "--quiet"], capsys)
    folder = tmp_path / SENSORIUM_SESSIONS["F"]
    assert {p.name for p in folder.iterdir()} >= {"screen", "responses", "eye_tracker", "treadmill", "truth"}
    assert not (folder / "data").exists()
    assert len(load_population(folder).positions) == 3
    session = choose_sessions(tmp_path)["F"]
    assert len(session.trials("train")) == 2
    assert session.repeats("validation") == [session.trials("validation")]
    assert ran(main, ["synth", tmp_path, *words, "--format=experanto", "--resume", "--quiet"], capsys)
    assert "made with other options" in ran(main, ["synth", tmp_path, *words, "--resume", "--quiet"], capsys, status=1)
    assert "--format must be" in ran(main, ["synth", tmp_path / "x", *words, "--format=zarr"], capsys, status=2)


def test_rules_are_one_line_and_differ(tmp_path: Path) -> None:
    assert Rules().text != Rules(leaks="hold_out").text
    assert "\n" not in Rules().text
    with pytest.raises(ConfigError, match="--long_trials must be split or cut"):
        Rules(long="trim")


NAME = "dynamic90011-2-9-Video-512cdd91f251cf74fff81375926f4002_full"


def test_check_shows_what_a_folder_looks_like(golden_experanto: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(golden_experanto / "recordings" / NAME), "--quiet", "--leaks", "hold_out"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{NAME}: experanto folder of mouse 90011-2-9"

    def row(start: str) -> list[str]:
        return next(line for line in lines if line.strip().startswith(start)).split()

    assert row("responses")[:8] == ["responses", "17", "283", "7.951", "-12.14", "23.22", "float64", "1.1%"]
    assert "phase shifts 0.000 to 0.113 s" in " ".join(row("responses"))
    assert row("eye_tracker")[7] == "2.3%"
    assert "negative speeds" in " ".join(row("treadmill"))
    assert row("video")[1:5] == ["4", "6", "1.33-1.60", "1"]
    assert row("invalid")[1] == "1"
    assert "30.01 Hz" in " ".join(row("frames of videos"))
    assert "(uint8)" in " ".join(row("frames lie in"))
    assert row("none")[1] == "2"
    text = "\n".join(lines)
    assert "marked as not valid (1)" in text
    assert "error: mouse 90011-2-9: no trial of the tier oracle -> say which of its tiers that is" in text
    assert "11 samples of eye_tracker (11.8%) are NaN" in text
    assert lines[-1].endswith("3 errors, 3 warnings")


def test_check_names_what_is_wrong_and_shows_the_rest(
    forms: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(forms["experanto"] / RELEASED, folder)
    assert main(["check", str(folder), "--quiet"]) == 0
    assert "each sample its own" in capsys.readouterr().out
    movie = next((folder / "screen" / "data").glob("*.npy"))
    movie.write_bytes(movie.read_bytes()[:-1])
    shutil.rmtree(folder / "treadmill")
    data = np.fromfile(folder / "responses" / "data.mem", np.float32).reshape(-1, SIZE.neurons)
    held = data[np.arange(len(data)) // 4 * 4] - 0.5
    held.tofile(folder / "responses" / "data.mem")
    assert main(["check", str(folder), "--quiet"]) == 1
    out = capsys.readouterr().out
    assert f"{movie}: " in out
    assert "its header promises" in out
    assert "held: they change " in out
    assert "no treadmill: speed is given as 0" in out
    assert "negative values, which become 0" in out
    assert "running speed is the same in every frame" in out
    (folder / "screen" / "timestamps.npy").write_bytes(b"nothing")
    assert main(["check", str(folder), "--quiet"]) == 1
    assert "timestamps.npy" in capsys.readouterr().out
