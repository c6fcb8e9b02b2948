from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from viv1t.config.data import DataConfig
from viv1t.data.mice import find_sessions, open_recording
from viv1t.data.session import VARIABLES
from viv1t.errors import ConfigError, DataError
from viv1t.types import SENSORIUM_SESSIONS

Make = Callable[..., Path]


def config(path: Path, mice: str = "all", mouse_ids: tuple[str, ...] | None = None) -> DataConfig:
    return DataConfig(path=str(path), mice=mice, transform="none", mouse_ids=mouse_ids)


def resave(path: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    np.save(path, change(np.load(path)))


def test_tiers_trials_and_neurons(make_session: Make) -> None:
    session = open_recording(make_session("my mouse.v2"))
    assert session.mouse.id == session.mouse.session == "my mouse.v2"
    assert session.tiers[1] == "validation"
    assert session.trials("train") == [0, 2, 4, 8, 9]
    assert session.trials("validation") == [1, 6]
    assert session.trials("live_test_bonus") == session.trials("oracle") == []
    assert session.frame_size == (6, 8)
    assert session.mouse.coordinates.shape == (5, 3)
    assert session.mouse.coordinates.dtype == np.float32
    assert session.mouse.unit_ids.tolist() == [1, 2, 3, 4, 5]


def test_published_sessions_have_letters(make_session: Make) -> None:
    assert open_recording(make_session(SENSORIUM_SESSIONS["G"])).mouse.id == "G"


@pytest.mark.parametrize("kind", ["uint8", "int16", "int64", "float16", "float32", "float64", ">f4", ">i2"])
@pytest.mark.parametrize("fortran", [False, True])
def test_every_type_and_order_reads_the_same(make_session: Make, kind: str, fortran: bool) -> None:
    durations = [20] * 10 if "f" in kind else None
    session = open_recording(make_session(video_type=kind, fortran=fortran, durations=durations))
    wanted = open_recording(make_session("reference", durations=durations))
    assert session.duration(2) == (20 if "f" in kind else 24)  # integers cannot be padded: the whole T
    for variable in VARIABLES:
        np.testing.assert_array_equal(session.read(variable, 2), wanted.read(variable, 2))
    assert session.read("video", 2).dtype == np.dtype(kind)


def test_trials_may_have_different_lengths(make_session: Make) -> None:
    path = make_session(durations=[24, 7, *[24] * 8])
    for kind in ("videos", "responses", "behavior", "pupil_center"):
        resave(path / "data" / kind / "4.npy", lambda a: np.concatenate([a, a], -1))
    session = open_recording(path)
    assert [session.duration(trial) for trial in (0, 1, 4)] == [24, 7, 48]
    assert session.read("response", 4).shape == (5, 48)


@pytest.mark.parametrize("variable", VARIABLES)
def test_bad_files_are_named(make_session: Make, variable: str) -> None:
    path = make_session()
    file = open_recording(path).file(variable, 2)
    content = file.read_bytes()

    def refused(match: str) -> None:
        with pytest.raises(DataError, match=match) as error:
            open_recording(path).read(variable, 2)
        assert all(word in str(error.value) for word in ("mouse mouse-1", "trial 2", str(file), "copy the file anew"))

    file.write_bytes(content[: len(content) // 2])
    refused("truncated")
    file.write_bytes(content[:40])
    refused("expected a numeric .npy file")
    file.write_bytes(b"")
    refused("expected a numeric .npy file")
    file.write_bytes(b"GIF89a" * 100)
    refused("expected a numeric .npy file")
    file.unlink()
    refused("missing")
    np.save(file, np.array([{"code": "run"}], dtype=object), allow_pickle=True)
    refused("neither numbers nor text")
    file.write_bytes(content)
    if variable != "video":  # a movie defines its trial's size
        resave(file, lambda a: a[:-1])
        refused(r"expected \(")
        file.write_bytes(content)
        resave(file, lambda a: a[..., :-3])
        refused(r"24\) numbers, but found")
    file.write_bytes(content)
    resave(file, lambda a: a.astype(complex))
    refused("complex128")
    file.write_bytes(content)
    array = np.load(file)
    array[-1, ..., 10] = np.nan if variable in ("video", "response") else np.inf  # the animal's state is filled
    np.save(file, array)
    refused("NaN or infinity at frame 10")
    array[-1, ..., 10] = np.inf
    np.save(file, array)
    refused("NaN or infinity at frame 10")


def test_wrong_number_of_neurons_says_so(make_session: Make) -> None:
    path = make_session()
    resave(path / "data" / "responses" / "0.npy", lambda a: a[:4])
    with pytest.raises(DataError, match=r"expected \(5, 24\) numbers \(5 neurons.*found \(4, 24\) float32"):
        open_recording(path).read("response", 0)


def test_header_that_promises_too_much_allocates_nothing(make_session: Make) -> None:
    path = make_session()
    file = path / "data" / "responses" / "0.npy"
    with open(file, "wb") as out:
        np.lib.format.write_array_header_1_0(out, {"descr": "<f4", "fortran_order": False, "shape": (10**9, 10**6)})
    with pytest.raises(DataError, match="truncated"):
        open_recording(path).read("response", 0)


def test_movie_without_a_frame(make_session: Make) -> None:
    with pytest.raises(DataError, match="first frame is NaN"):
        open_recording(make_session(durations=[0] * 10)).duration(0)


@pytest.mark.parametrize(
    ("file", "value", "match"),
    [
        ("trials/tiers", None, "missing"),
        ("trials/tiers", np.zeros(10), "text"),
        ("trials/tiers", np.full((2, 5), "train"), "text"),
        ("neurons/cell_motor_coordinates", None, "missing"),
        ("neurons/cell_motor_coordinates", np.zeros((5, 2)), r"\(N, 3\)"),
        ("neurons/cell_motor_coordinates", np.full((5, 3), np.nan), "finite"),
        ("neurons/cell_motor_coordinates", np.zeros((0, 3)), r"\(N, 3\)"),
        ("neurons/unit_ids", np.arange(4), "expected 5 numbers"),
        ("neurons/unit_ids", None, "missing"),
    ],
)
def test_bad_meta_is_named(make_session: Make, file: str, value: np.ndarray | None, match: str) -> None:
    path = make_session()
    target = path / "meta" / f"{file}.npy"
    if value is None:
        target.unlink()
    else:
        np.save(target, value)
    with pytest.raises(DataError, match=match) as error:
        open_recording(path)
    assert str(target) in str(error.value)


def test_tiers_as_bytes_and_unknown_tiers(make_session: Make, caplog: pytest.LogCaptureFixture) -> None:
    path = make_session()
    resave(path / "meta" / "trials" / "tiers.npy", lambda a: np.where(a == "none", "trian", a).astype(np.bytes_))
    with caplog.at_level(logging.WARNING, "viv1t"):
        session = open_recording(path)
    assert session.trials("validation") == [1, 6]
    assert "trian" in caplog.text


def test_hidden_means_that_every_response_is_zero(make_session: Make) -> None:
    path = make_session(durations=[20] * 10, tiers=["final_test_main"] * 2 + ["live_test_main"] * 2 + ["train"] * 6)

    def silence(array: np.ndarray) -> np.ndarray:
        return array * 0  # the padding stays NaN

    for trial in (0, 1, 2):
        resave(path / "data" / "responses" / f"{trial}.npy", silence)
    session = open_recording(path)
    assert session.hidden("final_test_main")
    assert not session.hidden("live_test_main")  # one of its trials is there
    assert not session.hidden("train")
    assert not session.hidden("final_test_bonus")  # no trials: nothing is withheld


def test_repeats_group_the_same_movie(make_session: Make) -> None:
    path = make_session(tiers=["oracle"] * 7, durations=[20] * 7)
    videos = path / "data" / "videos"
    for trial, source in ((5, 1), (6, 1), (4, 0)):
        np.save(videos / f"{trial}.npy", np.load(videos / f"{source}.npy"))
    resave(videos / "6.npy", lambda a: np.asfortranarray(np.concatenate([a, a[..., -1:]], -1)).astype(np.float64))
    for kind in ("responses", "behavior", "pupil_center"):
        resave(path / "data" / kind / "6.npy", lambda a: np.concatenate([a, a[..., -1:]], -1))
    assert open_recording(path).repeats("validation") == [[0, 4], [1, 5, 6], [2], [3]]
    resave(videos / "5.npy", lambda a: np.where(np.arange(a.shape[-1]) == 19, np.nan, a))  # a frame shorter
    assert open_recording(path).repeats("validation") == [[0, 4], [1, 6], [2], [3], [5]]


class TestFindSessions:
    def test_every_session_in_the_order_of_letters_then_names(self, tmp_path: Path, make_session: Make) -> None:
        for name in ("zebra", SENSORIUM_SESSIONS["F"], SENSORIUM_SESSIONS["B"], "alpha"):
            make_session(name)
        (tmp_path / "notes").mkdir()
        (tmp_path / ".hidden").mkdir()
        (tmp_path / "photos.zip").write_bytes(b"no archive")
        assert list(find_sessions(config(tmp_path))) == ["B", "F", "alpha", "zebra"]
        assert list(find_sessions(config(tmp_path, mouse_ids=("zebra", "F")))) == ["F", "zebra"]
        assert list(find_sessions(config(tmp_path, mouse_ids=(SENSORIUM_SESSIONS["B"],)))) == ["B"]

    def test_absent_published_mice_are_named_only_where_some_are_there(
        self, tmp_path: Path, make_session: Make, caplog: pytest.LogCaptureFixture
    ) -> None:
        make_session("alpha")
        with caplog.at_level(logging.WARNING, "viv1t"):
            find_sessions(config(tmp_path))
            assert not caplog.text
            make_session(SENSORIUM_SESSIONS["B"])
            find_sessions(config(tmp_path, mouse_ids=("B",)))
            assert not caplog.text
            find_sessions(config(tmp_path, "all_with_test"))
        assert "A, C, D, E, F, G, H, I, J" in caplog.text

    def test_the_five_of_a_mode_must_be_there(self, tmp_path: Path, make_session: Make) -> None:
        for mouse in "ABDE":
            make_session(SENSORIUM_SESSIONS[mouse])
        with pytest.raises(DataError, match=r"missing mice C \(dynamic29234.*--mouse_ids A B D E"):
            find_sessions(config(tmp_path, "old"))
        assert list(find_sessions(config(tmp_path, "old", ("D", "A")))) == ["A", "D"]
        with pytest.raises(DataError, match=r"missing mice C "):
            find_sessions(config(tmp_path, "old", ("A", "C")))
        with pytest.raises(DataError, match="--ds_mode 2"):
            find_sessions(config(tmp_path, "new"))

    def test_unknown_mice(self, tmp_path: Path, make_session: Make) -> None:
        make_session("alpha")
        with pytest.raises(ConfigError, match=r"Q: .*alpha"):
            find_sessions(config(tmp_path, mouse_ids=("Q", "alpha")))
        with pytest.raises(ConfigError, match="A, B, C, D, E"):
            find_sessions(config(tmp_path, "old", ("F",)))

    def test_missing_and_empty_folders(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="no such folder"):
            find_sessions(config(tmp_path / "nowhere"))
        with pytest.raises(DataError, match="no recording session"):
            find_sessions(config(tmp_path))
        with pytest.raises(DataError, match="no such recording"):
            open_recording(tmp_path / "nowhere")
