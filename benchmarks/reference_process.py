"""The process in which a checkout of the published code is measured; nothing of our package is imported here.

Reads requests, a line each: first what to load, in JSON, then `predict`, `work` or `peak_bytes`, as often as wanted.
Answers each with a line of JSON. Ends when there are no more.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any


class Refused(Exception):
    """Says in one line what is wrong with the checkout or its adapter."""


def load_file(name: str, path: Path) -> ModuleType:
    """Runs a file as the module `name`."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class NotOurs:
    """Finds modules of our package's name elsewhere or not at all.

    An editable installation of ours answers before the path is looked at, and ours, a regular package, would be
    preferred to one without `__init__.py` that comes earlier.
    """

    def __init__(self, ours: Path) -> None:
        self.ours = ours

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: object = None) -> ModuleSpec | None:
        if name.partition(".")[0] != self.ours.name:
            return None
        if path is None:
            path = [entry for entry in sys.path if Path(entry).resolve() != self.ours.parent]
        spec = PathFinder.find_spec(name, path)
        if spec is None:
            raise ModuleNotFoundError(f"No module named {name!r} (this repository's is no reference)", name=name)
        return spec


class Server:
    """Loads the model, then answers requests.

    Args:
        adapter: path of `reference.py`; its folder is the checkout.
        files: folder with `run`, a published run folder, and `batch.npz`; results are put there.
        ours: folder of our package.
        mouse_id: whose trials the batch holds.
        training: arguments of `TrainingStep`; None measures predictions.
        threads: of PyTorch.
        device: of model and batch.
        tf32: multiply float32 on tensor cores.
    """

    def __init__(
        self, adapter: str, files: str, ours: str, mouse_id: str, training: dict[str, Any] | None, threads: int,
        device: str, tf32: bool,
    ) -> None:  # fmt: skip
        self.adapter, self.files = Path(adapter), Path(files)
        self.checkout = self.adapter.parent
        model = self._load_model(ours)

        # The checkout comes first: what it imports, and how, is not ours to decide.
        import numpy as np
        import torch

        here = Path(__file__).parent
        self.baseline = load_file("_baseline_step", here / "baseline" / "step.py")
        self.memory = load_file("_memory", Path(ours) / "system" / "memory.py")
        if not isinstance(model, torch.nn.Module):
            raise Refused(f"load_model returned {type(model).__name__}, a torch.nn.Module was expected")
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        with np.load(self.files / "batch.npz") as arrays:
            tensors = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
        batch, self.device = SimpleNamespace(mouse_id=mouse_id, **tensors), device
        self.model = model.to(device)
        self.prediction = self.baseline.Prediction(self.model, batch)
        self.measured: Callable[[], Any] = self.prediction
        if training is not None:
            self.measured = self.baseline.TrainingStep(self.model, batch, **training)

    def _load_model(self, ours: str) -> Any:
        sys.meta_path.insert(0, NotOurs(Path(ours)))
        sys.path.insert(0, str(self.checkout))
        with self._blaming(self.adapter.name):
            adapter = load_file("_reference", self.adapter)
        if not callable(getattr(adapter, "load_model", None)):
            raise Refused(f"{self.adapter.name} has no function load_model(run_folder)")
        with self._blaming("load_model"):
            return adapter.load_model(self.files / "run")

    @contextmanager
    def _blaming(self, what: str) -> Iterator[None]:
        try:
            yield
        except (Exception, SystemExit) as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            frames = traceback.extract_tb(error.__traceback__)
            places = [frame for frame in frames if Path(frame.filename).is_relative_to(self.checkout)]
            where = f" ({Path(places[-1].filename).name}, line {places[-1].lineno})" if places else ""
            raise Refused(f"{what} failed with {reason}{where}") from error

    def predict(self) -> Any:
        """Predictions in evaluation mode."""
        training = self.model.training
        self.model.eval()
        result = self._run(self.prediction)
        self.model.train(training)
        return result

    def work(self) -> Any:
        """What is measured."""
        result = self._run(self.measured)
        if self.device != "cpu":
            import torch

            torch.cuda.synchronize()
        return result

    def peak_bytes(self) -> int:
        """Memory that the work adds at its highest."""
        added = self.memory.peak_added_bytes if self.device == "cpu" else self.baseline.cuda_peak_added_bytes
        peak: int = added(lambda: self._run(self.measured))
        return peak

    def _run(self, work: Callable[[], Any]) -> Any:
        with self._blaming("the model"):
            return work()

    def answer(self, request: str) -> dict[str, Any]:
        """What goes back: a number, or the path of an array."""
        result = getattr(self, request)()
        if isinstance(result, int | float):
            return {"value": result}
        import numpy as np
        import torch

        if not isinstance(result, torch.Tensor):
            raise Refused(f"the model returned {type(result).__name__}, a tensor of responses was expected")
        path = self.files / "result.npy"
        np.save(path, result.float().cpu().numpy())
        return {"array": str(path)}


def main() -> None:
    """Serves until standard input ends; what the checkout prints goes to standard error."""
    load_file("_parent", Path(__file__).with_name("parent.py")).end_with_parent()
    requests, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    server = None
    for line in requests:
        try:
            if server is None:
                server, answer = Server(**json.loads(line)), {"value": 0}
            else:
                answer = server.answer(line.strip())
        except Refused as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
