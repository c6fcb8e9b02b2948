"""Digital twins of mouse visual cortex: the ViV1T model, its training and its use.

`train`, `evaluate`, `predict` and `predict_film` do what the commands do, on run folders. `open_recordings` gives the
mice of a data folder, `synthesize` makes some. `Predictor` and `OnnxModel` take movies as recorded, `Stream` and,
without PyTorch, `OnnxStream` one frame after the other; `load_model` gives the model alone. `Lab` experiments on a
trained twin. Errors are in `viv1t.errors`.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from viv1t import errors as errors
    from viv1t.data.synthetic.mice import synthesize as synthesize
    from viv1t.families.sensorium2023.run import RunConfig as RunConfig
    from viv1t.lab.lab import Lab as Lab
    from viv1t.model.twin import ViV1T
    from viv1t.onnx_model import OnnxModel as OnnxModel
    from viv1t.onnx_stream import OnnxStream as OnnxStream
    from viv1t.prediction.predictor import Predictor as Predictor
    from viv1t.recipes.interface import evaluate as evaluate
    from viv1t.recipes.interface import open_recordings as open_recordings
    from viv1t.recipes.interface import predict as predict
    from viv1t.recipes.interface import predict_film as predict_film
    from viv1t.recipes.interface import train as train
    from viv1t.stream import Stream as Stream

# In an editable install the kernels live in another folder; this lets `viv1t.kernels` be found there.
__path__ = pkgutil.extend_path(__path__, __name__)
__version__ = "0.1.0"


# What is imported when it is asked for: neither PyTorch nor ONNX Runtime is needed to import the package itself.
_LAZY = {
    "Lab": "viv1t.lab", "OnnxModel": "viv1t.onnx_model", "OnnxStream": "viv1t.onnx_stream",
    "Predictor": "viv1t.prediction.predictor", "RunConfig": "viv1t.families.sensorium2023.run",
    "Stream": "viv1t.stream", "synthesize": "viv1t.data.synthetic.mice",
    **dict.fromkeys(("evaluate", "open_recordings", "predict", "predict_film", "train"), "viv1t.recipes.interface"),
}  # fmt: skip


def load_model(run_folder: str | Path, device: str | torch.device = "cpu") -> ViV1T:
    """The best model of a run folder, ours or a published one, in evaluation mode; needs no recordings.

    Args:
        run_folder: path of the run.
        device: where to put it.

    Returns:
        A `viv1t.model.twin.ViV1T`: `model(video, mouse_id=..., behavior=..., pupil_center=...)` gives (B, N, t) for
        movies, behaviour and gaze that are transformed as in training.

    Raises:
        viv1t.errors.CheckpointError: no run there, or its checkpoint is damaged or does not fit its options.
    """
    from viv1t.runs.folder import RunFolder

    return RunFolder(run_folder).load_model(device)


def __getattr__(name: str) -> Any:
    if name == "errors":
        return importlib.import_module("viv1t.errors")
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY, "errors"])
