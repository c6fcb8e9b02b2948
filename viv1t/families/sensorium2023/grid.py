"""The rows and columns of a core `vivit`'s maps: the patches' own, or those of the published code."""

from __future__ import annotations

from viv1t.errors import ConfigError
from viv1t.families.sensorium2023.options import VivitConfig
from viv1t.model.layers.positions import most_square_grid

Grid = tuple[int, int]


def patch_grid(frame_size: Grid, size: int, stride: int) -> Grid:
    """Rows and columns of square patches of `size` pixels every `stride` pixels."""
    height, width = frame_size
    return (height - size) // stride + 1, (width - size) // stride + 1


def published_grid(grid: Grid) -> Grid:
    """The rows and columns that the published code gives to maps of as many patches: for some grids others."""
    return most_square_grid(grid[0] * grid[1])


def map_grid(config: VivitConfig, patches: Grid) -> Grid:
    """The rows and columns of the core's maps."""
    return patches if config.grid == "true" else published_grid(patches)


def is_torn(config: VivitConfig, frame_size: Grid) -> bool:
    """Whether the published code gives the maps other rows and columns than the patches have."""
    true = patch_grid(frame_size, config.spatial_patch_size, config.spatial_patch_stride)
    return true != published_grid(true)


def check_grid(config: VivitConfig, frame_size: Grid, before: VivitConfig | None) -> None:
    """Raises a ConfigError where it matters which rows and columns the maps have, and it was not said, or wrongly.

    Args:
        config: the core of a run that starts.
        frame_size: (H, W) of the video in pixels.
        before: the core whose weights it starts from; None for new ones.
    """
    if not is_torn(config, frame_size):
        return
    if before is not None:
        grid = before.grid or "published"
        if grid != (config.grid or "published"):
            raise ConfigError(f"the weights to start from were trained with --core_grid {grid}: give the same")
        return
    if config.grid is not None:
        return

    def agreeing(pairs: list[Grid], which: int) -> str:
        grids = {pair: patch_grid(frame_size, *pair) for pair in pairs}
        return ", ".join(str(pair[which]) for pair, grid in grids.items() if grid == published_grid(grid)) or "none"

    (height, width), size, stride = frame_size, config.spatial_patch_size, config.spatial_patch_stride
    strides = agreeing([(size, n) for n in range(1, size + 1)], 1)
    sizes = agreeing([(n, stride) for n in range(1, min(height, width, 2 * size) + 1)], 0)
    true = patch_grid(frame_size, size, stride)
    rows, columns = published_grid(true)
    raise ConfigError(
        f"--core_spatial_patch_size {size} and --core_spatial_patch_stride {stride} cut frames of {height} x {width} "
        f"pixels into {true[0]} x {true[1]} patches, which the published code takes for {rows} x {columns}, so that "
        "neighbours are torn apart: give --core_grid true (or published, to repeat that), or a pair where both are the "
        f"same: with size {size} stride {strides}; with stride {stride} size {sizes}"
    )
