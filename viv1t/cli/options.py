"""Command-line options made from the configuration's dataclasses."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import io
import logging
import os
import signal
import sys
import typing
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from viv1t.config.fields import Options, decode
from viv1t.config.option_set import OptionSet, owners_of
from viv1t.errors import ConfigError, Interrupted, Viv1tError
from viv1t.families.sensorium2023.run import option_set
from viv1t.system.cores import keep_threads_within, let_threads_sleep, usable_cores
from viv1t.system.files import advice, shown
from viv1t.system.progress import ConsoleHandler
from viv1t.system.safe_yaml import read_yaml
from viv1t.training.log import LevelFormat

Component = typing.TypeVar("Component")

# Options of a run that name folders.
PATHS = ("data", "data_dir", "output_dir", "pretrain_core", "pretrained_core", "restore")
_FILES = (*PATHS, "out", "output", "config", "movie", "statistics", "behavior", "pupil_center", "plot")


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line and whose options cannot be abbreviated."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, **kwargs)

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        try:
            words = [plain_word(word) for word in (sys.argv[1:] if args is None else args)]
        except ConfigError as error:
            self.error(str(error))
        known, left = self.parse_known_args(words, namespace)
        if not left:
            return known
        flag = left[0].split("=")[0]
        if not flag.startswith("-"):
            self.error(f"unexpected word {left[0]!r}")
        close = difflib.get_close_matches(flag, self._option_string_actions, n=1)
        self.error(f"unknown option {flag}" + (f"; did you mean {close[0]}?" if close else f"; see {self.prog} --help"))

    def error(self, message: str) -> typing.NoReturn:
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")


def plain_word(word: str) -> str:
    """A word of a command line with `~` expanded, which no shell does within `--option=~/folder`.

    Raises:
        ConfigError: it is or ends in an empty value, as unset variables of scripts leave them; or it is no UTF-8.
    """
    option, equals, value = word.partition("=") if word.startswith("-") else ("", "", word)
    of = f"{option}: " if option else ""
    if not value and (not option or (equals and option.lstrip("-") in _FILES)):
        raise ConfigError(f"{of}the value is empty: is a variable unset? Give '.' for the folder you are in")
    if shown(word) != word:
        raise ConfigError(f"{of}{shown(value)}: the name is not UTF-8, or holds control characters; rename it")
    if value.startswith("~"):
        try:
            value = str(Path(value).expanduser())
        except RuntimeError as error:
            raise ConfigError(f"{of}{value}: there is no such home; give the folder's whole path") from error
    return f"{option}{equals}{value}"


def add_run_options(parser: argparse.ArgumentParser, options: OptionSet | None = None) -> None:
    """Adds every option of a run, as words: the configuration reads them, so that a file and a line are alike.

    Args:
        parser: takes them.
        options: of a family of models; default that of 2023.
    """
    options = options or option_set()
    chosen = parser.add_argument_group("components")
    for selector, table in options.selectors.items():
        coded = all(isinstance(key, int) for key in table)
        words = ", ".join(f"{k} ({getattr(v, 'name', v)})" if coded else str(k) for k, v in table.items())
        known = options.selector_defaults
        default = _said(known[selector]) if selector in known else " (required)"
        chosen.add_argument(
            f"--{selector}", default=argparse.SUPPRESS, metavar="N" if selector == "output_mode" else "WHICH",
            help=options.explained.get(selector, words) + default,
        )  # fmt: skip
    groups: dict[str, argparse._ArgumentGroup] = {}
    for flag, owners in options.owners.items():
        title = " and ".join(dict.fromkeys(_title(owner, options) for owner in owners))
        if title not in groups:
            groups[title] = parser.add_argument_group(f"options of {title}")
        groups[title].add_argument(f"--{flag}", **_keywords(flag, options))


def add_options(parser: argparse.ArgumentParser, component: type, title: str) -> None:
    """Adds the options of one component of the configuration; `given_options` reads them."""
    options = OptionSet({}, {}, owners_of([component]), {})
    group = parser.add_argument_group(title)
    for flag in options.owners:
        group.add_argument(f"--{flag}", **_keywords(flag, options))


def given_options(args: argparse.Namespace, component: type[Component]) -> Component:
    """The component of the options that `add_options` added.

    Raises:
        ConfigError: names the option, what is allowed and what was given.
    """
    fields = {f.metadata["flag"]: f for f in dataclasses.fields(component)}  # type: ignore[arg-type]
    return component(**{f.name: decode(f, getattr(args, flag)) for flag, f in fields.items() if flag in args})


def _keywords(flag: str, options: OptionSet) -> dict[str, Any]:
    """What the parser is told of an option."""
    fields = options.fields(flag)
    kind, choices = str(fields[0].type), fields[0].metadata["choices"]
    keywords: dict[str, Any] = {"default": argparse.SUPPRESS, "help": _help(flag, fields, options)}
    if flag == "cache_data" or (kind.startswith("bool") and flag not in options.switches):
        # `--core_compile`, `--core_compile true` and, from a file, `core_compile: true`.
        keywords |= {"nargs": "?", "const": True, "metavar": "|".join(choices or ("true", "false"))}
    elif kind.startswith("tuple"):
        keywords |= {"nargs": "+", "metavar": "ID" if flag == "mouse_ids" else "WORD"}
    elif fields[0].metadata["codes"] or kind.startswith(("int", "bool")):
        keywords["metavar"] = "N"
    elif kind.startswith("float"):
        keywords["metavar"] = "X"
    else:
        keywords["metavar"] = "|".join(choices or ("VALUE",))
    return keywords


def _title(owner: type, options: OptionSet) -> str:
    """What a component is called in the help."""
    for selector, table in options.selectors.items():
        for key, component in table.items():
            if component is owner:
                return f"--{selector} {key}"
    return owner.__name__.removeprefix("ClosedLoop").removesuffix("Config").lower()


def _help(flag: str, fields: Sequence[dataclasses.Field[Any]], options: OptionSet) -> str:
    """What an option does and what it is by default; for each component apart where these differ."""
    titles = [_title(owner, options) for owner in options.owners[flag]]
    texts = [f.metadata["help"] for f in fields]
    defaults = [
        _default(flag, owner, f, options) for owner, f in zip(options.owners[flag], fields, strict=True)
    ]  # fmt: skip
    if len(set(texts)) > 1:
        parts = zip(titles, texts, defaults, strict=True)
        return "; ".join(f"with {title}: {text}{default}" for title, text, default in parts)
    if len(set(defaults)) == 1:
        return str(texts[0]) + defaults[0]
    return str(texts[0]) + "".join(f"; with {t}:{default}" for t, default in zip(titles, defaults, strict=True))


def _default(flag: str, owner: type, field: dataclasses.Field[Any], options: OptionSet) -> str:
    by_core = {core: defaults[flag] for core, defaults in options.by_core.items() if flag in defaults}
    if owner.__name__.endswith("OptimizerConfig") and by_core:
        others = "".join(f"; with --core {core}: {'none' if v is None else v}" for core, v in by_core.items())
        return f" (default {field.default}{others})"
    if field.default is dataclasses.MISSING:
        return " (required)"
    codes = field.metadata["codes"]
    value = next(k for k, v in codes.items() if v == field.default) if codes else field.default
    if isinstance(value, tuple):
        return ""
    return "" if value is None else _said(int(value) if flag in options.switches else value)


def _said(default: Any) -> str:
    return f" (default {str(default).lower() if isinstance(default, bool) else default})"


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
    for name in PATHS:
        if isinstance(value := content.get(name), str):
            content[name] = plain_word(f"--{name}={value}").partition("=")[2]
    return content


def run_main(program: str, work: Callable[[Sequence[str] | None], int], argv: Sequence[str] | None) -> int:
    """Runs a command; a user's mistake becomes one line on standard error and an exit status."""
    _open_streams()
    keep_threads_within(usable_cores())
    let_threads_sleep()
    with _console_log(program):
        return _run_main(program, work, argv)


