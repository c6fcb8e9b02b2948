"""Checkpoints that the published code wrote: PyTorch's archives, read whole or not at all, and without running them."""

from __future__ import annotations

import io
import re
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.serialization import safe_globals

from viv1t.errors import CheckpointError

_NUMBERS = "fiub"  # floats, integers, unsigned ones, booleans: NumPy's letters


class _NumberType:
    """Stands for `numpy.dtype` while a checkpoint is read: the type of a number, nothing else."""

    def __init__(self, code: str, *_: Any) -> None:
        if not re.fullmatch(f"[{_NUMBERS}][1248]", code):
            raise ValueError(f"a NumPy value of the type {code!r}")
        self.code, self.order = code, "|"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]


def _number(kind: _NumberType, data: bytes) -> int | float:
    """Stands for NumPy's constructor of scalars: the number that `data` holds."""
    letter = {
        "f2": "e", "f4": "f", "f8": "d", "b1": "?",
        "i1": "b", "i2": "h", "i4": "i", "i8": "q", "u1": "B", "u2": "H", "u4": "I", "u8": "Q",
    }[kind.code]  # fmt: skip
    value: int | float = struct.unpack({">": ">"}.get(kind.order, "<") + letter, data)[0]
    return value


# A loop that keeps `np.mean(...)` stores NumPy's scalars. Of NumPy itself nothing is called.
_SCALARS: list[Any] = [
    (_NumberType, "numpy.dtype"), (_number, "numpy.core.multiarray.scalar"), (_number, "numpy._core.multiarray.scalar"),
]  # fmt: skip


def read_published(path: Path, wrapped: bool = True) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A model's state in a published checkpoint and the numbers beside it, read without running anything in it.

    Args:
        path: the file.
        wrapped: whether the state is the entry `model` of a mapping; else it is all there is.

    Raises:
        CheckpointError: the file is damaged, holds objects other than tensors and numbers, or has no model.
    """
    content = read_archive(path)
    model = content if not wrapped else content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in model.items()):
        expected = "with an entry 'model' of named tensors" if wrapped else "of named tensors"
        raise CheckpointError(f"{path}: a mapping {expected} was expected")
    for name, value in model.items():
        if value.device.type != "cpu" or value.layout != torch.strided or value.is_quantized:
            found = "no values" if value.is_meta else f"values on {value.device}, {value.layout}"
            raise CheckpointError(f"{path}: {name} holds {found}: save the model's state from the CPU, and in full")
    numbers = {key: value for key, value in content.items() if wrapped and isinstance(value, int | float)}
    return {name: value.detach() for name, value in model.items()}, numbers


def read_archive(path: Path) -> Any:
    """The tensors, numbers and text in one of PyTorch's archives, read without running anything in it.

    Raises:
        CheckpointError: the file is damaged, or holds other objects.
    """
    try:
        checked = _checked_copy(path)
        with warnings.catch_warnings(action="ignore"), safe_globals(_SCALARS):  # warnings of pickles that it refuses
            return torch.load(checked, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many kinds for damaged files
        raise CheckpointError(f"{path}: not readable as a checkpoint of tensors ({_reason(error)})") from error


def _checked_copy(path: Path) -> io.BytesIO:
    """The archive written anew, from entries that fit their checksums.

    PyTorch compares no checksums, and takes other fields of the archive at their word: one that calls an entry a folder
    makes a tensor of whatever is in memory. It is given nothing of the file but what was checked.

    Raises:
        ValueError: the file is not a whole archive as PyTorch writes them.
    """
    if not path.is_file():
        raise ValueError("no such file")
    if not zipfile.is_zipfile(path):
        raise ValueError("not an archive as PyTorch writes them, or it is cut short; copy it again")
    copy = io.BytesIO()
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(copy, "w") as anew:
        entries = archive.infolist()
        unpacked = sum(entry.file_size for entry in entries)
        if unpacked > path.stat().st_size or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError(f"it would unpack to {unpacked} bytes")  # PyTorch stores tensors as they are
        if len({entry.filename for entry in entries}) < len(entries):
            raise ValueError("two of its entries have the same name")
        for entry in entries:
            try:
                content = archive.read(entry)
            except (zipfile.BadZipFile, EOFError, OSError, RuntimeError, ValueError) as error:
                name = entry.filename.partition("/")[2] or entry.filename
                raise ValueError(f"its entry {name!r} does not fit its checksum: the file is damaged") from error
            anew.writestr(zipfile.ZipInfo(entry.filename), content)
    copy.seek(0)
    return copy


def _reason(error: Exception) -> str:
    """Why PyTorch could not read a file, in a few words of one line."""
    text = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", str(error)).split())
    if found := re.search(r"Unsupported global: GLOBAL ([\w.]+)|unrecognized function ([^.]+)", text):
        return f"it holds {found[1] or found[2]}, where tensors, numbers and text are expected"
    text = text.rpartition("WeightsUnpickler error: ")[2]
    return re.split(r"(?<=\w)[.;:]? (?:Please|Check the documentation)", text)[0][:200] or type(error).__name__
