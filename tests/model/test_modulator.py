"""Modulators and shifters against loops over frames and neurons."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from small_models import small_config
from torch import Tensor, nn

from viv1t.families.sensorium2023.build import build_modulator, build_shifter
from viv1t.model.modulator import GruModulator, MlpModulator, MlpV2Modulator, MlpV3Modulator, history

BATCH, NEURONS, FRAMES = 2, 3, 9


def modulator(mode: int, **options: object) -> nn.Module:
    torch.manual_seed(0)
    module = build_modulator(small_config(modulator_mode=mode, **options).modulator, NEURONS)
    assert module is not None
    return module.double().eval()


def inputs() -> tuple[Tensor, Tensor]:
    """r (B, N, t) and state (B, 4, t)."""
    generator = torch.Generator().manual_seed(1)
    r = torch.randn(BATCH, NEURONS, FRAMES, generator=generator, dtype=torch.float64)
    return r, torch.rand(BATCH, 4, FRAMES, generator=generator, dtype=torch.float64)


def before(x: Tensor, frame: int, size: int) -> Tensor:
    """The `size` values of the series x (t,) that end before `frame`, oldest first, zeros before the start."""
    return torch.stack([x[j] if j >= 0 else x.new_zeros(()) for j in range(frame - size, frame)])


def test_history() -> None:
    windows = history(torch.tensor([[1.0, 2, 3]]), 2)
    assert torch.equal(windows, torch.tensor([[[0.0, 1], [1, 2], [2, 3]]]))


def test_no_modulator() -> None:
    assert build_modulator(small_config().modulator, NEURONS) is None


@pytest.mark.parametrize("include_history", [0, 1])
@pytest.mark.parametrize("behaviors", [0, 1, 2])
def test_mlp_is_a_gain_from_the_past_and_an_offset_from_the_state(include_history: int, behaviors: int) -> None:
    module = modulator(
        1, modulator_include_history=include_history, modulator_include_behaviors=behaviors, modulator_history_size=4
    )
    assert isinstance(module, MlpModulator)
    r, state = inputs()
    expected = r.clone()
    for b, n, j in torch.cartesian_prod(*map(torch.arange, r.shape)).tolist():
        if module.history_encoder is not None:
            expected[b, n, j] = r[b, n, j] * torch.sigmoid(module.history_encoder(before(r[b, n], j, 4)))[0]
        if module.behavior_encoder is not None:
            expected[b, n, j] += torch.tanh(module.behavior_encoder(state[b, : 2 * behaviors, j]))[n]
    assert (module.history_encoder is None) == (not include_history)
    torch.testing.assert_close(module(r, state), expected)


def test_gru_equals_a_cell_frame_by_frame() -> None:
    module = modulator(2, modulator_hidden_dim=6)
    assert isinstance(module, GruModulator)
    cell = nn.GRUCell(NEURONS, 6).double()
    cell.load_state_dict({k.removesuffix("_l0"): v for k, v in module.gru.state_dict().items()})
    r, state = inputs()
    hidden = torch.zeros(BATCH, 6, dtype=torch.float64)
    expected = []
    for j in range(FRAMES):
        hidden = cell(r[..., j] + torch.tanh(module.state_encoder[0](state[..., j])), hidden)
        expected.append(r[..., j] + torch.tanh(module.decoder(hidden)))
    torch.testing.assert_close(module(r, state), torch.stack(expected, dim=-1))


def test_mlp_v2_sees_the_current_value_and_the_past_of_response_and_state() -> None:
    module = modulator(3, modulator_history_size=2)
    assert isinstance(module, MlpV2Modulator)
    assert module.encoder_in.weight.shape == (7, 15)
    r, state = inputs()
    expected = r.clone()
    for b, n, j in torch.cartesian_prod(*map(torch.arange, r.shape)).tolist():
        window = torch.cat([before(x, j + 1, 3) for x in (r[b, n], *state[b])])
        expected[b, n, j] += torch.tanh(module.encoder_out(F.gelu(module.encoder_in(window))))[0]
    torch.testing.assert_close(module(r, state), expected)


@pytest.mark.parametrize("activation", ["identity", "sigmoid", "tanh"])
def test_mlp_v3_adds_an_offset_from_the_same_frame(activation: str) -> None:
    module = modulator(4, modulator_activation=activation)
    assert isinstance(module, MlpV3Modulator)
    r, state = inputs()
    function = {"identity": lambda x: x, "sigmoid": torch.sigmoid, "tanh": torch.tanh}[activation]
    torch.testing.assert_close(module(r, state), r + function(module.linear.weight @ state))


@pytest.mark.parametrize("mode", [1, 2, 3, 4])
def test_no_modulator_looks_into_the_future(mode: int) -> None:
    module = modulator(mode)
    r, state = (x.requires_grad_() for x in inputs())
    for gradient in torch.autograd.grad(module(r, state)[..., 4].sum(), (r, state)):
        assert not gradient[..., 5:].any()
        assert gradient[..., 4].any()


DROPOUTS = {
    1: ("modulator_history_dropout", "modulator_behaviors_dropout"),
    2: ("modulator_dropout",),
    3: ("modulator_history_dropout",),
    4: ("modulator_dropout",),
}


@pytest.mark.parametrize(("mode", "flag"), [(m, f) for m, flags in DROPOUTS.items() for f in flags])
def test_dropout_acts_in_training_only(mode: int, flag: str) -> None:
    module, plain = modulator(mode, **{flag: 0.5}), modulator(mode)
    r, state = inputs()
    assert torch.equal(module(r, state), plain(r, state))
    assert not torch.equal(module.train()(r, state), plain.train()(r, state))


@pytest.mark.parametrize(("mode", "first"), [(1, 2), (2, 0)])
@pytest.mark.parametrize("layers", [1, 3])
def test_shifter_is_a_tanh_network_of_the_state(mode: int, first: int, layers: int) -> None:
    built = build_shifter(small_config(shifter_mode=mode, shifter_layers=layers, shifter_size=6).shifter)
    assert built is not None
    module = built.double()
    linears = [m for m in module.modules() if isinstance(m, nn.Linear)]
    assert [m.in_features for m in linears] == [4 - first, *[6] * (layers - 1)]
    _, state = inputs()
    x = state[:, first:].transpose(1, 2)
    for linear in linears:
        x = torch.tanh(linear(x))
    assert x.shape == (BATCH, FRAMES, 2)
    torch.testing.assert_close(module(state), x)
