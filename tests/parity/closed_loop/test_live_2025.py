"""A causal run, exported with --live: ONNX Runtime follows a movie as PyTorch does, and commands follow pipes."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from closed_loop_cases import required
from commands import viv1t_export, viv1t_predict
from tiny_runs import ran

pytest.importorskip("onnxruntime", reason="the extra [onnx] is not installed")

import viv1t
from viv1t.data.mice import open_recording
from viv1t.errors import CheckpointError, ConfigError, DataError
from viv1t.onnx_model import OnnxModel
from viv1t.onnx_stream import LiveShape, OnnxStream
from viv1t.prediction.live import raw_frames
from viv1t.runs.ensemble import open_ensemble
from viv1t.stream import Stream
from viv1t.types import SENSORIUM_SESSIONS

FRAMES = 20


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def data() -> Path:
    return required() / "run" / "data"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published run, as if it had been trained causal."""
    source, folder = required() / "run" / "run", tmp_path_factory.mktemp("causal")
    (folder / "ckpt").mkdir()
    for name in ("ckpt/model.pt", "ckpt/info.yaml"):
        (folder / name).write_bytes((source / name).read_bytes())
    args = yaml.safe_load((source / "args.yaml").read_text()) | {"core_use_causal_attention": True, "adam_eps": 1e-8}
    (folder / "args.yaml").write_text(yaml.safe_dump(args))
    return folder


