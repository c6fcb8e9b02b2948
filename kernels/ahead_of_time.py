"""Kernels compiled without a GPU, in processes of their own: for whoever asks, and as a command.

    python -m viv1t.kernels.ahead_of_time < pairs

reads lines of JSON, each a variant and a compute capability, and answers each with what it needs, or with the error.
Must run without `TRITON_INTERPRET`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from queue import SimpleQueue
from typing import Any

from .common.variant import Compiled, Usage, Variant, compile_variant


class CompilerFailed(Exception):
    """A kernel does not compile; names it, the architecture and the reason."""


class Compilers:
    """Processes that compile side by side; they start when they are needed.

    Args:
        processes: how many; default as many as there are cores.
        disassemble: keep the machine code.
    """

    def __init__(self, processes: int | None = None, disassemble: bool = False) -> None:
        self._most = processes or len(os.sched_getaffinity(0))
        self._command = [sys.executable, "-m", __spec__.name, *(["--sass"] if disassemble else [])]
        self._idle: SimpleQueue[subprocess.Popen[str]] = SimpleQueue()
        self._started = 0

    def __enter__(self) -> Compilers:
        return self

    def __exit__(self, *raised: object) -> None:
        for _ in range(self._started):
            with self._idle.get() as compiler:
                assert compiler.stdin is not None
                compiler.stdin.close()

    def compile(self, pairs: Iterable[tuple[Variant, int]]) -> list[Compiled]:
        """What each variant needs on the compute capability (80, 90, ...) that it is paired with, in order.

        Raises:
            CompilerFailed: one does not compile.
        """
        asked = list(pairs)
        environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        while self._started < min(self._most, len(asked)):
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            self._idle.put(subprocess.Popen(self._command, env=environment, **pipes))  # type: ignore[call-overload]
            self._started += 1
        with ThreadPoolExecutor(self._most) as pool:
            return list(pool.map(self._one, asked))

    def _one(self, pair: tuple[Variant, int]) -> Compiled:
        variant, arch = pair
        compiler = self._idle.get()
        assert compiler.stdin is not None
        assert compiler.stdout is not None
        try:
            print(json.dumps([variant.to_json(), arch]), file=compiler.stdin, flush=True)
            return _answer(compiler.stdout.readline(), variant, arch)
        except BrokenPipeError:
            return _answer("", variant, arch)
        finally:
            self._idle.put(compiler)


def _answer(line: str, variant: Variant, arch: int) -> Compiled:
    answer: dict[str, Any] = json.loads(line) if line else {"error": "the compiler's process ended"}
    if "error" in answer:
        raise CompilerFailed(f"{variant.label} for sm_{arch}: {answer['error']}")
    return Compiled(Usage(**answer["usage"]), answer["sass"])


def main() -> None:
    disassemble = "--sass" in sys.argv
    for line in sys.stdin:
        text, arch = json.loads(line)
        try:
            answer: dict[str, Any] = asdict(compile_variant(Variant.from_json(text), arch, disassemble))
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[-300:]}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
