"""One specialisation of a GPU kernel, compiled without a GPU: the registers, spills and shared memory that it needs."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .launch import Launch

# Shared memory in bytes that a program may use, by compute capability.
SHARED_LIMITS = {80: 166_912, 86: 101_376, 89: 101_376, 90: 232_448, 100: 232_448, 120: 101_376}
_REGISTERS_PER_SM = 65_536
# Offsets within a tensor that kernels compute in 32 bits.
_LARGEST_INT = 2**31

_TYPES = {
    torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.int64: "i64", torch.int32: "i32",
    torch.bool: "i1",
}  # fmt: skip


@dataclass(frozen=True)
class Variant:
    """One specialisation of a kernel, as Triton makes it for a launch.

    Attributes:
        module, kernel: where the jitted function is, and its name.
        signature: type of each argument by name; `constexpr` for what is in `constants`.
        constants: what is compiled in: constants, arguments that are 1, and None for pointers that are not given.
        aligned: arguments that are known to be multiples of 16, or pointers to such addresses.
        warps, stages: as launched.
    """

    module: str
    kernel: str
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Any], ...]
    aligned: tuple[str, ...]
    warps: int
    stages: int

    @property
    def name(self) -> str:
        """The operator and its kernel."""
        return f"{self.module.split('.')[-2]}.{self.kernel.removesuffix('_kernel')}"

    @property
    def label(self) -> str:
        """Name, types, constants and sizes that are multiples of 16, which tell it from others."""
        types = [kind.lstrip("*") for _, kind in self.signature if kind not in ("i32", "fp32")]
        constants = [f"{name}={value}" for name, value in self.constants]
        sizes = [f"{name}%16" for name, kind in self.signature if kind == "i32" and name in self.aligned]
        kinds = ",".join(dict.fromkeys(kind for kind in types if kind != "constexpr"))
        return " ".join([self.name, kinds, *constants, *sizes, f"{self.warps}x{self.stages}"])

    def to_json(self) -> str:
        return json.dumps([getattr(self, field) for field in self.__dataclass_fields__])

    @staticmethod
    def from_json(text: str) -> Variant:
        module, kernel, signature, constants, aligned, warps, stages = json.loads(text)
        types, values = (tuple((name, value) for name, value in given) for given in (signature, constants))
        return Variant(module, kernel, types, values, tuple(aligned), warps, stages)


def variant_of(launch: Launch) -> Variant:
    """The specialisation that Triton makes for a launch."""
    kernel = launch.kernel
    signature, constants, aligned = {}, {}, []
    for parameter, value in zip(kernel.params, launch.arguments, strict=True):
        name = parameter.name
        if parameter.is_constexpr or value is None or (_is_size(value, parameter) and value == 1):
            signature[name], constants[name] = "constexpr", value
        elif isinstance(value, Tensor):
            signature[name] = f"*{_TYPES[value.dtype]}"
            if value.storage_offset() * value.itemsize % 16 == 0:
                aligned.append(name)
        elif isinstance(value, float):
            signature[name] = "fp32"
        else:
            signature[name] = "i32" if -_LARGEST_INT <= value < _LARGEST_INT else "i64"
            if value % 16 == 0 and _is_size(value, parameter):
                aligned.append(name)
    return Variant(
        kernel.fn.__module__, kernel.fn.__name__, tuple(signature.items()), tuple(constants.items()), tuple(aligned),
        launch.tile.warps, launch.tile.stages,
    )  # fmt: skip


def _is_size(value: Any, parameter: Any) -> bool:
    """Whether a number is one that a kernel is compiled again for."""
    return isinstance(value, int) and not isinstance(value, bool) and not parameter.do_not_specialize


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
    def resident_programs(self) -> int:
        """Programs that registers and shared memory allow on a multiprocessor, of 64 warps."""
        per_warp = -(-self.registers // 8) * 8 * 32
        programs = min(_REGISTERS_PER_SM // (per_warp * self.warps), 64 // self.warps)
        return min(programs, SHARED_LIMITS[self.arch] // self.shared) if self.shared else programs

    @property
    def resident_warps(self) -> int:
        """The same in warps."""
        return self.resident_programs * self.warps

    @property
    def faults(self) -> list[str]:
        """What would slow it down or keep it from running."""
        faults = [f"{self.spilled} bytes of registers spilled"] if self.spilled else []
        limit = SHARED_LIMITS[self.arch]
        return faults + ([f"{self.shared} bytes of shared memory, above {limit}"] if self.shared > limit else [])


@dataclass(frozen=True)
class Compiled:
    """A variant's needs, and its machine code as the disassembler prints it, where it was asked for."""

    usage: Usage
    sass: str = ""


def compile_variant(variant: Variant, arch: int, disassemble: bool = False) -> Compiled:
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
    kernel = getattr(importlib.import_module(variant.module), variant.kernel)
    attributes = {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in variant.aligned}
    source = ASTSource(
        fn=kernel, signature=dict(variant.signature), constexprs=dict(variant.constants), attrs=attributes
    )
    options = {"num_warps": variant.warps, "num_stages": variant.stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    registers, spilled, sass = _assemble(compiled.asm["ptx"], arch, disassemble)
    return Compiled(Usage(variant.label, arch, registers, spilled, compiled.metadata.shared, variant.warps), sass)


def _assemble(ptx: str, arch: int, disassemble: bool) -> tuple[int, int, str]:
    """Registers, and bytes of spill stores and loads, per thread; the machine code."""
    import triton

    # Older assemblers know no Blackwell.
    tools = triton.knobs.nvidia
    assembler = tools.ptxas_blackwell if arch >= 100 and hasattr(tools, "ptxas_blackwell") else tools.ptxas
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.ptx"
        file.write_text(ptx)
        target, cubin = f"sm_{arch}a" if arch >= 90 else f"sm_{arch}", str(file.with_suffix(".cubin"))
        report = _run([assembler.path, "-v", f"--gpu-name={target}", str(file), "-o", cubin]).stderr
        sass = _run([tools.cuobjdump.path, "-sass", cubin]).stdout if disassemble else ""
    used = re.search(r"Used (\d+) registers", report)
    spills = re.findall(r"(\d+) bytes spill (?:stores|loads)", report)
    if used is None or len(spills) < 2:
        raise RuntimeError(f"the assembler's report is not understood:\n{report}")
    return int(used[1]), sum(map(int, spills)), sass


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=True)
