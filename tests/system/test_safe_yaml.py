"""YAML by its core schema of version 1.2, within bounds."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from viv1t.system.safe_yaml import MAX_VALUES, dump_yaml, read_yaml


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "options.yaml"


def refused(file: Path, text: str) -> str:
    file.write_text(text)
    with pytest.raises(ValueError) as refusal:  # noqa: PT011
        read_yaml(file)
    assert str(refusal.value).isprintable()
    return str(refusal.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0123", 123), ("0o17", 15), ("0x1F", 31), ("+12", 12), ("-3", -3), ("1e-08", 1e-8), ("1E5", 1e5), (".5", 0.5),
        ("5.", 5.0), ("1:30", "1:30"), ("1_000", "1_000"), ("0b11", "0b11"), ("2001-01-01", "2001-01-01"),
        ("yes", "yes"), ("on", "on"), ("True", True), ("FALSE", False), ("~", None), ("", None), ("null", None),
        ("'true'", "true"), ('"12"', "12"), ("!!str 5", "5"), (".inf", math.inf), ("-.INF", -math.inf),
        ("=", "="), ("[]", []), ("{}", {}), ("|\n  a\n  b\n", "a\nb\n"),
    ],
)  # fmt: skip
def test_plain_values_are_those_of_yaml_1_2(file: Path, text: str, value: Any) -> None:
    file.write_text(f"key: {text}\n")
    found = read_yaml(file)
    assert found == {"key": value}
    assert type(found["key"]) is type(value)


def test_files_of_other_shapes(file: Path) -> None:
    for text, value in (("", None), ("# nothing\n", None), ("- 1\n- [a, {b: c}]\n", [1, ["a", {"b": "c"}]]),
                        ("\ufefflr: 1\n", {"lr": 1}), ("---\nlr: .nan\n...\n", None)):  # fmt: skip
        file.write_text(text)
        if ".nan" in text:
            assert math.isnan(read_yaml(file)["lr"])
        else:
            assert read_yaml(file) == value


def test_aliases_and_merges(file: Path) -> None:
    file.write_text("base: &base {lr: 1, epochs: 2}\nother: {<<: *base, lr: 3}\nshapes: [&s [6, 40], *s]\n")
    base = {"lr": 1, "epochs": 2}
    assert read_yaml(file) == {"base": base, "other": base | {"lr": 3}, "shapes": [[6, 40], [6, 40]]}
    file.write_text("a: &a {x: 1, y: 1}\nb: &b {x: 2, z: 2}\nc: {<<: [*a, *b]}\n")
    assert read_yaml(file)["c"] == {"x": 1, "y": 1, "z": 2}  # the first of them wins


def test_a_key_that_is_given_twice_is_named_with_its_lines(file: Path) -> None:
    assert refused(file, "lr: 1\nepochs: 2\nlr: 3\n").endswith("the key 'lr' is given twice, in lines 1 and 3")
    assert refused(file, "a:\n  b: 1\n  'b': 2\n").endswith("the key 'b' is given twice, in lines 2 and 3")
    file.write_text("a: {b: 1}\nc: {b: 1}\n")
    read_yaml(file)


def test_how_much_a_file_may_hold_is_bounded_while_it_is_read(file: Path) -> None:
    file.write_text(f"a: [{'1, ' * (MAX_VALUES - 10)}]")
    assert len(read_yaml(file)["a"]) == MAX_VALUES - 10
    assert f"more than {MAX_VALUES} values" in refused(file, f"a: [{'1, ' * MAX_VALUES} {{broken")
    assert "nested too deeply" in refused(file, "[" * 1_000_000)
    assert "nested too deeply" in refused(file, "- " * 500_000)
    assert "bytes" in refused(file, " " * (1 << 20) + "a: 1")


def test_what_is_written_is_read_alike_by_readers_of_1_1_and_1_2(file: Path) -> None:
    words = ["1e5", "1e-08", "12e03", "0o17", "0123", "1:30", "yes", "null", "~", "", "<<", "2001-01-01", "a: b", "=",
             "0x1F", "1_000", "5.", ".5", ".inf", ".nan", "é", "\x85", "\U0001f42d", "# no", "true", "- a"]  # fmt: skip
    numbers = [1e-8, 1e5, 1e300, math.inf, 0, -3, 1.5, True, None]
    content = {"words": words, "numbers": numbers, "keys": dict.fromkeys(words, 1)}
    file.write_text(dump_yaml(content))
    assert read_yaml(file) == content
    assert yaml.safe_load(file.read_text()) == content
