"""Every command that the documentation shows runs, on tiny mice and a tiny model, in the order of its page."""

from __future__ import annotations

import re
import shlex
import shutil
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
from tiny_runs import CAUSAL, VIVIT, as_arguments, make_causal, train

from viv1t.training import trainer as trainer_module
from viv1t.training.validate import Validation

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*(ROOT / "docs").glob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"])
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
# What makes a command of the published size run here; everything else stands as on the page.
SMALLER = as_arguments(
    VIVIT | {"core_pos_encoding": 0, "epochs": 1, "crop_frame": 40, "batch_size": 2, "num_workers": 1, "device": "cpu"}
)
SMALLER_2025 = as_arguments({k: v for k, v in CAUSAL.items() if k != "core"} | {
    "mouse_ids": ["F", "G"], "epochs": 1, "num_workers": 1, "device": "cpu", "compile": "false", "wandb": "none",
})  # fmt: skip
SHELL = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
UNTESTED = re.compile(r"^```(?:bash|console)\n(.*?)^```", re.MULTILINE | re.DOTALL)
# Commands that set up a machine, take minutes, or need several of them: shown in ```bash.
MAY_BE_UNTESTED = re.compile(
    r"(make (demo|test|docs)|pip install|git clone|cd |torchrun|srun|python -m venv|\. |source |pytest|apt |mkdocs"
    r"|ffmpeg |python -m viv1t.kernels|viv1t-data synth data/demo-long|viv1t-train --demo|viv1t-lab (rf|all|size) "
    r"|export |head=|#)"
)


def learning(patch: pytest.MonkeyPatch) -> None:
    """Models too small to learn anything are said to have learned something."""
    patch.setattr(
        trainer_module, "validate", lambda _, recordings, *more: Validation(dict.fromkeys(recordings.mice, 0.3), 1.0)
    )


def commands(text: str, fence: re.Pattern[str]) -> list[str]:
    """The commands in a page's blocks, continued lines joined, comments left out."""
    lines = "\n".join(fence.findall(text)).replace("\\\n", " ").splitlines()
    return [line for line in (re.sub(r"\s+#.*$", "", line).strip() for line in lines) if line]


@pytest.fixture(scope="module")
def workspace(mice: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the pages speak of: recordings, runs of two seeds on them, and a film."""
    folder = tmp_path_factory.mktemp("workspace")
    for session in mice.iterdir():
        if not session.name.startswith("dynamic29156"):  # the pages' runs are on F and G
            shutil.copytree(session, folder / "data" / "sensorium" / session.name)
    shutil.copytree(next((folder / "data/sensorium").iterdir()), folder / "data" / "mine" / "my-recording")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        learning(patch)
        for name, seed in (("test", 1), ("again", 2)):
            options = {"ds_mode": 3, "mouse_ids": None, "epochs": 1, "seed": seed, "core_pos_encoding": 0}
            train(Path("data/sensorium"), Path("runs/vivit") / name, **options)
        make_causal(Path("runs/causal"), ["F", "G"])
    return folder


def test_what_is_not_run_is_known() -> None:
    for page in PAGES:
        for command in commands(page.read_text(), UNTESTED):
            assert MAY_BE_UNTESTED.match(command), f"{page.name}: show this in ```sh, so that it is tested: {command}"


@pytest.mark.parametrize("page", [p for p in PAGES if commands(p.read_text(), SHELL)], ids=lambda p: p.name)
def test_commands_of_a_page(
    page: Path, workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = page.read_text()
    here = tmp_path / "here"
    shutil.copytree(workspace, here)
    if "frames.raw" in text:
        (here / "frames.raw").write_bytes(bytes(5 * 36 * 64))
    if "film.mp4" in text:
        small_videos = pytest.importorskip("small_videos")
        small_videos.write_video(here / "film.mp4", small_videos.moving_pattern(40, 72, 128))
    monkeypatch.chdir(here)
    learning(monkeypatch)
    for command in commands(text, SHELL):
        program, *arguments = shlex.split(command)
        module, _, function = SCRIPTS[program].partition(":")
        if program == "viv1t-train":
            arguments += SMALLER_2025 if any(word.startswith("--data_dir") for word in arguments) else SMALLER
        status = getattr(import_module(module), function)(arguments)
        assert status == 0, f"{page.name}: {command}\n{capsys.readouterr().err}"


def test_pages_link_to_files_that_are_there() -> None:
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"
