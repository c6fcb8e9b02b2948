"""Training with the fused operators and with their plain definitions reaches the same validation correlation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor
from viv1t.kernels.parallel_block import BlockSettings, BlockWeights
from viv1t.kernels.parallel_block import reference as block
from viv1t.kernels.patch_embed.reference import patch_embed
from viv1t.kernels.readout.reference import readout

from viv1t.config.fields import Options
from viv1t.data.synthetic.mice import Size, synthesize
from viv1t.families.sensorium2023.run import RunConfig
from viv1t.recipes.demo import OPTIONS
from viv1t.recipes.train import run

SIZE = Size(neurons=80, frames=120, trials=160, evaluation=((4, 4), (1, 1), (1, 1), (1, 1), (1, 1)))
SMALL: Options = {
    "core_spatial_patch_stride": 12, "core_emb_dim": 32, "core_mlp_dim": 64, "core_temporal_patch_size": 9,
    "crop_frame": 60, "epochs": 4, "verbose": 0, "device": "cpu",
    # Everything that is drawn within the operators.
    "core_mha_dropout": 0.1, "core_ff_dropout": 0.1, "core_drop_path": 0.05,
}  # fmt: skip


def plain_block(x: Tensor, weights: BlockWeights, settings: BlockSettings, **_: Any) -> Tensor:
    return block.parallel_block(x, weights, settings, block.draw(x, weights, settings, attention=True))


@pytest.mark.slow
def test_fused_and_plain_training_reach_the_same_correlation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three seeds each: the difference of their means lies within the spread of the seeds."""
    synthesize(tmp_path / "mice", mice=["F", "G"], size=SIZE, seed=0, workers=1)
    scores: dict[str, list[float]] = {"fused": [], "plain": []}
    for way, reached in scores.items():
        if way == "plain":
            monkeypatch.setattr("viv1t.model.layers.blocks.parallel_block", plain_block)
            monkeypatch.setattr("viv1t.model.layers.patches.patch_embed", patch_embed)
            monkeypatch.setattr("viv1t.model.readout.readout", readout)
        for seed in range(3):
            folder = tmp_path / f"{way}{seed}"
            given = OPTIONS | SMALL | {"data": str(tmp_path / "mice"), "output_dir": str(folder), "seed": seed}
            _, final = run(RunConfig.from_options(given))
            reached.append(final.mean)
    print(scores)  # seen with `pytest -rP`
    fused, plain = (np.array(reached) for reached in scores.values())
    spread = max(np.ptp(fused), np.ptp(plain))
    assert min(*fused, *plain) > 0.1, scores  # all have learned
    assert abs(fused.mean() - plain.mean()) <= spread, scores
