"""The compiled step: whole graphs, one for all mice, that give what the uncompiled step gives, and wait for nothing.

Graphs are traced as for use and run by PyTorch (backend `aot_eager`); one long test runs the compiler's own code.
"""

from __future__ import annotations

import contextlib
import importlib
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._inductor.config
from tiny_runs import metrics, options, same_weights, train, training_step, weights
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from viv1t.config.fields import Options
from viv1t.errors import ConfigError, TrainingError
from viv1t.families.sensorium2023.build import build_model
from viv1t.families.sensorium2023.run import RunConfig
from viv1t.model import twin
from viv1t.model.twin import Neurons
from viv1t.training.step import Step
from viv1t.types import Batch

COMPILE = torch.compile
MICE, FRAME = {"F": 51, "G": 67, "H": 59}, (36, 64)
# Dropout within sequential blocks draws other masks when compiled; parallel blocks and readouts draw the same.
QUIET = {"core_p_dropout": 0, "core_mha_dropout": 0, "core_ff_dropout": 0}
SEQUENTIAL = {"core_parallel_attention": None, **QUIET}
CNN = {"core": "factorized_baseline"}
ROOMY = {"core_spatial_patch_size": 3, "core_spatial_patch_stride": 3}
# Together every core, tokenizer, kind of position, block, use of the state, readout, shifter, modulator and activation.
CASES: dict[str, dict[str, Any]] = {
    "default": {"core_p_dropout": 0},
    "sequential": {"core_pos_encoding": 2, "core_behavior_mode": 4, "modulator_mode": 1, "readout_grid_mode": 0,
                   **SEQUENTIAL},
    "normalised": {"core_norm_qk": True, "core_ff_activation": "swiglu", "core_pos_encoding": 1, "modulator_mode": 2,
                   "shifter_mode": 2, "core_behavior_mode": 3, **QUIET},
    "convolution": {"core_patch_mode": 2, "readout": "factorized", "shifter_mode": 0, "core_pos_encoding": 5,
                    "precision": "bf16", "core_behavior_mode": 0, **QUIET},
    "critic": {"critic_mode": 1, "critic_dropout": 0, "core_pos_encoding": 0, "core_behavior_mode": 1, **ROOMY,
               **SEQUENTIAL},
    "recomputed": {"grad_checkpointing": 1, "micro_batch_size": 1, "grad_norm": 1.0, "core_pos_encoding": 4, **QUIET},
    "recurrent": {"core_behavior_mode": 9, "modulator_mode": 3, "output_mode": 2, "criterion": "logMSE", **CNN},
    "differences": {"core_behavior_mode": 6, "modulator_mode": 4, "output_mode": 0, "core_reg_spatial": 1.0, **CNN},
}  # fmt: skip

QUICK = ("default", "recomputed", "differences")


@pytest.fixture(autouse=True)
def compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing compiled before; graphs run by PyTorch."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    monkeypatch.setattr(twin, "multiplies_bf16", lambda _: True)
    yield
    torch._dynamo.reset()


@pytest.fixture
def traced_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs are run as they were traced, and differentiated as they run, which is quicker."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))


def graphs() -> int:
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def make_step(compiled: bool, device: str = "cpu", **changes: Any) -> Step:
    config = RunConfig.from_options(options(Path("data"), Path("run"), **changes))
    torch.manual_seed(0)
    model = build_model(config, {m: Neurons(n, 100 * torch.rand(n, 3)) for m, n in MICE.items()}, FRAME)
    sizes = {mouse: 5 + i for i, mouse in enumerate(MICE)}
    return training_step(model.train().to(device), config, sizes, compiled=compiled)


def make_batch(mouse: str, seed: int = 0, lengths: tuple[int, ...] = (24, 24), device: str = "cpu") -> Batch:
    generator = torch.Generator().manual_seed(seed)
    count, frames = len(lengths), max(lengths)
    shapes = {"video": (1, frames, *FRAME), "response": (MICE[mouse], frames), "behavior": (2, frames)}
    tensors = {v: torch.rand(count, *s, generator=generator).to(device) for v, s in shapes.items()}
    gaze = torch.rand(count, 2, frames, generator=generator).to(device)
    return Batch(mouse, tuple(range(count)), pupil_center=gaze, frames=torch.tensor(lengths), **tensors)


def accumulate(step: Step, seed: int, **kinds: Any) -> list[float]:
    """The losses of a batch of every mouse."""
    losses = []
    for i, mouse in enumerate(MICE):
        torch.manual_seed(seed + i)
        losses.append(float(step.accumulate(make_batch(mouse, seed + i, **kinds))))
    return losses


