"""Packed recordings read as the recordings themselves, and damage in them is found and named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from commands import viv1t_data as main

from viv1t.config.data import DataConfig
from viv1t.data.formats.sensorium.session import RawSession
from viv1t.data.inspect.info import session_info
from viv1t.data.mice import open_recording
from viv1t.data.recordings import Recordings
from viv1t.data.session import VARIABLES
from viv1t.data.statistics import computed_statistics, medians, provided_statistics, statistics_tensors
from viv1t.data.store.pack import Packed, pack
from viv1t.data.store.packed import PackedSession, StoreDocument
from viv1t.data.store.stack import FILES
from viv1t.data.store.verify import verify
from viv1t.errors import DataError
from viv1t.types import SENSORIUM_SESSIONS, Batch

Make = Callable[..., Path]
MODES = ("none", "standardize_per_frame", "published", "standardize", "min_max", "balanced")
DURATIONS = (24, 24, 8, 24, 21, 24, 20, 24, 17, 24)


def packed(folder: Path, **options: str) -> list[Packed]:
    return list(pack(folder, folder.parent / f"{folder.name}-packed", **options))  # type: ignore[arg-type]


def recordings(folder: Path, **options: object) -> Recordings:
    defaults = {"mice": "all", "transform": "published", "crop_frame": 10, "batch_size": 2}
    return Recordings.open(DataConfig(path=str(folder), **(defaults | options)), seed=3)  # type: ignore[arg-type]


def content(batch: Batch) -> tuple[object, ...]:
    arrays = [(getattr(batch, v).shape, getattr(batch, v).numpy().tobytes()) for v in VARIABLES]
    return batch.mouse_id, batch.trial_ids, batch.frames.tolist(), arrays


def add_statistics(session: Path) -> None:
    """The statistics that recordings bring along, here of all trials."""
    read = open_recording(session)
    for folder, variable in (("videos", "video"), ("responses", "response"), *((v, v) for v in VARIABLES[2:])):
        trials = [read.read(variable, trial).astype(np.float32) for trial in read.trials("train")]
        values = np.stack(trials)
        place = session / "meta" / "statistics" / folder / "all"
        place.mkdir(parents=True)
        for name, function in (("min", np.nanmin), ("max", np.nanmax), ("mean", np.nanmean), ("std", np.nanstd)):
            np.save(place / f"{name}.npy", function(values, axis=0))


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here outlives a crash of the machine."""
    monkeypatch.setattr("os.fsync", lambda _: None)


@pytest.fixture
def data(tmp_path: Path, make_session: Make) -> Path:
    """Two mice: odd sizes, trials of several lengths, types of both kinds, one stored in Fortran order."""
    make_session("data/alpha", durations=DURATIONS, size=(5, 7))
    make_session("data/beta", neurons=37, size=(5, 7), durations=DURATIONS, video_type="float64", fortran=True, seed=1)
    return tmp_path / "data"


