"""What cannot be exported is refused, with the reason."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from viv1t.errors import ConfigError
from viv1t.export.files import Settings, check_exportable

sys.path.append(str(Path(__file__).resolve().parents[1] / "model"))

from small_models import small_model

PER_MOUSE: dict[str, Any] = {"core_behavior_mode": 5}


@pytest.mark.parametrize(
    ("options", "runs", "settings", "words"),
    [
        ({"readout": "random"}, 1, Settings(), "nothing to export"),
        ({}, 2, Settings(split=True), "an ensemble has no core that all its readouts share"),
        ({}, 1, Settings(split=True, transforms=True), "the core serves all mice"),
        (PER_MOUSE, 1, Settings(split=True), "--core_behavior_mode 5 has parts of each"),
        ({"core_temporal_patch_stride": 2}, 2, Settings(), "cannot form an ensemble"),
    ],
)
def test_refused(options: dict[str, Any], runs: int, settings: Settings, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check_exportable([small_model(**options)] * runs, settings)


@pytest.mark.parametrize("settings", [Settings(), Settings(transforms=True), Settings(precision="int8")])
def test_accepted(settings: Settings) -> None:
    check_exportable([small_model(**PER_MOUSE)] * 2, settings)
    check_exportable([small_model(core_temporal_patch_stride=2)], settings)