def assert_same_gradients(ours: nn.Module, theirs: nn.Module) -> None:
    pairs = [(n, p.grad, q.grad) for (n, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True)]
    largest = max(float(q.norm()) for _, _, q in pairs if q is not None)
    for name, a, b in pairs:
        if a is None or b is None:
            assert a is b, name
        else:
            assert float((a - b).norm()) <= 1e-5 * float(b.norm()) + 1e-6 * largest, name


# -- one graph, the same numbers ---------------------------------------------------------------------------------------


def test_the_compiler_s_criterion_of_one_trial(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Laid out as the readout writes it, which PyTorch's compiler takes wrongly."""
    monkeypatch.setattr(torch, "compile", COMPILE)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    losses, gradients = [], []
    for compiled in (False, True):
        objective = make_step(compiled).objective
        torch.manual_seed(1)
        prediction = (1 + torch.rand(1, 8, MICE["F"])).requires_grad_()
        monkeypatch.setattr(objective, "_predict", lambda *_, given=prediction: (given, None))
        loss, _ = objective.losses(make_batch("F", lengths=(24,)), 1)
        losses.append(float(loss))
        gradients += torch.autograd.grad(loss, prediction)
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-5, atol=1e-5 * float(gradients[0].abs().max()))


@contextlib.contextmanager
def nothing_compiled() -> Iterator[None]:
    torch.compiler.set_stance("fail_on_recompile")
    try:
        yield
    finally:
        torch.compiler.set_stance("default")


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[] if case in QUICK else pytest.mark.slow) for case in CASES]
)
def test_two_graphs_for_all_mice_give_what_the_uncompiled_step_gives(case: str) -> None:
    plain, compiled = (make_step(compiled, **CASES[case]) for compiled in (False, True))
    expected, found = accumulate(plain, 1), accumulate(compiled, 1)
    assert graphs() == 2
    assert found == pytest.approx(expected, rel=1e-6)
    assert_same_gradients(compiled.model, plain.model)
    (mean, norm), (expected_mean, expected_norm) = compiled.update(), plain.update()
    assert mean == pytest.approx(expected_mean, rel=1e-6)
    assert norm == expected_norm or float(norm) == pytest.approx(float(expected_norm), rel=1e-5)  # type: ignore[arg-type]
    with nothing_compiled():
        found = accumulate(compiled, 11)
        compiled.update()
    assert found == pytest.approx(accumulate(plain, 11), rel=1e-3)  # AdamW takes the sign of rounding for a slope


@pytest.mark.usefixtures("traced_alone")
@pytest.mark.parametrize("changes", [{"core_behavior_mode": 5}, {"readout": "random"}], ids=str)
def test_what_is_compiled_for_every_mouse_is_so_in_the_first_round(changes: dict[str, Any]) -> None:
    step = make_step(True, **changes)
    accumulate(step, 1)
    assert graphs() == len(MICE) + 1
    with nothing_compiled():
        accumulate(step, 11)


@pytest.mark.usefixtures("traced_alone")
def test_trials_of_several_lengths() -> None:
    plain, compiled = (make_step(c, core_p_dropout=0) for c in (False, True))
    kinds = {"lengths": (24, 20, 24, 20)}
    assert accumulate(compiled, 1, **kinds) == pytest.approx(accumulate(plain, 1, **kinds), rel=1e-6)
    assert_same_gradients(compiled.model, plain.model)
    assert graphs() == 3  # predictions for one length, and for any; the criterion
    accumulate(compiled, 11, lengths=(22, 21, 21, 22))
    with nothing_compiled():
        accumulate(compiled, 21, lengths=(23, 19, 23, 19))


def test_predictions_for_validation() -> None:
    models = [make_step(compiled, core_p_dropout=0) for compiled in (False, True)]
    with torch.no_grad():
        for mouse in MICE:
            batch = make_batch(mouse, lengths=(26,))
            plain, ours = (s.objective.predict([s.model.eval()], batch) for s in models)
            assert torch.equal(ours, plain)
            torch.testing.assert_close(
                plain, models[0].model(batch.video, mouse, batch.behavior, batch.pupil_center), rtol=0, atol=0
            )
    assert graphs() == 1


# -- nothing is waited for ---------------------------------------------------------------------------------------------


class _NothingMoves(TorchDispatchMode):
    """Refuses operations on the device that take a tensor from the CPU, for whose copy a GPU would be waited for."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given, made = (torch.utils._pytree.tree_leaves(x) for x in ((args, kwargs), result))
        devices = {x.device.type for x in (*given, *made) if isinstance(x, Tensor) and (x.ndim or x.is_meta)}
        assert len(devices) < 2, f"{func} is given tensors of {devices}"
        return result


@pytest.fixture
def device_without_data(monkeypatch: pytest.MonkeyPatch) -> str:
    """A device whose tensors hold nothing, so that whatever reads one fails; models run on it as on a GPU."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda _: False)
    adam = importlib.import_module("torch.optim.adam")
    monkeypatch.setattr(adam, "_device_dtype_check_for_fused", lambda *_, **__: None)
    return "meta"


