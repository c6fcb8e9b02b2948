"""What the variant `published` is: our plain version, or with `--reference` a checkout of the published code.

A checkout's package may bear the name of ours, so each of its measurements runs in a process of its own
(`reference_process.py`), which stays to be called in turns with the other variants.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import pytest

import viv1t
from benchmarks.baseline.step import Prediction, TrainingStep
from benchmarks.harness import BASELINE, Work, commit_facts, peak_bytes, torch_threads
from viv1t.families.family import shapes_of
from viv1t.runs.checkpoint import module_entries, write_checkpoint
from viv1t.runs.folder import RunFolder, save_published

if TYPE_CHECKING:
    from benchmarks.workload import Size

ADAPTER = "reference.py"
# How far predictions may be apart, relative: float32, and with fewer bits.
AGREEMENT, ROUNDED_AGREEMENT = 1e-3, 0.05


class Baseline:
    """Our plain version."""

    facts: Mapping[str, Any] = BASELINE
    compiles = True  # also as bf16 with a compiled core

    def work(self, make: Callable[[Size], Work], size: Size, threads: int) -> Work:
        """What is measured; `make` is a subclass of `TrainingStep` or `Prediction` that builds our plain version."""
        return make(size)

    def peak_bytes(self, make: Callable[[Size], Work], size: Size, threads: int) -> int:
        """Memory that the first call adds at its highest, measured in a fresh process."""
        return peak_bytes(make, size, threads=threads)

    def stop(self) -> None:
        """Ends what `work` started."""


class Checkout:
    """The published code in a folder, whose `reference.py` loads a model.

    Raises:
        pytest.UsageError: there is no such folder or file.
    """

    compiles = False  # the published release fails with --core_compile, and on CUDA in bf16

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        if not self.folder.is_dir():
            raise pytest.UsageError(f"--reference {folder} is not a folder: give a checkout of the published code")
        if not (self.folder / ADAPTER).is_file():
            raise pytest.UsageError(
                f"--reference {folder} has no {ADAPTER}: write one there, with a function load_model(run_folder)"
            )
        self.facts: Mapping[str, Any] = {"name": self.folder.name, **commit_facts(self.folder)}
        self._processes: list[_Process] = []
        self._agreed: list[Size] = []

    def work(self, make: type[TrainingStep | Prediction], size: Size, threads: int) -> Work:
        """The checkout's way to do what `make` does, in a process that has shown that its model predicts as ours."""
        process = self._start(make, size, threads)
        if size not in self._agreed:
            self._check(process.ask("predict"), size, threads)
            self._agreed.append(size)
        return process

    def peak_bytes(self, make: type[TrainingStep | Prediction], size: Size, threads: int) -> int:
        """Memory that the first call adds at its highest, measured in a fresh process."""
        if size not in self._agreed:
            self.work(make, size, threads)
            self.stop()
        return self._start(make, size, threads).ask("peak_bytes")

    def stop(self) -> None:
        """Ends all processes."""
        while self._processes:
            self._processes.pop().stop()

    def _start(self, make: type[TrainingStep | Prediction], size: Size, threads: int) -> _Process:
        process = _Process(self.folder)
        self._processes.append(process)
        process.start(size, size.training if issubclass(make, TrainingStep) else None, threads)
        return process

    def _check(self, found: np.ndarray, size: Size, threads: int) -> None:
        with torch_threads(threads):
            ours = Prediction(size.model(), size.batch())().cpu().numpy()
        if found.shape != ours.shape:
            _fail(self.folder, f"its model predicts responses of shape {found.shape}, {ours.shape} was expected")
        apart = np.linalg.norm(found - ours) / np.linalg.norm(ours)
        allowed = ROUNDED_AGREEMENT if size.tf32 else AGREEMENT
        if not apart <= allowed:  # NaN too
            _fail(
                self.folder,
                f"its predictions in evaluation mode differ from ours by {apart:.2g}, relative, where {allowed:g} is "
                "allowed: does load_model build what args.yaml says, and load all of ckpt/model_state.pt?",
            )


class _Process:
    """A checkout's model in a process of its own, which starts with `start` and ends with `stop`."""

    def __init__(self, checkout: Path) -> None:
        self._checkout = checkout
        self._files = TemporaryDirectory(prefix="viv1t-reference-")
        # Of a session of its own: Ctrl-C is for this process to handle, and `stop` ends what it has started too.
        self._popen = subprocess.Popen(
            (sys.executable, "-P", str(Path(__file__).with_name("reference_process.py"))),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=checkout,
            start_new_session=True,
        )

    def start(self, size: Size, training: Mapping[str, Any] | None, threads: int) -> None:
        """Hands over weights and batch, and has the model loaded."""
        files = Path(self._files.name)
        model, batch = size.model(), size.batch()
        run = RunFolder(files / "ours")
        config = replace(size, options={**size.options, "precision": "32"}).config  # it knows no "tf32"
        run.write_args(config, shapes_of(model, config.data.crop_frame))
        write_checkpoint(run.best, module_entries({"model": model}), {"epoch": 0, "value": 0.0})
        save_published(run, files / "run")
        variables = ("video", "behavior", "pupil_center", "response")
        np.savez(files / "batch.npz", **{name: getattr(batch, name).cpu().numpy() for name in variables})
        task = {
            "adapter": str(self._checkout / ADAPTER),
            "files": str(files),
            "ours": str(Path(viv1t.__file__).resolve().parent),
        }
        how = {"training": training, "threads": threads, "device": size.device, "tf32": size.tf32}
        self.ask(json.dumps({**task, "mouse_id": batch.mouse_id, **how}))

    def __call__(self) -> Any:
        """Does the work; returns its result."""
        return self.ask("work")

    def ask(self, request: str) -> Any:
        """The answer to one line; pytest fails with what went wrong there."""
        assert self._popen.stdin is not None
        assert self._popen.stdout is not None
        try:
            print(request, file=self._popen.stdin, flush=True)
            answer = json.loads(self._popen.stdout.readline())
        except (OSError, json.JSONDecodeError):
            self.stop()
            _fail(self._checkout, f"its process ended with status {self._popen.returncode}")
        if "error" in answer:
            _fail(self._checkout, answer["error"])
        return np.load(answer["array"]) if "array" in answer else answer["value"]

    def stop(self) -> None:
        """Ends the process, whatever it is doing."""
        if self._popen.returncode is None:  # not waited for, so the number is still its own
            os.killpg(self._popen.pid, signal.SIGKILL)
            with suppress(BrokenPipeError), self._popen:
                pass  # closes the pipes and waits
        self._files.cleanup()


def _fail(checkout: Path, message: str) -> NoReturn:
    pytest.fail(f"--reference {checkout.name}: {message}", pytrace=False)


Published = Baseline | Checkout
