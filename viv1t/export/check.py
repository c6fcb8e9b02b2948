"""Whether an exported file is valid and gives in ONNX Runtime what PyTorch gives, and what a lower precision costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from viv1t.data.recordings import Recordings
from viv1t.errors import CheckpointError
from viv1t.onnx_model import InputTransform, open_session, run_session
from viv1t.scoring.correlation import CorrelationAccumulator
from viv1t.types import UNSCORED_FRAMES

TOLERANCE = 1e-4  # of float32, relative
_EQUAL_TRIALS = 2  # recorded trials that PyTorch predicts as well
_SCORED_TRIALS = 10  # recorded trials that a lower precision is judged by


@dataclass(frozen=True)
class Case:
    """Something to predict.

    Attributes:
        inputs: video, behavior and pupil_center as PyTorch's model takes them.
        feed: the same as the file takes it.
        response: of a recorded trial, transformed, (1, N, T).
    """

    inputs: Mapping[str, np.ndarray]
    feed: Mapping[str, np.ndarray]
    response: np.ndarray | None = None


def random_cases(frame_size: tuple[int, int], lengths: Sequence[int], raw: InputTransform | None) -> list[Case]:
    """Normal noise of 2, 1 and 3 trials, of one of the `lengths` each.

    Where the file takes values as recorded, the noise goes through the inverse of `raw`, to be noise again afterwards.
    """
    cases = []
    for trials, frames in zip((2, 1, 3), lengths, strict=True):
        generator = np.random.default_rng(frames)
        state = (trials, 2, frames)
        shapes = {"video": (trials, 1, frames, *frame_size), "behavior": state, "pupil_center": state}
        inputs = {name: generator.standard_normal(shape, np.float32) for name, shape in shapes.items()}
        feed = inputs
        if raw is not None:
            feed = {name: raw.undone(name, values) for name, values in inputs.items()}
            inputs = dict(zip(inputs, raw(**feed), strict=True))
        cases.append(Case(inputs, feed))
    return cases


def recorded_cases(
    recordings: Recordings, mouse_id: str, tier: str, raw: bool, fewest: int, precision: str
) -> list[Case]:
    """The first trials of a tier, as many as `precision` needs, with inputs as recorded if `raw`, else transformed.

    Trials too short to be scored are left out, and a tier whose responses are withheld.
    """
    cases: list[Case] = []
    if recordings.hidden(mouse_id, tier):
        return cases
    session = recordings.session(mouse_id)
    number = _EQUAL_TRIALS if precision == "fp32" else _SCORED_TRIALS
    for batch in islice(recordings.trials(mouse_id, tier), number):
        frames = batch.used_frames
        if frames < max(fewest, UNSCORED_FRAMES + 2):
            continue
        tensors = {"video": batch.video, "behavior": batch.behavior, "pupil_center": batch.pupil_center}
        inputs = {name: values[:, :, :frames].numpy() for name, values in tensors.items()}
        feed = inputs
        if raw:
            recorded = {name: session.read(name, batch.trial_ids[0])[None, ..., :frames] for name in inputs}
            recorded["video"] = recorded["video"][:, None].transpose(0, 1, 4, 2, 3)
            feed = {name: np.ascontiguousarray(values, np.float32) for name, values in recorded.items()}
        cases.append(Case(inputs, feed, batch.response[..., :frames].numpy()))
    return cases


def validate_file(path: Path) -> None:
    """Raises a CheckpointError if ONNX's own checker finds fault with a file."""
    import onnx

    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:  # kinds of its own, all of them plain Exceptions
        raise CheckpointError(f"the exported model is not valid ONNX: {str(error)[:500]}") from error


def check_equal(path: Path, model: Callable[..., torch.Tensor], cases: Sequence[Case]) -> float:
    """The largest relative error of a file against PyTorch's model, which takes a case's inputs by name.

    Raises:
        CheckpointError: it is above 1e-4, or something is not finite.
    """
    session = open_session(path)
    worst = 0.0
    recorded = [case for case in cases if case.response is not None]
    for case in [case for case in cases if case.response is None] + recorded[:_EQUAL_TRIALS]:
        with torch.no_grad():
            expected = model(**{name: torch.from_numpy(values) for name, values in case.inputs.items()}).numpy()
        found = run_session(session, case.feed)
        same = found.shape == expected.shape
        error = float(np.linalg.norm(found - expected) / np.linalg.norm(expected)) if same else np.inf
        if not error <= TOLERANCE:  # nor NaN
            shapes = ", ".join(f"{name} {values.shape}" for name, values in case.feed.items())
            raise CheckpointError(
                f"ONNX Runtime's result differs from PyTorch's by {error:.1e} ({shapes}); no file was written"
            )
        worst = max(worst, error)
    return worst


def precision_loss(converted: Path, original: Path, cases: Sequence[Case], precision: str) -> str:
    """What a lower precision costs, in words: on recorded trials with responses, else on random inputs."""
    low, full = open_session(converted), open_session(original)
    recorded = [case for case in cases if case.response is not None]
    of_full, of_low, between = CorrelationAccumulator(), CorrelationAccumulator(), CorrelationAccumulator()
    for case in recorded or cases:
        results = [torch.from_numpy(run_session(session, case.feed)) for session in (full, low)]
        for trial in range(len(results[0])):
            # Of a core, every value of a map is a series of its own.
            exact, rounded = (x[trial].movedim(1, -1).flatten(0, -2) for x in results)
            between.update(rounded, exact)
            if case.response is not None and results[0].ndim == 3:
                response = torch.from_numpy(case.response[trial])
                frames = min(response.shape[1] - UNSCORED_FRAMES, exact.shape[1])
                for scores, prediction in ((of_full, exact), (of_low, rounded)):
                    scores.update(prediction[:, -frames:], response[:, -frames:])
    where = f"{len(recorded)} held-out trials" if recorded else "random inputs"
    text = f"{precision}: correlates {float(between.result().mean()):.5f} with float32 on {where}"
    if of_full.frames:
        r, r_full = float(of_low.result().mean()), float(of_full.result().mean())
        text += f"; single-trial correlation {r:.4f}, {r_full:.4f} in float32"
    return text
