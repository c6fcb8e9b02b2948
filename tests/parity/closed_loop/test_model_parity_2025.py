"""Models of 2025 against the published code's numbers: weights both ways, outputs, losses, every gradient."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from closed_loop_cases import Case, case_names, closed_loop_folder, error, model_case, required
from safetensors.torch import load_file
from torch import Tensor
from viv1t.kernels.attention.rotary import rotate

from viv1t.errors import ConfigError
from viv1t.families.closed_loop.names import published_names, to_published
from viv1t.model.layers.positions import Rotary, planar_positions, sinusoidal_positions
from viv1t.model.readout import normalized_coordinates
from viv1t.model.twin import ViV1T
from viv1t.scoring.criterion import share_criterion


class Run:
    """Our outputs, losses and gradients of a case."""

    def __init__(self, case: Case, dtype: torch.dtype = torch.float32) -> None:
        self.values: dict[str, Tensor] = {}
        self.model: ViV1T = case.model(dtype).eval()
        maps: list[Tensor] = []
        self.model.core.register_forward_hook(lambda module, args, output: maps.append(output.detach()))
        total: Tensor = torch.zeros((), dtype=dtype)
        for mouse in case.mice:
            logits = self.model(*case.inputs(mouse, dtype=dtype), activate=False)
            outputs = self.model.activate(logits, mouse)
            self.values[f"outputs_noact/{mouse}"] = logits.detach()
            self.values[f"outputs/{mouse}"] = outputs.detach()
            self.values[f"core_outputs/{mouse}"] = maps.pop()[:, :, case.tensors["core_outputs_t_index"]]
            total = total + loss(case, case.meta["grad_criterion"], mouse, outputs, True)
        self.loss = total / (len(case.mice) * case.options["batch_size"])
        self.loss.backward()  # type: ignore[no-untyped-call]
        names = published_names(self.model)
        self.gradients = {names[k]: p.grad for k, p in self.model.named_parameters()}
        self.state = {names[k]: v.detach().clone() for k, v in self.model.state_dict().items()}
        with torch.no_grad():
            for mouse in case.mice:
                if f"long_outputs/{mouse}" in case.tensors:
                    self.values[f"long_outputs/{mouse}"] = self.model(*case.inputs(mouse, "long_inputs", dtype))
                if (noise := case.tensors.get(f"noise/{mouse}")) is not None:
                    batch, neurons = case.tensors[f"outputs/{mouse}"].shape[:2]
                    noise = noise.view(batch, -1, neurons, 2).to(dtype)
                    sampled = self.model(*case.inputs(mouse, dtype=dtype), noise=noise)
                    self.values[f"outputs_sampled/{mouse}"] = sampled


def loss(case: Case, name: str, mouse: str, outputs: Tensor, scaled: bool) -> Tensor:
    response = case.tensors[f"inputs/response/{mouse}"].to(outputs.dtype)
    sizes = case.meta["ds_sizes"] if scaled else None
    return share_criterion(name, response, outputs, train_sizes=sizes, mouse_id=mouse)


@pytest.fixture(scope="module", params=case_names("model", slow=("01_published",)))
def case(request: pytest.FixtureRequest) -> Case:
    return model_case(request.param)


@pytest.fixture(scope="module")
def run(case: Case) -> Run:
    return Run(case)


def test_checkpoint_loads_and_writes_back_bit_identically(case: Case) -> None:
    written = to_published(case.model())
    assert written.keys() == case.state.keys()
    for name, value in case.state.items():
        assert written[name].dtype == value.dtype, name
        assert torch.equal(written[name], value), name


def test_neuron_positions_start_from_the_coordinates(case: Case) -> None:
    mode = case.options["readout_grid_mode"]
    if mode == 0:
        pytest.skip("positions are free")
    for mouse in case.mice:
        grid = normalized_coordinates(case.tensors[f"neuron_coordinates/{mouse}"], 3 if mode == 2 else 2)
        torch.testing.assert_close(grid, case.state[f"readouts.{mouse}.source_grid"], rtol=1e-6, atol=1e-6)


def test_outputs(case: Case, run: Run) -> None:
    keys = [k for k in case.tensors if k.startswith(("core_outputs/", "outputs", "long_outputs/"))]
    assert len(keys) >= 3 * len(case.mice)
    for key in keys:
        assert error(run.values[key], case.tensors[key]) < 1e-5, key
    frames = case.options["input_shapes"]["video"][1]
    assert run.model.core.output_frames(frames) == case.meta["t_out"]


def test_losses(case: Case, run: Run) -> None:
    keys = [k for k in case.tensors if k.startswith("loss/")]
    assert keys
    for key in keys:
        _, name, scale, mouse = key.split("/")
        found = loss(case, name, mouse, run.values[f"outputs/{mouse}"], scale == "ds_scale1").item()
        assert found == pytest.approx(case.tensors[key].item(), rel=1e-5), key
    assert run.loss.item() == pytest.approx(case.tensors["loss_step"].item(), rel=1e-5)


def test_gradients(case: Case, run: Run) -> None:
    largest = max(case.meta["grad_norm"].values())
    seen = 0
    for name, norm in case.meta["grad_norm"].items():
        ours = run.gradients[name]
        assert ours is not None, f"{name} has no gradient"
        golden = case.tensors.get(f"grad/{name}")
        if golden is None:
            golden, ours = case.tensors[f"grad_sub/{name}"], ours.flatten()[:: case.meta["grad_sub_step"][name]]
        assert ours.shape == golden.shape
        if name in case.meta["grad_exact_zero"]:
            assert not ours.any(), name
        assert (ours - golden).norm() <= 1e-3 * norm + 1e-5 * largest, name
        seen += 1
    assert seen == sum(k.startswith(("grad/", "grad_sub/")) for k in case.tensors) == len(run.gradients)


def test_a_forward_changes_what_the_published_one_changes(case: Case, run: Run) -> None:
    changed = {k for k, v in run.state.items() if not torch.equal(v, case.state[k])}
    assert changed == set(case.meta["changed_by_forward"])
    for name in changed:
        assert torch.equal(run.state[name], case.tensors[f"state_after/{name}"]), name


def test_a_long_input_leaves_nothing_behind() -> None:
    required()
    case = model_case("03_rotary_all_frames")
    model = case.model().eval()
    mouse = case.mice[0]
    with torch.no_grad():
        before = model(*case.inputs(mouse))
        model(*case.inputs(mouse, "long_inputs"))
        assert torch.equal(model(*case.inputs(mouse)), before)


def test_the_steep_softplus_has_finite_gradients() -> None:
    required()
    case = model_case("08_learned_spatial_rotary_time")
    model = case.model()
    x = torch.tensor([-500.0, 0, 19.9, 30, 90, 1000], requires_grad=True)
    model.activate(x, case.mice[0]).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", case_names("dropout"))
def test_where_dropouts_act(name: str) -> None:
    case = Case(closed_loop_folder() / "dropout" / name)
    (mouse,) = case.mice
    options = [k.split("/")[1] for k in case.tensors if k.startswith("outputs/")]
    assert set(options) > {"none", "core_drop_path", "core_p_dropout"}
    for option in options:
        model = case.model(**({} if option == "none" else {option: 1.0})).train()
        model.readouts.eval()
        with torch.no_grad():
            video, _, behavior, pupil = case.inputs(mouse)
            maps = model.core_output(video, mouse, behavior, pupil)
            response = model.activate(model.read_out(maps, mouse, behavior, pupil), mouse)
        assert error(maps, case.tensors[f"core_outputs/{option}"]) < 1e-5, option
        assert error(response, case.tensors[f"outputs/{option}"]) < 1e-5, option


def test_dropped_patches_are_whole_tokens() -> None:
    required()
    case = model_case("02_default_small")
    model = case.model(core_p_dropout=0.5).train()
    video, _, behavior, pupil = case.inputs(case.mice[0])
    tokenizer: Any = model.core.tokenizer
    torch.manual_seed(0)
    tokens = tokenizer(video, torch.cat((behavior, pupil), 1)).detach()
    whole = tokenizer.eval()(video, torch.cat((behavior, pupil), 1)).detach()
    dropped = (tokens == 0).all(-1)
    assert 0.45 < dropped.float().mean() < 0.55
    torch.testing.assert_close(tokens[~dropped], 2 * whole[~dropped])


# -- positions -------------------------------------------------------------------------------------------------------


def test_rotary_tables() -> None:
    folder = required() / "rotary"
    tables, cases = load_file(folder / "tables.safetensors"), json.loads((folder / "cases.json").read_text())
    compared = 0
    for name, case in ((c["name"], c) for c in cases):
        rotary = Rotary(case["dim"], case["num_tokens"])
        assert torch.equal(rotary.frequency, tables[f"{name}/inv_freq"])
        assert torch.equal(rotary.zeta, tables[f"{name}/scale"])
        length = case["sequence"] - case["reg_tokens"]
        rows = tables[f"{name}/table_index"]
        turned = rotary(int(rows.max()) + 1)
        scale = tables[f"{name}/emb_scale"]
        for found, expected in zip(turned, (tables[f"{name}/cos"], tables[f"{name}/sin"]), strict=True):
            both = found[rows].repeat(1, 2)  # of a head's first and second half
            torch.testing.assert_close(both, expected * scale, rtol=0, atol=1e-6 * float(scale.max()) + 2e-6)
        for of in ("q", "k"):
            given, expected = (tables[f"{name}/{of}{end}"].transpose(1, 2).flatten(2) for end in ("", "_out"))
            heads = given.shape[2] // case["dim"]
            assert error(rotate(given, rotary(length, case["reg_tokens"]), heads), expected) < 1e-6, (name, of)
            compared += 1
    assert compared == 2 * len(cases)


def test_added_positions() -> None:
    tables = load_file(required() / "rotary" / "tables.safetensors")
    compared = 0
    for name, expected in tables.items():
        kind, _, sizes = name.partition("/")
        if kind == "sincos2d":
            found = planar_positions(*map(int, sizes.split("x")))
        elif kind == "sinusoidal":
            found = sinusoidal_positions(*map(int, sizes.split("x")))
        else:
            continue
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
        compared += 1
    assert compared > 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"core_pos_encoding": 7, "core_emb_dim": 10}, "--core_pos_encoding 7 needs a --core_emb_dim"),
        ({"core_pos_encoding": 4, "core_emb_dim": 11}, "need an even --core_emb_dim"),
        ({"core_pos_encoding": 5, "core_head_dim": 7}, "need an even --core_head_dim"),
        ({"core": "gru_baseline"}, "--core gru_baseline of the published code is not built here"),
        ({"readout": "attention"}, "--readout attention of the published code is not built here"),
        ({"core_mlp_dim": 10}, "unknown option --core_mlp_dim .* did you mean --core_emb_dim|--core_ff_dim"),
        ({"core_linear": True}, "--core_linear belongs to --core fcnn"),
        ({"core_norm": "batchnorm"}, "--core_norm must be one of"),
    ],
)
def test_what_cannot_be_built_is_refused(options: dict[str, Any], words: str) -> None:
    from viv1t.families.closed_loop.options import ClosedLoopConfig

    with pytest.raises(ConfigError, match=words):
        ClosedLoopConfig.from_options({"core": "vivit", "readout": "gaussian", "output_dir": "x"} | options)
