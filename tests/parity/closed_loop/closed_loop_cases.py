"""The golden numbers of the family of 2025: where they lie, and a case's model and inputs."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from golden_files import golden_folder
from safetensors.torch import load_file
from torch import Tensor

from viv1t.families.closed_loop.build import build_model
from viv1t.families.closed_loop.names import from_published
from viv1t.families.closed_loop.options import ClosedLoopConfig
from viv1t.model.twin import Neurons, ViV1T


def closed_loop_folder() -> Path:
    """The numbers of the second family lie beside those of the first."""
    return golden_folder().parent / "golden_closed_loop"


def case_names(kind: str, slow: tuple[str, ...] = ()) -> list[Any]:
    """The cases of a kind as parameters; one that is skipped where the numbers are not there."""
    names = [f.name for f in sorted((closed_loop_folder() / kind).glob("*"))]
    if not names:
        reason = f"golden numbers not found at {closed_loop_folder()}"
        return [pytest.param("", marks=pytest.mark.skip(reason=reason))]
    return [pytest.param(n, marks=pytest.mark.slow) if n in slow else n for n in names]


def required() -> Path:
    """The folder; skips the test where it is not there."""
    folder = closed_loop_folder()
    if not (folder / "README.md").exists():
        pytest.skip(f"golden numbers not found at {folder}")
    return folder


def error(a: Tensor, b: Tensor) -> float:
    """Relative Frobenius distance."""
    assert a.shape == b.shape
    return float((a.double() - b.double()).norm() / b.double().norm())


class Case:
    """One run folder with its tensors."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.name = folder, folder.name
        self.options = json.loads((folder / "config.json").read_text())
        self.tensors = load_file(folder / "tensors.safetensors")
        self.state = torch.load(folder / "ckpt" / "model.pt", weights_only=True)
        self.mice: list[str] = self.options["mouse_ids"]
        meta = folder / "meta.json"
        self.meta: dict[str, Any] = json.loads(meta.read_text()) if meta.exists() else {}

    def model(self, dtype: torch.dtype = torch.float32, **changed: Any) -> ViV1T:
        """A model with the case's weights; `changed` options replace the case's."""
        config = ClosedLoopConfig.from_published(self.options | changed)
        mice = {m: Neurons(self.options["output_shapes"][m][0]) for m in self.mice}
        height, width = self.options["input_shapes"]["video"][-2:]
        model = build_model(config, mice, (height, width))
        model.load_state_dict(from_published(model, self.state, self.name))
        return model.to(dtype)

    def inputs(
        self, mouse: str, prefix: str = "inputs", dtype: torch.dtype = torch.float32
    ) -> tuple[Tensor, str, Tensor, Tensor]:
        """video, mouse, behavior, pupil_center."""
        names = ("video", "behavior", "pupil_center")
        video, behavior, pupil = (self.tensors[f"{prefix}/{name}/{mouse}"].to(dtype) for name in names)
        return video, mouse, behavior, pupil


@cache
def model_case(name: str) -> Case:
    """A folder of golden_closed_loop/model."""
    return Case(closed_loop_folder() / "model" / name)
