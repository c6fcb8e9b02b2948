"""The commands as their console scripts start them, in this process: words in, exit status out."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

_PROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"
SCRIPTS: dict[str, str] = tomllib.loads(_PROJECT.read_text(encoding="utf-8"))["project"]["scripts"]

Command = Callable[[Sequence[str]], int]


def command(name: str) -> Command:
    """The command of a console script, such as `viv1t-train`."""
    module, _, function = SCRIPTS[name].partition(":")

    def run(words: Sequence[str]) -> int:
        status: int = getattr(import_module(module), function)(list(words))
        return status

    return run


viv1t_convert = command("viv1t-convert")
viv1t_data = command("viv1t-data")
viv1t_evaluate = command("viv1t-evaluate")
viv1t_export = command("viv1t-export")
viv1t_lab = command("viv1t-lab")
viv1t_predict = command("viv1t-predict")
viv1t_train = command("viv1t-train")
