"""`viv1t-data check` and `info`: every kind of damage is found, named and nothing else is."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from commands import viv1t_data as main

from viv1t.data.inspect.check import SessionCheck, check_folder
from viv1t.data.inspect.finding import CORE_REACH
from viv1t.data.inspect.info import format_table, session_info, sessions_in
from viv1t.families.sensorium2023.options import VivitConfig

N, H, W, FRAMES, T = 4, 6, 8, 70, 76
TIERS = ["train"] * 4 + ["oracle"] * 2 + ["live_test_main"] * 2 + ["none"]
HIDDEN = (6, 7)


def write(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array)


def make_session(folder: Path, seed: int = 0) -> Path:
    """A flawless session: trials end at frame 70 of 76, test responses are withheld."""
    rng = np.random.default_rng(seed)
    size = {"videos": (H, W), "responses": (N,), "behavior": (2,), "pupil_center": (2,)}
    for trial in range(len(TIERS)):
        for name, rows in size.items():
            array = np.full((*rows, T), np.nan, np.float32)
            array[..., :FRAMES] = rng.uniform(1, 200, (*rows, FRAMES))
            if name == "responses" and trial in HIDDEN:
                array = np.zeros_like(array)
            write(folder / "data" / name / f"{trial}.npy", array)
    for name, rows in size.items():
        arrays = np.stack([np.load(folder / "data" / name / f"{t}.npy")[..., :FRAMES] for t in range(4)])
        for function in (np.min, np.max, np.mean, np.std):
            path = folder / "meta" / "statistics" / name / "all" / f"{function.__name__.removeprefix('a')}.npy"
            write(
                path, np.pad(function(arrays, axis=0), [(0, 0)] * len(rows) + [(0, T - FRAMES)], constant_values=np.nan)
            )
    write(folder / "meta" / "neurons" / "cell_motor_coordinates.npy", rng.integers(-300, 300, (N, 3)))
    write(folder / "meta" / "neurons" / "unit_ids.npy", np.arange(N))
    write(folder / "meta" / "trials" / "tiers.npy", np.array(TIERS))
    return folder


@pytest.fixture
def session(tmp_path: Path) -> Path:
    return make_session(tmp_path / "data" / "m1")


def findings(session: Path) -> list[str]:
    return [str(f) for f in check_folder(session)]


def edit(file: str, change: Callable[[np.ndarray], np.ndarray | None]) -> Callable[[Path], None]:
    """Damage: an array changed in place, or replaced by what the change returns."""

    def damage(session: Path) -> None:
        array = np.load(session / file)
        changed = change(array)
        np.save(session / file, array if changed is None else changed)

    return damage


def fill(file: str, where: object, value: object) -> Callable[[Path], None]:
    return edit(file, lambda a: a.__setitem__(where, value))  # type: ignore[arg-type,index]


def remove(path: str) -> Callable[[Path], None]:
    return lambda session: shutil.rmtree(session / path) if (session / path).is_dir() else (session / path).unlink()


def truncate(session: Path) -> None:
    path = session / "data/responses/2.npy"
    path.write_bytes(path.read_bytes()[:300])


def copy(source: str, target: str) -> Callable[[Path], None]:
    def damage(session: Path) -> None:
        shutil.copy(session / source, session / target)

    return damage


def scribble(session: Path) -> None:
    (session / "data/videos/1.npy").write_bytes(b"hello, world")


def for_trials(trials: range, damage: Callable[[int], Callable[[Path], None]]) -> Callable[[Path], None]:
    def every(session: Path) -> None:
        for trial in trials:
            damage(trial)(session)

    return every


TAIL = np.s_[..., FRAMES:]
CASES: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing file": (remove("data/behavior/4.npy"), "error trial 4: data/behavior: the file is missing -> restore"),
    "missing folder": (remove("data/videos"), "error trials 0, 1, 2, 3, 4 and 3 more: data/videos: the file is"),
    "truncated": (truncate, "error trial 2: data/responses: not a readable array: "),
    "not an array": (scribble, "error trial 1: data/videos: not a readable array: "),
    "text": (edit("data/videos/1.npy", lambda a: a.astype(str)), "error trial 1: data/videos: expected numbers"),
    "neurons": (
        edit("data/responses/1.npy", lambda a: a[:3]),
        f"error trial 1: data/responses: expected (4, T), found (3, {T}); meta/neurons names 4 neurons",
    ),
    "axes": (
        edit("data/videos/1.npy", lambda a: a.transpose(2, 0, 1)),
        f"error trial 1: data/videos: expected (6, 8, T), found ({T}, 6, 8)",
    ),
    "length": (
        edit("data/pupil_center/3.npy", lambda a: a[:, :-2]),
        f"error trial 3: arrays differ in their frames: videos {T}, responses {T}, behavior {T}, pupil_center {T - 2}",
    ),
    "empty": (
        edit("data/behavior/3.npy", lambda a: a[:, :0]),
        "error trial 3: data/behavior: expected (2, T), found (2, 0)",
    ),
    "ends early": (
        fill("data/responses/1.npy", np.s_[..., 60:], np.nan),
        "warning trial 1: data/responses ends at frame 60, the movie at frame 70 -> cut all four",
    ),
    "ends late": (
        fill("data/behavior/1.npy", TAIL, 1.0),
        f"warning trial 1: data/behavior ends at frame {T}, the movie at frame 70 -> cut all four",
    ),
    "NaN inside": (
        fill("data/behavior/1.npy", np.s_[0, 33], np.nan),
        "warning trial 1: data/behavior: NaN in 1 frames, as in blinks: filled from the frames beside them",
    ),
    "NaN neuron": (fill("data/responses/1.npy", np.s_[2], np.nan), "error trial 1: data/responses: NaN at frame 0, "),
    "all NaN": (fill("data/videos/1.npy", np.s_[...], np.nan), "error trial 1: data/videos: no frame holds a number"),
    "infinite": (fill("data/videos/1.npy", np.s_[2, 3, 4], np.inf), "error trial 1: data/videos: infinite values"),
    "grey levels": (
        edit("data/videos/5.npy", lambda a: a / 100 - 1),
        "warning trial 5: data/videos: grey levels outside 0 to 255 -> give the movies as shown",
    ),
    "blank movie": (
        fill("data/videos/5.npy", np.s_[..., :FRAMES], 128),
        "warning trial 5: data/videos: every pixel of every frame is the same",
    ),
    "no training": (
        edit("meta/trials/tiers.npy", lambda a: np.where(a == "train", "none", a)),
        "error: no trial of the tier train -> name its trials",
    ),
    "no validation": (
        edit("meta/trials/tiers.npy", lambda a: np.where(a == "oracle", "none", a)),
        "error: no trial of the tier oracle -> name its trials",
    ),
    "unknown tier": (
        edit("meta/trials/tiers.npy", lambda a: np.where(a == "none", "trian", a)),
        "warning: unknown tiers in meta/trials/tiers.npy, whose trials are not used: trian",
    ),
    "surplus file": (
        copy("data/videos/0.npy", "data/videos/99.npy"),
        "warning: data/videos holds files of no trial: 99.npy -> remove them",
    ),
    "tiers": (remove("meta/trials/tiers.npy"), "error: {session}/meta/trials/tiers.npy: the file is missing -> "),
    "coordinates": (
        edit("meta/neurons/cell_motor_coordinates.npy", lambda a: np.full(a.shape, np.nan)),
        "error: {session}/meta/neurons/cell_motor_coordinates.npy: ",
    ),
    "unit ids": (fill("meta/neurons/unit_ids.npy", 1, 0), "warning: meta/neurons/unit_ids.npy names 1 neurons twice"),
    "silent validation": (
        for_trials(range(4, 6), lambda t: fill(f"data/responses/{t}.npy", np.s_[..., :FRAMES], 0)),
        "error: all responses of the tier validation are zero -> give the recorded responses",
    ),
    "silent trial": (
        fill("data/responses/1.npy", np.s_[..., :FRAMES], 0),
        "warning trial 1: data/responses: all zero, unlike other trials of the tier train",
    ),
    "negative": (
        fill("data/responses/1.npy", np.s_[1:3, 5], -3.5),
        "warning trial 1: data/responses: negative values, in up to 2 neurons, lowest -3.5 -> give deconvolved",
    ),
    "constant neuron": (
        for_trials(range(4), lambda t: fill(f"data/responses/{t}.npy", np.s_[2, :FRAMES], 1.5)),
        "warning: 1 of 4 neurons never vary in the tier train: 2 -> remove these neurons",
    ),
    "constant speed": (
        for_trials(range(4), lambda t: fill(f"data/behavior/{t}.npy", np.s_[1, :FRAMES], 0)),
        "warning: data/behavior: running speed is the same in every frame of the tier train",
    ),
    "constant behavior": (
        for_trials(range(4), lambda t: fill(f"data/behavior/{t}.npy", np.s_[:, :FRAMES], 1)),
        "warning: data/behavior: pupil dilation and running speed are the same in every frame of the tier train",
    ),
    "leak": (
        copy("data/videos/2.npy", "data/videos/5.npy"),
        "error: the same movie for training and evaluation: train (2), validation (5) -> set one side's",
    ),
    "shared movie": (
        copy("data/videos/4.npy", "data/videos/7.npy"),
        "warning: the same movie in several tiers: validation (4), live_test_main (7)",
    ),
    "no statistics": (remove("meta/statistics"), "warning: no meta/statistics -> use --stat_mode 1"),
    "missing statistic": (remove("meta/statistics/behavior/all/std.npy"), "warning: meta/statistics: "),
    "wrong statistic": (
        edit("meta/statistics/responses/all/mean.npy", lambda a: a * 100),
        "warning: meta/statistics/responses: not finite within a trial, or not min <= mean <= max",
    ),
    "short statistic": (
        for_trials(range(1), lambda _: edit("meta/statistics/videos/all/std.npy", lambda a: a[..., :50])),
        "warning: meta/statistics/videos: shapes differ",
    ),
}  # fmt: skip


def test_a_flawless_session_has_no_finding(session: Path) -> None:
    assert findings(session) == []


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("case", CASES)
def test_each_fault_is_found_alone(case: str, session: Path) -> None:
    damage, expected = CASES[case]
    damage(session)
    if "statistic" not in case:  # they are of the data before it was damaged, but say so only for themselves
        found = [f for f in findings(session) if "meta/statistics" not in f]
    else:
        found = findings(session)
    assert len(found) == 1, found
    assert found[0].replace(": mouse m1", "", 1).startswith(expected.replace("{session}", str(session)))
    assert " -> " in found[0]


def test_short_and_long_evaluation_trials(session: Path) -> None:
    """Too short to be scored; longer than what per-frame statistics of the training tier know."""
    for name in ("videos", "responses", "behavior", "pupil_center"):
        fill(f"data/{name}/4.npy", np.s_[..., 50:], np.nan)(session)
        edit(f"data/{name}/5.npy", lambda a: np.where(np.isnan(a), np.float32(7), a))(session)
    assert findings(session) == [
        "error: mouse m1 trial 4: 50 frames: scores leave out the first 50 -> set the trial's tier to 'none'",
        "warning: mouse m1 trial 5: 76 frames, but no training trial has more than 70 -> use --transform_mode 3 or 4, "
        "whose statistics are the same at all frames",
    ]


def test_several_faults_come_together_errors_first(session: Path) -> None:
    for case in ("negative", "truncated", "leak", "no statistics"):
        CASES[case][0](session)
    found = findings(session)
    assert [f.split(":")[0] for f in found] == ["error", "error", "warning", "warning"]


def test_integers_without_padding_are_whole_trials(session: Path) -> None:
    for trial in range(len(TIERS)):
        for name in ("videos", "responses", "behavior", "pupil_center"):
            edit(f"data/{name}/{trial}.npy", lambda a: np.nan_to_num(a[..., :FRAMES]).astype(np.uint8))(session)
    shutil.rmtree(session / "meta/statistics")
    assert findings(session) == [
        "warning: mouse m1: no meta/statistics -> use --stat_mode 1 (the default), which computes them"
    ]


def test_mice_of_other_frames_are_named(session: Path, tmp_path: Path) -> None:
    for name in ("m2", "m3"):
        make_session(session.parent / name, seed=1)
    for trial in range(len(TIERS)):
        edit(f"data/videos/{trial}.npy", lambda a: a[:5])(session)
    for statistic in ("min", "max", "mean", "std"):
        edit(f"meta/statistics/videos/all/{statistic}.npy", lambda a: a[:5])(session)
    assert findings(session.parent) == [
        "error: mouse m1: movies of 5 x 8 pixels, but other mice's are 6 x 8 -> leave the mouse out with --mouse_ids, "
        "or resize its movies"
    ]


def test_one_array_is_in_memory_at_a_time(session: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import weakref

    from viv1t.data.inspect import check

    alive: list[weakref.ref[np.ndarray]] = []
    read = check.read_array
    most = 0

    def watched(path: Path) -> np.ndarray:
        nonlocal most
        array = read(path).copy()
        alive.append(weakref.ref(array))
        most = max(most, sum(r() is not None for r in alive))
        return array

    monkeypatch.setattr(check, "read_array", watched)
    assert SessionCheck("m1", session).run() == []
    assert len(alive) == 4 * 8
    assert most <= 2  # the one before goes when the next is there


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def call(*args: str | Path) -> tuple[int, str, str]:
        status = main([str(a) for a in args])
        return status, *capsys.readouterr()

    return call


def test_exit_status_says_whether_there_are_errors(session: Path, run: Callable[..., tuple[int, str, str]]) -> None:
    assert run("check", session.parent, "--quiet") == (0, f"{session.parent}: 0 errors, 0 warnings\n", "")
    CASES["negative"][0](session)
    status, out, _ = run("check", session)
    assert (status, out.splitlines()[-1]) == (0, f"{session}: 0 errors, 1 warnings")
    CASES["leak"][0](session)
    status, out, _ = run("check", session)
    assert (status, out.splitlines()[-1]) == (1, f"{session}: 1 errors, 1 warnings")


@pytest.mark.parametrize("command", ["check", "info"])
def test_a_folder_without_sessions_is_one_line(
    command: str, tmp_path: Path, run: Callable[..., tuple[int, str, str]]
) -> None:
    (tmp_path / "file").touch()
    wrong = {"none": "no such folder", "file": "is a file, not a folder", "": "holds no recording session"}
    for name, words in wrong.items():
        folder = tmp_path / name
        status, out, error = run(command, folder)
        assert (status, out) == (1, "")
        assert words in error
        assert error.count("\n") == 1


@pytest.mark.parametrize("command", ["check", "info"])
def test_an_archive_is_a_session(
    command: str, session: Path, tmp_path: Path, run: Callable[..., tuple[int, str, str]]
) -> None:
    archive = shutil.make_archive(str(tmp_path / "m9"), "zip", session)
    status, out, _ = run(command, archive)
    assert status == 0
    assert "m9" in out


def test_info_counts_what_is_there(session: Path, run: Callable[..., tuple[int, str, str]]) -> None:
    for name in ("videos", "responses", "behavior", "pupil_center"):
        fill(f"data/{name}/1.npy", np.s_[..., 60:], np.nan)(session)
    make_session(session.parent / "m2", seed=1)
    status, out, _ = run("info", session.parent)
    lines = [line.split() for line in out.splitlines()]
    assert status == 0
    assert lines[0] == [
        "mouse",
        "neurons",
        "frame",
        "train",
        "validation",
        "live_main",
        "none",
        "frames",
        "on",
        "disk",
        "session",
    ]
    assert lines[1][:9] == ["m1", "4", "6", "x", "8", "4", "2", "2*", "1"]
    assert lines[1][9] == "60-70-70"
    assert lines[3][:6] == ["all", "8", "8", "4", "4", "2"]
    size = sum(p.stat().st_size for p in session.rglob("*") if p.is_file())
    assert session_info("m1", session).size == size


def test_info_describes_damaged_and_packed_sessions(session: Path, tmp_path: Path) -> None:
    (session / "data/videos/0.npy").unlink()
    (session / "data/videos/1.npy").write_bytes(b"")
    packed = make_session(tmp_path / "p" / "m2")
    shutil.make_archive(str(session.parent / "m2"), "zip", packed)
    broken = make_session(session.parent / "m3")
    (broken / "meta/neurons/unit_ids.npy").unlink()
    found = {m: session_info(m, p) for m, p in sessions_in(session.parent).items()}
    assert found["m1"].note == "2 trials cannot be read: `viv1t-data check` names them"
    assert found["m2"].note == "packed"
    assert not (session.parent / "m2").exists()
    assert "unit_ids.npy" in found["m3"].note
    assert len(format_table(list(found.values())).splitlines()) == 1 + 3 + 1 + 2 + 3


def test_the_reach_that_brief_trials_are_held_to_is_the_default_core_s() -> None:
    assert VivitConfig().temporal_patch_size == CORE_REACH
