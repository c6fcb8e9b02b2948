"""`python -m benchmarks.families`: both families of models on the demo's mice, for an equal time, by seed.

For every seed mice are made, and a demo-sized model of each family is trained on them for as many epochs as fit in the
given minutes: one epoch, the second of a run of its own, says how long they take. Each is told by its correlation with
single trials of movies that it never saw, and by the share that it has of what noise allows. A table is printed, and
written to `families.csv` and `families.json`.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks.harness import ROOT, facts, machine_name
from viv1t.config.fields import Options
from viv1t.data.synthetic.mice import synthesize
from viv1t.data.synthetic.truth import noise_ceiling
from viv1t.recipes import demo
from viv1t.recipes.train import run
from viv1t.system.files import write_text

COLUMNS = ("family", "seed", "epochs", "seconds", "correlation", "reachable", "share")
Row = dict[str, Any]


def trained(family: str, output_dir: Path, data: Path, more: Options) -> tuple[float, list[float]]:
    """Trains a demo-sized model; returns its score of the tier validation, and what each epoch took in seconds."""
    options = {"family": family, "output_dir": str(output_dir), "verbose": 0, "device": "cpu"} | more
    options["data" if family == "2023" else "data_dir"] = str(data)
    _, final = run(demo.demo_config(options))
    with open(output_dir / "metrics.csv", newline="") as file:
        return final.mean, [float(row["seconds"]) for row in csv.DictReader(file)]


def compare(
    seeds: Sequence[int], minutes: float, folder: Path, changes: Mapping[str, Options] | None = None
) -> list[Row]:
    """Trains both families with each seed.

    Args:
        seeds: of mice and models.
        minutes: of training and validation together, for each model.
        folder: of mice and runs.
        changes: options by family, beside the demo's.

    Returns:
        A row for each model: `COLUMNS`.
    """
    rows: list[Row] = []
    for seed in seeds:
        data = folder / f"mice-{seed}"
        sessions = synthesize(data, mice=("F", "G"), size=demo.SIZE, seed=seed, existing="resume")
        reachable = float(np.mean([noise_ceiling(path, "oracle").mean() for path in sessions]))
        for family in demo.DEMOS:
            more = dict((changes or {}).get(family, {})) | {"seed": seed}
            _, tried = trained(family, folder / f"trial-{family}-{seed}", data, more | {"epochs": 2})
            epochs = max(1, int(60 * minutes / tried[-1]))
            score, took = trained(family, folder / f"run-{family}-{seed}", data, more | {"epochs": epochs})
            values = (family, seed, epochs, round(sum(took), 1), score, reachable, score / reachable)
            rows.append(dict(zip(COLUMNS, values, strict=True)))
            print(line(rows[-1]), flush=True)
    return rows


def line(row: Row) -> str:
    """A row of the table, as printed."""
    return (
        f"{row['family']}  seed {row['seed']}  {row['epochs']:3} epochs  {row['seconds']:6.1f} s  "
        f"{row['correlation']:.3f} of {row['reachable']:.3f}  {row['share']:.0%}"
    )


def shares(rows: Sequence[Row]) -> dict[str, float]:
    """The mean share over seeds, by family."""
    return {f: float(np.mean([row["share"] for row in rows if row["family"] == f])) for f in demo.DEMOS}


def write(rows: Sequence[Row], minutes: float, folder: Path) -> None:
    """Writes `families.csv` and `families.json`, the rows with what they depend on."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    writer.writerows(rows)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "families.csv", text.getvalue())
    content = {"facts": facts(), "minutes": minutes, "mean_share": shares(rows), "rows": list(rows)}
    write_text(folder / "families.json", json.dumps(content, indent=2) + "\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.families", description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="how many, from 1 (default 3)")
    parser.add_argument("--minutes", type=float, default=3.0, metavar="X", help="of training a model (default 3)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default benchmarks/results/<machine>")
    args = parser.parse_args(argv)
    with TemporaryDirectory() as folder:
        rows = compare(range(1, args.seeds + 1), args.minutes, Path(folder))
    out = args.out or ROOT / "benchmarks" / "results" / machine_name()
    write(rows, args.minutes, out)
    print("mean share: " + ", ".join(f"{family} {share:.0%}" for family, share in shares(rows).items()))
    print(f"written to {out / 'families.csv'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
