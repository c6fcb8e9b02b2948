"""Packing goes on where it stopped, and leaves alone what is not its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from commands import viv1t_data as main

from viv1t.config.data import DataConfig
from viv1t.data.formats.sensorium.session import RawSession
from viv1t.data.mice import open_recording
from viv1t.data.recordings import Recordings
from viv1t.data.store import pack as packing
from viv1t.data.store.pack import Packed, pack
from viv1t.data.store.verify import verify
from viv1t.errors import ConfigError, DataError

Make = Callable[..., Path]
DURATIONS = (24, 24, 8, 24, 21, 24, 20, 24, 17, 24)


def packed(folder: Path, **options: object) -> list[Packed]:
    return list(pack(folder, folder.parent / f"{folder.name}-packed", **options))  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here outlives a crash of the machine."""
    monkeypatch.setattr("os.fsync", lambda _: None)


@pytest.fixture
def data(tmp_path: Path, make_session: Make) -> Path:
    """Two mice with trials of several lengths."""
    make_session("data/alpha", durations=DURATIONS, size=(5, 7))
    make_session("data/beta", neurons=37, size=(5, 7), durations=DURATIONS, fortran=True, seed=1)
    return tmp_path / "data"


class Interrupted(BaseException):
    pass


class TestInterruption:
    @staticmethod
    def stop_at(monkeypatch: pytest.MonkeyPatch, reads: int) -> list[tuple[str, int]]:
        """Lets packing read so many arrays and no more; the list fills with what it reads."""
        seen: list[tuple[str, int]] = []
        original = RawSession.read

        def read(self: RawSession, variable: str, trial: int) -> np.ndarray:
            if len(seen) == reads:
                raise Interrupted
            seen.append((variable, trial))
            return original(self, variable, trial)

        monkeypatch.setattr(RawSession, "read", read)
        return seen

    # A mouse takes a look at its first movie and four reads for each of its nine trials; its statistics are known.
    @pytest.mark.parametrize(("reads", "next_trial"), [(1, 0), (4, 0), (22, 6), (37, 0), (38, 0), (61, 6)])
    def test_packing_continues_where_it_stopped(
        self, data: Path, monkeypatch: pytest.MonkeyPatch, reads: int, next_trial: int
    ) -> None:
        reference = [p.document for p in pack(data, data.parent / "reference")]
        out = data.parent / "out"
        with monkeypatch.context() as patch:
            self.stop_at(patch, reads)
            with pytest.raises(Interrupted):
                list(pack(data, out))
        assert not (out / "beta").exists()
        with monkeypatch.context() as patch:
            seen = self.stop_at(patch, 10**6)
            result = list(pack(data, out))
        assert [p.document for p in result] == reference
        assert sorted(p.name for p in out.iterdir()) == ["alpha", "beta"]
        assert list(verify(out)) == []
        assert next(trial for variable, trial in seen if variable == "response") == next_trial

    def test_trials_that_never_reached_the_disk_are_packed_again(
        self, data: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        out = data.parent / "out"
        with monkeypatch.context() as patch:
            patch.setattr(packing, "SAVE_SECONDS", 0.0)
            patch.setattr(packing._Packing, "_finish", lambda *_: (_ for _ in ()).throw(Interrupted))
            with pytest.raises(Interrupted):
                list(pack(data, out))
        notes = out / ".alpha.progress"
        state = json.loads(notes.read_text())
        assert state["done"] == 9
        for name, entries in state["checksums"].items():
            state["checksums"][name] = entries[:3]
        notes.write_text(json.dumps(state | {"done": 3, "silent": state["silent"][:3]}))
        with open(out / ".alpha.part" / "responses.npy", "r+b") as file:  # the machine went down with them
            file.seek(128 + 3 * 24 * 5 * 4)
            file.write(bytes(6 * 24 * 5 * 4))
        list(pack(data, out))
        assert list(verify(out)) == []
        assert np.array_equal(*(np.load(p.path / "responses.npy") for p in (packed(data)[0], next(pack(data, out)))),
                              equal_nan=True)  # fmt: skip

    @pytest.mark.parametrize("change", ["source", "option", "notes", "files"])
    def test_what_does_not_fit_is_not_continued(self, data: Path, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
        out = data.parent / "out"
        with monkeypatch.context() as patch:
            self.stop_at(patch, 30)
            with pytest.raises(Interrupted):
                list(pack(data, out))
        if change == "source":
            file = data / "alpha" / "data" / "responses" / "0.npy"
            np.save(file, np.load(file) * 2)
        elif change == "notes":
            (out / ".alpha.progress").write_text("{")
        elif change == "files":
            (out / ".alpha.part" / "responses.npy").write_bytes(b"")
        (result, _) = pack(data, out, responses="float16" if change == "option" else "float32")
        assert list(verify(out)) == []
        stored = np.load(result.path / "responses.npy")[0].T
        wanted = open_recording(data / "alpha").read("response", 0)
        assert np.array_equal(stored, wanted.astype(stored.dtype))

    def test_unfinished_stores_are_no_recordings(self, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        out = data.parent / "out"
        with monkeypatch.context() as patch:
            self.stop_at(patch, 30)
            with pytest.raises(Interrupted):
                list(pack(data, out))
        with pytest.raises(DataError, match="no recording session"):
            Recordings.open(DataConfig(path=str(out), mice="all", transform="none"), seed=1)
        (finding,) = verify(out)
        assert str(finding).startswith("warning: mouse alpha: packing was interrupted")


class TestRefusals:
    def test_what_is_packed_is_left_alone(self, data: Path) -> None:
        assert [p.fresh for p in packed(data)] == [True, True]
        before = {p.path: (p.path / "store.json").stat().st_mtime_ns for p in packed(data)}
        assert [p.fresh for p in packed(data)] == [False, False]
        assert before == {path: (path / "store.json").stat().st_mtime_ns for path in before}
        with pytest.raises(DataError, match="packed from other files or with other options"):
            packed(data, responses="float16")

    def test_foreign_folders_are_left_alone(self, data: Path, capsys: pytest.CaptureFixture) -> None:
        assert main(["pack", str(data), str(data), "--quiet"]) == 1
        assert f"{data / 'alpha'} exists and is no packed session" in capsys.readouterr().err
        assert open_recording(data / "alpha").duration(0) == 24

    def test_mice_and_types(self, data: Path, capsys: pytest.CaptureFixture) -> None:
        with pytest.raises(ConfigError, match=r"--mouse_ids gamma: .* holds alpha, beta"):
            packed(data, mouse_ids=["gamma"])
        with pytest.raises(ConfigError, match="--responses must be float32 or float16, not int8"):
            packed(data, responses="int8")
        assert [p.mouse_id for p in packed(data, mouse_ids=["beta"])] == ["beta"]
        assert main(["pack", str(data / "nowhere"), str(data)]) == 1
        assert "no such folder" in capsys.readouterr().err

    def test_damaged_recordings_are_named(self, data: Path) -> None:
        (data / "beta" / "data" / "behavior" / "3.npy").write_bytes(b"\x93NUMPY")
        with pytest.raises(DataError, match=r"mouse beta, trial 3: .*behavior/3\.npy"):
            packed(data)

    def test_one_process_at_a_time(self, data: Path) -> None:
        session = open_recording(data / "alpha")
        out = data.parent / "out"
        with (
            packing._Packing(session, out, "float32", False)._alone(),
            pytest.raises(DataError, match="another process is packing this mouse"),
        ):
            list(pack(data, out))

    def test_a_full_disk_is_said_at_once(self, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(*_: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("os.posix_fallocate", full)
        with pytest.raises(DataError, match=r"need 0\.0 GiB, more than is free \(.*\); make room"):
            packed(data)
