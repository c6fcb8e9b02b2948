"""One specialisation of a GPU kernel, compiled without a GPU: the registers, spills and shared memory that it needs."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

# Shared memory in bytes that a program may use, by compute capability.
SHARED_LIMITS = {80: 166_912, 86: 101_376, 89: 101_376, 90: 232_448, 100: 232_448, 120: 101_376}
_REGISTERS_PER_SM = 65_536

_TYPES = {
    torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.int64: "i64", torch.int32: "i32",
    torch.bool: "i1",
}  # fmt: skip


@dataclass(frozen=True)
class Variant:
    """One specialisation of a kernel.

    Attributes:
        name: tells it from the others.
        kernel: the jitted function.
        arguments: by name, in any order: a dtype for a pointer to it, aligned to 16 bytes; `int` or `float` for a
            32-bit scalar; anything else (also None for a pointer that is not given) for a constant.
        warps, stages: as launched.
    """

    name: str
    kernel: Any
    arguments: Mapping[str, Any]
    warps: int
    stages: int


@dataclass(frozen=True)
class Usage:
    """What a compiled variant needs: registers and spilled bytes per thread, shared memory in bytes per program."""

    name: str
    arch: int
    registers: int
    spilled: int
    shared: int
    warps: int

    @property
    def resident_warps(self) -> int:
        """Warps that registers and shared memory allow on a multiprocessor, of 64."""
        per_warp = -(-self.registers // 8) * 8 * 32
        programs = min(_REGISTERS_PER_SM // (per_warp * self.warps), 64 // self.warps)
        if self.shared:
            programs = min(programs, SHARED_LIMITS[self.arch] // self.shared)
        return programs * self.warps

    @property
    def faults(self) -> list[str]:
        """What would slow it down or keep it from running."""
        faults = [f"{self.spilled} bytes of registers spilled"] if self.spilled else []
        limit = SHARED_LIMITS[self.arch]
        return faults + ([f"{self.shared} bytes of shared memory, above {limit}"] if self.shared > limit else [])


def compile_variant(variant: Variant, arch: int) -> Usage:
    """Compiles for a compute capability (80, 90, ...) and reads the assembler's report.

    Raises:
        RuntimeError: Triton is in interpreter mode.
        subprocess.CalledProcessError: the assembler refuses the code.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    if triton.knobs.runtime.interpret:
        raise RuntimeError("kernels cannot be compiled ahead of time with TRITON_INTERPRET set")
    signature, constants, attributes = {}, {}, {}
    names = variant.kernel.arg_names
    assert set(names) == set(variant.arguments), set(names) ^ set(variant.arguments)
    for i, name in enumerate(names):
        value = variant.arguments[name]
        if isinstance(value, torch.dtype):
            signature[name] = f"*{_TYPES[value]}"
            attributes[(i,)] = [["tt.divisibility", 16]]
        elif value is int or value is float:
            signature[name] = "i32" if value is int else "fp32"
        else:
            signature[name], constants[name] = "constexpr", value
    source = ASTSource(fn=variant.kernel, signature=signature, constexprs=constants, attrs=attributes)
    options = {"num_warps": variant.warps, "num_stages": variant.stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    registers, spilled = _assemble(compiled.asm["ptx"], arch, triton.knobs.nvidia.ptxas.path)
    return Usage(variant.name, arch, registers, spilled, compiled.metadata.shared, variant.warps)


def _assemble(ptx: str, arch: int, ptxas: str) -> tuple[int, int]:
    """Registers and bytes of spill stores and loads per thread."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.ptx"
        file.write_text(ptx)
        target = f"sm_{arch}a" if arch >= 90 else f"sm_{arch}"
        command = [ptxas, "-v", f"--gpu-name={target}", str(file), "-o", str(file.with_suffix(".cubin"))]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    used = re.search(r"Used (\d+) registers", report)
    spills = re.findall(r"(\d+) bytes spill (?:stores|loads)", report)
    if used is None or len(spills) < 2:
        raise RuntimeError(f"the assembler's report is not understood:\n{report}")
    return int(used[1]), sum(map(int, spills))