@pytest.mark.parametrize(
    ("compiled", "case"), [*((True, case) for case in CASES), *((False, case) for case in ("sequential", *QUICK))]
)
@pytest.mark.usefixtures("traced_alone")
def test_a_step_reads_nothing_before_its_end(
    compiled: bool, case: str, device_without_data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A GPU's kernels take some parallel blocks; others run around the attention's.
    monkeypatch.setattr("viv1t.kernels.parallel_block.operator._takes", lambda *_: case in ("default", "convolution"))
    step = make_step(compiled, device_without_data, **CASES[case])
    lengths = (24, 24) if compiled else (24, 22, 24, 22)
    for again in (False, True):
        batches = [make_batch(mouse, lengths=lengths, device=device_without_data) for mouse in MICE]
        with contextlib.ExitStack() as stack:
            if not compiled:
                stack.enter_context(_NothingMoves())
            if again:
                stack.enter_context(nothing_compiled())
            for batch in batches:
                step.accumulate(batch)
            step._apply()
        with pytest.raises(NotImplementedError, match="meta tensor"):
            step.update()  # which reads
        step.forget()
    assert graphs() == 2 * compiled
    state = step.optimization.optimizer.state
    assert all(state[p]["exp_avg"].shape == p.shape for p in step.trained if p.grad is not None)


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True])
def test_a_gpu_is_waited_for_once_in_a_step(compiled: bool) -> None:
    step = make_step(compiled, "cuda")
    batches = [make_batch(mouse, device="cuda") for mouse in MICE]
    for again in (False, True):
        for batch in batches:
            torch.cuda.set_sync_debug_mode("error" if again else "default")
            try:
                step.accumulate(batch)
                if batch is batches[-1]:
                    numbers, _ = step._apply()
            finally:
                torch.cuda.set_sync_debug_mode("default")
        assert numbers.isfinite().all()
        step.forget()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_step_that_is_not_finite_changes_neither_weights_nor_moments(value: float) -> None:
    step = make_step(False)
    accumulate(step, 1)
    step.update()
    moments = {p: {k: v.clone() for k, v in state.items()} for p, state in step.optimization.optimizer.state.items()}
    before = weights(step.model)
    accumulate(step, 11)
    parameter = next(step.model.core.parameters())
    assert parameter.grad is not None
    parameter.grad.view(-1)[0] = value
    with pytest.raises(TrainingError, match="the gradient is not finite: the weights were not updated"):
        step.update()
    assert same_weights(weights(step.model), before)
    for p, state in step.optimization.optimizer.state.items():
        assert all(torch.equal(state[k], v) for k, v in moments[p].items())
    step.forget()
    accumulate(step, 11)
    step.update()  # the switch is off again
    assert not same_weights(weights(step.model), before)


def test_a_compiler_that_fails_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("g++: not found")

    monkeypatch.setattr(torch, "compile", partial(torch.compile.func, backend=broken))  # type: ignore[attr-defined]
    with pytest.raises(TrainingError, match=r"cannot be compiled here \(.*not found.*\): train with --no_compile"):
        make_step(True).accumulate(make_batch("F"))


# -- options, and whole runs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "device", "compiled"),
    [
        ({}, "cpu", False),
        ({"core_compile": True}, "cpu", True),
        ({}, "cuda", True),
        ({"no_compile": True}, "cuda", False),
    ],
    ids=str,
)
def test_compiled_by_default_on_cuda_alone(given: Options, device: str, compiled: bool) -> None:
    train = RunConfig.from_options(options(Path("data"), Path("run"), **given)).train
    assert train.compiles(torch.device(device).type) is compiled


def test_options_that_contradict_each_other() -> None:
    with pytest.raises(ConfigError, match="--core_compile and --no_compile contradict each other"):
        RunConfig.from_options(options(Path("data"), Path("run"), core_compile=True, no_compile=True))


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_compiled_run_trains_stops_goes_on_and_scores_as_an_uncompiled_one(
    mice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    quiet = {"core_p_dropout": 0}
    train(mice, tmp_path / "plain", no_compile=True, epochs=1, **quiet)
    train(mice, tmp_path / "plain", **quiet)  # the option may change
    assert not graphs()
    with torch._inductor.config.patch(fallback_random=True):  # the same noise
        train(mice, tmp_path / "ours", core_compile=True, epochs=1, **quiet)
        assert graphs()
        train(mice, tmp_path / "ours", core_compile=True, **quiet)
    rows, expected = metrics(tmp_path / "ours"), metrics(tmp_path / "plain")
    assert len(rows) == len(expected) == 2
    for found, wanted in zip(rows, expected, strict=True):
        ours, plain = ({k: float(v) for k, v in row.items()} for row in (found, wanted))
        assert ours == pytest.approx(plain, rel=1e-3, abs=1e-4)
