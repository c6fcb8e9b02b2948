"""The order of the house: a room imports only from floors below, or from its own."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

FLOORS = {
    "types": 0, "errors": 0, "inputs": 0, "live": 0, "system": 0, "kernels": 0, "_prefetcher": 0,
    "config": 1, "stimuli": 1, "scoring": 1, "plot": 1, "onnx_model": 1,
    "data": 2, "onnx_stream": 2, "model": 3,
    "optim": 4, "families": 5,
    "runs": 6,
    "training": 7, "export": 7, "stream": 7,
    "prediction": 8, "report": 9, "lab": 9,
    "recipes": 10,
    "cli": 11,
}  # fmt: skip


def sources() -> list[Path]:
    return sorted(p for p in (ROOT / "viv1t").rglob("*.py") if p != ROOT / "viv1t" / "__init__.py")


def room_of(path: Path) -> str:
    return path.relative_to(ROOT / "viv1t").parts[0].removesuffix(".py")


def imported_modules(path: Path, package: str) -> Iterator[str]:
    """Absolute names of everything a file imports, inside functions too."""
    return imported_by(ast.parse(path.read_text(), str(path)), package)


def imported_by(tree: ast.Module, package: str) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            yield stem
            yield from (f"{stem}.{alias.name}" for alias in node.names)


def rooms_imported(path: Path) -> set[str]:
    package = ".".join(path.relative_to(ROOT).parts[:-1])
    parts = (name.split(".") for name in imported_modules(path, package))
    known = {room_of(p) for p in sources()} | set(FLOORS)
    # `from viv1t import __version__` names no room.
    return {p[1] for p in parts if p[0] == "viv1t" and len(p) > 1 and p[1] in known}


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_a_room_imports_only_from_floors_below_or_its_own(path: Path) -> None:
    room = room_of(path)
    assert room in FLOORS, f"viv1t/{room} has no floor: give it one"
    for other in rooms_imported(path) - {room}:
        assert other in FLOORS, f"viv1t/{other} has no floor: give it one"
        below = FLOORS[other] < FLOORS[room] or FLOORS[room] == 0 == FLOORS[other]
        assert below, f"{room} (floor {FLOORS[room]}) imports {other} (floor {FLOORS[other]})"


@pytest.mark.parametrize("room", ["model", "scoring"])
def test_data_and_model_meet_in_the_batch_alone(room: str) -> None:
    for path in (p for p in sources() if room_of(p) == room):
        assert "data" not in rooms_imported(path), f"{path.relative_to(ROOT)} imports viv1t.data"


@pytest.mark.parametrize("room", ["model", "scoring", "optim", "kernels"])
def test_what_computes_takes_values_not_options(room: str) -> None:
    for path in (p for p in sources() if room_of(p) == room):
        assert "config" not in rooms_imported(path), f"{path.relative_to(ROOT)} imports viv1t.config"


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def without_types(tree: ast.Module) -> ast.Module:
    """A file's tree without what is imported for the type checker alone."""
    checked = [n for n in ast.walk(tree) if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
    for node in checked:
        node.body = [ast.Pass()]
    return tree


def circles(files: dict[str, Path]) -> list[tuple[str, ...]]:
    """Groups of files that import each other, directly or through others."""
    graph = {}
    for name, path in files.items():
        tree = without_types(ast.parse(path.read_text(), str(path)))
        imported = set(imported_by(tree, ".".join(name.split(".")[:-1])))
        graph[name] = {x for x in imported if x in files and x != name}
    reached = {name: set(found) for name, found in graph.items()}
    for middle in graph:  # Warshall
        for name in graph:
            if middle in reached[name]:
                reached[name] |= reached[middle]
    round_trips = [frozenset(y for y in reached[x] if x in reached[y]) for x in graph]
    return sorted({tuple(sorted(group)) for group in round_trips if group})


@pytest.mark.parametrize("folder", ["viv1t", "kernels", "benchmarks"])
def test_no_files_import_each_other_in_a_circle(folder: str) -> None:
    # The front door gathers names of everything.
    files = {module_of(p): p for p in (ROOT / folder).rglob("*.py") if p != ROOT / "viv1t" / "__init__.py"}
    if folder == "kernels":
        files = {f"viv1t.{name}": path for name, path in files.items()}
    assert circles(files) == []


def test_a_circle_is_found(tmp_path: Path) -> None:
    for name, text in (("a", "from x import b"), ("b", "def f():\n    import x.c"), ("c", "from x.a import y")):
        (tmp_path / f"{name}.py").write_text(text)
    files = {f"x.{name}": tmp_path / f"{name}.py" for name in "abc"}
    assert circles(files) == [("x.a", "x.b", "x.c")]
    (tmp_path / "c.py").write_text("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from x.a import y")
    assert circles(files) == []


def test_kernels_import_nothing_of_ours() -> None:
    for path in sorted((ROOT / "kernels").rglob("*.py")):
        package = ".".join(["viv1t", *path.relative_to(ROOT).parts[:-1]])
        for name in imported_modules(path, package):
            assert name.split(".")[0] != "viv1t" or name.startswith("viv1t.kernels"), f"{path.name} imports {name}"


def test_python_is_known_to_the_bindings_alone() -> None:
    includes = re.compile(r'^\s*#\s*include\s*[<"]([^>"]+)', re.MULTILINE)
    for path in sorted((ROOT / "csrc").iterdir()):
        names = includes.findall(path.read_text())
        assert not [n for n in names if re.match(r"(torch|ATen|c10|cuda)", n)], path.name
        assert path.name == "bindings.cpp" or not [n for n in names if re.match(r"(pybind11|Python)", n)], path.name


def test_the_walk_sees_relative_and_nested_imports(tmp_path: Path) -> None:
    file = tmp_path / "f.py"
    file.write_text("from ..model import x\nfrom . import y\ndef f():\n    import viv1t.cli.train\n")
    found = set(imported_modules(file, "viv1t.data"))
    assert {"viv1t.model", "viv1t.data.y", "viv1t.cli.train"} <= found


# Files of the tests that hold the command line itself to its words; others use the front door, the recipes, or the
# commands as their scripts start them (`commands.py`).
OF_THE_COMMAND_LINE = ROOT / "tests" / "cli"


def test_tests_import_the_command_line_where_they_test_it_alone() -> None:
    for path in sorted((ROOT / "tests").rglob("*.py")):
        if OF_THE_COMMAND_LINE in path.parents:
            continue
        found = [name for name in imported_modules(path, "") if name.startswith("viv1t.cli")]
        assert not found, f"{path.relative_to(ROOT)} imports {found[0]}: use viv1t, viv1t.recipes or commands.py"
