"""YAML that anybody may have written: plain values alone, by YAML 1.2's core schema, of a size that options can have.

`1e-08` is a number, `1:30` and `2001-01-01` are text, `0123` is 123. A key that is given twice is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

MAX_BYTES = 1 << 20  # published options have 2 KB, or 600 KB where they number every neuron of ten mice
MAX_VALUES = 100_000  # with every alias written out
MAX_DEPTH = 50

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # in C, ten times faster, where PyYAML was built with it
_NULL = re.compile(r"null|Null|NULL|~|")
_BOOL = re.compile(r"(true|True|TRUE)|false|False|FALSE")
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_CORE = "tag:yaml.org,2002:"


def read_yaml(path: Path) -> Any:
    """What a YAML file holds.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not YAML, is too large, gives a key twice, or holds more than plain values; one line says why.
    """
    with open(path, "rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"more than {MAX_BYTES} bytes, which no file of options has")
    try:
        return _Reader(content.decode("utf-8-sig")).document()
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise ValueError(f"not readable as YAML: {' '.join(str(error).split())[:300]}") from error


def dump_yaml(value: Any, *, sort_keys: bool = False) -> str:
    """YAML that `read_yaml` and readers of YAML 1.1 take alike."""
    text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=sort_keys)
    return text


class _Dumper(yaml.SafeDumper):
    """Quotes text that YAML 1.2 would read as a number, too."""


_Dumper.add_implicit_resolver(f"{_CORE}int", re.compile(f"(?:{_INT.pattern})$"), list("-+0123456789"))
_Dumper.add_implicit_resolver(f"{_CORE}float", re.compile(f"(?:{_FLOAT.pattern})$"), list("-+.0123456789"))


@dataclass
class _Anchored:
    """A value that aliases may stand for; `size` is how many values it is, 0 while it is being read."""

    value: Any = None
    size: int = 0


class _Reader:
    """Makes plain values of a text's events, one after the other: what is too much is never made."""

    def __init__(self, text: str) -> None:
        self.events: Iterator[Any] = yaml.parse(text, Loader=_LOADER)
        self.anchors: dict[str, _Anchored] = {}
        self.count = 0

    def document(self) -> Any:
        """The only document's value; None where there is none."""
        next(self.events)  # the stream's start
        if isinstance(next(self.events), yaml.StreamEndEvent):
            return None
        value = self._value(next(self.events), 0)
        next(self.events)  # the document's end
        if not isinstance(next(self.events), yaml.StreamEndEvent):
            raise ValueError("a second document begins; one was expected")
        return value

    def _value(self, event: Any, depth: int) -> Any:
        if isinstance(event, yaml.AliasEvent):
            anchored = self.anchors.get(str(event.anchor))
            if anchored is None:
                raise ValueError(f"line {_line(event)}: the alias *{event.anchor} stands for nothing")
            if not anchored.size:
                raise ValueError(f"line {_line(event)}: a value contains itself")
            self._add(anchored.size, "its aliases stand for")
            return anchored.value
        if depth > MAX_DEPTH:
            raise ValueError(f"line {_line(event)}: nested too deeply, more than {MAX_DEPTH} levels")
        anchored, before = _Anchored(), self.count
        if event.anchor is not None:
            self.anchors[event.anchor] = anchored
        self._add(1, "it holds")
        if isinstance(event, yaml.ScalarEvent):
            value = _scalar(event)
        elif isinstance(event, yaml.SequenceStartEvent):
            _check_tag(event, "seq")
            value = [self._value(item, depth + 1) for item in iter(self._next, None)]
        else:
            _check_tag(event, "map")
            value = self._mapping(depth)
        anchored.value, anchored.size = value, self.count - before
        return value

    def _mapping(self, depth: int) -> dict[Any, Any]:
        value: dict[Any, Any] = {}
        lines: dict[Any, int] = {}
        merged: list[dict[Any, Any]] = []
        for event in iter(self._next, None):
            key = self._value(event, depth + 1)
            if isinstance(key, dict | list):
                raise ValueError(f"line {_line(event)}: a key must be a word or a number")
            item = self._value(next(self.events), depth + 1)
            if key == "<<" and isinstance(event, yaml.ScalarEvent) and event.implicit[0]:
                merged += item if isinstance(item, list) else [item]
                continue
            if key in lines:
                raise ValueError(f"the key {key!r} is given twice, in lines {lines[key]} and {_line(event)}")
            value[key], lines[key] = item, _line(event)
        for other in merged:
            if not isinstance(other, dict):
                raise ValueError("<< merges mappings alone")
            value = other | value
        return value

    def _next(self) -> Any:
        """The next event; None at the end of a sequence or mapping."""
        event = next(self.events)
        return None if isinstance(event, yaml.SequenceEndEvent | yaml.MappingEndEvent) else event

    def _add(self, values: int, how: str) -> None:
        self.count += values
        if self.count > MAX_VALUES:
            raise ValueError(f"{how} more than {MAX_VALUES} values")


def _scalar(event: Any) -> Any:
    text: str = event.value
    if not event.implicit[0]:  # quoted, or with a tag
        _check_tag(event, "str")
        return text
    if _NULL.fullmatch(text):
        return None
    if found := _BOOL.fullmatch(text):
        return found[1] is not None
    if _INT.fullmatch(text):
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
    if _FLOAT.fullmatch(text):
        return float(re.sub(r"\.(?=inf|nan)", "", text.lower()))
    return text


def _check_tag(event: Any, kind: str) -> None:
    if event.tag not in (None, "!", _CORE + kind):
        raise ValueError(f"line {_line(event)}: {event.tag} is no plain value")


def _line(event: Any) -> int:
    return int(event.start_mark.line) + 1
