"""Reading YAML that anybody may have written: plain values only, of a size that options can have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

MAX_BYTES = 1 << 20  # a published file of options has 5 KB
MAX_NODES = 100_000  # with every alias written out


def read_yaml(path: Path) -> Any:
    """What a YAML file holds.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not YAML, is too large, or holds more than plain values; one line says why.
    """
    with open(path, "rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"more than {MAX_BYTES} bytes, which no file of options has")
    try:
        text = content.decode()
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is not None and _size(node, {}) > MAX_NODES:
            raise ValueError(f"its aliases stand for more than {MAX_NODES} values")
        # Values may be malformed too: dates that do not exist, numbers of a million digits.
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, OverflowError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"not readable as YAML: {' '.join(str(error).split())[:300]}") from error
    except RecursionError as error:
        raise ValueError("not readable as YAML: nested too deeply") from error


def _size(node: yaml.Node, sizes: dict[int, int]) -> int:
    """Values in a node with every alias written out, counted without writing them out.

    Raises:
        ValueError: a value contains itself.
    """
    key = id(node)
    if key in sizes:
        if sizes[key] < 0:
            raise ValueError("a value contains itself")
        return sizes[key]
    sizes[key] = -1  # being counted
    children: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        children = [child for pair in node.value for child in pair]
    elif isinstance(node, yaml.SequenceNode):
        children = node.value
    sizes[key] = 1 + sum(_size(child, sizes) for child in children)
    return sizes[key]
