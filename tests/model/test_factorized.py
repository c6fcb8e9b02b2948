"""The convolutional core."""

from __future__ import annotations

import pytest
import torch
from small_models import FRAME, small_inputs, small_model
from torch import Tensor

from viv1t.errors import ConfigError
from viv1t.model.cores.factorized import FactorizedBaseline, FactorizedLayer, pixel_positions, with_differences


def core(**options: object) -> FactorizedBaseline:
    module = small_model(core="factorized_baseline", **options).core
    assert isinstance(module, FactorizedBaseline)
    return module


def received(module: FactorizedBaseline) -> Tensor:
    """What the first convolution sees."""
    seen: list[Tensor] = []
    module.layers[0].register_forward_pre_hook(lambda layer, args: seen.append(args[0]))
    video, mouse, behavior, pupil_center = small_inputs()
    module(video, behavior, pupil_center, mouse)
    return seen[0]


def test_differences_in_time() -> None:
    x = torch.tensor([[[1.0, 4, 2]]])
    assert torch.equal(with_differences(x), torch.tensor([[[1, 4, 2], [0, 0.1, -2 / 30]]]))


def test_pixel_positions_are_vertical_then_horizontal() -> None:
    positions = pixel_positions((3, 5))
    assert positions[0, :, 2].tolist() == [-1, 0, 1]
    assert positions[1, 1].tolist() == [-1, -0.5, 0, 0.5, 1]


@pytest.mark.parametrize(("mode", "channels"), [(0, 1), (1, 3), (2, 5), (6, 9), (7, 7), (8, 5), (9, 7)])
def test_channels_of_each_behavior_mode(mode: int, channels: int) -> None:
    video, _, behavior, pupil_center = small_inputs()
    x = received(core(core_behavior_mode=mode))
    assert x.shape == (2, channels, 20, *FRAME)
    assert torch.equal(x[:, :1], video)
    state = torch.cat((behavior, pupil_center), dim=1)[..., None, None].expand(-1, -1, -1, *FRAME)
    if mode in (1, 2, 7):
        count = 2 if mode == 1 else 4
        assert torch.equal(x[:, 1 : 1 + count], state[:, :count])
    if mode == 6:  # behavior, its differences, pupil_center, its differences
        assert torch.equal(x[:, [1, 2, 5, 6]], state)
        torch.testing.assert_close(x[:, [3, 4, 7, 8], 5], (state[:, :, 5] - state[:, :, 4]) / 30)
    if mode in (7, 9):
        assert torch.equal(x[:, -2:], pixel_positions(FRAME)[None, :, None].expand(2, -1, 20, -1, -1))


def test_the_gru_starts_from_zero_and_sees_the_past_alone() -> None:
    module = core(core_behavior_mode=8)
    video, mouse, behavior, pupil_center = small_inputs()
    changed = behavior.clone()
    changed[:, :, 7:] += 1
    x = received(module)
    seen: list[Tensor] = []
    module.layers[0].register_forward_pre_hook(lambda layer, args: seen.append(args[0]))
    module(video, changed, pupil_center, mouse)
    assert torch.equal(seen[0][:, :, :7], x[:, :, :7])
    assert not torch.equal(seen[0][:, 1:, 7], x[:, 1:, 7])


def test_frames_out() -> None:
    module = core(core_num_layers=3)
    video, mouse, behavior, pupil_center = small_inputs()
    maps = module(video, behavior, pupil_center, mouse)
    assert maps.shape == (2, *module.output_shape[:1], module.output_frames(20), *FRAME)
    assert module.output_frames(20) == 20 - 4 - 2 * 2


def test_dropout_spares_the_last_layer() -> None:
    rates = [layer.dropout.p for layer in core(core_num_layers=3, core_dropout=0.2).layers]  # type: ignore[union-attr]
    assert rates == [0.2, 0.2, 0.0]


def test_regularizer_measures_the_first_kernels_roughness() -> None:
    def penalty(**options: float) -> float | None:
        module = core(core_spatial_input_kernel=5, core_temporal_input_kernel=5, **options)
        first = module.layers[0]
        assert isinstance(first, FactorizedLayer)
        with torch.no_grad():
            first.spatial.weight.zero_()
            first.spatial.weight[0, 0, 0, 2, 2] = 3.0  # one pixel: the Laplacian itself, 16 + 4 times its square
            first.temporal.weight.zero_()
            first.temporal.weight[0, 0, 2] = 2.0
        value = module.regularizer()
        return None if value is None else value.item()

    assert penalty(core_reg_spatial=1.0) == pytest.approx(20)
    assert penalty(core_reg_temporal=0.5) == pytest.approx(0.5 * 18)
    assert penalty(core_reg_spatial=2.0, core_reg_temporal=1.0) == pytest.approx(58)
    assert penalty() is None


def test_regularizer_needs_a_kernel_with_neighbours() -> None:
    with pytest.raises(ConfigError, match="--core_reg_spatial needs a --core_spatial_input_kernel of at least 3"):
        core(core_spatial_input_kernel=1, core_reg_spatial=1.0)
