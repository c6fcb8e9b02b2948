"""What a loss or gradient that is not finite leaves behind: all that is needed to see it again."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from viv1t.errors import CheckpointError, TrainingError
from viv1t.runs.checkpoint import load_module_entries, read_checkpoint, write_checkpoint
from viv1t.runs.folder import RunFolder
from viv1t.system.files import write_text
from viv1t.training.step import NotFinite, Step
from viv1t.types import Batch

_TENSORS = ("video", "response", "behavior", "pupil_center", "frames")


class Attempt(NamedTuple):
    """A batch of a step to be tried again: its place among the step's, and the seed of its noise."""

    place: int
    batch: Batch
    seed: int


def examine(
    error: NotFinite,
    step: Step,
    attempts: Iterable[Attempt],
    run: RunFolder,
    state: Mapping[str, Tensor],
    facts: Mapping[str, Any],
) -> TrainingError:
    """Finds the batch that an error is about, and keeps it.

    Args:
        error: what ended the step.
        step: its weights as before.
        attempts: the step's batches, those of this process, again.
        run: where the batch is kept.
        state: of the modules, before the step.
        facts: also kept, with the `train_sizes` of the mice.

    Returns:
        The error, naming mouse and trials, and what was kept.
    """
    for place, batch, seed in attempts:
        if error.place not in (None, place):
            continue
        loss, names = attempt(step, batch, seed)
        if error.place is None and math.isfinite(loss) and not names:
            continue
        about = {
            "seed": seed, "loss": loss, "not_finite": names, "error": str(error),
            "micro_batch_size": step.micro_batch_size,
        }  # fmt: skip
        dump(run, batch, state, about | dict(facts))
        words = str(error)
        if error.place is None:
            words = f"mouse {batch.mouse_id}, trials {', '.join(map(str, batch.trial_ids))}, loss {loss:.6g}: {error}"
        return TrainingError(f"{words}; what is needed to see it again is in {run.failure}")
    if step.ranks.size > 1:
        return TrainingError(f"{error}; another process has the mouse")
    return TrainingError(f"{error}; the same batches, tried again, were finite: look at the machine")


def attempt(step: Step, batch: Batch, seed: int) -> tuple[float, list[str]]:
    """The loss of a batch with the noise of `seed`, and the parameters whose gradients are not finite.

    No weight is changed, and no gradient is left.
    """
    step.forget()
    torch.manual_seed(seed)
    loss = float(step.accumulate(batch))
    names = {p: name for name, p in step.model.named_parameters()}
    bad = [names.get(p, "critic") for p in step.trained if p.grad is not None and not bool(p.grad.isfinite().all())]
    step.forget()
    return loss, bad


def dump(run: RunFolder, batch: Batch, state: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Writes a batch, the state before its step and `facts` (with the noise's `seed`) to the run's folder `failure`.

    Raises:
        CheckpointError: the files cannot be written.
    """
    tensors = {f"batch/{name}": getattr(batch, name) for name in _TENSORS}
    about = {"mouse_id": batch.mouse_id, "trial_ids": list(batch.trial_ids)} | dict(facts)
    write_checkpoint(run.failure / "state.safetensors", tensors | dict(state), about)
    try:
        write_text(run.failure / "failure.json", json.dumps(about, indent=1) + "\n")
    except OSError as error:
        raise CheckpointError(f"{run.failure}: cannot be written ({error.strerror})") from error


def reproduce(run: RunFolder) -> tuple[float, list[str]]:
    """Repeats the batch that `dump` wrote, on the CPU.

    Returns:
        The loss, and the parameters whose gradients are not finite.

    Raises:
        CheckpointError: there is nothing to repeat, or it is damaged.
    """
    path = run.failure / "state.safetensors"
    entries, facts = read_checkpoint(path)
    model, config = run.build_model(), run.config()
    training = run.family().training(model.train(), config, facts["train_sizes"])
    modules: dict[str, nn.Module] = {"model": model}
    if training.critic is not None:
        modules["critic"] = training.critic
    load_module_entries(modules, entries, str(path))
    step = Step(model, training, micro_batch_size=facts["micro_batch_size"])
    if config.frozen_core:
        model.freeze_core()  # run on the crop alone, for want of the whole trial
    tensors: dict[str, Any] = {name: entries[f"batch/{name}"] for name in _TENSORS}
    batch = Batch(mouse_id=facts["mouse_id"], trial_ids=tuple(facts["trial_ids"]), **tensors)
    return attempt(step, batch, facts["seed"])
