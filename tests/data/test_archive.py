from __future__ import annotations

import errno
import fcntl
import io
import multiprocessing
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import viv1t_data as main

from viv1t.data.formats import archive
from viv1t.data.formats.archive import extract_session
from viv1t.data.mice import choose_sessions, open_recording
from viv1t.data.survey import survey
from viv1t.data.synthetic.mice import Size, synthesize
from viv1t.errors import DataError

Make = Callable[..., Path]


def pack(session: Path, top: str, compression: int = zipfile.ZIP_DEFLATED) -> Path:
    """The session as an archive in its place; `top` goes before every name."""
    target = session.parent / f"{session.name}.zip"
    with zipfile.ZipFile(target, "w", compression) as file:
        for path in sorted(session.rglob("*")):
            if path.is_file():
                file.write(path, top + str(path.relative_to(session)))
    session.rename(session.parent.parent / f"original-{session.parent.name}-{session.name}")
    return target


def original(zip_path: Path) -> Path:
    return zip_path.parent.parent / f"original-{zip_path.parent.name}-{zip_path.stem}"


def same(a: Path, b: Path) -> bool:
    names = [sorted(str(p.relative_to(root)) for p in root.rglob("*")) for root in (a, b)]
    return names[0] == names[1] and all(
        (a / n).read_bytes() == (b / n).read_bytes() for n in names[0] if (a / n).is_file()
    )


@pytest.mark.parametrize("top", ["mouse-1/", "other name/", ""])
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_session_is_unpacked_beside_its_archive(make_session: Make, top: str, compression: int) -> None:
    packed = pack(make_session(), top, compression)
    unpacked = extract_session(packed)
    assert unpacked == packed.with_suffix("")
    assert same(unpacked, original(packed))
    assert sorted(path.name for path in packed.parent.iterdir()) == ["mouse-1", "mouse-1.zip"]
    assert open_recording(unpacked).mouse.neurons == 5


def test_session_opens_from_its_archive(make_session: Make) -> None:
    packed = pack(make_session(), "mouse-1/")
    assert open_recording(packed.with_suffix("")).mouse.id == "mouse-1"
    assert open_recording(packed).trials("train") == [0, 2, 4, 8, 9]


def test_existing_folder_is_left_as_it_is(make_session: Make) -> None:
    packed = pack(make_session(), "")
    packed.with_suffix("").mkdir()
    assert list(extract_session(packed).iterdir()) == []


def test_what_a_killed_process_left_is_removed(make_session: Make) -> None:
    packed = pack(make_session(), "")
    left = packed.parent / ".mouse-1.0123.part"
    left.mkdir()
    (left / "half").write_bytes(b"x")
    extract_session(packed)
    assert not left.exists()


@pytest.mark.parametrize("name", ["../outside.npy", "mouse-1/../../outside.npy", "/tmp/outside.npy", "a\\..\\b"])
def test_entries_that_point_outside_are_refused(make_session: Make, name: str) -> None:
    packed = pack(make_session(), "mouse-1/")
    with zipfile.ZipFile(packed, "a") as file:
        file.writestr(name, b"x")
    before = sorted(packed.parent.parent.rglob("*"))
    with pytest.raises(DataError, match="outside"):
        extract_session(packed)
    assert sorted(packed.parent.parent.rglob("*")) == before


def test_a_colon_in_a_name_points_nowhere(make_session: Make) -> None:
    packed = pack(make_session(), "mouse-1/")
    with zipfile.ZipFile(packed, "a") as file:
        file.writestr("mouse-1/notes 12:30.txt", b"x")
    assert (extract_session(packed) / "notes 12:30.txt").read_bytes() == b"x"


def test_links_are_refused(make_session: Make) -> None:
    packed = pack(make_session(), "mouse-1/")
    link = zipfile.ZipInfo("mouse-1/data/videos/99.npy")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(packed, "a") as file:
        file.writestr(link, "/etc/passwd")
    with pytest.raises(DataError, match="link"):
        extract_session(packed)
    assert not packed.with_suffix("").exists()


