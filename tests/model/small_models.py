"""Small models for the tests of this folder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from viv1t.families.sensorium2023.build import build_model
from viv1t.families.sensorium2023.options import VivitConfig
from viv1t.families.sensorium2023.run import RunConfig
from viv1t.model.twin import Neurons, ViV1T

FRAME = (12, 16)
MICE = {"A": 5, "B": 7}
REQUIRED = {"output_dir": "runs/test", "ds_mode": 2, "transform_mode": 2}
VIVIT = {
    "core": "vivit", "readout": "gaussian2d", "crop_frame": 20, "core_temporal_patch_size": 5,
    "core_spatial_patch_size": 4, "core_spatial_patch_stride": 4, "core_emb_dim": 8, "core_num_heads": 2,
    "core_head_dim": 4, "core_mlp_dim": 12, "core_spatial_depth": 1, "core_temporal_depth": 2,
}  # fmt: skip
FACTORIZED = {
    "core": "factorized_baseline", "readout": "gaussian2d", "crop_frame": 20, "core_num_layers": 2,
    "core_hidden_dim": 4, "core_spatial_input_kernel": 5, "core_spatial_hidden_kernel": 3,
    "core_temporal_input_kernel": 5, "core_temporal_hidden_kernel": 3,
}  # fmt: skip


def small_config(**options: Any) -> RunConfig:
    """A small vivit, or a small factorized_baseline when `core` says so, with `options` on top."""
    base = FACTORIZED if options.get("core") == "factorized_baseline" else VIVIT
    return RunConfig.from_options(REQUIRED | base | options)


def small_core(**options: Any) -> VivitConfig:
    core = small_config(**options).core
    assert isinstance(core, VivitConfig)
    return core


def small_model(mice: dict[str, int] | None = None, seed: int = 0, **options: Any) -> ViV1T:
    """In evaluation mode, weights drawn from `seed` and spread wider than fresh ones, so that every part is felt."""
    torch.manual_seed(seed)
    neurons = {m: Neurons(n, 100 * torch.rand(n, 3), torch.rand(n)) for m, n in (mice or MICE).items()}
    model = build_model(small_config(**options), neurons, FRAME)
    with torch.no_grad():
        for parameter in model.core.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model.eval()


Inputs = tuple[Tensor, str, Tensor, Tensor]


def small_inputs(mouse: str = "A", batch: int = 2, frames: int = 20, seed: int = 1) -> Inputs:
    """video, mouse, behavior and pupil_center as the model takes them."""
    generator = torch.Generator().manual_seed(seed)
    video = torch.randn(batch, 1, frames, *FRAME, generator=generator)
    behavior, pupil_center = torch.rand(2, batch, 2, frames, generator=generator)
    return video, mouse, behavior, pupil_center
