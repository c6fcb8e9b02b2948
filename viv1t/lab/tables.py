"""Tables of experiments: a row a neuron, in parquet or CSV."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from viv1t.errors import ConfigError, DataError
from viv1t.system.files import replacing
from viv1t.types import Mouse

if TYPE_CHECKING:
    import pandas as pd

FORMATS = ("parquet", "csv")


def check_packages() -> None:
    """Raises a ConfigError where a package of the extra `lab` is missing."""
    missing = [name for name in ("pandas", "pyarrow", "scipy") if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"experiments need {' and '.join(missing)}: install the extra with `pip install 'viv1t[lab]'`"
        )


def table_of(mouse: Mouse, neurons: np.ndarray, columns: Mapping[str, Any]) -> pd.DataFrame:
    """A table of some of a mouse's neurons.

    Args:
        mouse: whose they are.
        neurons: (n,) their places among the N.
        columns: n values of each name; rows of curves become lists.

    Returns:
        `mouse`, `neuron`, `unit_id` (-1 where it is not known) and the columns, `reason` last.
    """
    import pandas as pd

    ids = mouse.unit_ids[neurons] if len(mouse.unit_ids) else np.full(len(neurons), -1)
    data: dict[str, Any] = {"mouse": [mouse.id] * len(neurons), "neuron": neurons, "unit_id": ids}
    for name in sorted(columns, key=lambda name: name == "reason"):
        values = columns[name]
        curves = len(values) > 0 and isinstance(values[0], np.ndarray)
        data[name] = [np.asarray(v, dtype=float).tolist() for v in values] if curves else values
    return pd.DataFrame(data)


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Writes a table in the format that the file's ending names, atomically; lists are JSON in a CSV."""
    with replacing(path) as temporary:
        if path.suffix == ".parquet":
            table.to_parquet(temporary, index=False)
        else:
            lists = [name for name in table if any(isinstance(v, list) for v in table[name])]
            table.assign(**{n: [json.dumps(v) for v in table[n]] for n in lists}).to_csv(temporary, index=False)


def read_table(path: Path) -> pd.DataFrame:
    """Reads what `write_table` wrote.

    Raises:
        DataError: the file is missing or damaged.
    """
    import pandas as pd

    try:
        if path.suffix == ".parquet":
            table = pd.read_parquet(path)
            for name in table:
                if any(isinstance(v, np.ndarray) for v in table[name]):
                    table[name] = [np.asarray(v).tolist() for v in table[name]]
            return table
        table = pd.read_csv(path, dtype={"mouse": str, "reason": str}, keep_default_na=True)
        for name in table.select_dtypes(exclude="number"):
            if len(table) and all(isinstance(v, str) and v.startswith("[") for v in table[name]):
                table[name] = [json.loads(v) for v in table[name]]
        if "reason" in table:
            table["reason"] = table["reason"].fillna("")
        return table
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{path}: cannot be read ({' '.join(str(error).split())[:200]}); delete it") from error