def test_bombs_are_refused_before_anything_is_written(make_session: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    session = make_session()
    np.save(session / "data" / "responses" / "0.npy", np.zeros((5, 1_000_000), np.float32))
    packed = pack(session, "")
    monkeypatch.setattr(archive, "RATIO_FREE", 1 << 20)
    with pytest.raises(DataError, match="200 times the archive"):
        extract_session(packed)
    monkeypatch.setattr(archive, "MAX_BYTES", 1 << 20)
    with pytest.raises(DataError, match="more than a recording"):
        extract_session(packed)
    assert [path.name for path in packed.parent.iterdir()] == ["mouse-1.zip"]


def test_an_entry_that_lies_about_its_size_is_not_believed(make_session: Make) -> None:
    session = make_session()
    (session / "data" / "responses" / "lie.npy").write_bytes(b"y" * 50_000)
    packed = pack(session, "", zipfile.ZIP_STORED)
    content = bytearray(packed.read_bytes())
    entry = content.rindex(b"PK\x01\x02", 0, content.rindex(b"data/responses/lie.npy"))
    content[entry + 24 : entry + 28] = (10).to_bytes(4, "little")  # uncompressed size in the central directory
    packed.write_bytes(content)
    with pytest.raises(DataError, match="damaged"):
        extract_session(packed)
    assert not packed.with_suffix("").exists()


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_truncated_archives_leave_nothing(make_session: Make, share: float) -> None:
    packed = pack(make_session(), "mouse-1/")
    content = packed.read_bytes()
    packed.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(DataError, match="download it again"):
        extract_session(packed)
    assert [path.name for path in packed.parent.iterdir()] == ["mouse-1.zip"]


def test_flipped_bits_leave_nothing(make_session: Make) -> None:
    packed = pack(make_session(), "mouse-1/")
    content = bytearray(packed.read_bytes())
    content[len(content) // 3] ^= 0xFF
    packed.write_bytes(content)
    with pytest.raises(DataError, match="download it again"):
        extract_session(packed)
    assert [path.name for path in packed.parent.iterdir()] == ["mouse-1.zip"]


def test_archives_without_a_session_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as file:
        file.writestr("a.jpg", b"x")
    with pytest.raises(DataError, match="expected one session"):
        extract_session(tmp_path / "photos.zip")


def test_processes_at_once_do_not_clash(make_session: Make) -> None:
    packed = pack(make_session(), "mouse-1/")
    with multiprocessing.get_context("fork").Pool(4) as pool:
        assert pool.map(extract_session, [packed] * 4) == [packed.with_suffix("")] * 4
    assert same(packed.with_suffix(""), original(packed))
    assert sorted(path.name for path in packed.parent.iterdir()) == ["mouse-1", "mouse-1.zip"]


def test_without_locks_the_first_to_finish_wins(make_session: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = pack(make_session(), "mouse-1/")

    def none(*_: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", none)
    with multiprocessing.get_context("fork").Pool(4) as pool:
        pool.map(extract_session, [packed] * 4)
    assert same(packed.with_suffix(""), original(packed))
    assert sorted(path.name for path in packed.parent.iterdir()) == ["mouse-1", "mouse-1.zip"]


def tarred(session: Path, top: str) -> Path:
    """The session as a tar file in its place; `top` goes before every name."""
    target = session.parent / f"{session.name}.tar"
    with tarfile.open(target, "w") as file:
        for path in sorted(session.rglob("*")):
            file.add(path, top + str(path.relative_to(session)), recursive=False)
    session.rename(session.parent.parent / f"original-{session.parent.name}-{session.name}")
    return target


def appended(path: Path, name: str, content: bytes = b"x", **more: Any) -> None:
    """Adds an entry to a tar file."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for attribute, value in more.items():
        setattr(info, attribute, value)
    with tarfile.open(path, "a") as file:
        file.addfile(info, io.BytesIO(content))


def experiment(folder: Path) -> Path:
    """A small experanto folder, as its archive names it."""
    size = Size(neurons=2, frames=60, trials=2, evaluation=((0, 1),) * 5)
    synthesize(folder, mice=["dynamic9-1-2-Video-x"], size=size, workers=1, format="experanto")
    return folder / "dynamic9-1-2-Video-x"


class TestTar:
    @pytest.mark.parametrize("top", ["mouse-1/", "./other name/", "", "./"])
    def test_session_is_unpacked_beside_its_archive(self, make_session: Make, top: str) -> None:
        packed = tarred(make_session(), top)
        assert open_recording(packed.with_suffix("")).trials("train") == [0, 2, 4, 8, 9]
        assert same(packed.with_suffix(""), original(packed))
        assert sorted(path.name for path in packed.parent.iterdir()) == ["mouse-1", "mouse-1.tar"]

    def test_a_downloaded_experiment_is_a_mouse_before_and_after(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        tarred(experiment(tmp_path / "data"), "dynamic9-1-2-Video-x/")
        found = survey(tmp_path / "data")
        assert list(found.sessions) == ["9-1-2"]
        assert main(["info", str(tmp_path / "data")]) == 0
        assert "9-1-2" in capsys.readouterr().out
        assert [p.name for p in (tmp_path / "data").iterdir()] == ["dynamic9-1-2-Video-x.tar"]
        for _ in range(2):  # from the archive, and unpacked
            (session,) = choose_sessions(tmp_path / "data").values()
            assert (session.mouse.id, len(session.trials("train"))) == ("9-1-2", 2)
        assert survey(tmp_path / "data").sessions == found.sessions

    @pytest.mark.parametrize("name", ["../outside.npy", "mouse-1/../../outside.npy", "/tmp/outside.npy", "a\\..\\b"])
    def test_entries_that_point_outside_are_refused(self, make_session: Make, name: str) -> None:
        packed = tarred(make_session(), "mouse-1/")
        appended(packed, name)
        before = sorted(packed.parent.parent.rglob("*"))
        with pytest.raises(DataError, match="outside"):
            extract_session(packed)
        assert sorted(packed.parent.parent.rglob("*")) == before

    @pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
    def test_links_and_devices_are_refused(self, make_session: Make, kind: bytes) -> None:
        packed = tarred(make_session(), "mouse-1/")
        appended(packed, "mouse-1/data/videos/99.npy", b"", type=kind, linkname="/etc/passwd")
        with pytest.raises(DataError, match="link or a device"):
            extract_session(packed)
        assert not packed.with_suffix("").exists()

    def test_what_is_too_much_is_refused(self, make_session: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        packed = tarred(make_session(), "mouse-1/")
        monkeypatch.setattr(archive, "MAX_BYTES", 1 << 10)
        with pytest.raises(DataError, match="more than a recording"):
            extract_session(packed)
        monkeypatch.undo()
        monkeypatch.setattr(archive, "MAX_FILES", 3)
        with pytest.raises(DataError, match=r"in 4 files, more than a recording"):
            extract_session(packed)
        assert [path.name for path in packed.parent.iterdir()] == ["mouse-1.tar"]

    @pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.9])
    def test_truncated_archives_leave_nothing(self, make_session: Make, share: float) -> None:
        packed = tarred(make_session(), "mouse-1/")
        content = packed.read_bytes()
        packed.write_bytes(content[: int(len(content.rstrip(bytes(1))) * share)])
        with pytest.raises(DataError, match="download it again"):
            extract_session(packed)
        assert [path.name for path in packed.parent.iterdir()] == ["mouse-1.tar"]

    def test_an_archive_that_ends_between_two_entries_is_truncated(self, make_session: Make) -> None:
        packed = tarred(make_session(), "mouse-1/")
        with tarfile.open(packed) as file:
            last = file.getmembers()[-5]
        packed.write_bytes(packed.read_bytes()[: last.offset])
        with pytest.raises(DataError, match="its end is missing"):
            extract_session(packed)

    def test_headers_in_disorder_end_nothing_in_silence(self, make_session: Make) -> None:
        packed = tarred(make_session(), "mouse-1/")
        with tarfile.open(packed) as file:
            place = file.getmembers()[10].offset
        content = bytearray(packed.read_bytes())
        content[place : place + 100] = b"?" * 100
        packed.write_bytes(content)
        with pytest.raises(DataError, match="its end is missing"):
            extract_session(packed)
        assert [path.name for path in packed.parent.iterdir()] == ["mouse-1.tar"]

    def test_both_archives_of_one_recording_are_named(self, make_session: Make) -> None:
        session = make_session()
        pack(session, "mouse-1/")
        original(session.with_name("mouse-1.zip")).rename(session)
        tarred(session, "mouse-1/")
        with pytest.raises(DataError, match=r"mouse-1.tar and mouse-1.zip are both mouse mouse-1"):
            survey(session.parent)
