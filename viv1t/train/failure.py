"""What a loss or gradient that is not finite leaves behind: all that is needed to see it again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from viv1t.errors import CheckpointError
from viv1t.files import write_text
from viv1t.train.checkpoint import load_module_entries, read_checkpoint, write_checkpoint
from viv1t.train.optimizer import build_optimizer
from viv1t.train.run_folder import RunFolder
from viv1t.train.step import Step
from viv1t.types import Batch

_TENSORS = ("video", "response", "behavior", "pupil_center", "frames")


def attempt(step: Step, batch: Batch, seed: int) -> tuple[float, list[str]]:
    """The loss of a batch with the noise of `seed`, and the parameters whose gradients are not finite.

    No weight is changed, and no gradient is left.
    """
    step.optimizer.zero_grad(set_to_none=True)
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
    model = run.build_model()
    load_module_entries({"model": model}, entries, str(path))
    config = run.config()
    sizes = facts["train_sizes"]
    step = Step(model.train(), build_optimizer(model, config), config, sizes)
    step.micro_batch_size = facts["micro_batch_size"]
    batch = Batch(
        mouse_id=facts["mouse_id"],
        trial_ids=tuple(facts["trial_ids"]),
        **{name: entries[f"batch/{name}"] for name in _TENSORS},
    )
    return attempt(step, batch, facts["seed"])
