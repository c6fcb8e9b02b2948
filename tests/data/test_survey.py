"""What lies in a data folder: who is who, and what is named with its reason because it cannot be used."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from commands import viv1t_data as main

from viv1t.config.data import DataConfig
from viv1t.data.formats.sensorium.session import RawSession
from viv1t.data.inspect.check import check_folder
from viv1t.data.mice import find_sessions, open_recording
from viv1t.data.statistics import computed_statistics
from viv1t.data.store.pack import pack
from viv1t.errors import DataError
from viv1t.types import SENSORIUM_SESSIONS

Make = Callable[..., Path]


def config(path: Path, mouse_ids: tuple[str, ...] | None = None) -> DataConfig:
    return DataConfig(path=str(path), mice="all", transform="none", mouse_ids=mouse_ids)


def zipped(target: Path, session: Path, top: str, separator: str = "/") -> None:
    with zipfile.ZipFile(target, "a") as file:
        for path in sorted(p for p in session.rglob("*") if p.is_file()):
            info = zipfile.ZipInfo("x")
            info.filename = (top + str(path.relative_to(session))).replace("/", separator)
            file.writestr(info, path.read_bytes())


class TestIdentity:
    def test_a_linked_session_is_called_what_the_data_folder_calls_it(self, tmp_path: Path, make_session: Make) -> None:
        data = tmp_path / "data"
        data.mkdir()
        for letter in "AB":
            make_session(f"{letter}/session1", seed=ord(letter))
            (data / f"mouse{letter}").symlink_to(tmp_path / letter / "session1")
        published = SENSORIUM_SESSIONS["F"]
        (data / published).symlink_to(tmp_path / "A" / "session1")
        zipped(tmp_path / "0001.zip", tmp_path / "B" / "session1", "session1/")
        (data / "zipped.zip").symlink_to(tmp_path / "0001.zip")
        sessions = find_sessions(config(data))
        names = {"F": published, "mouseA": "mouseA", "mouseB": "mouseB", "zipped": "zipped"}
        assert {mouse: session.mouse.session for mouse, session in sessions.items()} == names
        stores = pack(data, tmp_path / "packed", ["mouseA", "mouseB"])
        assert [store.path.name for store in stores] == ["mouseA", "mouseB"]
        (data / "moved").symlink_to(tmp_path / "packed" / "mouseA")
        assert open_recording(data / "moved").mouse.session == "moved"
        # One cache serves every name of the same files.
        before = computed_statistics(sessions["mouseA"])
        cache = data / "mouseA" / "meta" / "viv1t_statistics.safetensors"
        written = cache.stat().st_mtime_ns
        assert computed_statistics(sessions["F"]).trial_ids == before.trial_ids
        assert cache.stat().st_mtime_ns == written

    def test_the_current_folder_has_a_name(self, make_session: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(make_session("mouse-7"))
        assert open_recording(Path()).mouse.id == "mouse-7"

    def test_two_entries_of_one_mouse_are_refused(self, tmp_path: Path, make_session: Make) -> None:
        make_session("F")
        make_session(SENSORIUM_SESSIONS["F"])
        with pytest.raises(DataError, match="both mouse F"):
            find_sessions(config(tmp_path))


def cut(folder: Path, session: Path) -> None:
    zipped(folder / "bad.zip", session, "m/")
    content = (folder / "bad.zip").read_bytes()
    (folder / "bad.zip").write_bytes(content[: len(content) // 2])


def two(folder: Path, session: Path) -> None:
    zipped(folder / "bad.zip", session, "one/")
    zipped(folder / "bad.zip", session, "two/")


def archive_inside(folder: Path, session: Path) -> None:
    zipped(folder / "inner.zip", session, "m/")
    with zipfile.ZipFile(folder / "bad.zip", "w") as file:
        file.write(folder / "inner.zip", "inner.zip")
    (folder / "inner.zip").unlink()


def no_tiers(folder: Path, session: Path) -> None:
    shutil.copytree(session, folder / "bad")
    (folder / "bad" / "meta" / "trials" / "tiers.npy").unlink()


def latin(folder: Path, session: Path) -> None:
    shutil.copytree(os.fsencode(session), os.fsencode(folder) + b"/bad_\xe9")


LEFT_OUT = {
    "cut short": (cut, "bad.zip", "cut short"),
    "nested": (lambda f, s: zipped(f / "bad.zip", s, "data/mice/m/"), "bad.zip", "data/mice/m, too deep"),
    "archive inside": (archive_inside, "bad.zip", "the archive inner.zip"),
    "backslashes": (lambda f, s: zipped(f / "bad.zip", s, "m/", "\\"), "bad.zip", "backslashes"),
    "capitals": (lambda f, s: zipped(f / "bad.ZIP", s, "m/"), "bad.ZIP", "rename it to bad.zip"),
    "two sessions": (two, "bad.zip", "2 sessions (one, two)"),
    "another format": (lambda f, _: (f / "bad.tar.gz").write_bytes(b"x"), "bad.tar.gz", "unpack it"),
    "empty": (lambda f, _: (f / "bad.zip").write_bytes(b""), "bad.zip", "cut short"),
    "no session": (lambda f, s: zipped(f / "bad.zip", s / "data", "notes/"), "bad.zip", "holds no session"),
    "a pipe": (lambda f, _: os.mkfifo(f / "bad.zip"), "bad.zip", "no regular file"),
    "a link to nothing": (lambda f, _: (f / "bad").symlink_to(f / "annex"), "bad", "a link to"),
    "without tiers": (no_tiers, "bad", "tiers.npy"),
    "not UTF-8": (latin, "bad_\\udce9", "not UTF-8"),
    "a line end": (lambda f, s: shutil.copytree(s, f / "bad\nname"), "bad\\nname", "control characters"),
}


@pytest.mark.parametrize("kind", LEFT_OUT)
def test_what_cannot_be_used_is_named_with_its_reason(
    tmp_path: Path,
    make_session: Make,
    kind: str,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = tmp_path / "data"
    source = make_session("source")
    make_session("data/good")
    make, name, reason = LEFT_OUT[kind]
    make(data, source)
    with caplog.at_level(logging.WARNING, "viv1t"):
        assert list(find_sessions(config(data))) == ["good"]
    (line,) = [r.getMessage() for r in caplog.records if r.getMessage().startswith(f"mouse {name}: ")]
    assert reason in line
    assert "->" in line
    errors = [str(f) for f in check_folder(data) if f.mouse_id != "good"]
    assert len(errors) == 1
    assert errors[0].startswith("warning" if kind == "no session" else "error")
    assert name in errors[0]
    assert "\n" not in errors[0]
    assert main(["info", str(data)]) == 0
    out = capsys.readouterr().out
    assert name in out
    shutil.rmtree(data / "good")
    with pytest.raises(DataError, match="holds no recording session") as error:
        find_sessions(config(data))
    assert reason in str(error.value)


def test_a_mouse_that_is_asked_for_and_cannot_be_used_is_refused_with_the_reason(
    tmp_path: Path, make_session: Make
) -> None:
    make_session("good")
    (tmp_path / "bad.zip").write_bytes(b"no archive")
    with pytest.raises(DataError, match=r"bad\.zip: .*cut short"):
        find_sessions(config(tmp_path, ("good", "bad")))


SPECIAL = {
    "pipe": os.mkfifo,
    "socket": lambda path: socket.socket(socket.AF_UNIX).bind(os.path.relpath(path)),
    "folder": os.mkdir,
    "device": lambda path: os.symlink("/dev/zero", path),
}


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize(
    "file", ["data/videos/2.npy", "data/responses/2.npy", "meta/neurons/unit_ids.npy", "meta/trials/tiers.npy"]
)
def test_what_is_no_file_is_refused_and_never_waited_for(
    make_session: Make, kind: str, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_session()
    monkeypatch.chdir(path)
    (path / file).unlink()
    SPECIAL[kind](path / file)

    def read() -> None:
        session = RawSession.open_folder(path, "mouse-1")
        for variable in ("video", "response", "behavior", "pupil_center"):
            session.read(variable, 2)

    with pytest.raises(DataError, match=f"mouse-1.*{file}.*not a file"):
        read()
    assert any("not a file" in str(f) for f in check_folder(path) if f.severity == "error")


class TestNeuronIds:
    @pytest.mark.parametrize("kind", ["int64", "uint64", "int8", "float32", "float64"])
    def test_whole_numbers_are_kept_exactly(self, make_session: Make, kind: str) -> None:
        path = make_session()
        big = 864691135494192528 if kind.endswith("int64") else 2**24 if kind == "float32" else 7
        ids = np.arange(5).astype(kind) if kind == "int8" else (big - np.arange(5)).astype(kind)
        np.save(path / "meta" / "neurons" / "unit_ids.npy", ids)
        assert open_recording(path).mouse.unit_ids.tolist() == [int(i) for i in ids]

    @pytest.mark.parametrize(
        "ids",
        [
            np.array([1.5, 2, 3, 4, 5]),
            np.array([np.nan, 2, 3, 4, 5]),
            np.array([1, np.inf, 3, 4, 5]),
            np.array([2**63, 2, 3, 4, 5], np.uint64),
            np.array([2.0**54, 2, 3, 4, 5]),  # float64 may have rounded it
            np.array([2.0**25, 2, 3, 4, 5], np.float32),
        ],
    )
    def test_others_are_refused(self, make_session: Make, ids: np.ndarray) -> None:
        path = make_session()
        np.save(path / "meta" / "neurons" / "unit_ids.npy", ids)
        with pytest.raises(DataError, match=r"unit_ids.npy: expected whole numbers .* for neuron [01] in .*int64"):
            open_recording(path)
        assert any("unit_ids" in str(f) for f in check_folder(path) if f.severity == "error")

    def test_coordinates_beyond_float32_are_refused(self, make_session: Make) -> None:
        path = make_session()
        np.save(path / "meta" / "neurons" / "cell_motor_coordinates.npy", np.full((5, 3), 1e300))
        with pytest.raises(DataError, match="expected finite"):
            open_recording(path)