class TestReading:
    @pytest.mark.parametrize("mode", MODES)
    @pytest.mark.parametrize("crop_frame", [10, -1])
    @pytest.mark.parametrize("other", [{}, {"num_workers": 0}, {"center_crop": 0.8}])
    def test_batches_equal_those_of_the_recording(
        self, data: Path, mode: str, crop_frame: int, other: dict[str, object]
    ) -> None:
        options = {"transform": mode, "crop_frame": crop_frame}
        raw = recordings(data, **options, **(other | {"num_workers": 0}))
        store = recordings(packed(data)[0].path.parent, **options, **other)
        for epoch in (0, 1):
            for a, b in zip(raw.train_batches(epoch), store.train_batches(epoch), strict=True):
                assert content(a) == content(b)
        for mouse in raw.mice:
            for a, b in zip(raw.trials(mouse, "validation"), store.trials(mouse, "validation"), strict=True):
                assert content(a) == content(b)
            assert np.array_equal(raw.mean_response(mouse), store.mean_response(mouse))

    @pytest.mark.parametrize("kind", ["uint8", "int16", "float16", "float64", ">f4", ">i8", "bool"])
    @pytest.mark.parametrize("fortran", [False, True])
    def test_every_type_on_disk(self, tmp_path: Path, make_session: Make, kind: str, fortran: bool) -> None:
        make_session("data/alpha", video_type=kind, fortran=fortran, size=(3, 5))
        raw, store = (recordings(folder) for folder in (tmp_path / "data", packed(tmp_path / "data")[0].path.parent))
        for a, b in zip(raw.train_batches(0), store.train_batches(0), strict=True):
            assert content(a) == content(b)

    def test_the_golden_recordings(self, golden: Path, tmp_path: Path) -> None:
        source = golden / "data" / "sensorium"
        list(pack(source, tmp_path))
        for statistics, mode in (("provided", "published"), ("computed", "min_max"), ("computed", "published")):
            options = {"statistics": statistics, "transform": mode, "crop_frame": 60, "batch_size": 3}
            for mouse in ("B", "F"):
                raw, store = (recordings(path, mouse_ids=(mouse,), **options) for path in (source, tmp_path))
                for a, b in zip(raw.train_batches(1), store.train_batches(1), strict=True):
                    # Equal numbers: these movies have grey levels of -0, whose sign uint8 does not keep.
                    assert all(getattr(a, v).equal(getattr(b, v)) for v in VARIABLES)

    def test_the_same_interface(self, data: Path) -> None:
        add_statistics(data / "alpha")
        raw, store = open_recording(data / "alpha"), open_recording(packed(data)[0].path)
        assert isinstance(raw, RawSession)
        assert isinstance(store, PackedSession)
        assert store.mouse.id == raw.mouse.id == "alpha"
        assert store.mouse.session == raw.mouse.session
        assert np.array_equal(store.mouse.coordinates, raw.mouse.coordinates)
        assert np.array_equal(store.mouse.unit_ids, raw.mouse.unit_ids)
        assert (store.tiers, store.frame_size) == (raw.tiers, raw.frame_size)
        for trial, tier in raw.tiers.items():
            if tier == "none":
                with pytest.raises(DataError, match=r"mouse alpha: .*: trial 5 of the tier none is not packed"):
                    store.duration(trial)
                continue
            assert store.duration(trial) == raw.duration(trial)
            for variable in VARIABLES:
                mine, reference = store.read(variable, trial), raw.read(variable, trial)
                shown = raw.duration(trial)
                assert np.array_equal(mine[..., :shown], reference[..., :shown].astype(mine.dtype))
                assert np.array_equal(store.place(variable, trial).map()[..., :shown], mine[..., :shown])
        for source in (computed_statistics, provided_statistics):
            mine, reference = statistics_tensors(source(store)), statistics_tensors(source(raw))
            assert mine.keys() == reference.keys()
            assert all(np.array_equal(mine[name], reference[name], equal_nan=True) for name in mine)
        assert np.array_equal(medians(store, "response", "time"), medians(raw, "response", "time"))

    def test_hidden_and_repeats(self, tmp_path: Path, make_session: Make) -> None:
        path = make_session("data/alpha", durations=[24, 24, 24, 24, 24, 24, 20, 24, 24, 24])
        for trial, source in ((6, 1), (2, 0), (8, 0)):  # 6 shows as much of 1 as its 20 frames hold
            array = np.load(path / "data" / "videos" / f"{source}.npy")
            array[..., 20 if trial == 6 else 24 :] = np.nan
            np.save(path / "data" / "videos" / f"{trial}.npy", array)
        silent = np.load(path / "data" / "responses" / "3.npy") * 0
        np.save(path / "data" / "responses" / "3.npy", silent)
        raw, store = open_recording(path), open_recording(packed(path.parent)[0].path)
        for tier in ("train", "validation", "live_test_main", "final_test_bonus", "final_test_main"):
            assert store.repeats(tier) == raw.repeats(tier)
            assert store.hidden(tier) == raw.hidden(tier)
        assert store.hidden("live_test_main")
        assert store.repeats("train") == [[0, 2, 8], [4], [9]]
        assert store.repeats("validation") == [[1], [6]]

    def test_a_store_is_a_data_folder(self, tmp_path: Path, make_session: Make, capsys: pytest.CaptureFixture) -> None:
        for mouse in ("B", "F"):
            make_session(f"data/{SENSORIUM_SESSIONS[mouse]}")
        out = packed(tmp_path / "data")[0].path.parent
        assert list(recordings(out, mice="old", mouse_ids=("B",)).mice) == ["B"]
        merged = recordings(out, mice="all_with_test", limit_data=4)
        assert merged.train_sizes == {"B": 4, "F": 4}
        assert merged.trial_ids("B", "train") == recordings(
            tmp_path / "data", mice="all_with_test", limit_data=4
        ).trial_ids("B", "train")
        raw, mine = (session_info("B", folder / SENSORIUM_SESSIONS["B"]) for folder in (tmp_path / "data", out))
        assert (mine.neurons, mine.frame_size, mine.trials) == (raw.neurons, raw.frame_size, raw.trials)
        assert (mine.durations, mine.hidden) == (raw.durations, raw.hidden)
        assert main(["check", str(out), "--quiet"]) == main(["info", str(out)]) == 0
        assert "0 errors" in capsys.readouterr().out

    def test_anyone_can_open_the_arrays(self, data: Path) -> None:
        path = packed(data)[0].path
        document = json.loads((path / "store.json").read_text())
        assert document["trials"] == [0, 1, 2, 3, 4, 6, 7, 8, 9]
        assert document["durations"] == [DURATIONS[t] for t in document["trials"]]
        videos = np.load(path / "videos.npy", mmap_mode="r")
        responses = np.load(path / "responses.npy", mmap_mode="r")
        assert (videos.shape, videos.dtype) == ((9, 24, 5, 7), np.uint8)
        assert (responses.shape, responses.dtype) == ((9, 24, 5), np.float32)
        assert np.load(path / "behavior.npy").shape == np.load(path / "pupil_center.npy").shape == (9, 24, 2)
        raw = np.load(data / "alpha" / "data" / "videos" / "6.npy")[..., :20]
        assert np.array_equal(videos[5, :20], raw.transpose(2, 0, 1))
        assert np.isnan(responses[5, 20:]).all()

    def test_float16_responses(self, data: Path, capsys: pytest.CaptureFixture) -> None:
        raw = open_recording(data / "alpha")
        path = packed(data, responses="float16")[0].path
        exact = np.concatenate([raw.read("response", t)[:, : raw.duration(t)] for t in raw.tiers if t != 5], 1)
        stored = np.load(path / "responses.npy")
        assert stored.dtype == np.float16
        both = exact.astype(np.float64), exact.astype(np.float16).astype(np.float64)
        relative = np.abs(both[1] - both[0]) / both[0]
        error = StoreDocument.read(path)[0].response_error
        assert error == pytest.approx({"largest": relative.max(), "mean": relative.mean()})
        assert 0 < error["mean"] < 1e-3  # type: ignore[index]
        assert main(["pack", str(data), str(path.parent), "--responses", "float16", "--quiet"]) == 0
        assert f"relative error at most {error['largest']:.2g}" in capsys.readouterr().out  # type: ignore[index]
        for a, b in zip(recordings(data).train_batches(0), recordings(path.parent).train_batches(0), strict=True):
            assert a.video.equal(b.video)
            np.testing.assert_allclose(b.response, a.response, rtol=1e-3)

    def test_float16_refuses_what_it_cannot_hold(self, data: Path) -> None:
        file = data / "alpha" / "data" / "responses" / "4.npy"
        np.save(file, np.load(file) + np.float32(1e5))
        with pytest.raises(DataError, match=r"mouse alpha, trial 4: .*responses/4.npy: .* float16 ends at 65504"):
            packed(data, responses="float16")


