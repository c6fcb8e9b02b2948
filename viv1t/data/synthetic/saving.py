"""Files of a synthetic session, whose folder has a hidden name until it is complete."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from viv1t.system.files import save_npy, writing


def save_array(path: Path, array: np.ndarray) -> None:
    """Writes an array to disk for good; its folder is made when missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing(path), path.open("wb") as file:
        save_npy(file, array)
        os.fsync(file.fileno())


def save_text(path: Path, text: str) -> None:
    """Writes a text file in the same way."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing(path), path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def save_json(path: Path, value: Any) -> None:
    """Writes a value as JSON in the same way."""
    save_text(path, json.dumps(value, indent=1) + "\n")
