"""What compiled kernels need; what does not fit or does not compile is told."""

from __future__ import annotations

import pytest
from viv1t.kernels.ahead_of_time import CompilerFailed, Compilers
from viv1t.kernels.common.variant import Usage, Variant


def test_what_does_not_fit_is_a_fault() -> None:
    assert not Usage("fits", 90, 168, 0, 200_000, 8).faults
    assert Usage("spills", 90, 255, 16, 1024, 8).faults == ["16 bytes of registers spilled"]
    assert Usage("too large", 80, 128, 0, 200_000, 8).faults == ["200000 bytes of shared memory, above 166912"]


@pytest.mark.parametrize(
    ("registers", "shared", "warps", "resident"),
    [(64, 0, 4, 32), (128, 36_864, 8, 16), (32, 0, 4, 64), (64, 100_000, 4, 8), (255, 1024, 8, 8)],
)
def test_resident_warps_are_bound_by_registers_shared_memory_and_slots(
    registers: int, shared: int, warps: int, resident: int
) -> None:
    assert Usage("", 90, registers, 0, shared, warps).resident_warps == resident


def test_a_kernel_that_does_not_compile_is_named() -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    signature = (("packed", "*fp32"), ("cos", "*fp32"))
    broken = Variant("viv1t.kernels.attention.triton_kernels", "rotate_kernel", signature, (), (), 4, 1)
    with Compilers() as compilers, pytest.raises(CompilerFailed, match=r"attention\.rotate fp32 4x1 for sm_90: \w+"):
        compilers.compile([(broken, 90)])