class TestMovieTypes:
    @pytest.mark.parametrize("level", [0.5, -1.0, 256.0, 300.0])
    def test_grey_levels_beyond_uint8_keep_the_whole_mouse_in_float32(self, data: Path, level: float) -> None:
        file = data / "alpha" / "data" / "videos" / "8.npy"  # not the first trial: the choice is taken back
        movie = np.load(file)
        movie[2, 3, 11] = level
        np.save(file, movie)
        alpha, beta = packed(data)
        assert alpha.document.arrays["videos.npy"]["dtype"] == "float32"
        assert beta.document.arrays["videos.npy"]["dtype"] == "uint8"
        assert np.load(alpha.path / "videos.npy")[7, 11, 2, 3] == np.float32(level)
        raw, store = recordings(data), recordings(alpha.path.parent)
        for a, b in zip(raw.train_batches(0), store.train_batches(0), strict=True):
            assert content(a) == content(b)
        assert list(verify(alpha.path.parent)) == []


def flip(file: Path, place: int) -> None:
    with open(file, "r+b") as handle:
        handle.seek(place)
        byte = handle.read(1)[0]
        handle.seek(place)
        handle.write(bytes([byte ^ 1]))


class TestDamage:
    @pytest.mark.parametrize("variable", VARIABLES)
    def test_one_bit_is_found(self, data: Path, variable: str, capsys: pytest.CaptureFixture) -> None:
        path = packed(data)[0].path
        size = open_recording(path).place(variable, 0).map().nbytes
        flip(path / FILES[variable], 128 + 5 * size + size // 2)
        assert main(["verify", str(path.parent), "--quiet"]) == 1
        out = capsys.readouterr().out.splitlines()
        assert out[0].startswith(f"error: mouse alpha trial 6: {FILES[variable]} is not what was packed")
        assert out[1].endswith("1 errors, 0 warnings")

    @pytest.mark.parametrize("file", [*FILES.values(), "store.json", "meta.safetensors"])
    @pytest.mark.parametrize("how", ["missing", "truncated", "longer", "header"])
    def test_damaged_files_are_found(self, data: Path, file: str, how: str) -> None:
        path = packed(data)[0].path
        content = (path / file).read_bytes()
        if how == "missing":
            (path / file).unlink()
        else:
            changed = {"truncated": content[:-5], "longer": content + b"0", "header": b"\x00" + content[1:]}[how]
            (path / file).write_bytes(changed)
        findings = list(verify(path)) if file != "store.json" or how != "missing" else []
        if findings:
            assert all(finding.severity == "error" and finding.mouse_id == "alpha" for finding in findings)
            assert file in findings[0].what
        else:
            with pytest.raises(DataError, match="holds no packed session"):
                list(verify(path))

    def test_changed_facts_are_found(self, data: Path) -> None:
        path = packed(data)[0].path
        text = (path / "store.json").read_text()
        (path / "store.json").write_text(text.replace('"durations": [24, 24, 8', '"durations": [24, 23, 8'))
        found = [f.what for f in verify(path)]
        assert found[0] == "store.json was changed after packing"
        assert "behavior.npy ends at another frame than store.json says" in found[2]
        (path / "store.json").write_text(text.replace('"version": 1', '"version": 2'))
        with pytest.raises(DataError, match="a store of version 2, but this release reads version 1"):
            open_recording(path)
        (path / "store.json").write_text(text.replace('"trials": [0, 1', '"trials": [0, 0'))
        with pytest.raises(DataError, match=r"store\.json: damaged"):
            open_recording(path)

    @pytest.mark.parametrize("how", ["missing", "truncated", "shape", "nan"])
    @pytest.mark.parametrize("workers", [0, 2])
    def test_damage_is_named_when_read(self, data: Path, how: str, workers: int) -> None:
        path = packed(data)[0].path
        store = recordings(path.parent, num_workers=workers, batch_size=5, mouse_ids=("alpha",), crop_frame=-1)
        file = path / "responses.npy"
        array = np.load(file)
        if how == "missing":
            file.unlink()
        elif how == "truncated":
            file.write_bytes(file.read_bytes()[:-1])
        else:
            array[8, 3, 2] = np.nan  # trial 9
            np.save(file, array[:, :, :4] if how == "shape" else array)
        with pytest.raises(DataError, match=r"mouse alpha, trial \d: .*responses\.npy.*viv1t-data verify") as raised:
            list(store.train_batches(0))
        if how == "nan":
            assert "trial 9" in str(raised.value)
            assert "NaN or infinity at frame 3" in str(raised.value)

    def test_statistics_that_were_never_there(self, data: Path) -> None:
        out = packed(data)[0].path.parent
        with pytest.raises(DataError, match="holds no provided statistics; --stat_mode 1 uses computed ones"):
            recordings(out, statistics="provided")
