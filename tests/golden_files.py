"""Where the golden numbers lie. A module of its own, so that test files can list cases while they are collected."""

import os
from pathlib import Path


def golden_folder() -> Path:
    """The folder of the published code's numbers: $VIV1T_GOLDEN or ../shared/golden beside the repository."""
    default = Path(__file__).resolve().parents[2] / "shared" / "golden"
    return Path(os.environ.get("VIV1T_GOLDEN", default))
