"""Command-line options made from the configuration's dataclasses."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import logging
import os
import signal
import sys
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from viv1t.config import INTEGER_SWITCHES, SELECTORS, Options, all_components
from viv1t.errors import ConfigError, Interrupted, Viv1tError
from viv1t.files import advice
from viv1t.safe_yaml import read_yaml
from viv1t.train.run_log import LevelFormat


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line and whose options cannot be abbreviated."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, **kwargs)

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        known, left = self.parse_known_args(args, namespace)
        if not left:
            return known
        flag = left[0].split("=")[0]
        if not flag.startswith("-"):
            self.error(f"unexpected word {left[0]!r}")
        close = difflib.get_close_matches(flag, self._option_string_actions, n=1)
        self.error(f"unknown option {flag}" + (f"; did you mean {close[0]}?" if close else f"; see {self.prog} --help"))

    def error(self, message: str) -> typing.NoReturn:
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")


def _number(value: str) -> Any:
    """A whole number, or the word itself: the configuration says what it wanted."""
    try:
        return int(value)
    except ValueError:
        return value


def _real(value: str) -> Any:
    try:
        return float(value)
    except ValueError:
        return value


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Adds every option of a run. The configuration checks the values, so that a file and a line are judged alike."""
    chosen = parser.add_argument_group("components")
    for selector, table in SELECTORS.items():
        kind = str if all(isinstance(k, str) for k in table) else _number
        words = ", ".join(f"{k} ({v.name})" if kind is _number else str(k) for k, v in table.items())
        chosen.add_argument(f"--{selector}", type=kind, default=argparse.SUPPRESS, metavar="WHICH", help=words)
    chosen.add_argument(
        "--output_mode",
        type=_number,
        default=argparse.SUPPRESS,
        metavar="N",
        help="activation: 0 elu+1, 1 exp, 2 softplus",
    )
    groups: dict[str, argparse._ArgumentGroup] = {}
    for flag, owners in all_components().items():
        owner = owners[0]
        title = getattr(owner, "name", owner.__name__.removesuffix("Config").lower())
        if title not in groups:
            groups[title] = parser.add_argument_group(f"options of {title}")
        field = next(f for f in dataclasses.fields(owner) if f.metadata["flag"] == flag)  # type: ignore[arg-type]
        default = "" if field.default in (dataclasses.MISSING, None) else f" (default {_shown(field)})"
        keywords: dict[str, Any] = {"default": argparse.SUPPRESS, "help": field.metadata["help"] + default}
        annotation = str(field.type)
        if flag == "cache_data" or (annotation.startswith("bool") and flag not in INTEGER_SWITCHES):
            # `--core_compile`, `--core_compile true` and, from a file, `core_compile: true`.
            words = "|".join(field.metadata["choices"] or ("true", "false"))
            keywords |= {"nargs": "?", "const": True, "type": _switch, "metavar": words}
        elif annotation.startswith("tuple"):
            keywords |= {"nargs": "+", "metavar": "ID"}
        elif field.metadata["codes"] or annotation.startswith(("int", "bool")):
            keywords |= {"type": _number, "metavar": "N"}
        elif annotation.startswith("float"):
            keywords |= {"type": _real, "metavar": "X"}
        else:
            keywords["metavar"] = "|".join(field.metadata["choices"] or ("VALUE",))
        groups[title].add_argument(f"--{flag}", **keywords)


def _shown(field: dataclasses.Field[Any]) -> Any:
    codes = field.metadata["codes"]
    return next(k for k, v in codes.items() if v == field.default) if codes else field.default


def _switch(value: str) -> bool | str:
    return {"true": True, "1": True, "false": False, "0": False}.get(value.lower(), value)


def read_config_file(path: str) -> Options:
    """Options from a YAML file with published names.

    Raises:
        ConfigError: the file is missing, not YAML, or not a flat mapping.
    """
    try:
        content = read_yaml(Path(path))
    except OSError as error:
        raise ConfigError(f"--config {path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"--config {path}: {error}") from error
    if not isinstance(content, dict) or not all(isinstance(k, str) for k in content):
        raise ConfigError(f"--config {path}: a mapping of option names to values was expected")
    return content


def run_main(program: str, work: Callable[[Sequence[str] | None], int], argv: Sequence[str] | None) -> int:
    """Runs a command; a user's mistake becomes one line on standard error and an exit status."""
    console = logging.StreamHandler()
    console.setFormatter(LevelFormat(f"{program}: %(prefix)s%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[console])
    try:
        status = work(argv)
        sys.stdout.flush()
        return status
    except Viv1tError as error:
        print(f"{program}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt as error:
        if argv is None:  # the process ends here: a second signal is not to disturb it
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)
        print(f"\n{program}: interrupted", file=sys.stderr)
        return error.exit_code if isinstance(error, Interrupted) else 130
    except BrokenPipeError:
        # Nobody reads any more; the interpreter would complain when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        name = f" {error.filename}:" if error.filename else ""
        what = advice(error, Path(os.fsdecode(error.filename or ".")))
        print(f"{program}: error:{name} {error.strerror or error}{what}", file=sys.stderr)
        return 1
