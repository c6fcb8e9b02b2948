"""What is installed: the package, its kernels under their own name, and the C++ module."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import viv1t

ROOT = Path(__file__).resolve().parents[1]
SHOW = "import viv1t._prefetcher, viv1t.kernels.common; print(viv1t.kernels.__file__)"


def python(code: str, cwd: Path, **env: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_kernels_and_the_cpp_module_are_found_from_anywhere(tmp_path: Path) -> None:
    assert python(SHOW, cwd=tmp_path) == python(SHOW, cwd=ROOT)


def test_the_sources_win_when_the_root_is_on_the_path(tmp_path: Path) -> None:
    code = "import viv1t.types; print(viv1t.types.__file__)"
    assert python(code, cwd=tmp_path, PYTHONPATH=str(ROOT)) == str(ROOT / "viv1t" / "types.py")


def test_the_version_is_told_once() -> None:
    assert importlib.metadata.version("viv1t") == viv1t.__version__


def test_every_command_has_its_module() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    for name, target in scripts.items():
        module, function = target.split(":")
        source = ROOT / (module.replace(".", "/") + ".py")
        assert source.exists(), f"{name} names {module}"
        assert re.search(rf"^def {function}\(", source.read_text(), re.MULTILINE), f"{name} names {target}"


def test_every_tested_version_satisfies_the_declared_range() -> None:
    from packaging.requirements import Requirement

    pins = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().lower().splitlines() if "==" in line
    )
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"].values()
    declared = [*project["project"]["dependencies"], *(r for extra in extras for r in extra)]
    for requirement in map(Requirement, [*declared, *project["build-system"]["requires"]]):
        assert requirement.name.lower() in pins, f"constraints.txt pins no {requirement.name}"
        assert requirement.specifier.contains(pins[requirement.name.lower()]), str(requirement)


def test_a_wheel_holds_the_kernels_under_our_name_and_works(tmp_path: Path) -> None:
    pytest.importorskip("scikit_build_core", reason="building a wheel needs scikit-build-core and pybind11")
    pytest.importorskip("pybind11", reason="building a wheel needs scikit-build-core and pybind11")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    built = subprocess.run(
        [*pip, "wheel", "--no-build-isolation", "--no-deps", "--no-index", "--wheel-dir", str(tmp_path), str(ROOT)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = tmp_path.glob("viv1t-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "site")
    tops = {name.split("/")[0] for name in names}
    assert tops == {"viv1t", f"viv1t-{viv1t.__version__}.dist-info"}
    assert {"viv1t/kernels/__init__.py", "viv1t/py.typed", "viv1t/_prefetcher.pyi"} <= set(names)
    # -S leaves out this environment's own installation; its other packages are still needed.
    code = f"import sys; sys.path[:0] = {[str(tmp_path / 'site')]!r}; {SHOW}"
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "site" / "viv1t" / "kernels" / "__init__.py")
