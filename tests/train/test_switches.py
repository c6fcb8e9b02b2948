"""No global switch of PyTorch outlives the training that set it."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import viv1t_evaluate
from tiny_runs import train
from viv1t.kernels.common.precision import allows_tf32, input_precision

from viv1t.errors import DataError
from viv1t.system.switches import deterministic, tensor_cores
from viv1t.training.trainer import Trainer

MATMUL = torch.backends.cuda.matmul


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    precision = MATMUL.fp32_precision
    yield
    MATMUL.fp32_precision = precision


def switches() -> tuple[Any, ...]:
    package, root = logging.getLogger("viv1t"), logging.getLogger()
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]
        os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
        allows_tf32(),
        torch.get_num_threads(),
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        *((log.level, log.propagate, list(log.handlers)) for log in (package, root)),
    )


def test_training_and_its_errors_leave_no_switch_behind(
    mice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, during = switches(), []
    step = Trainer._train_step

    def seen(self: Trainer, epoch: int, batches: Any) -> None:
        during.append(switches()[:4])
        step(self, epoch, batches)

    monkeypatch.setattr(Trainer, "_train_step", seen)
    train(mice, tmp_path / "run", epochs=1, deterministic=True, verbose=1)
    assert set(during) == {(True, False, False, ":4096:8")}
    assert switches() == before

    def fails(self: Trainer, epoch: int, batches: Any) -> None:
        raise DataError("no")

    monkeypatch.setattr(Trainer, "_train_step", fails)
    with pytest.raises(DataError):
        train(mice, tmp_path / "failed", epochs=1, deterministic=True)
    assert switches() == before


def test_switches_that_were_set_before_are_put_back() -> None:
    torch.use_deterministic_algorithms(True, warn_only=True)
    before = switches()
    with deterministic(True, warn_only=False):
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
    assert switches() == before
    with deterministic(False, warn_only=False), tensor_cores(False):
        assert switches() == before


@pytest.mark.parametrize("newer", [False, True])
def test_tensor_cores_are_used_for_as_long_as_asked(newer: bool) -> None:
    """Whichever of its two names the switch was set by before."""
    if newer:
        MATMUL.fp32_precision = "tf32"
        with pytest.raises(RuntimeError):
            torch.get_float32_matmul_precision()
    with tensor_cores(True):
        assert allows_tf32()
        assert input_precision(torch.float32) == "tf32"
    assert allows_tf32() == newer
    assert input_precision(torch.float32) == ("tf32" if newer else "tf32x3")
    if not newer:
        assert torch.get_float32_matmul_precision() == "highest"


def test_only_training_steps_are_rounded(mice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores are those of an evaluation in another process."""
    seen: dict[str, list[bool]] = {"_train_step": [], "_validate": []}
    asked: list[bool] = []
    for name, values in seen.items():
        whole = getattr(Trainer, name)

        def method(self: Trainer, *args: Any, whole: Any = whole, values: list[bool] = values) -> Any:
            values.append(allows_tf32())
            return whole(self, *args)

        monkeypatch.setattr(Trainer, name, method)
    from viv1t.training import trainer

    monkeypatch.setattr(trainer, "tensor_cores", lambda on: asked.append(on) or tensor_cores(True))
    train(mice, tmp_path / "run", epochs=1, precision="tf32")
    assert asked == [False]  # tensor cores are a GPU's
    assert set(seen["_train_step"]) == {True}
    assert set(seen["_validate"]) == {False}


def test_a_command_takes_its_log_handler_away(monkeypatch: pytest.MonkeyPatch) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    level = root.level
    for _ in range(2):
        assert viv1t_evaluate(["nowhere"]) == 1
        assert root.handlers == []
        assert root.level == level
