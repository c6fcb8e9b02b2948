"""Whether the model is being exported, to programs that know no operators of ours."""

from __future__ import annotations

import torch


def is_exporting() -> bool:
    """Whether `torch.export` is tracing, which does so without Dynamo unless it is asked to."""
    # PyTorch 2.11 says yes to `torch.compile` as well.
    return torch.compiler.is_exporting() and not torch.compiler.is_dynamo_compiling()
