"""Input made to harm, or broken by accident: one line, the right exit status, and nothing of it is ever run."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import shutil
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from commands import viv1t_evaluate, viv1t_train
from safetensors.torch import save_file
from tiny_runs import as_arguments, options

from viv1t.data.formats import archive
from viv1t.data.mice import open_recording
from viv1t.runs.checkpoint import FORMAT, read_checkpoint, write_checkpoint
from viv1t.runs.folder import RunFolder, save_published
from viv1t.types import SENSORIUM_SESSIONS

NAME = SENSORIUM_SESSIONS["F"]


class Canary:
    """What a malicious pickle does: makes a folder when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


@pytest.fixture
def mouse(mice: Path, tmp_path: Path) -> Path:
    """The session of mouse F in a folder of its own, to be damaged."""
    target = tmp_path / "data" / NAME
    shutil.copytree(mice / NAME, target, ignore=shutil.ignore_patterns("truth", "viv1t_*"))
    return target


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    """A finished run, to be damaged."""
    return Path(shutil.copytree(run, tmp_path / "copy"))


def one_line(main: Callable[[list[str]], int], argv: list[str], capsys: pytest.CaptureFixture[str], status: int) -> str:
    capsys.readouterr()
    assert main(argv) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("error: ") == 1
    assert err.count("\n") == 1, err
    return err


# -- recordings ------------------------------------------------------------------------------------------------------


def object_array(path: Path, canary: Path) -> None:
    with open(path, "wb") as file:
        np.save(file, np.array([Canary(canary)], dtype=object), allow_pickle=True)


def header(path: Path, text: str, version: tuple[int, int] = (1, 0), data: bytes = b"\0" * 64) -> None:
    size = struct.pack("<H" if version == (1, 0) else "<I", len(text))
    path.write_bytes(b"\x93NUMPY" + bytes(version) + size + text.encode() + data)


ARRAY = "{'descr': '<f4', 'fortran_order': False, 'shape': %s, }\n"
NPY: dict[str, tuple[Callable[[Path, Path], Any], str]] = {
    "object array": (object_array, "Object arrays cannot be loaded|neither numbers nor text"),
    "pickle": (lambda p, c: p.write_bytes(pickle.dumps(Canary(c))), "magic string"),
    "code in the header": (lambda p, c: header(p, f"__import__('os').mkdir({str(c)!r})\n"), "malformed node or string"),
    "code in the type": (
        lambda p, c: header(p, f"{{'descr': __import__('os').mkdir({str(c)!r}), 'fortran_order': False, 'shape': ()}}"),
        "malformed node or string",
    ),
    "structured": (lambda p, _: np.save(p, np.zeros(3, [("a", "f4"), ("b", "i4")])), "neither"),
    "complex": (lambda p, _: np.save(p, np.zeros((36, 64, 70), np.complex64)), "neither numbers nor text"),
    "text": (lambda p, _: np.save(p, np.full((36, 64, 70), "x")), "numbers"),
    "dates": (lambda p, _: np.save(p, np.zeros((36, 64, 70), "M8[s]")), "neither numbers nor text"),
    "another version": (lambda p, _: header(p, ARRAY % "(1,)", (4, 0)), "npy format 4.0"),
    "a huge header": (lambda p, _: header(p, " " * 100_000 + ARRAY % "(1,)", (2, 0)), "large|cannot|Header"),
    "a header that is cut": (lambda p, _: p.write_bytes(b"\x93NUMPY\x01\x00\xff\xff{"), "EOF|header"),
    "more than it holds": (lambda p, _: header(p, ARRAY % "(36, 64, 70)"), "it is truncated"),
    "more than there is": (lambda p, _: header(p, ARRAY % "(10**9, 10**9, 10**9)".replace("10**9", "1" + "0" * 9)),
                           "it is truncated"),
    "a negative shape": (lambda p, _: header(p, ARRAY % "(-36, 64, 70)"), "truncated"),
    "a shape of words": (lambda p, _: header(p, ARRAY % "('a', 'b')"), "shape|not valid|header"),
    "nothing": (lambda p, _: p.write_bytes(b""), "EOF|magic"),
    "noise": (lambda p, _: p.write_bytes(bytes(range(256)) * 8), "magic string"),
    "a folder": (lambda p, _: (p.unlink(), p.mkdir()), "[Ii]s a directory"),
    "a loop of links": (lambda p, _: (p.unlink(), p.symlink_to(p)), "symbolic links"),
}  # fmt: skip
PLACES = ["data/videos/0.npy", "data/responses/0.npy", "meta/trials/tiers.npy", "meta/neurons/unit_ids.npy"]


