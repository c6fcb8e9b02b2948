"""The rows and columns of the core's maps: the patches' own, or those of the published code."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from small_models import FRAME, small_config, small_core, small_inputs, small_model
from torch import Tensor

from viv1t.errors import ConfigError
from viv1t.families.sensorium2023.definition import SENSORIUM2023
from viv1t.families.sensorium2023.grid import check_grid, patch_grid, published_grid
from viv1t.families.sensorium2023.options import VivitConfig
from viv1t.model.cores.vivit import Vivit
from viv1t.model.layers.positions import PositionGenerator

# On frames of 12 x 16 pixels 4 x 5 patches, which the published code takes for 5 x 4.
TORN: dict[str, Any] = {"core_spatial_patch_size": 3, "core_spatial_patch_stride": 3}
FLAT: dict[str, Any] = {"core_spatial_depth": 0, "core_temporal_depth": 0}


def core_of(**options: Any) -> Vivit:
    core = small_model(**TORN | options).core
    assert isinstance(core, Vivit)
    return core


def maps_of(core: Vivit) -> Tensor:
    video, mouse, behavior, pupil_center = small_inputs()
    return core(video, behavior, pupil_center, mouse)


def test_the_published_grid_is_another_for_22_of_96_pairs() -> None:
    """Patches of 3 to 14 pixels, strides of 1 to 8, on frames of 36 x 64."""
    grids = {(p, s): patch_grid((36, 64), p, s) for p in range(3, 15) for s in range(1, 9)}
    assert len(grids) == 96
    assert sum(grid != published_grid(grid) for grid in grids.values()) == 22
    assert grids[7, 4] == (8, 15)
    assert published_grid(grids[7, 4]) == (10, 12)
    assert grids[7, 2] == published_grid(grids[7, 2]) == (15, 29)


def test_true_maps_have_the_patches_rows_and_columns_and_published_ones_are_the_same_values_elsewhere() -> None:
    true, published, unsaid = (core_of(core_grid=grid, **FLAT) for grid in ("true", "published", None))
    assert true.output_shape == (8, 4, 5)
    assert published.output_shape == unsaid.output_shape == (8, 5, 4)
    assert torch.equal(maps_of(true).flatten(3), maps_of(published).flatten(3))
    assert torch.equal(maps_of(unsaid), maps_of(published))


def test_a_true_map_changes_where_the_movie_does() -> None:
    video, mouse, behavior, pupil_center = small_inputs()
    core = core_of(core_grid="true", **FLAT)
    changed = video.clone()
    changed[..., 6:9, 12:15] += 1  # the patch in row 2, column 4
    before, after = (core(v, behavior, pupil_center, mouse) for v in (video, changed))
    moved = (before - after).abs().amax(dim=(0, 1, 2)) > 1e-2
    assert moved.nonzero().tolist() == [[2, 4]]


def test_generated_positions_are_on_the_same_grid() -> None:
    for grid, expected in (("true", (4, 5)), ("published", (5, 4))):
        core = core_of(core_grid=grid, core_pos_encoding=2)
        found = [m.grid for m in core.spatial.modules() if isinstance(m, PositionGenerator)]
        assert found == [expected]


def test_positions_are_reported_where_they_are() -> None:
    """Every map's cell lies at the centre of the patch that it was made of."""
    for grid in ("true", "published"):
        core = core_of(core_grid=grid)
        rows, columns = core.grid
        cells = torch.stack(
            torch.meshgrid(torch.linspace(-1, 1, columns), torch.linspace(-1, 1, rows), indexing="xy"), dim=-1
        ).flatten(0, 1)
        pixels = (core.frame_positions(cells) + 1) / 2 * torch.tensor([15.0, 11])
        patches = torch.arange(20)
        centres = torch.stack((patches % 5, patches // 5), dim=-1) * 3.0 + 1
        torch.testing.assert_close(pixels, centres)
    # Between cells that are no neighbours, the nearest one says where; what is outside is moved to the border.
    near = core.frame_positions(torch.tensor([[-0.9, -1.0], [-3.0, -5.0]]))
    torch.testing.assert_close(near, core.frame_positions(torch.tensor([[-1.0, -1.0], [-1.0, -1.0]])))


def check(before: VivitConfig | None = None, **options: Any) -> None:
    check_grid(small_core(**TORN | options), FRAME, before)


def test_a_new_run_has_to_say_which_grid_where_they_differ() -> None:
    with pytest.raises(ConfigError) as refusal:
        check()
    line = str(refusal.value)
    assert "--core_spatial_patch_size 3 and --core_spatial_patch_stride 3 cut frames of 12 x 16 pixels" in line
    assert "4 x 5 patches, which the published code takes for 5 x 4" in line
    assert "give --core_grid true (or published, to repeat that)" in line
    strides, sizes = re.findall(r"with size 3 stride ([\d, ]+); with stride 3 size ([\d, ]+)", line)[0]
    assert strides == "1, 2"
    for stride in strides.split(", "):
        check(core_spatial_patch_stride=int(stride))
    for size in sizes.split(", "):
        check(core_spatial_patch_size=int(size))
    for grid in ("true", "published"):
        check(core_grid=grid)


def test_weights_go_on_with_the_grid_they_were_trained_with() -> None:
    def trained(grid: str | None) -> VivitConfig:
        return small_core(core_grid=grid)

    for now, before in ((None, None), (None, "published"), ("published", None), ("true", "true")):
        check(trained(before), core_grid=now)
    for now, before in ((None, "true"), ("published", "true"), ("true", None)):
        with pytest.raises(ConfigError, match=f"were trained with --core_grid {before or 'published'}: give the same"):
            check(trained(before), core_grid=now)
    SENSORIUM2023.same_core(trained(None), trained("published"), "run")
    with pytest.raises(ConfigError, match="give --core_grid true"):
        SENSORIUM2023.same_core(trained(None), trained("true"), "run")


def test_the_grid_is_saved_and_absent_means_published() -> None:
    options = small_config(core_grid="true").to_options()
    assert options["core_grid"] == "true"
    old = {k: v for k, v in options.items() if k != "core_grid"}
    core = small_config(**old).from_published(old).core
    assert isinstance(core, VivitConfig)
    assert core.grid is None
    with pytest.raises(ConfigError, match="--core_grid must be one of true, published"):
        small_config(core_grid="square")
