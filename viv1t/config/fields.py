"""What an option is: a dataclass field that carries its published flag, checked where the dataclass is made.

Where the published option is an integer code, the field also carries the names that those codes stand for inside.
"""

from __future__ import annotations

import dataclasses
import math
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import field
from typing import Any

from viv1t.errors import ConfigError

Options = dict[str, Any]
MOST = 1_000_000  # of anything that is counted, where an option says nothing else


def option(
    flag: str,
    default: Any = dataclasses.MISSING,
    *,
    help: str,
    codes: Mapping[int, str] | None = None,
    choices: tuple[Any, ...] | None = None,
    low: float = -math.inf,
    high: float = math.inf,
    integer: bool = False,
) -> Any:
    """A dataclass field that is set by an option.

    Args:
        flag: its published name.
        default: of the option; without one it is required.
        help: what it does.
        codes: published integers, and the names that they stand for.
        choices: the values there are.
        low, high: inclusive bounds of a number.
        integer: a switch that takes 0 or 1 in place of being given or not.
    """
    return field(
        default=default,
        metadata={
            "flag": flag, "help": help, "codes": codes, "choices": choices, "low": low, "high": high,
            "integer": integer,
        },
    )  # fmt: skip


def with_default(config: type, name: str, default: Any, **changes: Any) -> Any:
    """The field `name` of a component with another default, and what else of `option` is another."""
    known = next(f for f in dataclasses.fields(config) if f.name == name)
    return field(default=default, metadata={**known.metadata, **changes})


def flag_of(part: Any, name: str) -> str:
    """The option that sets the field `name` of a component."""
    return str(next(f.metadata["flag"] for f in dataclasses.fields(part) if f.name == name))


_KIND_WORDS = {int: "a whole number", float: "a number", str: "a word", bool: "true or false"}


def _plain_type(annotation: Any) -> tuple[type, bool]:
    """The type of one value and whether None is allowed."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        inner = [a for a in typing.get_args(annotation) if a is not type(None)]
        return inner[0], True
    return annotation, False


class Checked:
    """Checks every field against its declared type, choices and bounds."""

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for f in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, f.name)
            kind, optional = _plain_type(hints[f.name])
            flag = f.metadata["flag"]
            if value is None:
                if not optional:
                    raise ConfigError(f"--{flag} needs a value")
                continue
            if kind is float and isinstance(value, int) and not isinstance(value, bool):
                object.__setattr__(self, f.name, value := float(value))
            codes, choices = f.metadata["codes"], f.metadata["choices"]
            allowed = tuple(codes.values()) if codes else choices
            if allowed is not None and value not in allowed:
                words = ", ".join(f"{k} ({v})" for k, v in codes.items()) if codes else ", ".join(map(str, allowed))
                raise ConfigError(f"--{flag} must be one of {words}, not {shown(value)}")
            if typing.get_origin(kind) is tuple:
                if not isinstance(value, tuple) or not all(isinstance(v, str) for v in value):
                    raise ConfigError(f"--{flag} takes a list of words, not {shown(value)}")
            elif not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
                raise ConfigError(f"--{flag} takes {_KIND_WORDS[kind]}, not {shown(value)}")
            if kind in (int, float):
                low, high = f.metadata["low"], f.metadata["high"]
                # Written so that NaN fails as well.
                if not low <= value <= high or value == math.inf:
                    bounds = f"at least {low}" if high == math.inf else f"from {low} to {high}"
                    raise ConfigError(f"--{flag} must be {bounds}, not {shown(value)}")
                if kind is int and high == math.inf and value > MOST:
                    raise ConfigError(f"--{flag} must be at most {MOST}, not {shown(value)}")
        self.validate()

    def validate(self) -> None:
        """Checks that involve several fields."""


def shown(value: Any) -> str:
    """A value as errors show it."""
    try:
        text = repr(value)
    except ValueError:  # a whole number of more digits than Python writes
        return "a number of thousands of digits"
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text)} characters)"


_WHOLE = re.compile(r"[-+]?[0-9]+")
_REAL = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[-+]?[0-9]+)?|[-+]?\.?inf|\.?nan", re.IGNORECASE)
_SWITCH = {"true": True, "1": True, "false": False, "0": False}


def number(value: Any) -> Any:
    """A whole number where text is one; anything else as it is."""
    if isinstance(value, str) and _WHOLE.fullmatch(value) and len(value) < 1000:
        return int(value)
    return value


def decode(f: dataclasses.Field[Any], value: Any) -> Any:
    """A field's value from a file's value or a command line's word, both judged alike."""
    codes, flag, kind = f.metadata["codes"], f.metadata["flag"], str(f.type)
    word = value[0] if isinstance(value, list) and len(value) == 1 else value
    if isinstance(word, str) and word.lower() in ("none", "null") and kind.endswith("| None"):
        return None
    if codes is not None:
        code = number(value)
        return codes.get(code, code) if isinstance(code, int) and not isinstance(code, bool) else value
    if kind.startswith("bool") or flag == "cache_data":
        if isinstance(value, str):
            return _SWITCH.get(value.lower(), value)
        return bool(value) if flag != "cache_data" and isinstance(value, int) and value in (0, 1) else value
    if kind.startswith("int"):
        return number(value)
    if kind.startswith("float") and isinstance(value, str) and _REAL.fullmatch(value):
        return float(value.lower().replace(".inf", "inf").replace(".nan", "nan"))
    if kind.startswith("tuple") and isinstance(value, str):
        return (value,)
    if flag in ("precision", "save_every") and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return tuple(value) if isinstance(value, list) else value


def encode(f: dataclasses.Field[Any], value: Any) -> Any:
    """The published form of a field's value."""
    codes = f.metadata["codes"]
    if codes is not None:
        return next(k for k, v in codes.items() if v == value)
    if f.metadata["flag"] == "cache_data":
        return {None: False, "cpu": True}.get(value, value)
    if f.metadata["integer"] and value is not None:
        return int(value)
    return list(value) if isinstance(value, tuple) else value