@pytest.mark.parametrize("kind", NPY)
def test_arrays(mouse: Path, tmp_path: Path, canary: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    damage, message = NPY[kind]
    # Where trials lie, and where the session is described.
    for place in PLACES if kind == "object array" else PLACES[:1]:
        trial = open_recording(mouse, "F").trials("train")[0]
        path = mouse / place.replace("/0.npy", f"/{trial}.npy")
        whole = path.read_bytes()
        damage(path, canary)
        line = one_line(viv1t_train, command(mouse, tmp_path), capsys, 1)
        assert str(path) in line
        assert_matches(message, line)
        if path.is_file():
            path.write_bytes(whole)
    assert not (tmp_path / "run").exists()
    assert not canary.exists()


def command(mouse: Path, tmp_path: Path, **changes: Any) -> list[str]:
    given = {"mouse_ids": ["F"], "verbose": 0, "epochs": 1}
    return as_arguments(options(mouse.parent, tmp_path / "run", **given | changes))


def assert_matches(pattern: str, text: str) -> None:
    assert re.search(pattern, text), f"{pattern!r} not in {text!r}"


def test_pickles_among_provided_statistics(
    mouse: Path, tmp_path: Path, canary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = mouse / "meta" / "statistics" / "videos" / "all" / "min.npy"
    path.parent.mkdir(parents=True, exist_ok=True)
    for damage in (object_array, lambda p, c: p.write_bytes(pickle.dumps(Canary(c)))):
        damage(path, canary)
        line = one_line(viv1t_train, command(mouse, tmp_path, stat_mode=0), capsys, 1)
        assert f"mouse F: {path}" in line
    assert not canary.exists()


@pytest.mark.parametrize("content", [b"", b"\xff" * 100, struct.pack("<Q", 1 << 40) + b"{}", b"\x02\0\0\0\0\0\0\0{}"])
def test_a_damaged_cache_of_statistics_is_made_anew(mouse: Path, tmp_path: Path, content: bytes) -> None:
    cache = mouse / "meta" / "viv1t_statistics.safetensors"
    cache.write_bytes(content)
    assert viv1t_train(command(mouse, tmp_path, epochs=0)) == 0
    assert len(cache.read_bytes()) > 1000


def zipped(mouse: Path, extra: Callable[[zipfile.ZipFile], Any] | None = None) -> Path:
    """The session as an archive in its place."""
    target = mouse.with_name(mouse.name + ".zip")
    with zipfile.ZipFile(target, "w") as file:
        for path in sorted(mouse.rglob("*.npy")):
            file.write(path, f"{mouse.name}/{path.relative_to(mouse)}")
        if extra is not None:
            extra(file)
    shutil.rmtree(mouse)
    return target


def link(file: zipfile.ZipFile) -> None:
    info = zipfile.ZipInfo(f"{NAME}/data/link")
    info.external_attr = 0o120777 << 16
    file.writestr(info, "/etc/passwd")


def cut(path: Path, share: float) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def spoil(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 255
    path.write_bytes(content)


def bomb(file: zipfile.ZipFile) -> None:
    file.writestr(f"{NAME}/data/videos/9.npy", bytes(30 << 20), zipfile.ZIP_DEFLATED)


ARCHIVES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "outside": (lambda m: zipped(m, lambda z: z.writestr("../outside", b"x")), "points outside its folder"),
    "absolute": (lambda m: zipped(m, lambda z: z.writestr("/tmp/viv1t-outside", b"x")), "points outside its folder"),
    "backslashes": (lambda m: zipped(m, lambda z: z.writestr("..\\outside", b"x")), "points outside its folder"),
    "link": (lambda m: zipped(m, link), "a link or a device"),
    "bomb": (lambda m: zipped(m, bomb), "more than a recording can have"),
    "twice": (lambda m: zipped(m, lambda z: z.writestr(f"{NAME}/meta/trials/tiers.npy", b"x")), "expected one session"),
    "half": (lambda m: cut(zipped(m), 0.5), "damaged or unsupported archive"),
    "changed": (lambda m: spoil(zipped(m)), "damaged or unsupported archive"),
    "no archive": (lambda m: zipped(m).write_bytes(b"PK" + bytes(100)), "damaged or unsupported archive"),
    "empty": (lambda m: zipped(m).write_bytes(b""), "damaged or unsupported archive"),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("kind", ARCHIVES)
def test_archives(
    mouse: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    damage, message = ARCHIVES[kind]
    if kind == "bomb":  # a small one
        monkeypatch.setattr(archive, "RATIO_FREE", 1 << 20)
        monkeypatch.setattr(archive, "MAX_RATIO", 1)
    damage(mouse)
    line = one_line(viv1t_train, command(mouse, tmp_path), capsys, 1)
    assert_matches(message, line)
    assert [p.name for p in mouse.parent.iterdir()] == [f"{NAME}.zip"]  # nothing half extracted
    assert not (tmp_path / "outside").exists()
    assert not Path("/tmp/viv1t-outside").exists()


# -- runs ------------------------------------------------------------------------------------------------------------


def published(run: Path, content: Callable[[Path], Any]) -> None:
    """Puts a published checkpoint in the place of ours."""
    (run / "ckpt" / "best.safetensors").unlink()
    content(run / "ckpt" / "model_state.pt")


def bomb_pt(path: Path) -> None:
    torch.save({"model": {"a": torch.zeros(1 << 18)}}, path)
    with zipfile.ZipFile(path) as source:
        parts = {name: source.read(name) for name in source.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, part in parts.items():
            packed.writestr(name, part)


def tar_pt(path: Path, canary: Path) -> None:
    """The oldest of PyTorch's formats."""
    with tarfile.open(path, "w") as tar:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            content = pickle.dumps(Canary(canary))
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def huge_pt(path: Path) -> None:
    """A terabyte that takes no room: one number, repeated."""
    model = {"core.norm.weight": torch.zeros(1).expand(1 << 38)}
    torch.save({"model": model}, path)


PT: dict[str, tuple[Callable[[Path, Path], Any], str]] = {
    "pickle": (lambda p, c: p.write_bytes(pickle.dumps(Canary(c))), "not readable as a checkpoint"),
    "pickle in it": (lambda p, c: torch.save({"model": {"a": Canary(c)}}, p), "not readable as a checkpoint"),
    "pickle beside": (lambda p, c: torch.save({"model": {}, "optimizer": Canary(c)}, p), "not readable as a"),
    "a whole module": (lambda p, _: torch.save(torch.nn.Linear(2, 2), p), "not readable as a checkpoint"),
    "old format": (lambda p, c: torch.save(Canary(c), p, _use_new_zipfile_serialization=False), "not readable as a"),
    "oldest format": (tar_pt, "not readable as a checkpoint"),
    "bomb": (lambda p, _: bomb_pt(p), "would unpack to"),
    "huge by repetition": (lambda p, _: huge_pt(p), "does not fit the model"),
    "half": (lambda p, _: (torch.save({"model": {"a": torch.zeros(9999)}}, p), cut(p, 0.5)), "not readable as a"),
    "nothing": (lambda p, _: p.write_bytes(b""), "not readable as a checkpoint"),
    "other content": (lambda p, _: torch.save({"model": {"a": 3}}, p), "named tensors was expected"),
}


@pytest.mark.parametrize("kind", PT)
def test_published_checkpoints(copy: Path, canary: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    damage, message = PT[kind]
    published(copy, lambda path: damage(path, canary))
    line = one_line(viv1t_evaluate, [str(copy)], capsys, 1)
    assert str(copy / "ckpt" / "model_state.pt") in line
    assert_matches(message, line)
    assert not canary.exists()


def nested_facts(path: Path) -> None:
    save_file({"a": torch.zeros(1)}, path, metadata={FORMAT: "[" * 100_000})


def forged(path: Path, **changes: Any) -> None:
    """A checkpoint with another content and the right checksum."""
    tensors, facts = read_checkpoint(path)
    write_checkpoint(path, tensors | changes, facts)


HEADER = json.dumps({"a": {"dtype": "F32", "shape": [1 << 40, 1 << 40], "data_offsets": [0, 4]}}).encode()
OURS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "nothing": (lambda p: p.write_bytes(b""), "damaged"),
    "a pickle": (lambda p: p.write_bytes(pickle.dumps([1, 2, 3])), "damaged"),
    "half": (lambda p: cut(p, 0.5), "damaged"),
    "a changed byte": (spoil, "damaged"),
    "a header of exabytes": (lambda p: p.write_bytes(struct.pack("<Q", 1 << 62) + b"{}"), "damaged"),
    "tensors of exabytes": (lambda p: p.write_bytes(struct.pack("<Q", len(HEADER)) + HEADER + b"\0" * 4), "damaged"),
    "facts without end": (nested_facts, "damaged"),
    "facts that are none": (lambda p: save_file({"a": torch.zeros(1)}, p, metadata={FORMAT: "3"}), "damaged"),
    "another program's": (lambda p: save_file({"a": torch.zeros(1)}, p), "not a checkpoint of this program"),
    "other shapes": (lambda p: forged(p, **{"model/readouts.F.bias": torch.zeros(3)}), "misshaped"),
    "a folder": (lambda p: (p.unlink(), p.mkdir()), "no checkpoint"),
}


@pytest.mark.parametrize("kind", OURS)
def test_our_checkpoints(copy: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    damage, message = OURS[kind]
    damage(copy / "ckpt" / "best.safetensors")
    line = one_line(viv1t_evaluate, [str(copy)], capsys, 1)
    assert "best.safetensors" in line
    assert_matches(message, line)


# -- YAML ------------------------------------------------------------------------------------------------------------

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)
MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 12))
YAML: dict[str, tuple[str | bytes, str]] = {
    "a call": ("data: !!python/object/apply:os.mkdir [CANARY]\n", "not readable as YAML"),
    "a new object": ("data: !!python/object/new:os.mkdir [CANARY]\n", "not readable as YAML"),
    "a name": ("data: !!python/name:os.system\n", "not readable as YAML"),
    "a module": ("data: !!python/module:os\n", "not readable as YAML"),
    "a bomb of aliases": (LAUGHS, "aliases stand for more than"),
    "a bomb of merges": (MERGES, "aliases stand for more than"),
    "itself": ("a: &a [*a]\n", "contains itself"),
    "too deep": ("a: " + "[" * 2000 + "]" * 2000, "nested too deeply"),
    "too much": ("a: " + "x" * (1 << 20), "more than 1048576 bytes"),
    "too many": ("a: [" + "1," * 500_000 + "]", "more than 100000 values"),
    "a key twice": ("lr: 1\nepochs: 2\nlr: 3\n", "the key 'lr' is given twice, in lines 1 and 3"),
    "no text": (b"\xff\xfe\x00\x01", "not readable as YAML"),
    "a number of 10,000 digits": ("lr: " + "1" * 10_000, "not readable as YAML"),
    "a day that is none": ("lr: !!timestamp 2001-99-99\n", "not readable as YAML"),
    "tabs": ("a:\n\t- b\n", "not readable as YAML"),
    "a list": ("- 1\n", "a mapping of"),
    "a key that is none": ("? [a, b]\n: c\n", "not readable as YAML"),
    "two documents": ("a: 1\n---\nb: 2\n", "not readable as YAML"),
}


@pytest.mark.parametrize("kind", YAML)
def test_yaml(copy: Path, canary: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    text, message = YAML[kind]
    content = text if isinstance(text, bytes) else text.replace("CANARY", str(canary)).encode()
    (tmp_path / "options.yaml").write_bytes(content)
    line = one_line(viv1t_train, ["--config", str(tmp_path / "options.yaml")], capsys, 2)
    assert f"--config {tmp_path / 'options.yaml'}: " in line
    assert_matches(message, line)
    (copy / "args.yaml").write_bytes(content)
    line = one_line(viv1t_evaluate, [str(copy)], capsys, 1)
    assert f"{copy / 'args.yaml'}: " in line
    assert_matches(message, line)
    assert not canary.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"core_emb_dim": 10**6}, "does not fit the model"), ({"core_emb_dim": 10**9}, "must be at most 1000000"),
     ({"core_emb_dim": 10**30}, "cannot be built|must be"),
     ({"core_spatial_depth": 10**9}, "--core_spatial_depth must be from 0 to 1000"),
     ({"output_shapes": {"F": [10**12, 40], "G": [6, 40]}}, "belongs to another run"),
     ({"input_shapes": {"video": [1, 40, 10**6, 10**6]}}, "does not fit the model|cannot be built"),
     ({"core": "../../etc"}, "--core must be one of"), ({"lr": float("nan")}, "--lr must be"),
     ({"data": {"a": 1}}, "--data takes a word")],
)  # fmt: skip
def test_options_that_describe_the_impossible(
    copy: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], message: str
) -> None:
    args = yaml.safe_load((copy / "args.yaml").read_text())
    (copy / "args.yaml").write_text(yaml.safe_dump(args | changes))
    line = one_line(viv1t_evaluate, [str(copy)], capsys, 1)
    assert_matches(message, line)


def test_a_published_run_still_loads(copy: Path, tmp_path: Path) -> None:
    out = save_published(RunFolder(copy), tmp_path / "out")
    assert RunFolder(out).load_model().mouse_ids == ["F", "G"]
    # Equal lists become aliases.
    shape = [6, 40]
    args = yaml.safe_load((out / "args.yaml").read_text()) | {"output_shapes": {"F": shape, "G": shape}}
    (out / "args.yaml").write_text(yaml.safe_dump(args))
    assert "*id001" in (out / "args.yaml").read_text()
    RunFolder(out).load_model()
