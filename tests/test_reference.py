"""Benchmarks of a checkout of the published code: a fake one, whose package bears the name of ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_harness import TINY_STEP

from benchmarks.harness import BASELINE, ROOT, seconds
from benchmarks.published import Checkout
from benchmarks.test_inference import EngineInference, PublishedInference
from benchmarks.test_step import PublishedStep

LOAD = 'model.load_state_dict(torch.load(run_folder / "ckpt" / "model_state.pt", weights_only=True)["model"])'
ADAPTER = f"""
from types import SimpleNamespace
import torch, yaml
from viv1t.model import PlainViV1T

def load_model(run_folder):
    print("on standard output")
    args = yaml.safe_load((run_folder / "args.yaml").read_text())
    core, shifter = (
        SimpleNamespace(**{{k.removeprefix(part): v for k, v in args.items() if k.startswith(part)}})
        for part in ("core_", "shifter_")
    )
    neurons = {{mouse: shape[0] for mouse, shape in args["output_shapes"].items()}}
    frame_size = args["input_shapes"]["video"][-2:]
    model = PlainViV1T(SimpleNamespace(core=core, shifter=shifter), neurons, frame_size)
    {LOAD}
    return model
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Iterator[Callable[[str], Checkout]]:
    """Makes a checkout with this adapter: the plain model, in a package `viv1t` that has nothing else of ours."""
    made: list[Checkout] = []

    def make(adapter: str) -> Checkout:
        folder = tmp_path / "published-code"
        package = folder / "viv1t"
        package.mkdir(parents=True)
        for name in ("__init__", "core", "model"):
            text = (ROOT / "benchmarks" / "baseline" / f"{name}.py").read_text()
            (package / f"{name}.py").write_text(text.replace("benchmarks.baseline", "viv1t"))
        options = package / "families" / "sensorium2023"
        options.mkdir(parents=True)
        (options / "options.py").write_text("from types import SimpleNamespace as VivitConfig\n")
        (options / "run.py").write_text("RunConfig = None\n")
        (package / "types.py").write_text("MAX_FRAMES = 300\n")
        (folder / "reference.py").write_text(adapter)
        made.append(Checkout(folder))
        return made[-1]

    yield make
    for each in made:
        each.stop()


def test_step_and_inference_are_those_of_the_checkout(
    checkout: Callable[[str], Checkout], capfd: pytest.CaptureFixture[str]
) -> None:
    none = dict.fromkeys(("core_p_dropout", "core_mha_dropout", "core_ff_dropout", "core_drop_path"), 0.0)
    size = replace(TINY_STEP, options={**TINY_STEP.options, **none})
    still = "model.readouts.F.sigma.requires_grad_(False).zero_()"  # nor noise at the readout's positions
    told = "model.register_forward_hook(lambda m, i, o: print('training', m.training, flush=True))"
    published = checkout(ADAPTER.replace("return model", f"{still}; {told}; return model"))
    (published.folder / "viv1t" / "__init__.py").unlink()  # a package all the same

    step, ours = published.work(PublishedStep, size, 1), PublishedStep(size)
    ours.model.readouts["F"].sigma.requires_grad_(False).zero_()
    assert capfd.readouterr().err.splitlines() == ["on standard output", "training False"]
    samples = seconds({"ours": ours, "published": step}, repeats=1, warmup=0)
    assert [len(x) for x in samples.values()] == [1, 1]
    losses = [step() for _ in range(3)]
    assert losses == pytest.approx([ours() for _ in range(3)], rel=1e-4)
    assert len(set(losses)) == 3
    assert capfd.readouterr().err.splitlines() == ["training True"] * 4

    predict = published.work(PublishedInference, size, 1)
    np.testing.assert_allclose(predict(), EngineInference(size)(), rtol=1e-3)
    assert published.peak_bytes(PublishedInference, size, 1) > 0
    # Two processes; predictions that agreed once are not compared again.
    assert capfd.readouterr().err.splitlines() == ["on standard output", "training False"] * 2


