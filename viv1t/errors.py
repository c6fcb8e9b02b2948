"""Errors a user can cause. The command line prints them as one line, without a traceback."""

import os
from collections.abc import Iterable
from pathlib import Path


class Viv1tError(Exception):
    """Base of the errors that are the input's fault, not the program's; `exit_code` is the command's status."""

    exit_code = 1


class ConfigError(Viv1tError, ValueError):
    """An option or a combination of options that cannot be used. Exit status 2."""

    exit_code = 2


class DataError(Viv1tError, ValueError):
    """A recording that is missing, damaged or inconsistent; names the mouse, trial and file. Exit status 1."""


def check_choice(name: str, value: object, choices: Iterable[str]) -> None:
    """Raises a ConfigError where an argument is none of its choices.

    Args:
        name: what the user calls it: `tier` in Python, `--tier` of a command.
    """
    known = tuple(choices)
    if value not in known:
        raise ConfigError(f"{name} must be one of {', '.join(known)}, not {value!r}")


def missing_folder(folder: Path, advice: str, option: str = "") -> DataError:
    """What is wrong with a path that is no folder, and what to give instead."""
    what = "is a file, not a folder" if folder.exists() else "no such folder"
    return DataError(f"{option}{folder}: {what}; {advice}")


class CheckpointError(Viv1tError, ValueError):
    """A run folder or checkpoint that is missing, damaged, in use or does not fit the model. Exit status 1."""


class WriteError(Viv1tError, OSError):
    """A file that cannot be written: a full disk, a quota, a limit, a folder that is closed. Exit status 1.

    Args:
        path: of the file.
        reason: why, as an error of the system, with its number if there is one.
        advice: what to do.
    """

    def __init__(self, path: Path, reason: OSError, advice: str) -> None:
        words = os.strerror(reason.errno) if reason.errno else str(reason)  # some libraries put in their own
        super().__init__(f"{path}: cannot be written ({words}){advice}")
        self.errno, self.strerror, self.filename = reason.errno, words, str(path)

    def __str__(self) -> str:
        return str(self.args[0])


def check_run_folders(folders: Iterable[str | Path]) -> None:
    """Raises a CheckpointError for a path that is no run folder; quick, before anything that takes long is imported."""
    for folder in folders:
        if not (Path(folder) / "args.yaml").is_file():
            raise CheckpointError(f"{folder} is not a run folder: it has no args.yaml")


class Interrupted(KeyboardInterrupt):
    """A signal asked for the end. Exit status 130 for SIGINT, 143 for SIGTERM."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.exit_code = 128 + signal_number


class TrainingError(Viv1tError, RuntimeError):
    """Training cannot go on: for example, a loss that is not finite. Exit status 1."""
