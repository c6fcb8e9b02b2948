"""What PyTorch's compiler writes for CUDA, of a step without data, as a process of its own prints it.

    python fake_inductor.py GUARD

prints a line of JSON for each graph: whether it is a backward, and how many kernels, products and operators of ours its
program calls. Nothing is run: the first call of a program ends it.
"""

from __future__ import annotations

import ctypes
import sys

if __name__ == "__main__":
    ctypes.CDLL(sys.argv[1])

import contextlib
import json
import re
from types import SimpleNamespace
from typing import Any

import torch
import torch._dynamo.config
import torch._dynamo.device_interface
import torch._functorch.config
import torch._inductor.config
import torch._inductor.fx_passes.joint_graph
import torch._inductor.graph
import torch.utils._triton
import triton
from fake_steps import CUDA, H100, MICE, PUBLISHED, make_batch
from torch import nn
from triton.backends.compiler import GPUTarget
from viv1t.kernels.dry_run import without_data

from viv1t.families.known import FAMILIES
from viv1t.model.twin import Neurons
from viv1t.training.step import Step

PROPERTIES = SimpleNamespace(
    name="H100", major=9, minor=0, multi_processor_count=132, regs_per_multiprocessor=65_536, warp_size=32,
    max_threads_per_multi_processor=2048, max_threads_per_block=1024, total_memory=80 * 2**30, gcnArchName="",
    shared_memory_per_block=49_152, shared_memory_per_block_optin=232_448, shared_memory_per_multiprocessor=233_472,
    L2_cache_size=50 * 2**20,
)  # fmt: skip


class Ended(Exception):
    """A program that was written was called."""


class Driver:
    """Triton's, of a GPU that is not there."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_device_interface(self) -> Any:
        return torch.cuda


def pretend() -> list[dict[str, Any]]:
    """A GPU, as far as the compiler asks; the programs that it writes, counted."""
    cuda: Any = torch.cuda
    cuda.get_device_properties = lambda *_: PROPERTIES
    cuda.get_device_capability = lambda *_: (9, 0)
    cuda.is_available = lambda: True
    cuda.device_count, cuda.current_device = lambda: 1, lambda: 0
    cuda.is_initialized, cuda._lazy_init, cuda.random._lazy_init = lambda: False, lambda: None, lambda: None
    state = torch.zeros(16, dtype=torch.uint8)
    cuda.get_rng_state, cuda.set_rng_state = lambda *_: state, lambda *_: None
    for name in ("_exchange_device", "_maybe_exchange_device", "set_device", "current_stream", "synchronize"):
        setattr(cuda, name, lambda *_: 0)
    interface: Any = torch._dynamo.device_interface.CudaInterface
    for name, answer in {
        "is_available": True, "current_device": 0, "get_device_properties": PROPERTIES, "get_compute_capability": 90,
        "get_raw_stream": 0, "is_triton_capable": True, "raise_if_triton_unavailable": None, "memory_allocated": 0,
    }.items():  # fmt: skip
        setattr(interface, name, staticmethod(lambda *_, answer=answer: answer))
    interface.device = lambda *_: contextlib.nullcontext()
    interface.Worker.get_device_properties = staticmethod(lambda *_: PROPERTIES)
    interface.Worker.current_device = staticmethod(lambda: 0)
    for module in list(sys.modules.values()):
        if getattr(module, "__name__", "").startswith(("torch._inductor", "torch.utils._triton")):
            for name in ("has_triton", "has_triton_package"):
                if hasattr(module, name):
                    setattr(module, name, lambda *_: True)
    triton.runtime.driver.set_active(Driver())
    inductor: Any = torch._inductor.config
    inductor.compile_threads, inductor.force_disable_caches = 1, True
    # These compute with real tensors on the device.
    inductor.pattern_matcher = inductor.joint_graph_constant_folding = False
    torch._inductor.fx_passes.joint_graph.lazy_init = lambda *_, **__: None
    functorch: Any = torch._functorch.config
    functorch.force_non_lazy_backward_lowering, functorch.enable_autograd_cache = True, False

    programs: list[dict[str, Any]] = []
    graph: Any = torch._inductor.graph.GraphLowering
    generate = graph.codegen

    def codegen(self: Any) -> Any:
        result = generate(self)
        text = getattr(result[0], "value", str(result[0]))
        programs.append(
            {
                "backward": bool(self.is_backward),
                "kernels": len(re.findall(r"async_compile\.triton\('\w+'", text)),
                "launches": len(re.findall(r"\.run\(", text)),
                "products": len(re.findall(r"extern_kernels\.\w*mm\(", text)),
                "operators": sorted(set(re.findall(r"torch\.ops\.viv1t\.(\w+)\.default\(", text))),
                "host": len(re.findall(r"cpp_fused|device='cpu'", text)),
            }
        )
        return result

    def compile_to_module(self: Any) -> Any:
        self.codegen()
        self.cache_key, self.cache_path, self.cache_linemap = "none", __file__, []

        def call(_: Any) -> None:
            raise Ended

        return SimpleNamespace(call=call, __file__=__file__, key="none", runner=None)

    graph.codegen, graph.compile_to_module = codegen, compile_to_module
    return programs


def main() -> None:
    nn.init.trunc_normal_ = lambda weight, **_: weight  # type: ignore[assignment]
    programs = pretend()
    # Parameters without data cannot be told to the compiler as the model's own are.
    torch._dynamo.config.force_parameter_static_shapes = False
    with without_data(H100), torch.autograd.set_multithreading_enabled(False):
        family = FAMILIES["2023"]
        config = family.from_options(PUBLISHED | {"precision": "bf16"})
        with torch.device(CUDA):
            model = family.build_model(
                config, {m: Neurons(n, 100 * torch.rand(n, 3)) for m, n in MICE.items()}, (36, 64)
            )
        step = Step(model.train(), family.training(model, config, dict.fromkeys(MICE, 700)), compiled=True)
        with contextlib.suppress(Ended):
            step.accumulate(make_batch("A", MICE["A"], 6, 140))
    for program in programs:
        print(json.dumps(program), flush=True)


if __name__ == "__main__":
    main()
