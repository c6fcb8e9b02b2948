"""Compiles the GPU kernels without a GPU and reports what they need: registers, spills, shared memory.

    python -m viv1t.kernels.ahead_of_time attention --arch 90

prints a row per variant. An operator's Triton module lists its variants in a function `variants()`. Must run without
`TRITON_INTERPRET`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict

from .common.variant import SHARED_LIMITS, Variant, compile_variant

OPERATORS = ("attention", "parallel_block", "patch_embed", "readout")


def variants_of(operators: Iterable[str]) -> Iterator[Variant]:
    """All variants of operators named as in `OPERATORS`."""
    for operator in operators:
        yield from importlib.import_module(f"{__package__}.{operator}.triton").variants()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m viv1t.kernels.ahead_of_time", description=__doc__)
    parser.add_argument("operators", nargs="*", metavar="operator", help=f"of {', '.join(OPERATORS)}; default all")
    parser.add_argument("--arch", type=int, nargs="+", choices=SHARED_LIMITS, default=[80, 90])
    parser.add_argument("--match", default="", help="regular expression that a variant's name must contain")
    parser.add_argument("--json", action="store_true", help="print a line of JSON per variant")
    options = parser.parse_args()
    if unknown := set(options.operators) - set(OPERATORS):
        parser.error(f"no operator {', '.join(sorted(unknown))}; there are {', '.join(OPERATORS)}")
    if not options.json:
        print(f"{'variant':48} {'arch':>4} {'warps':>5} {'registers':>9} {'spilled':>7} {'shared':>7} {'resident':>8}")
    for variant in variants_of(options.operators or OPERATORS):
        if not re.search(options.match, variant.name):
            continue
        for arch in options.arch:
            usage = compile_variant(variant, arch)
            if options.json:
                print(json.dumps({**asdict(usage), "faults": usage.faults}), flush=True)
                continue
            print(
                f"{usage.name:48} {arch:4} {usage.warps:5} {usage.registers:9} {usage.spilled:7} {usage.shared:7} "
                f"{usage.resident_warps:8}  {'; '.join(usage.faults)}".rstrip(),
                flush=True,
            )


if __name__ == "__main__":
    main()