def test_a_model_that_predicts_otherwise_is_refused(checkout: Callable[[str], Checkout]) -> None:
    with pytest.raises(pytest.fail.Exception, match=r"^--reference published-code: its predictions .* by \d.*$"):
        checkout(ADAPTER.replace(LOAD, "pass")).peak_bytes(PublishedInference, TINY_STEP, 1)


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        ("load = None", r"reference.py has no function load_model\(run_folder\)"),
        ("\nimport absent", r"reference.py failed with ModuleNotFoundError: .*'absent' \(reference.py, line 2\)"),
        (
            "import viv1t.system.memory",
            r"reference.py failed with ModuleNotFoundError: No module named 'viv1t.system' .*",
        ),
        ("def load_model(", r"reference.py failed with SyntaxError: .*\(reference.py, line 1\)"),
        (
            "def load_model(run):\n    raise ValueError('a\\nb')",
            r"load_model failed with ValueError: a b \(reference.py, line 2\)",
        ),
        ("def load_model(run):\n    raise SystemExit('usage')", r"load_model failed with SystemExit: usage \(.*\)"),
        ("import os\ndef load_model(run):\n    os._exit(3)", "its process ended with status 3"),
        ("def load_model(run):\n    return 1", r"load_model returned int, a torch.nn.Module was expected"),
    ],
)
def test_faults_of_an_adapter_are_said_in_one_line(
    checkout: Callable[[str], Checkout], adapter: str, message: str
) -> None:
    with pytest.raises(pytest.fail.Exception, match=f"^--reference published-code: {message}$"):
        checkout(adapter).work(PublishedInference, TINY_STEP, 1)


def test_our_own_package_is_no_reference(tmp_path: Path) -> None:
    (tmp_path / "reference.py").write_text("from viv1t.runs.folder import RunFolder")
    published = Checkout(tmp_path)
    with pytest.raises(pytest.fail.Exception, match=r"No module named 'viv1t.*' \(this repository's is no reference\)"):
        published.work(PublishedInference, TINY_STEP, 1)
    published.stop()


def test_a_checkout_without_an_adapter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(pytest.UsageError, match=r"^--reference .*absent is not a folder: .*$"):
        Checkout(tmp_path / "absent")
    with pytest.raises(pytest.UsageError, match=r"^--reference .* has no reference.py: .*load_model\(run_folder\)$"):
        Checkout(tmp_path)


def test_its_process_ends_on_control_c(checkout: Callable[[str], Checkout], tmp_path: Path) -> None:
    number = tmp_path / "pid"
    published = checkout(
        f"""
import os, pathlib, signal, time
def load_model(run_folder):
    pathlib.Path({str(number)!r}).write_text(str(os.getpid()))
    os.kill(os.getppid(), signal.SIGINT)
    time.sleep(600)
"""
    )
    with pytest.raises(KeyboardInterrupt):
        published.work(PublishedInference, TINY_STEP, 1)
    published.stop()
    assert not Path("/proc", number.read_text()).exists()


def test_results_say_what_was_measured(checkout: Callable[[str], Checkout], tmp_path: Path) -> None:
    """A subject of its own, run as a user runs the benchmarks."""
    folder = checkout("").folder
    for command in (("init", "-q"), ("-c", "user.name=a", "-c", "user.email=b", "commit", "-qm", "c", "--allow-empty")):
        subprocess.run(("git", *command), cwd=folder, check=True)
    commit = subprocess.run(("git", "rev-parse", "HEAD"), cwd=folder, capture_output=True, text=True, check=True).stdout
    (tmp_path / "test_toy.py").write_text(
        "def test_toy(report, published):\n    report.add('toy', 'c', 'seconds', 's', {'published': 1.5})\n"
        "def test_other(report):\n    report.add('other', 'c', 'seconds', 's', {'published': 2.5})\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "benchmarks.conftest", "-p", "no:cacheprovider", "test_toy.py",
         "--rootdir", ".", "--out", "out", "--reference", str(folder)],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"published in toy: published-code at {commit}" in done.stdout
    assert "published in other: benchmarks/baseline\n" in done.stdout
    facts = [json.loads((tmp_path / "out" / f"{name}.json").read_text())["published"] for name in ("toy", "other")]
    assert facts == [{"name": "published-code", "commit": commit.strip(), "uncommitted_changes": False}, BASELINE]
