"""How kernels take products, and what the processor has for them."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Mapping
from pathlib import Path

import torch

HALF = (torch.bfloat16, torch.float16)


def allows_tf32() -> bool:
    """Whether PyTorch may multiply float32 as TF32, by whichever of its switches that was said.

    The older switch, `allow_tf32`, cannot be read any more once a newer one was used.
    """
    return torch.backends.cuda.matmul.fp32_precision == "tf32"


def input_precision(dtype: torch.dtype) -> str:
    """Of `tl.dot` for operands of a type: float32 is split in three unless PyTorch is allowed TF32."""
    if dtype in HALF:
        return "ieee"
    return "tf32" if allows_tf32() else "tf32x3"


_CPU_BF16 = {"avx512_bf16", "amx_bf16", "bf16", "svebf16"}  # as Linux calls them, of x86 and of ARM


@functools.cache
def multiplies_bf16(device: torch.device) -> bool:
    """Whether a device multiplies bf16 in hardware: one that does not takes several times as long as in float32."""
    if device.type == "cuda" and torch.cuda.is_available():
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type != "cpu" or cpu_multiplies_bf16(_cpu_flags(), os.environ)


def cpu_multiplies_bf16(flags: set[str], environment: Mapping[str, str]) -> bool:
    """The same of a processor with these flags, as far as the environment lets oneDNN and PyTorch use them."""
    names = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY")
    most = [environment.get(name, "").upper() for name in names]
    narrow = any(re.match(r"SSE|AVX2?(_VNNI)?$|AVX512_CORE(_VNNI)?$", limit) for limit in most)
    return bool(flags & _CPU_BF16) and not narrow


def _cpu_flags(path: Path = Path("/proc/cpuinfo")) -> set[str]:
    try:
        found = re.search(r"^(?:flags|Features)\s*:(.*)$", path.read_text(), re.MULTILINE)
    except OSError:  # not Linux
        found = None
    if found is not None:
        return set(found[1].split())
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # from PyTorch 2.12 on
    return {name for name, there in capabilities.items() if there is True}
