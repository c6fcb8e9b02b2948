"""One optimizer step: micro batches, trials of different lengths, precision, recomputation, compilation, the critic."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_runs import options, same_weights, script_validation, train, training_step, weights
from torch import Tensor, nn

from viv1t.data.recordings import Recordings
from viv1t.errors import CheckpointError, ConfigError, DataError, TrainingError
from viv1t.families.sensorium2023.build import build_model
from viv1t.families.sensorium2023.run import RunConfig
from viv1t.model import twin
from viv1t.model.twin import Neurons, ViV1T
from viv1t.scoring.criterion import criterion
from viv1t.training import micro_batch, resume
from viv1t.training.objective import Objective, by_length
from viv1t.training.step import Step
from viv1t.types import MAX_FRAMES, Batch

MOUSE, NEURONS, FRAME = "F", 6, (36, 64)
SIZES = {"F": 5, "G": 4}


def make_batch(lengths: list[int], crop: int | None = None, seed: int = 0) -> Batch:
    """Trials of `lengths` frames, padded with zeros to `crop` or the longest."""
    generator = torch.Generator().manual_seed(seed)
    frames = crop or max(lengths)
    shapes = {
        "video": (1, frames, *FRAME), "response": (NEURONS, frames), "behavior": (2, frames),
        "pupil_center": (2, frames),
    }  # fmt: skip
    tensors = {v: torch.rand(len(lengths), *s, generator=generator) for v, s in shapes.items()}
    return padded_with(Batch(MOUSE, tuple(range(len(lengths))), frames=torch.tensor(lengths), **tensors), 0)


def padded_with(batch: Batch, value: float) -> Batch:
    tensors = {v: getattr(batch, v).clone() for v in ("video", "response", "behavior", "pupil_center")}
    for i, length in enumerate(batch.frames.tolist()):
        tensors["video"][i, :, length:] = value
        for v in ("response", "behavior", "pupil_center"):
            tensors[v][i, :, length:] = value
    return replace(batch, **tensors)


def make_step(critic: bool = False, **changes: Any) -> Step:
    """A tiny model, without noise unless `changes` ask for it."""
    quiet = {"core_p_dropout": 0, "core_mha_dropout": 0, "core_ff_dropout": 0, "core_drop_path": 0}
    if changes.get("core") == "factorized_baseline":
        quiet = {}
    if critic:
        quiet |= {"critic_mode": 1, "critic_dropout": 0}
    config = RunConfig.from_options(options(Path("data"), Path("run"), **(quiet | changes)))
    torch.manual_seed(0)
    model = build_model(config, {m: Neurons(NEURONS, torch.rand(NEURONS, 3)) for m in SIZES}, FRAME)
    model.train()
    model.readouts.eval()  # no noise in positions
    return training_step(model, config, SIZES)


def gradients(step: Step, batch: Batch) -> tuple[float, dict[str, Tensor]]:
    torch.manual_seed(1)
    loss = float(step.accumulate(batch))
    return loss, {n: p.grad.clone() for n, p in step.model.named_parameters() if p.grad is not None}


def assert_close(a: dict[str, Tensor], b: dict[str, Tensor], tolerance: float) -> None:
    assert a.keys() == b.keys()
    largest = max(float(g.norm()) for g in a.values())
    for name in a:
        assert float((a[name] - b[name]).norm()) <= tolerance * largest, name


def test_the_first_kernels_roughness_is_added_once_to_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    applied: list[dict[str, Tensor]] = []
    for options_of_it in ({}, {"core_reg_spatial": 3e4, "core_reg_temporal": 2e4}):
        step = make_step(core="factorized_baseline", output_mode=0, **options_of_it)
        named = dict(step.model.named_parameters())
        penalty = step.model.core.regularizer()  # type: ignore[operator]
        step.accumulate(make_batch([30, 30]))
        step.accumulate(make_batch([30, 30], seed=1))

        def keep(named: dict[str, Any] = named) -> None:
            applied.append({n: p.grad.clone() for n, p in named.items() if p.grad is not None})

        monkeypatch.setattr(step.optimization.optimizer, "step", keep)
        step.update()
    first = [f"core.layers.0.{kernel}.weight" for kernel in ("spatial", "temporal")]
    expected = dict(zip(first, torch.autograd.grad(penalty, [named[n] for n in first]), strict=True))
    without, with_penalty = applied
    assert with_penalty.keys() == without.keys()
    for name, gradient in without.items():
        error = (with_penalty[name] - gradient - expected.get(name, 0)).norm()
        assert error <= 1e-3 * gradient.norm() + 1e-6, name
        if name in first:
            assert expected[name].norm() > 0.1 * gradient.norm()


# -- micro batches ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["poisson", "mean_poisson", "mse", "logMSE"])
def test_micro_batches_add_up_to_the_batch(name: str) -> None:
    batch = make_batch([30] * 5)
    whole = gradients(make_step(criterion=name, batch_size=5), batch)
    for size in (1, 2, 4):
        parts = gradients(make_step(criterion=name, batch_size=5, micro_batch_size=size), batch)
        assert parts[0] == pytest.approx(whole[0], rel=1e-5)
        assert_close(parts[1], whole[1], 1e-4)


def test_correlation_is_taken_within_a_micro_batch() -> None:
    batch = make_batch([30] * 4)
    step = make_step(criterion="correlation", micro_batch_size=2)
    expected = 0.0
    with torch.no_grad():
        for start in (0, 2):
            part = batch.slice(start, start + 2)
            prediction = step.model(part.video, MOUSE, part.behavior, part.pupil_center)
            expected += float(
                criterion("correlation", part.response, prediction, train_trials=5, batch_size=4, ds_scale=True)
            )
    assert float(step.accumulate(batch)) == pytest.approx(expected, rel=1e-5)


def test_micro_batch_within_a_cpu_s_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    step = make_step(core="factorized_baseline")

    def peak(work: Any) -> int:
        work()
        return 100

    monkeypatch.setattr(micro_batch, "peak_added_bytes", peak)
    before = weights(step.model)
    assert [step.search.largest_within(make_batch([30] * 8), memory) for memory in (50, 350, 10_000)] == [1, 3, 8]
    assert same_weights(weights(step.model), before)
    assert all(p.grad is None for p in step.model.parameters())


def test_largest_micro_batch_is_found_by_halving(monkeypatch: pytest.MonkeyPatch) -> None:
    step = make_step(core="factorized_baseline")
    losses, tried = Objective.losses, []

    def small_memory(self: Objective, batch: Batch, size: int) -> Any:
        tried.append(len(batch))
        if len(batch) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return losses(self, batch, size)

    monkeypatch.setattr(Objective, "losses", small_memory)
    before = weights(step.model)
    assert step.search.largest(make_batch([30] * 8)) == 2
    assert tried == [8, 4, 2]
    assert same_weights(weights(step.model), before)
    assert all(p.grad is None for p in step.model.parameters())
    with pytest.raises(TrainingError, match=r"mouse F, trials 0, 1, 2, 3: 4 trials at a time do not fit"):
        step.accumulate(make_batch([30] * 4))


# -- trials of different lengths -------------------------------------------------------------------------------------


@pytest.mark.parametrize("core", ["vivit", "factorized_baseline"])
def test_what_the_padding_holds_does_not_matter(core: str) -> None:
    batch = make_batch([22, 30, 26, 30], crop=36)
    loss, expected = gradients(make_step(core=core), batch)
    for value in (7.0, math.nan):
        other, found = gradients(make_step(core=core), padded_with(batch, value))
        assert other == loss
        assert_close(found, expected, 0)


def test_padded_trials_are_predicted_as_if_alone() -> None:
    step = make_step(criterion="poisson", ds_scale=0)
    alone = sum(float(step.accumulate(make_batch([30], seed=i))) for i in range(2))
    a, b = (make_batch([30], seed=i) for i in range(2))
    short = by_length(replace(b, frames=torch.tensor([21])))[0]
    joined = {v: torch.cat((getattr(a, v), getattr(b, v))) for v in ("video", "response", "behavior", "pupil_center")}
    both = Batch(MOUSE, (0, 1), frames=torch.tensor([30, 21]), **joined)
    expected = float(step.accumulate(a)) + float(step.accumulate(short))
    assert float(step.accumulate(both)) == pytest.approx(expected, rel=1e-5)
    assert expected < alone


def test_free_positions_train_on_trials_of_several_lengths() -> None:
    step = make_step(readout_grid_mode=0)
    step.accumulate(make_batch([22, 30]))  # positions are clamped in place for each
    mu = step.model.readouts["F"].mu
    assert isinstance(mu, nn.Parameter)
    assert mu.grad is not None
    assert mu.grad.any()


def test_by_length_sorts_cuts_and_keeps_trials_together() -> None:
    parts = by_length(make_batch([22, 30, 22], crop=36))
    assert [(p.trial_ids, p.video.shape[2], p.response.shape[2]) for p in parts] == [((0, 2), 22, 22), ((1,), 30, 30)]
    (long,) = by_length(make_batch([310, 310]))
    assert long.video.shape[2] == long.behavior.shape[2] == MAX_FRAMES


def test_trial_shorter_than_the_core_reaches_is_named() -> None:
    with pytest.raises(DataError, match=r"mouse F, trial 1: 4 frames are fewer than the core's temporal extent"):
        make_step().accumulate(make_batch([30, 4]))


# -- finite losses ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_loss_that_is_not_finite_leaves_the_weights(value: float) -> None:
    step = make_step()
    before = weights(step.model)
    step.accumulate(make_batch([30, 30]))
    broken = make_batch([30, 30])
    broken.response[1, 0, 20] = value
    step.accumulate(broken)
    with pytest.raises(TrainingError, match=r"the loss of mouse F, trials 0, 1, is (nan|-?inf): the weights were not"):
        step.update()
    assert same_weights(weights(step.model), before)


def test_update_gives_the_mean_loss_and_starts_afresh() -> None:
    step = make_step()
    losses = [float(step.accumulate(make_batch([30, 30], seed=i))) for i in range(2)]
    mean, norm = step.update()
    assert mean == pytest.approx(sum(losses) / 2)
    assert norm is None
    assert all(p.grad is None for p in step.model.parameters())
    single = float(step.accumulate(make_batch([30])))
    assert step.update()[0] == pytest.approx(single)


def test_clipping_bounds_the_step() -> None:
    step = make_step(grad_norm=0.5)
    step.accumulate(make_batch([30, 30]))
    sizes: list[float] = []
    step.optimization.optimizer.step = lambda: sizes.append(  # type: ignore[assignment, method-assign]
        float(torch.nn.utils.get_total_norm([p.grad for p in step.parameters if p.grad is not None]))
    )
    _, norm = step.update()
    assert norm is not None
    assert float(norm) > 0.5
    assert sizes == [pytest.approx(0.5, rel=1e-4)]


# -- ways to compute the same --------------------------------------------------------------------------------------


def test_recomputed_blocks_give_the_same_gradients() -> None:
    noisy = {"core_mha_dropout": 0.3, "core_ff_dropout": 0.2, "core_drop_path": 0.2}
    batch = make_batch([30, 30])
    kept, recomputed = (gradients(make_step(grad_checkpointing=on, **noisy), batch) for on in (0, 1))
    assert kept[0] == recomputed[0]
    assert_close(kept[1], recomputed[1], 1e-6)


def test_bf16_is_close_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(twin, "multiplies_bf16", lambda _: True)
    batch = make_batch([30, 30])
    full, half = (gradients(make_step(precision=p), batch) for p in ("32", "bf16"))
    assert full[0] != half[0]
    assert half[0] == pytest.approx(full[0], rel=5e-3)
    assert_close(full[1], half[1], 5e-2)
    assert all(g.dtype == torch.float32 for g in half[1].values())


# -- the critic --------------------------------------------------------------------------------------------------------

ROOMY = {"core_grid": "true", "core_spatial_patch_size": 3, "core_spatial_patch_stride": 3}


def test_critic_learns_beside_the_model_and_leaves_it_alone() -> None:
    batch = make_batch([30, 30])  # of two trials: batch norm leaves nothing of the mean of one
    # A loss so small that the critic's would be seen in it.
    small = {"criterion": "mse", "ds_scale": 0, **ROOMY}
    alone, watched = make_step(**small), make_step(critic=True, **small)
    assert watched.critic is not None
    expected, found = gradients(alone, batch), gradients(watched, batch)
    assert found[0] == expected[0]
    assert_close(found[1], expected[1], 1e-6)
    assert all(p.grad is not None for p in watched.critic.parameters())
    before = weights(watched.critic)
    watched.update()
    assert not same_weights(weights(watched.critic), before)


def test_critic_gradient_is_that_of_cross_entropy() -> None:
    batch = make_batch([30, 30])
    step = make_step(critic=True, **ROOMY)
    assert step.critic is not None
    maps = step.model.core_output(batch.video, MOUSE, batch.behavior, batch.pupil_center).detach()
    F.cross_entropy(step.critic(maps), torch.tensor([0, 0])).backward()
    expected = {n: p.grad.clone() for n, p in step.critic.named_parameters() if p.grad is not None}
    step.critic.zero_grad()
    step.accumulate(batch)
    for name, parameter in step.critic.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-6)


def test_critic_is_saved_and_continued(mice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script_validation(monkeypatch, [0.1, 0.2])
    train(mice, tmp_path / "whole", critic_mode=1, critic_hidden_dim=4, **ROOMY)
    script_validation(monkeypatch, [0.1])
    train(mice, tmp_path / "cut", critic_mode=1, critic_hidden_dim=4, epochs=1, **ROOMY)
    script_validation(monkeypatch, [0.2])
    train(mice, tmp_path / "cut", critic_mode=1, critic_hidden_dim=4, **ROOMY)
    last = [(tmp_path / run / "ckpt" / "last.safetensors").read_bytes() for run in ("whole", "cut")]
    assert last[0] == last[1]
    assert b"critic/conv1.weight" in last[0]


# -- options of the data, through a whole run ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [{"crop_frame": -1}, {"crop_frame": -1, "transform_mode": 0}, {"crop_frame": 200}, {"limit_data": 3},
     {"limit_data": 50}, {"readout": "random"}, {"readout": "factorized"}, {"core": "factorized_baseline"},
     {"cache_data": True, "center_crop": 0.7}, {"stat_mode": 0, "transform_mode": 1}, {"precision": "bf16"}],
    ids=lambda c: " ".join(f"{k}={v}" for k, v in c.items()),
)  # fmt: skip
def test_options_that_must_train(mice: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    trainer, final = train(mice, tmp_path / "run", epochs=1, **changes)
    assert trainer.epoch == 1
    assert all(math.isfinite(r) for r in final.correlation.values())
    sizes = {"F": 3, "G": 3} if changes.get("limit_data") == 3 else {"F": 4, "G": 4}
    assert trainer.recordings.train_sizes == sizes


def test_old_mice_also_train_on_their_test_tiers(mice: Path, tmp_path: Path) -> None:
    trainer, _ = train(mice, tmp_path / "run", ds_mode=3, mouse_ids=["A"], epochs=1)
    assert trainer.recordings.train_sizes == {"A": 6}
    assert trainer.step.objective.loss.weight("A", 2) == (6 / 2) ** 0.5


def test_padded_trials_come_from_recordings_as_the_step_takes_them(mice: Path, tmp_path: Path) -> None:
    config = RunConfig.from_options(options(mice, tmp_path, crop_frame=69, batch_size=4))
    recordings = Recordings.open(config.data, 1)
    batches = [b for b in recordings.train_batches(1) if b.frames.min() < b.video.shape[2]]
    recordings.close()
    assert batches, "some trials of the tiny mice are shorter than 69 frames"
    for batch in batches:
        assert batch.video.shape[2] == 69
        for i, length in enumerate(batch.frames.tolist()):
            assert not batch.video[i, :, length:].any()
            assert not batch.response[i, :, length:].any()
            assert batch.video[i, :, length - 1].any()


# -- starting from another run -----------------------------------------------------------------------------------------


@pytest.fixture
def start(mice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ViV1T:
    with monkeypatch.context() as patch:
        script_validation(patch, [0.5])
        trainer, _ = train(mice, tmp_path / "start", epochs=1, seed=3)
    return trainer.model


def first_weights(mice: Path, run: Path, **changes: Any) -> dict[str, Tensor]:
    trainer, _ = train(mice, run, epochs=0, **changes)
    return weights(trainer.model)


def test_restore_takes_all_weights(mice: Path, tmp_path: Path, start: ViV1T) -> None:
    assert same_weights(first_weights(mice, tmp_path / "run", restore=str(tmp_path / "start")), weights(start))


def test_pretrain_core_takes_the_core_alone(mice: Path, tmp_path: Path, start: ViV1T) -> None:
    found = first_weights(mice, tmp_path / "run", pretrain_core=str(tmp_path / "start"), mouse_ids=["A"], ds_mode=2)
    fresh = first_weights(mice, tmp_path / "fresh", mouse_ids=["A"], ds_mode=2)
    for name, value in found.items():
        expected = start.state_dict()[name] if name.startswith("core.") else fresh[name]
        assert torch.equal(value, expected), name


@pytest.mark.parametrize(
    ("option", "error", "words"),
    [
        ("restore", CheckpointError, r"core\.tokenizer\.norm\.bias"),
        ("pretrain_core", ConfigError, "give --core_emb_dim 8"),
    ],
)
def test_a_misfit_is_refused_before_anything_is_written(
    mice: Path, tmp_path: Path, start: ViV1T, option: str, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        train(mice, tmp_path / "run", core_emb_dim=12, **{option: str(tmp_path / "start")})
    assert not (tmp_path / "run").exists()


def test_continuing_does_not_restore_again(
    mice: Path, tmp_path: Path, start: ViV1T, monkeypatch: pytest.MonkeyPatch
) -> None:
    restored: list[str] = []
    monkeypatch.setattr(resume, "restore", lambda model, recordings, folder, *_: restored.append(folder))
    for epochs in (1, 2):
        train(mice, tmp_path / "run", restore=str(tmp_path / "start"), epochs=epochs)
    assert restored == [str(tmp_path / "start")]
