"""What a command needs before it looks at what it was given, and where its words go."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

BUFFERED = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
HEAVY = ("torch", "torch._dynamo", "torch._inductor", "matplotlib", "onnxruntime", "triton")
COMMANDS = {
    "train": ["--core=vivit", "--readout=gaussian2d", "--ds_mode=2", "--transform_mode=2", "--output_dir=run",
              "--data=nowhere"],
    "evaluate": ["nowhere"], "predict": ["nowhere"], "convert": ["nowhere", "out"],
    "export": ["nowhere", "--output_dir=out"], "data": ["info", "nowhere"],
}  # fmt: skip


def started(
    script: str, folder: Path, *words: str, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """What became of a shell's script, with `words` as its arguments."""
    return subprocess.run(
        ["bash", "-c", script, "bash", *words], cwd=folder,
        env=BUFFERED | {"PYTHON": sys.executable} | dict(environment or {}), capture_output=True, text=True,
        check=False, timeout=120,
    )  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_a_path_that_is_not_there_is_named_before_pytorch_is_imported(command: str, tmp_path: Path) -> None:
    code = f"""
import sys
from viv1t.cli.{command} import main
assert main({COMMANDS[command]!r}) == 1
try:
    main(["--help"])
except SystemExit as exit:
    assert exit.code == 0
print("heavy", [name for name in {HEAVY!r} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.endswith("heavy []\n"), done.stdout + done.stderr
    assert "usage: viv1t-" in done.stdout
    assert done.stderr.startswith(f"viv1t-{command}: error: ")
    assert "nowhere" in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def named(tmp_path: Path) -> Path:
    """A folder whose name no ASCII output can show."""
    (tmp_path / "Mäuse").mkdir()
    return tmp_path


WORDS = """
from viv1t.cli.options import run_main
def work(argv):
    print("words " * 9999)
    return 0
raise SystemExit(run_main("prog", work, None))
"""
# The help, which the parser prints, and a command's own words.
PROGRAMS = [["-m", "viv1t.cli.predict", "--help"], ["-c", WORDS]]


@pytest.mark.parametrize("program", PROGRAMS, ids=["help", "words"])
@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_streams_are_no_failure(program: list[str], closed: str, tmp_path: Path) -> None:
    done = started(f'"$PYTHON" "$@" {closed}', tmp_path, *program)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("program", PROGRAMS, ids=["help", "words"])
def test_output_that_cannot_be_written(program: list[str], tmp_path: Path) -> None:
    ours, theirs = os.pipe()
    os.close(ours)  # as `| head` does once it has seen enough
    done = subprocess.run(
        [sys.executable, *program], env=BUFFERED, stdout=theirs, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(theirs)
    assert (done.returncode, done.stderr) == (141, "")
    done = started('"$PYTHON" "$@" >/dev/full', tmp_path, *program)
    assert done.returncode == 1
    assert "error: No space left on device" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_closed_output_is_no_file_of_ours(tmp_path: Path) -> None:
    """The next file that is opened would have its number, and what is printed would be written there."""
    code = """
from viv1t.cli.options import run_main
def work(argv):
    with open('data', 'w') as file:
        import os
        os.write(1, b'printed')
        file.write('content')
    return 0
raise SystemExit(run_main('prog', work, None))
"""
    (tmp_path / "p.py").write_text(code)
    started('"$PYTHON" p.py >&- 2>&-', tmp_path)
    assert (tmp_path / "data").read_text() == "content"


SHOWS = """
from pathlib import Path
from viv1t.cli.options import run_main
def work(argv):
    print(next(Path(".").iterdir()))
    return 0
raise SystemExit(run_main("prog", work, None))
"""


def test_ascii_output_shows_any_name(named: Path) -> None:
    for environment in ({"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}):
        done = started('"$PYTHON" "$@"', named, "-c", SHOWS, environment=environment)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("M")
