"""Which device things are computed on."""

from __future__ import annotations

import torch

from viv1t.errors import ConfigError


def best_device(name: str | None) -> torch.device:
    """The device asked for, or the best there is.

    Raises:
        ConfigError: it is not available on this machine.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name is None:
        name = next(device for device, there in available.items() if there)
    if not available[name]:
        raise ConfigError(
            f"--device {name} is not available here; use {' or '.join(d for d, ok in available.items() if ok)}"
        )
    return torch.device(name)