@pytest.fixture(scope="module")
def exported(run: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    assert viv1t_export([str(run), "--live", "--data", str(data), "--output_dir", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def files(exported: Path) -> list[Path]:
    return [exported / "live_G.onnx", exported / "live_H.onnx"]


@pytest.fixture(scope="module")
def recorded(data: Path) -> dict[str, np.ndarray]:
    """A recorded trial of mouse G: video (T, H, W), behavior and pupil_center (2, T)."""
    session = open_recording(data / "sensorium" / SENSORIUM_SESSIONS["G"], "G")
    trial = session.trials("validation")[0]
    found = {name: session.read(name, trial) for name in ("video", "behavior", "pupil_center")}
    return found | {"video": np.moveaxis(found["video"], -1, 0)}


def movie(frames: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    shapes = ((frames, 16, 28), (2, frames), (2, frames))
    video, behavior, pupil_center = (generator.standard_normal(shape, np.float32) for shape in shapes)
    return video, behavior, pupil_center


def distance(a: np.ndarray, b: np.ndarray) -> float:
    assert a.shape == b.shape
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def test_it_follows_as_pytorch_does(run: Path, files: list[Path]) -> None:
    there, here, inputs = OnnxStream(files), Stream(run), movie(330)
    assert there.mouse_ids == here.mouse_ids == ["G", "H"]
    for start, end in ((0, 1), (1, 3), (3, 10), (10, 330)):  # past the caches' first rows, and past 300 frames
        parts = [x[start:end] if x.ndim == 3 else x[:, start:end] for x in inputs]
        found, expected = there.push(*parts), here.push(*parts)
        for mouse in ("G", "H"):
            assert distance(found[mouse], expected[mouse]) < 1e-5
    there.rewind(310)
    here.rewind(310)
    for stream in (there, here):
        with pytest.raises(ConfigError, match="frame must be from 300 to 310"):
            stream.rewind(299)
    assert distance(there.push(*movie(5, 1))["G"], here.push(*movie(5, 1))["G"]) < 1e-5
    there.reset()
    whole = viv1t.load_model(run)
    video, behavior, pupil_center = movie(12)
    with torch.no_grad():
        expected = whole(video, mouse_id="H", behavior=behavior, pupil_center=pupil_center)[0].numpy()
    assert distance(there.push(video, behavior, pupil_center)["H"], expected) < 1e-5


def test_mice_share_a_core_pass_until_their_inputs_differ(files: list[Path], run: Path) -> None:
    video, behavior, pupil_center = movie(10)
    there, alone = OnnxStream(files), OnnxStream(files[1])
    for i in range(10):
        other = behavior[:, i] + (i > 4)
        found = there.step(video[i], {"G": behavior[:, i], "H": other}, pupil_center[:, i])
        expected = alone.step(video[i], other, pupil_center[:, i])
        assert there.lanes == (1 if i <= 4 else 2)
        np.testing.assert_array_equal(found["H"], expected["H"])


def test_a_rig_needs_no_pytorch(files: list[Path]) -> None:
    program = (
        "import sys, numpy as np, viv1t\n"
        f"twin = viv1t.OnnxStream({[str(f) for f in files]!r})\n"
        "print({m: r.shape for m, r in twin.step(np.zeros((16, 28)), [0, 0], [0, 0]).items()})\n"
        "assert not {'torch', 'onnx'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("{'G': (")


def test_recorded_values_are_transformed(
    run: Path, data: Path, files: list[Path], recorded: dict[str, np.ndarray]
) -> None:
    there = OnnxStream(files, recorded=True)
    models, recordings = open_ensemble([run], torch.device("cpu"), str(data))
    transforms = {mouse: recordings.transform(mouse) for mouse in ("G", "H")}
    here = Stream(models[0], transforms=transforms, units="scaled")
    for i in range(FRAMES):
        given = recorded["video"][i], recorded["behavior"][:, i], recorded["pupil_center"][:, i]
        found, expected = there.step(*given), here.step(*given)
        for mouse in ("G", "H"):
            assert distance(found[mouse], expected[mouse]) < 1e-5
    assert there.step(recorded["video"][0])["G"].shape == found["G"].shape  # at the medians
    recordings.close()


def test_files_of_other_kinds_are_refused(files: list[Path], exported: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"follows a movie frame by frame: use viv1t\.OnnxStream"):
        OnnxModel(files[0])
    with pytest.raises(ConfigError, match="is the core that all mice share"):
        OnnxStream(exported / "live_core.onnx")
    with pytest.raises(ConfigError, match="mouse G is given twice"):
        OnnxStream([files[0], files[0]])
    (tmp_path / "live_G.onnx").write_bytes(files[0].read_bytes())
    with pytest.raises(CheckpointError, match=r"live_core\.onnx: no such file"):
        OnnxStream(tmp_path / "live_G.onnx")
    (tmp_path / "live_core.onnx").write_bytes(files[0].read_bytes())
    with pytest.raises(CheckpointError, match="not the core of an export with --live"):
        OnnxStream(tmp_path / "live_G.onnx")


@pytest.mark.parametrize("text", ["[]", "{}", '{"window": 1}'])
def test_sizes_that_no_core_has_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="were expected"):
        LiveShape.from_text(text)
    good = dict.fromkeys(LiveShape.__dataclass_fields__, 1)
    assert LiveShape.from_text(json.dumps(good)).window == 1
    for bad in ({"tokens": 10**9}, {"stride": 0}, {"window": 2.5}, {"blocks": -1}):
        with pytest.raises(ValueError, match="sizes that no core has"):
            LiveShape.from_text(json.dumps(good | bad))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--live", "--transforms"], "--live cannot take --transforms: .* recorded=True"),
        (["--live"], "not causal .* cannot follow a movie"),
    ],
)
def test_what_cannot_follow_is_not_exported(
    more: list[str], words: str, run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = run if "--transforms" in more else required() / "run" / "run"
    line = ran(viv1t_export, [source, "--data", data, "--output_dir", tmp_path / "out", *more], capsys, 2)
    assert re.search(words, line)
    assert not (tmp_path / "out").exists()


# -- commands --------------------------------------------------------------------------------------------------------


class Pipe:
    """Standard input or output made of bytes."""

    def __init__(self, content: bytes = b"") -> None:
        self.buffer = io.BytesIO(content)

    def isatty(self) -> bool:
        return False


def followed(
    words: list[Any], content: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, format: str = "jsonl"
) -> bytes:
    """What `viv1t-predict --live` makes of frames."""
    out = tmp_path / "out"
    monkeypatch.setattr(sys, "stdin", Pipe(content))
    given = [*words, "--live", "--live_out", out, "--format", format, "--quiet", "--device", "cpu"]
    assert viv1t_predict([str(word) for word in given]) == 0
    return out.read_bytes()


def test_a_pipe_is_followed_by_a_run_and_by_files_alike(
    run: Path, data: Path, files: list[Path], recorded: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:  # fmt: skip
    video = recorded["video"][:FRAMES].astype(np.uint8)
    for name in ("behavior", "pupil_center"):
        np.save(tmp_path / f"{name}.npy", recorded[name])
    states = ["--behavior", tmp_path / "behavior.npy", "--pupil_center", tmp_path / "pupil_center.npy"]
    of_run = followed([run, "--data", data, *states], video.tobytes(), monkeypatch, tmp_path)
    lines = [json.loads(line) for line in of_run.splitlines()]
    assert [line["frame"] for line in lines] == list(range(FRAMES))
    stream = OnnxStream(files, recorded=True)
    steps = [stream.step(video[i], *(recorded[n][:, i] for n in ("behavior", "pupil_center"))) for i in range(FRAMES)]
    for mouse in ("G", "H"):
        found = np.array([line["responses"][mouse] for line in lines])
        assert distance(found, np.stack([step[mouse] for step in steps])) < 1e-5
    raw = followed([*files, *states], video.tobytes(), monkeypatch, tmp_path, "float32")
    numbers = np.frombuffer(raw, "<f4").reshape(FRAMES, -1)
    assert np.array_equal(numbers, np.stack([np.concatenate([step["G"], step["H"]]) for step in steps]))
    text = followed([files[1], *states], video.tobytes(), monkeypatch, tmp_path, "csv").decode().splitlines()
    assert text[0].startswith("frame,H:0,H:1")
    assert len(text) == FRAMES + 1
    assert distance(np.array([float(x) for x in text[-1].split(",")[1:]]), steps[-1]["H"]) < 1e-6


def test_states_that_come_with_the_frames(run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    video, behavior, pupil_center = movie(6)
    content = b"".join(
        video[i].tobytes() + np.concatenate((behavior[:, i], pupil_center[:, i])).tobytes() for i in range(6)
    )
    words = [run, "--transformed", "--with_state", "--pixels", "float32", "--mouse_ids", "G"]
    found = np.frombuffer(followed(words, content, monkeypatch, tmp_path, "float32"), "<f4").reshape(6, -1)
    assert distance(found.T, Stream(run, ["G"]).push(video, behavior, pupil_center)["G"]) < 1e-6


@pytest.mark.parametrize(
    ("more", "size", "status", "words"),
    [
        ([], 448 + 5, 1, r"the frames end within frame 1: 5 bytes of 448 \(16 x 28 pixels of gray8\)"),
        ([], 0, 1, "no frame came"),
        (["--format", "npy"], 448, 2, "--format must be jsonl, csv, float32 with --live, not npy"),
        (["--tier", "train"], 448, 2, "leave --tier out"),
        (["--transformed"], 448, 2, "--transformed needs --behavior and --pupil_center"),
        (["--units", "recorded"], 448, 2, "--units recorded needs the run"),
        (["--behavior", "{tmp}/short.npy"], 448 * 3, 1, r"--behavior: has 2 frames, but frame 2 has come"),
        (["--behavior", "{tmp}/nan.npy"], 448, 1, "--behavior: holds values that are not finite"),
        (["--mouse_ids", "Z"], 448, 2, "--mouse_ids Z: no file"),
    ],
)
def test_mistakes_are_one_line(
    more: list[str], size: int, status: int, words: str, files: list[Path], monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    np.save(tmp_path / "short.npy", np.zeros((2, 2)))
    np.save(tmp_path / "nan.npy", np.array([0, np.nan]))
    monkeypatch.setattr(sys, "stdin", Pipe(bytes(size)))
    out = ["--live_out", tmp_path / "out"]
    given = [*files, "--live", "--quiet", *out, *(word.format(tmp=tmp_path) for word in more)]
    assert re.search(words, ran(viv1t_predict, given, capsys, status))


def test_live_options_alone_are_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--after is for --live" in ran(viv1t_predict, [run, "--after", "stop"], capsys, 2)
    assert "--format csv is for --live" in ran(viv1t_predict, [run, "--format", "csv"], capsys, 2)


def test_frames_go_out_before_the_next_one_comes_and_a_reader_that_leaves_ends_it(files: list[Path]) -> None:
    command = [sys.executable, "-m", "viv1t.cli.predict", str(files[0]), "--live", "--format", "float32", "--quiet"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    size = 4 * OnnxModel(files[0], live=True).neurons
    for _ in range(2):
        process.stdin.write(bytes(448))
        process.stdin.flush()
        assert len(process.stdout.read(size)) == size
    process.stdout.close()
    process.stdin.write(bytes(448 * 3))
    process.stdin.close()
    assert process.wait(60) == 141
    assert process.stderr.read() == b""
    process.stderr.close()


def test_raw_frames_come_in_any_pieces() -> None:
    class Slow(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read(min(3, size or 0))

    content = np.arange(24, dtype="<u2").tobytes()  # two frames
    found = list(raw_frames(Slow(content), (3, 4), "gray16"))
    assert [state for _, state in found] == [None, None]
    np.testing.assert_allclose(np.stack([frame for frame, _ in found]).ravel(), np.arange(24) / 257, rtol=1e-6)
    with pytest.raises(DataError, match="frame 1: 23 bytes of 24"):
        list(raw_frames(Slow(content[:47]), (3, 4), "gray16"))
