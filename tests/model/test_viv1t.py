"""The whole model: every option acts, and what holds whatever the options."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_models import FRAME, MICE, Inputs, small_config, small_inputs, small_model
from torch import Tensor

from viv1t.config.parts import ShifterConfig
from viv1t.errors import ConfigError
from viv1t.families.sensorium2023.build import build_model
from viv1t.families.sensorium2023.options import FactorizedBaselineConfig, Gaussian2dConfig, VivitConfig
from viv1t.model import twin
from viv1t.model.cores.vivit import Vivit
from viv1t.model.twin import Neurons, ViV1T

CORES = ("vivit", "factorized_baseline")
# Values that differ from those of the small models, for every option of the core, the readout and the shifter.
VIVIT_VALUES: dict[str, tuple[Any, ...]] = {
    "core_behavior_mode": (0, 1, 3, 4, 5), "core_patch_mode": (2,), "core_pos_encoding": (0, 1, 2, 4, 5),
    "core_spatial_patch_size": (5,), "core_spatial_patch_stride": (3,), "core_spatial_depth": (0, 2),
    "core_temporal_patch_size": (7,), "core_temporal_patch_stride": (2,), "core_temporal_depth": (0, 1),
    "core_num_heads": (3,), "core_emb_dim": (12,), "core_head_dim": (6,), "core_mlp_dim": (10,),
    "core_ff_activation": ("swiglu",), "core_p_dropout": (0.0, 0.5), "core_mha_dropout": (0.0, 0.9),
    "core_ff_dropout": (0.0, 0.5), "core_drop_path": (0.0, 0.5), "core_parallel_attention": (True,),
    "core_flash_attention": (0,), "core_norm_qk": (True,),
}  # fmt: skip
FACTORIZED_VALUES: dict[str, tuple[Any, ...]] = {
    "core_behavior_mode": (0, 2, 6, 7, 8, 9), "core_spatial_input_kernel": (7,), "core_temporal_input_kernel": (4,),
    "core_spatial_hidden_kernel": (5,), "core_temporal_hidden_kernel": (4,), "core_num_layers": (1, 3),
    "core_hidden_dim": (6,), "core_dropout": (0.5,),
}  # fmt: skip
COMMON_VALUES: dict[str, tuple[Any, ...]] = {
    "readout_grid_mode": (0, 2), "readout_bias_mode": (0, 1), "readout_dropout": (0.5,),
    "shifter_mode": (0, 2), "shifter_layers": (2,), "shifter_size": (4,), "output_mode": (1, 2),
    "modulator_mode": (1, 2, 3, 4), "readout": ("factorized", "random"),
}  # fmt: skip
VARIANTS = [
    pytest.param({"core": core, flag: value}, id=f"{core}-{flag}-{value}")
    for core, own in (("vivit", VIVIT_VALUES), ("factorized_baseline", FACTORIZED_VALUES))
    for flag, values in (own | (COMMON_VALUES if core == "vivit" else {})).items()
    for value in values
]


def behaviour(model: ViV1T) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """State, output in evaluation, output in training under a fixed seed."""
    with torch.no_grad():
        evaluated = model.eval()(*small_inputs())
        torch.manual_seed(0)
        trained = model.train()(*small_inputs())
    return model.state_dict(), evaluated, trained


def test_every_option_is_tried() -> None:
    for config, values in ((VivitConfig, VIVIT_VALUES), (FactorizedBaselineConfig, FACTORIZED_VALUES)):
        flags = {f.metadata["flag"] for f in dataclasses.fields(config)}
        of_training = {"pretrain_core", "freeze_core", "core_reg_spatial", "core_reg_temporal"}
        assert flags - of_training - {"core_grid"} == set(values)  # that only matters to frames whose maps were torn
    for part in (Gaussian2dConfig, ShifterConfig):
        assert {f.metadata["flag"] for f in dataclasses.fields(part)} <= set(COMMON_VALUES)


@pytest.mark.parametrize("options", VARIANTS)
def test_every_option_changes_the_structure_or_the_result(options: dict[str, Any]) -> None:
    model, base = small_model(**options), small_model(core=options["core"])
    state, evaluated, trained = behaviour(model)
    base_state, base_evaluated, base_trained = behaviour(base)
    frames = model.config.core.output_frames(20)
    assert evaluated.shape == trained.shape == (2, MICE["A"], frames)
    assert evaluated.isfinite().all()
    structure, base_structure = ({k: v.shape for k, v in s.items()} for s in (state, base_state))
    changed = (evaluated.shape, structure) != (base_evaluated.shape, base_structure)
    assert changed or not torch.equal(evaluated, base_evaluated) or not torch.equal(trained, base_trained)


ACTIVATIONS: dict[int, Callable[[Tensor], Tensor]] = {
    0: lambda x: torch.where(x > 0, x + 1, x.exp()),
    1: torch.exp,
    2: lambda x: (1 + x.exp()).log(),
}


@pytest.mark.parametrize("mode", ACTIVATIONS)
@pytest.mark.parametrize("core", CORES)
def test_output_activations(core: str, mode: int) -> None:
    model = small_model(core=core, output_mode=mode)
    logits = model(*small_inputs(), activate=False)
    torch.testing.assert_close(model(*small_inputs()), ACTIVATIONS[mode](logits))
    assert (logits < 0).any()


@pytest.mark.parametrize("core", CORES)
def test_trials_are_independent(core: str) -> None:
    model = small_model(core=core, modulator_mode=1)
    video, mouse, behavior, pupil_center = small_inputs(batch=3)
    together = model(video, mouse, behavior, pupil_center)
    for i in range(3):
        alone = model(video[i : i + 1], mouse, behavior[i : i + 1], pupil_center[i : i + 1])
        torch.testing.assert_close(alone[0], together[i], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("core", CORES)
def test_mice_share_the_core_alone(core: str) -> None:
    model = small_model(core=core, modulator_mode=1)
    model(*small_inputs("A")).sum().backward()
    for name, parameter in model.named_parameters():
        other = name.split(".")[1] == "B"
        if name.startswith(("readouts", "shifters", "modulators")) and other:
            assert parameter.grad is None, name
        else:
            assert parameter.grad is not None, name


@pytest.mark.parametrize("core", CORES)
def test_the_seed_decides(core: str) -> None:
    models = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        models.append(build_model(small_config(core=core), {"A": Neurons(5)}, FRAME).train())
    states = [torch.cat([p.detach().flatten() for p in m.parameters()]) for m in models]
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])
    outputs = []
    for model, seed in zip((models[0], models[1], models[1]), (5, 5, 6), strict=True):
        torch.manual_seed(seed)
        outputs.append(model(*small_inputs()))
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])


def test_the_state_after_the_core_is_that_of_the_predicted_frames() -> None:
    model = small_model(core_behavior_mode=0)
    video, mouse, behavior, pupil_center = small_inputs()
    plain = model(video, mouse, behavior, pupil_center)
    earlier, later = behavior.clone(), behavior.clone()
    earlier[:, :, :4] += 1  # 20 frames in, 16 out
    assert torch.equal(model(video, mouse, earlier, pupil_center), plain)
    later[:, :, 10] += 1
    moved = (model(video, mouse, later, pupil_center) != plain).any(dim=(0, 1))
    assert moved.nonzero().flatten().tolist() == [6]


@pytest.mark.parametrize("options", [{}, {"core_behavior_mode": 5}, {"modulator_mode": 2}])
def test_mouse_ids_may_hold_a_point(options: dict[str, Any]) -> None:
    dotted = small_model({"session.1": 5, "session_1": 7}, **options)
    plain = small_model({"A": 5, "B": 7}, **options)
    assert dotted.mouse_ids == ["session.1", "session_1"]
    assert torch.equal(dotted(*small_inputs("session.1")), plain(*small_inputs("A")))


def refused(model: ViV1T, inputs: Inputs) -> str:
    with pytest.raises(ConfigError) as info:
        model(*inputs)
    return str(info.value)


def test_an_unknown_mouse_is_refused() -> None:
    assert refused(small_model(), small_inputs("C")) == "mouse 'C' is not in this model; it has A, B"


@pytest.mark.parametrize("core", CORES)
def test_another_frame_size_is_refused(core: str) -> None:
    video, *rest = small_inputs()
    message = refused(small_model(core=core), (video[..., :-1], *rest))  # type: ignore[arg-type]
    assert message == "the model takes frames of 12 x 16 pixels, not of 12 x 15 (mouse A)"


@pytest.mark.parametrize("core", CORES)
def test_too_few_frames_are_refused(core: str) -> None:
    assert "4 frames are fewer" in refused(small_model(core=core), small_inputs(frames=4))


def test_positions_end_at_300_frames() -> None:
    for mode in (1, 3, 4, 5):
        model = small_model({"A": 2}, core_pos_encoding=mode, core_temporal_depth=0, core_spatial_depth=0)
        assert model(*small_inputs(batch=1, frames=300)).shape[2] == 296
        assert "positions for 300 input frames" in refused(model, small_inputs(batch=1, frames=301))
    model = small_model({"A": 2}, core_pos_encoding=0)
    assert model(*small_inputs(batch=1, frames=304)).shape[2] == 300


@pytest.mark.parametrize("there", [False, True])
def test_bf16_is_left_where_the_processor_has_none(
    there: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(twin, "multiplies_bf16", lambda _: there)
    twin._say_float32.cache_clear()
    exact, model = small_model(), small_model(precision="bf16")
    same = [torch.equal(model(*small_inputs()), exact(*small_inputs())) for _ in range(2)]
    assert same == [not there] * 2
    said = [record.message for record in caplog.records if "bf16" in record.message]
    assert said == ([] if there else ["bf16: this processor has no arithmetic for it, so the core multiplies in "
                                      "float32, which is faster here and rounds less"])  # fmt: skip


@pytest.mark.parametrize("core", CORES)
def test_bf16_runs_the_core_and_hands_float32_on(core: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(twin, "multiplies_bf16", lambda _: True)
    exact, model = small_model(core=core), small_model(core=core, precision="bf16")
    maps, expected = (m.core_output(*small_inputs()) for m in (model, exact))
    assert maps.dtype == torch.float32
    difference = ((maps - expected).norm() / expected.norm()).item()
    assert 1e-4 < difference < 2e-2
    output = model(*small_inputs())
    torch.testing.assert_close(output, exact(*small_inputs()), rtol=0.1, atol=0.05)
    output.sum().backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert parameter.grad.dtype == torch.float32, name
            assert parameter.grad.isfinite().all(), name


def test_positions_on_the_frame_are_patch_centres() -> None:
    core = small_model(core_spatial_patch_size=4, core_spatial_patch_stride=3).core
    assert isinstance(core, Vivit)
    assert core.tokenizer.grid == (3, 5)  # rows from pixel 0, 3, 6; columns from 0, 3, 6, 9, 12
    corners = core.frame_positions(torch.tensor([[-1.0, -1], [1, 1], [0, 0]]))
    pixels = (corners + 1) / 2 * torch.tensor([15.0, 11])
    torch.testing.assert_close(pixels, torch.tensor([[1.5, 1.5], [13.5, 7.5], [7.5, 4.5]]))