@contextmanager
def _console_log(program: str) -> Iterator[None]:
    """Warnings go to the console, unless the program around this one takes them; afterwards all is as it was."""
    root, package = logging.getLogger(), logging.getLogger("viv1t")
    levels = root.level, package.level
    console = None
    if not root.handlers:
        console = ConsoleHandler()
        console.setFormatter(LevelFormat(f"{program}: %(prefix)s%(message)s"))
        root.addHandler(console)
        root.setLevel(logging.WARNING)
    try:
        yield
    finally:
        if console is not None:
            root.removeHandler(console)
        root.setLevel(levels[0])
        package.setLevel(levels[1])


def _run_main(program: str, work: Callable[[Sequence[str] | None], int], argv: Sequence[str] | None) -> int:
    try:
        try:
            status = work(argv)
        except SystemExit:  # of the parser: the help was printed, or a mistake named
            sys.stdout.flush()
            raise
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
        _drop_output()
        return 141
    except OSError as error:
        name = f" {error.filename}:" if error.filename else ""
        what = advice(error, Path(os.fsdecode(error.filename or ".")))
        print(f"{program}: error:{name} {error.strerror or error}{what}", file=sys.stderr)
        try:
            sys.stdout.flush()
        except OSError:  # it was the output that could not be written
            _drop_output()
        return 1


def _open_streams() -> None:
    """Makes standard output and error usable: open, and able to show any name."""
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is None:  # closed by whoever started the command (`>&-`): the next file would be taken for it
            null = os.open(os.devnull, os.O_WRONLY)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            setattr(sys, name, os.fdopen(number, "w", encoding="utf-8"))
        elif isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def _drop_output() -> None:
    """Lets go what is still to be printed: nobody reads it, and the interpreter would complain at its end."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)
