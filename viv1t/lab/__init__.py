"""The in-silico lab: experiments on a trained twin, for every neuron.

`Lab` is imported when it is asked for: it needs the packages of `pip install 'viv1t[lab]'`.
"""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    if name != "Lab":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from viv1t.lab.tables import check_packages

    check_packages()
    from viv1t.lab.lab import Lab

    return Lab
