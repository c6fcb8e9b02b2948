"""What a processor has for products in bf16, from what it and the environment say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from viv1t.kernels.common import precision
from viv1t.kernels.common.precision import cpu_multiplies_bf16, multiplies_bf16

NEW, OLD = {"avx2", "avx512f", "avx512_bf16"}, {"avx2", "fma", "f16c"}


@pytest.mark.parametrize(
    ("flags", "environment", "there"),
    [
        (NEW, {}, True),
        (OLD, {}, False),
        ({"avx512f", "avx512_vnni"}, {}, False),
        ({"amx_tile", "amx_bf16"}, {}, True),
        ({"asimd", "bf16"}, {}, True),
        ({"asimd", "fphp"}, {}, False),
        (NEW, {"ONEDNN_MAX_CPU_ISA": "AVX2"}, False),
        (NEW, {"ONEDNN_MAX_CPU_ISA": "avx512_core_vnni"}, False),
        (NEW, {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}, True),
        (NEW, {"ONEDNN_MAX_CPU_ISA": "DEFAULT"}, True),
        (NEW, {"ATEN_CPU_CAPABILITY": "avx2"}, False),
        (NEW, {"ATEN_CPU_CAPABILITY": "avx512"}, True),
        (set(), {}, False),
    ],
)
def test_processors(flags: set[str], environment: dict[str, str], there: bool) -> None:
    assert cpu_multiplies_bf16(flags, environment) == there


@pytest.mark.parametrize(
    ("text", "flag"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx2 avx512_bf16\nbugs\t\t: spectre\n", "avx512_bf16"),
        ("processor\t: 0\nFeatures\t: fp asimd bf16\nCPU part\t: 0xd40\n", "bf16"),
    ],
)
def test_flags_as_linux_lists_them(text: str, flag: str, tmp_path: Path) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(text)
    assert flag in precision._cpu_flags(path)
    assert not {"spectre", "0xd40"} & precision._cpu_flags(path)


def test_without_proc_pytorch_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    known = {"avx512_bf16": True, "amx_bf16": False, "cpu_name": "x"}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known, raising=False)
    assert precision._cpu_flags(tmp_path / "missing") == {"avx512_bf16"}
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert precision._cpu_flags(tmp_path / "missing") == set()


@pytest.mark.parametrize(("capability", "there"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_gpus_from_ampere_on(capability: tuple[int, int], there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    multiplies_bf16.cache_clear()
    try:
        assert multiplies_bf16(torch.device("cuda")) == there
    finally:
        multiplies_bf16.cache_clear()


def test_this_processor() -> None:
    """What oneDNN's own look says of a processor without AVX-512 holds here."""
    multiplies_bf16.cache_clear()
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        assert not multiplies_bf16(torch.device("cpu"))
